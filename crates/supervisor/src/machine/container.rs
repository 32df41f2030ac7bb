//! The life of one container. Pure: `(state, input, now) -> (state, effects)`. Owns: the steps of a run, when the next
//! run begins, and which events are reported. Must not know: other containers, and the reasons behind an input.
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
//! Whether an end is reported, and whether the container restarts, depends on its [`Tenure`]. A container of a pod that is still
//! starting waits for the order to start, holds its end back until the pod runs, and fails for good. One of a running pod starts
//! as soon as it is created and restarts according to its policy. A retired one never starts again, and is given up at once if it
//! has not begun to run.
//!
//! The happy path: [`Input::Create`] gives [`Effect::Create`]; [`News::Created`] gives `ContainerCreated`; [`Input::Start`]
//! gives [`Effect::Start`]; [`News::Started`] gives `ContainerStarted`; [`Input::Release`] says that the pod runs;
//! [`News::Ended`] and [`News::Drained`] give [`Effect::Ended`] and `ContainerExited`. The policy `Never` ends its life
//! there; with `Always` the first restart follows at once, and the next ones after 10 s, 20 s and so on.

use super::News;
use magikvm_proto::budget::{RESTART_BACKOFF_FIRST_MS, RESTART_BACKOFF_MAX_MS, RESTART_BACKOFF_RESET_MS};
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::RestartPolicy;
use magikvm_proto::state::{ContainerState, ContainerStatus, ExitStatus, Terminated};
use magikvm_proto::text;
use magikvm_proto::wire::{EventKind, ProgramProblem};

/// How long reading an ended container's output to its end may take, in milliseconds. After that the end is reported
/// anyway.
pub(super) const DRAIN_MS: u64 = 3_000;
/// Most bytes of a message in a container's status: those of sixteen containers fit on one line of the wire, however
/// many characters JSON has to escape. The event carries the whole message.
const MAX_STATUS_MESSAGE_LEN: usize = 256;

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
    /// Ask it to end, with TERM.
    Terminate,
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
    /// Send TERM to its PID 1.
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
    Starting { pid: i32, ended: Option<ExitStatus> },
    Running { since: u64 },
    Draining { run: Terminated, until: u64 },
    BackOff { wait_ms: u64, until: u64 },
    Over(Terminated),
}

/// How the container relates to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tenure {
    Held,
    Free,
    /// The pod stops or has failed.
    Retired,
}

/// The last input was a stop, so a program that is just being started is asked too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Terminate,
    Kill,
}

#[derive(Debug, Clone)]
pub(crate) struct Container {
    name: ContainerName,
    policy: RestartPolicy,
    tenure: Tenure,
    asked: Asked,
    phase: Phase,
    run: u32,
    /// Restarts since the backoff was last reset.
    restarts: u32,
    /// Whether the current run's output was read to its end.
    drained: bool,
    last: Option<Terminated>,
}

impl Container {
    /// A container that is not created yet.
    pub(crate) fn new(name: ContainerName, policy: RestartPolicy) -> Self {
        Self {
            name,
            policy,
            tenure: Tenure::Held,
            asked: Asked::Nothing,
            phase: Phase::New,
            run: 0,
            restarts: 0,
            drained: false,
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
            Input::Release if self.tenure == Tenure::Held => {
                self.tenure = Tenure::Free;
                self.settle(now, &mut effects);
            }
            Input::Retire => self.retire(now, &mut effects),
            Input::Terminate => self.terminate(&mut effects),
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

    /// The number of the current run.
    pub(crate) fn run(&self) -> u32 {
        self.run
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.phase {
            Phase::Draining { until, .. } if !self.drained => Some(until),
            Phase::BackOff { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Whether it exists and waits for its start.
    pub(crate) fn is_created(&self) -> bool {
        matches!(self.phase, Phase::Created { .. })
    }

    /// Whether its program was started, even if it has ended since.
    pub(crate) fn has_started(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Draining { .. })
    }

    /// Whether nothing of it runs or will ever run.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// The state that `status` shows. `epoch_ms` is the time since 1970 at which the steady clock showed 0.
    pub(crate) fn status(&self, epoch_ms: u64) -> ContainerStatus {
        let state = match &self.phase {
            Phase::New | Phase::Creating | Phase::Created { .. } | Phase::Starting { .. } => {
                ContainerState::creating()
            }
            Phase::Running { since } => {
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
        ContainerStatus { name: self.name.clone(), restart_count: self.run, state, last }
    }

    fn create(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Creating;
        self.asked = Asked::Nothing;
        self.drained = false;
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
        let never_ran = || Terminated::not_started("the pod ended before this container was started", now);
        self.phase = Phase::Over(self.last.take().unwrap_or_else(never_ran));
    }

    fn terminate(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            // Before its program runs, no process can receive the signal; it is sent after the start.
            Phase::Starting { .. } if self.asked == Asked::Nothing => self.asked = Asked::Terminate,
            Phase::Running { .. } => effects.push(Effect::Terminate),
            _ => {}
        }
    }

    fn kill(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Starting { .. } => self.asked = Asked::Kill,
            Phase::Running { .. } => {}
            _ => return,
        }
        effects.push(Effect::Kill);
    }

    fn news(&mut self, news: News, now: u64, effects: &mut Vec<Effect>) {
        match (news, &self.phase) {
            (News::Created { pid }, Phase::Creating) => {
                self.phase = Phase::Created { pid };
                effects.push(Effect::Emit(EventKind::ContainerCreated { container: self.name.clone() }));
                if self.tenure == Tenure::Free {
                    self.start(effects);
                }
            }
            (News::Started, &Phase::Starting { pid, ended }) => self.started(pid, ended, now, effects),
            (
                News::Failed { message, program },
                Phase::Creating | Phase::Created { .. } | Phase::Starting { .. },
            ) => {
                self.failed(message, program, now, effects);
            }
            (News::Ended(exit), &Phase::Starting { pid, .. }) => {
                self.phase = Phase::Starting { pid, ended: Some(exit) };
            }
            (News::Ended(exit), Phase::Created { .. }) => {
                self.failed(format!("ended before it was started (code {})", exit.code), None, now, effects);
            }
            (News::Ended(exit), &Phase::Running { since }) => self.ended(exit, since, now, effects),
            (News::Drained, _) => {
                self.drained = true;
                self.settle(now, effects);
            }
            // Belongs to an earlier state.
            _ => {}
        }
    }

    fn started(&mut self, pid: i32, ended: Option<ExitStatus>, now: u64, effects: &mut Vec<Effect>) {
        self.phase = Phase::Running { since: now };
        let (container, restart_count) = (self.name.clone(), self.run);
        effects.push(Effect::Emit(EventKind::ContainerStarted { container, pid, restart_count }));
        match (ended, self.asked) {
            (Some(exit), _) => self.ended(exit, now, now, effects),
            (None, Asked::Nothing) => {}
            (None, Asked::Terminate) => effects.push(Effect::Terminate),
            (None, Asked::Kill) => effects.push(Effect::Kill),
        }
    }

    fn ended(&mut self, exit: ExitStatus, since: u64, now: u64, effects: &mut Vec<Effect>) {
        let run = Terminated::ended(exit, Some(since), now);
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
        let run = run.clone();
        let ran_ms = run.finished_ms.saturating_sub(run.started_ms.unwrap_or(run.finished_ms));
        let (container, exit) = (self.name.clone(), run.exit);
        let restart_in_ms = self.restart_in(exit.code, ran_ms);
        effects.push(Effect::Ended(exit));
        effects.push(Effect::Emit(EventKind::ContainerExited { container, exit, restart_in_ms }));
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
        let run = Terminated::not_started(&message, now);
        let restart_in_ms = self.restart_in(run.exit.code, 0);
        let container = self.name.clone();
        effects.push(Effect::Emit(EventKind::ContainerFailed { container, message, program, restart_in_ms }));
        self.go_on(run, restart_in_ms, now, effects);
    }

    /// The delay before its restart, if it restarts.
    fn restart_in(&mut self, exit_code: i32, ran_ms: u64) -> Option<u64> {
        let restarts = self.tenure == Tenure::Free && self.policy.restarts(exit_code);
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
        match self.phase {
            Phase::Draining { until, .. } if now >= until => {
                self.drained = true;
                self.settle(now, effects);
            }
            Phase::BackOff { until, .. } if now >= until => self.restart(effects),
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
