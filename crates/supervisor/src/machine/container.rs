//! The life of one container. Pure: `(state, input, now) -> (state, effects)`. Owns: what a run goes through, when the next
//! one begins, and what is told of both. Must not know: other containers, and why it is asked.
//!
//! ```text
//!          Create             Created            Start              Started
//!   New ───────────▶ Creating ───────▶ Created ───────▶ Starting ───────────▶ Running
//!                     ▲ │                 │                 │                    │ Ended
//!                     │ │ Failed          │ Failed, Ended   │ Failed             ▼
//!   the wait is over, │ ▼                 ▼                 ▼                 Draining
//!   the next run      │ ┌─────────────────────────────────────┐ Drained, or 3 s  │
//!                     │ │ its end is told: does it restart?   │◀─────────────────┘
//!                     │ └─────────────────────────────────────┘
//!                     │     │ yes                      │ no
//!                     │     ▼         Retire           ▼
//!                  BackOff ─────────────────────────▶ Over
//! ```
//!
//! Whether an end is told, and whether the container restarts, depends on its [`Tenure`]: a container of a pod that is still
//! starting waits to be told to start, holds its end back until the pod runs, and fails for good; one of a running pod starts
//! as soon as it is created and restarts as its policy says; a retired one never starts again, and one that has not begun to
//! run is given up at once.
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
use magikvm_proto::wire::EventKind;

/// How long an ended container's output may take to be read to its end, in milliseconds. After that its end is told
/// anyway.
pub(super) const DRAIN_MS: u64 = 3_000;
/// Bytes of a message that a container's status carries: those of sixteen containers fit on one line of the wire, however
/// many characters JSON has to escape. The event carries the whole message.
const MAX_STATUS_MESSAGE_LEN: usize = 256;

/// What happens to a container, or is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Be created for the first time.
    Create,
    /// Start, once created: everything that must be there before is there.
    Start,
    Release,
    /// The pod stops or has failed.
    Retire,
    /// Be asked to end, with TERM.
    Terminate,
    Kill,
    /// Wait no longer for output: an end that is known is told now.
    Conclude,
    /// Something happened to a run.
    News {
        run: u32,
        news: News,
    },
    /// The deadline of [`Container::deadline`] has passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Create it for its run number `run`.
    Create {
        run: u32,
    },
    /// Let its program start.
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

/// How the container stands to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tenure {
    Held,
    Free,
    /// The pod stops or has failed.
    Retired,
}

/// The last thing it was asked, so that a program that is just being started hears it too.
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
    /// Whether the present run's output was read to its end.
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

    /// Takes one input at `now`.
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
            // Of a run or a state that is past.
            Input::Create | Input::Release | Input::News { .. } => {}
        }
        effects
    }

    /// The number of the present run.
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

    /// Whether its program was started, whatever has become of it since.
    pub(crate) fn has_started(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Draining { .. })
    }

    /// Whether nothing of it runs, and nothing ever will.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// What `status` tells. `epoch_ms` is the time since 1970 at which the steady clock showed 0.
    pub(crate) fn status(&self, epoch_ms: u64) -> ContainerStatus {
        let state = match &self.phase {
            Phase::New | Phase::Creating | Phase::Created { .. } | Phase::Starting { .. } => {
                ContainerState::creating()
            }
            Phase::Running { since } => {
                ContainerState::Running { started_ms: since.saturating_add(epoch_ms) }
            }
            // Its end is not told yet.
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

    /// From now on nothing of it begins; what has begun may go on.
    fn retire(&mut self, now: u64, effects: &mut Vec<Effect>) {
        self.tenure = Tenure::Retired;
        match self.phase {
            // Nothing of this run ran, so there is nothing to give time to, and nothing to tell.
            Phase::Creating | Phase::Created { .. } => {
                effects.push(Effect::Kill);
                self.give_up(now);
            }
            Phase::New | Phase::BackOff { .. } => self.give_up(now),
            Phase::Draining { .. } => self.settle(now, effects),
            Phase::Starting { .. } | Phase::Running { .. } | Phase::Over(_) => {}
        }
    }

    /// Over without a further run; the one before, if there was one, is what is left to see.
    fn give_up(&mut self, now: u64) {
        let never_ran = || Terminated::not_started("the pod ended before this container was started", now);
        self.phase = Phase::Over(self.last.take().unwrap_or_else(never_ran));
    }

    fn terminate(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            // Before its program runs, nobody there can hear; it is asked when it does.
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
            (News::Failed { message }, Phase::Creating | Phase::Created { .. } | Phase::Starting { .. }) => {
                self.failed(message, now, effects);
            }
            (News::Ended(exit), &Phase::Starting { pid, .. }) => {
                self.phase = Phase::Starting { pid, ended: Some(exit) };
            }
            (News::Ended(exit), Phase::Created { .. }) => {
                self.failed(format!("ended before it was started (code {})", exit.code), now, effects);
            }
            (News::Ended(exit), &Phase::Running { since }) => self.ended(exit, since, now, effects),
            (News::Drained, _) => {
                self.drained = true;
                self.settle(now, effects);
            }
            // News of a state that is past.
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

    /// Tells an end whose output was read, unless it is to be held back so that a host that waits for the pod's start sees
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

    fn failed(&mut self, message: String, now: u64, effects: &mut Vec<Effect>) {
        effects.push(Effect::Kill);
        if self.tenure == Tenure::Retired {
            return self.give_up(now);
        }
        let run = Terminated::not_started(&message, now);
        let restart_in_ms = self.restart_in(run.exit.code, 0);
        let container = self.name.clone();
        effects.push(Effect::Emit(EventKind::ContainerFailed { container, message, restart_in_ms }));
        self.go_on(run, restart_in_ms, now, effects);
    }

    /// After how long it is to be started again, if it is.
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

    /// How long to wait before the next start, in milliseconds, as the kubelet does: not at all after a first crash, then
    /// longer and longer, from the beginning again after a long run.
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
