//! The life of one container. Pure: `(state, input, now) -> (state, effects)`. Owns: the steps of a run, when the next
//! run begins, its probes and hooks, and which events are reported. Must not know: other containers, and the reasons behind an input.
//!
//! ```text
//!          Create             Created            Start              Started
//!   New ───────────▶ Creating ───────▶ Created ───────▶ Starting ───────────▶ Running
//!                     ▲ │                 │                 │                    │ Ended
//!                     │ │ Failed          │ Failed, Ended   │ Failed             ▼
//!   the wait is over, │ ▼                 ▼                 ▼                 Draining
//!   the next run      │ ┌─────────────────────────────────────┐ Drained, or 3 s  │
//!                     │ │ its end is reported: restart?       │◀─────────────────┘
//!                     │ └─────────────────────────────────────┘
//!                     │     │ yes                      │ no
//!                     │     ▼         Retire           ▼
//!                  BackOff ─────────────────────────▶ Over
//! ```
//!
//! Within `Running`, a postStart hook comes first: before it has succeeded, the container does not count as running, and its failure ends
//! the container. Then the startup probe runs, and after its success the container is *started*: the liveness and readiness probes run, and
//! it is *ready* as the readiness probe says, or at once without one. A failed hook, a failed startup or liveness probe and a stop of the
//! pod end the container ([`ending`](super::ending) says how), and nothing is probed from then on.
//!
//! Whether an end is reported, and whether the container restarts, depends on its [`Tenure`]. A main container of a pod that is still
//! starting waits for the order to start, holds its end back until the pod runs, and fails for good. An init container or sidecar starts as
//! soon as it is created and restarts according to its policy; only a first run that can't be started fails for good. So does a main
//! container of a running pod, whose failed starts are tried again too. A retired one never starts again, and is given up at once if it
//! has not begun to run.
//!
//! The happy path: [`Input::Create`] gives [`Effect::Create`]; [`News::Created`] gives `ContainerCreated`; [`Input::Start`]
//! gives [`Effect::Start`]; [`News::Started`] gives `ContainerStarted`; [`Input::Release`] says that the pod runs;
//! [`News::Ended`] and [`News::Drained`] give [`Effect::Ended`] and `ContainerExited`. The policy `Never` ends its life
//! there; with `Always` the first restart follows at once, and the next ones after 10 s, 20 s and so on.

mod running;

use super::ending::{Ending, Turn};
use super::probe::Probe;
use super::rules::Rules;
use super::{News, Task};
use magikvm_proto::budget::{RESTART_BACKOFF_FIRST_MS, RESTART_BACKOFF_MAX_MS, RESTART_BACKOFF_RESET_MS};
use magikvm_proto::lifecycle::{HookKind, Role};
use magikvm_proto::state::{ContainerState, ContainerStatus, ExitStatus, Terminated, WaitingReason};
use magikvm_proto::text;
use magikvm_proto::wire::{EventKind, KillReason, ProgramProblem};

/// How long reading an ended container's output to its end may take, in milliseconds. After that the end is reported
/// anyway.
pub(super) const DRAIN_MS: u64 = 3_000;
/// Most bytes of a message in a container's status: those of all containers of a pod fit on one line of the wire, however
/// many characters JSON has to escape. The event carries the whole message.
const MAX_STATUS_MESSAGE_LEN: usize = 96;

/// An input of a container's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Create it for the first time.
    Create,
    /// Start it once it is created: everything that must come before it is done.
    Start,
    Release,
    /// The pod stops or has failed.
    Retire,
    /// Ask it to end. Its grace period ends at `kill_at`; a repeated stop can only shorten it.
    Stop {
        kill_at: u64,
        turn: Turn,
    },
    /// Those that had to end before it have ended.
    Turn,
    Kill,
    /// Stop waiting for output: a known end is reported now.
    Conclude,
    /// Something happened to a run.
    News {
        run: u32,
        news: News,
    },
    /// The deadline of [`Container::deadline`] has passed.
    Tick,
}

/// An action to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Create it for the run with this number.
    Create {
        run: u32,
    },
    /// Start its program.
    Start,
    /// Run a probe or a hook of this run; [`News::Handled`] answers.
    Handle {
        run: u32,
        task: Task,
        timeout_ms: u64,
    },
    /// Give up a probe or a hook. Nothing answers.
    Cancel(Task),
    /// Send its stop signal to its PID 1.
    Terminate,
    /// Kill all of it, and give it up if it is not created yet.
    Kill,
    /// A run has ended and its output was read.
    Ended(ExitStatus),
    Emit(EventKind),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    New,
    Creating,
    Created { pid: i32 },
    Starting { pid: i32, ended: Option<(ExitStatus, Option<String>)> },
    Running { since: u64, hook: Hook },
    Draining { run: Terminated, until: u64 },
    BackOff { wait_ms: u64, until: u64 },
    Over(Terminated),
}

/// The postStart hook of a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Runs,
    Failed,
    /// It has succeeded, or there is none.
    Done,
}

/// How the container relates to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tenure {
    Held,
    /// It belongs to the pod's initialization.
    Alone,
    Free,
    /// The pod stops or has failed.
    Retired,
}

/// What is to happen to a program that is just being started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Stop { kill_at: u64, turn: Turn },
    Kill,
}

#[derive(Debug, Clone)]
pub(crate) struct Container {
    rules: Rules,
    tenure: Tenure,
    asked: Asked,
    phase: Phase,
    ending: Option<Ending>,
    probes: Vec<Probe>,
    /// The startup probe has succeeded, or there is none.
    started: bool,
    ready: bool,
    /// Whether it was started at any time.
    has_been_started: bool,
    /// A failed probe ends this run, so that the container restarts whatever its exit code is.
    failed_probe: bool,
    run: u32,
    /// Restarts since the backoff was last reset.
    restarts: u32,
    /// Whether the current run's output was read to its end.
    drained: bool,
    /// The end of the current run's log.
    tail: Option<String>,
    last: Option<Terminated>,
}

impl Container {
    /// A container that is not created yet.
    pub(crate) fn new(rules: Rules) -> Self {
        let tenure = match rules.role {
            Role::Main => Tenure::Held,
            Role::Init | Role::Sidecar => Tenure::Alone,
        };
        let probes = rules.probes().map(|(kind, plan)| Probe::new(kind, plan.clone())).collect();
        Self {
            rules,
            tenure,
            asked: Asked::Nothing,
            phase: Phase::New,
            ending: None,
            probes,
            started: false,
            ready: false,
            has_been_started: false,
            failed_probe: false,
            run: 0,
            restarts: 0,
            drained: false,
            tail: None,
            last: None,
        }
    }

    /// Handles one input at `now`.
    pub(crate) fn step(&mut self, input: Input, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Create if self.phase == Phase::New && self.tenure != Tenure::Retired => {
                self.create(&mut effects);
            }
            Input::Start => self.start(&mut effects),
            Input::Release if matches!(self.tenure, Tenure::Held | Tenure::Alone) => {
                self.tenure = Tenure::Free;
                self.settle(now, &mut effects);
            }
            Input::Retire => self.retire(now, &mut effects),
            Input::Stop { kill_at, turn } => {
                self.retire(now, &mut effects);
                self.stop(kill_at, turn, KillReason::Stop, now, &mut effects);
            }
            Input::Turn => self.end_on(|ending| ending.its_turn(now), now, &mut effects),
            Input::Kill => self.kill(&mut effects),
            Input::Conclude => {
                self.drained |= matches!(self.phase, Phase::Draining { .. });
                self.settle(now, &mut effects);
            }
            Input::News { run, news } if run == self.run => self.news(news, now, &mut effects),
            Input::Tick => self.tick(now, &mut effects),
            // Belongs to an earlier run or state.
            Input::Create | Input::Release | Input::News { .. } => {}
        }
        effects
    }

    pub(crate) fn role(&self) -> Role {
        self.rules.role
    }

    /// The number of the current run.
    pub(crate) fn run(&self) -> u32 {
        self.run
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let of_phase = match (&self.phase, self.asked) {
            (Phase::Draining { until, .. }, _) if !self.drained => Some(*until),
            (Phase::BackOff { until, .. }, _) => Some(*until),
            (Phase::Starting { .. }, Asked::Stop { kill_at, .. }) => Some(kill_at),
            _ => None,
        };
        let of_ending = self.ending.as_ref().and_then(Ending::deadline);
        self.probes.iter().filter_map(Probe::deadline).chain(of_phase).chain(of_ending).min()
    }

    /// Whether it exists and waits for its start.
    pub(crate) fn is_created(&self) -> bool {
        matches!(self.phase, Phase::Created { .. })
    }

    /// Whether it runs with its postStart hook done, or its first run has ended since.
    pub(crate) fn has_begun(&self) -> bool {
        matches!(self.phase, Phase::Running { hook: Hook::Done, .. } | Phase::Draining { .. })
    }

    /// Whether its startup probe, or what stands for it, has succeeded at any time.
    pub(crate) fn has_been_started(&self) -> bool {
        self.has_been_started
    }

    /// Whether nothing of it runs or will ever run.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// Whether it is over with success.
    pub(crate) fn has_succeeded(&self) -> bool {
        matches!(&self.phase, Phase::Over(run) if run.exit.code == 0)
    }

    /// Whether no more can be done to end it.
    pub(crate) fn is_killed(&self) -> bool {
        let killed = self.ending.as_ref().is_some_and(Ending::is_killed) || self.asked == Asked::Kill;
        killed || matches!(self.phase, Phase::Draining { .. } | Phase::Over(_))
    }

    /// The state that `status` shows. `epoch_ms` is the time since 1970 at which the steady clock showed 0.
    pub(crate) fn status(&self, epoch_ms: u64) -> ContainerStatus {
        let state = match &self.phase {
            Phase::New => ContainerState::waiting(self.rules.first_reason),
            Phase::Creating
            | Phase::Created { .. }
            | Phase::Starting { .. }
            | Phase::Running { hook: Hook::Runs | Hook::Failed, .. } => {
                ContainerState::waiting(WaitingReason::ContainerCreating)
            }
            Phase::Running { since, hook: Hook::Done } => {
                ContainerState::Running { started_ms: since.saturating_add(epoch_ms) }
            }
            // Its end is not reported yet.
            Phase::Draining { run, .. } => ContainerState::Running {
                started_ms: run.started_ms.unwrap_or(run.finished_ms).saturating_add(epoch_ms),
            },
            Phase::BackOff { wait_ms, .. } => ContainerState::back_off(*wait_ms),
            Phase::Over(run) => ContainerState::Terminated(shown(run, epoch_ms)),
        };
        let last = self.last.as_ref().map(|run| shown(run, epoch_ms));
        ContainerStatus {
            name: self.rules.name.clone(),
            role: self.rules.role,
            restart_count: self.run,
            state,
            started: self.started,
            ready: self.ready || (self.rules.role == Role::Init && self.has_succeeded()),
            last,
        }
    }

    fn create(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Creating;
        self.asked = Asked::Nothing;
        self.ending = None;
        self.failed_probe = false;
        self.drained = false;
        self.tail = None;
        effects.push(Effect::Create { run: self.run });
    }

    fn restart(&mut self, effects: &mut Vec<Effect>) {
        self.run += 1;
        self.create(effects);
    }

    fn start(&mut self, effects: &mut Vec<Effect>) {
        if let Phase::Created { pid } = self.phase {
            self.phase = Phase::Starting { pid, ended: None };
            effects.push(Effect::Start);
        }
    }

    /// From now on it begins nothing; what has begun may go on.
    fn retire(&mut self, now: u64, effects: &mut Vec<Effect>) {
        self.tenure = Tenure::Retired;
        match self.phase {
            // Nothing of this run ran, so there is nothing to wait for and nothing to report.
            Phase::Creating | Phase::Created { .. } => {
                effects.push(Effect::Kill);
                self.give_up(now);
            }
            Phase::New | Phase::BackOff { .. } => self.give_up(now),
            Phase::Draining { .. } => self.settle(now, effects),
            Phase::Starting { .. } | Phase::Running { .. } | Phase::Over(_) => {}
        }
    }

    /// Ends it without another run; the status then shows the run before, if there was one.
    fn give_up(&mut self, now: u64) {
        let message = "the pod ended before this container was started";
        let never_ran = || Terminated::not_started(message, now).of_run(self.run);
        let run = self.last.clone().unwrap_or_else(never_ran);
        self.last = None;
        self.phase = Phase::Over(run);
    }

    fn news(&mut self, news: News, now: u64, effects: &mut Vec<Effect>) {
        match (news, &mut self.phase) {
            (News::Created { pid }, Phase::Creating) => {
                self.phase = Phase::Created { pid };
                let container = self.rules.name.clone();
                effects.push(Effect::Emit(EventKind::ContainerCreated { container }));
                if matches!(self.tenure, Tenure::Free | Tenure::Alone) {
                    self.start(effects);
                }
            }
            (News::Started, Phase::Starting { pid, ended }) => {
                let (pid, ended) = (*pid, ended.take());
                self.runs(pid, ended, now, effects);
            }
            (
                News::Failed { message, program },
                Phase::Creating | Phase::Created { .. } | Phase::Starting { .. },
            ) => {
                self.failed(message, program, now, effects);
            }
            (News::Ended { exit, message }, Phase::Starting { ended, .. }) => *ended = Some((exit, message)),
            (News::Ended { exit, .. }, Phase::Created { .. }) => {
                self.failed(format!("ended before it was started (code {})", exit.code), None, now, effects);
            }
            (News::Ended { exit, message }, &mut Phase::Running { since, .. }) => {
                self.ended(exit, message, since, now, effects);
            }
            (News::Drained { tail }, _) => {
                self.drained = true;
                self.tail = tail;
                self.settle(now, effects);
            }
            (News::Handled { task, answer }, Phase::Running { .. }) => {
                self.handled(task, answer, now, effects);
            }
            // Belongs to an earlier state.
            _ => {}
        }
    }

    fn ended(
        &mut self,
        exit: ExitStatus,
        message: Option<String>,
        since: u64,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.cancel(effects);
        // The hook of a container that has ended has nothing to do any more.
        let hook = self.ending.take().filter(|ending| ending.runs_hook());
        effects.extend(hook.map(|_| Effect::Cancel(Task::Hook(HookKind::PreStop))));
        (self.started, self.ready) = (false, false);
        let run = Terminated { message, ..Terminated::ended(exit, Some(since), now).of_run(self.run) };
        self.phase = Phase::Draining { run, until: now.saturating_add(DRAIN_MS) };
        self.settle(now, effects);
    }

    /// Reports an end whose output was read. The end is held back while the pod starts, so that a host that waits for the start sees
    /// both in order.
    fn settle(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let Phase::Draining { run, .. } = &self.phase else { return };
        if !self.drained || self.tenure == Tenure::Held {
            return;
        }
        let mut run = run.clone();
        if run.message.is_none() && run.exit.code != 0 {
            run.message = self.tail.take();
        }
        let ran_ms = run.finished_ms.saturating_sub(run.started_ms.unwrap_or(run.finished_ms));
        let (container, exit, message) = (self.rules.name.clone(), run.exit, run.message.clone());
        let restart_in_ms = self.restart_in(exit.code, ran_ms);
        effects.push(Effect::Ended(exit));
        effects.push(Effect::Emit(EventKind::ContainerExited { container, exit, message, restart_in_ms }));
        self.go_on(run, restart_in_ms, now, effects);
    }

    fn failed(
        &mut self,
        message: String,
        program: Option<ProgramProblem>,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        effects.push(Effect::Kill);
        if self.tenure == Tenure::Retired {
            return self.give_up(now);
        }
        let run = Terminated::not_started(&message, now).of_run(self.run);
        let restart_in_ms = self.restart_in(run.exit.code, 0);
        // A pod in which a container can't even be started once is not worth waiting for.
        let restart_in_ms = restart_in_ms.filter(|_| self.tenure == Tenure::Free || self.run > 0);
        let container = self.rules.name.clone();
        effects.push(Effect::Emit(EventKind::ContainerFailed { container, message, program, restart_in_ms }));
        self.go_on(run, restart_in_ms, now, effects);
    }

    /// The delay before its restart, if it restarts.
    fn restart_in(&mut self, exit_code: i32, ran_ms: u64) -> Option<u64> {
        let restarts = matches!(self.tenure, Tenure::Free | Tenure::Alone)
            && (self.failed_probe || self.rules.restarts(exit_code));
        restarts.then(|| self.back_off(ran_ms))
    }

    fn go_on(&mut self, run: Terminated, restart_in_ms: Option<u64>, now: u64, effects: &mut Vec<Effect>) {
        match restart_in_ms {
            None => self.phase = Phase::Over(run),
            Some(wait_ms) => {
                self.last = Some(run);
                self.phase = Phase::BackOff { wait_ms, until: now.saturating_add(wait_ms) };
                if wait_ms == 0 {
                    self.restart(effects);
                }
            }
        }
    }

    /// The delay before the next start, in milliseconds, as in the kubelet: none after a first crash, then
    /// longer and longer, and none again after a long run.
    fn back_off(&mut self, ran_ms: u64) -> u64 {
        if ran_ms >= RESTART_BACKOFF_RESET_MS {
            self.restarts = 0;
        }
        let earlier = self.restarts;
        self.restarts = earlier.saturating_add(1);
        match earlier.checked_sub(1) {
            None => 0,
            Some(doublings) => {
                let factor = 1u64.checked_shl(doublings).unwrap_or(u64::MAX);
                RESTART_BACKOFF_FIRST_MS.saturating_mul(factor).min(RESTART_BACKOFF_MAX_MS)
            }
        }
    }

    fn tick(&mut self, now: u64, effects: &mut Vec<Effect>) {
        match (&self.phase, self.asked) {
            (Phase::Draining { until, .. }, _) if now >= *until => {
                self.drained = true;
                self.settle(now, effects);
            }
            (Phase::BackOff { until, .. }, _) if now >= *until => self.restart(effects),
            (Phase::Starting { .. }, Asked::Stop { kill_at, .. }) if now >= kill_at => self.kill(effects),
            (Phase::Running { .. }, _) => {
                self.end_on(|ending| ending.tick(now), now, effects);
                self.run_probes(now, effects);
            }
            _ => {}
        }
    }
}

/// A run as `status` shows it.
fn shown(run: &Terminated, epoch_ms: u64) -> Terminated {
    let short = |message: &String| text::cut(message, MAX_STATUS_MESSAGE_LEN).to_owned();
    Terminated {
        message: run.message.as_ref().map(short),
        started_ms: run.started_ms.map(|at| at.saturating_add(epoch_ms)),
        finished_ms: run.finished_ms.saturating_add(epoch_ms),
        ..run.clone()
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
