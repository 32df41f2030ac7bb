//! The life of the pod. Pure: `(state, input, now) -> (state, effects)`. Owns: the order of the start, that the pod starts
//! completely or not at all, the stop, and when the pod is over. Must not know: the life of one container ([`container`] does).
//!
//! ```text
//!         Boot             a stage is through: the next;              all are over
//!   New ──────▶ Starting ──── after the last: PodStarted ──▶ Running ─────────────┐
//!    │             │  │                                         │                 │
//!    │             │  │ one failed                              │                 ▼
//!    │             │  ▼                                         │ Stop        Finished
//!    │             │ Failed ─────────┐                          │   PodEnded, Finish
//!    │ Stop        │ Stop            │ Stop                     ▼                 ▲
//!    └─────────────┴─────────────────┴─────────────────────▶ Stopping ────────────┘
//!                                                  all are over, or 1 s after KILL
//! ```
//!
//! **Start.** The pod starts in [`Stage`]s, one after the other. All containers of a stage are created, and none of them
//! starts before all are. The stage is through when all have started, and the pod runs when its last stage is through. A
//! container that fails before that fails the pod: the others are killed, and the pod waits for the host's stop, so that the
//! host can read what happened.
//!
//! **Stop.** Every container is sent TERM at once and has the whole grace period; KILL follows for those that remain. A
//! later request can only shorten the grace period. One second after KILL the pod is over even if the kernel could not kill
//! a process, which must not keep the sandbox alive.
//!
//! **End.** A running pod is over when every container has ended for good. It then ends by itself.
//!
//! The happy path is described in [`super`].

use super::container::{self, Container};
use super::{Effect, Input};
use magikvm_proto::budget::{GUEST_LOG_DRAIN_MS, GUEST_TEARDOWN_MS};
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::{GuestPlan, RestartPolicy};
use magikvm_proto::state::ContainerStatus;
use magikvm_proto::wire::EventKind;
use std::ops::Range;

/// How long killed processes are waited for, in milliseconds.
const KILL_WAIT_MS: u64 = 1_000;

const _: () = assert!(KILL_WAIT_MS + GUEST_LOG_DRAIN_MS < GUEST_TEARDOWN_MS);

/// Containers that are created and started together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stage {
    /// Their indices in the plan.
    members: Range<usize>,
}

/// The stages of a plan, in order. The main containers are one stage.
fn stages(plan: &GuestPlan) -> Vec<Stage> {
    vec![Stage { members: 0..plan.containers.len() }]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    /// The stage up to which it was begun.
    Starting {
        stage: usize,
    },
    Running,
    /// The first start failed; nothing of the pod may run.
    Failed,
    Stopping(Stop),
    Finished,
}

/// How far a stop has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Every container was sent TERM.
    Grace { kill_at: u64 },
    /// The remaining containers were killed.
    Killed { give_up_at: u64 },
}

impl Stop {
    fn deadline(self) -> u64 {
        match self {
            Self::Grace { kill_at } => kill_at,
            Self::Killed { give_up_at } => give_up_at,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Machine {
    phase: Phase,
    stages: Vec<Stage>,
    containers: Vec<Container>,
}

impl Machine {
    /// A pod that has not begun.
    pub(crate) fn new(plan: &GuestPlan) -> Self {
        let names = plan.containers.iter().map(|container| container.name.clone());
        Self::of_stages(plan.restart_policy, names, stages(plan))
    }

    /// A pod whose plan could not be read. It never begins, and ends on request.
    pub(crate) fn without_plan() -> Self {
        Self { phase: Phase::New, stages: Vec::new(), containers: Vec::new() }
    }

    fn of_stages(
        policy: RestartPolicy,
        names: impl IntoIterator<Item = ContainerName>,
        stages: Vec<Stage>,
    ) -> Self {
        let containers = names.into_iter().map(|name| Container::new(name, policy)).collect();
        Self { phase: Phase::New, stages, containers }
    }

    /// Handles one input at `now`.
    pub(crate) fn step(&mut self, input: Input, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.phase == Phase::Finished {
            return effects;
        }
        match input {
            Input::Boot if self.phase == Phase::New => self.begin_stage(0, now, &mut effects),
            Input::Boot => {}
            Input::Container { index, run, news } if index < self.containers.len() => {
                self.ask(index, container::Input::News { run, news }, now, &mut effects);
            }
            Input::Container { .. } => {}
            Input::Stop { grace_ms } => self.stop(grace_ms, now, &mut effects),
            Input::Tick => self.ask_all(&container::Input::Tick, now, &mut effects),
        }
        self.advance(now, &mut effects);
        effects
    }

    /// The number of a container's current run.
    pub(crate) fn run(&self, index: usize) -> Option<u32> {
        self.containers.get(index).map(Container::run)
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let of_pod = match self.phase {
            Phase::Stopping(stop) => Some(stop.deadline()),
            Phase::Finished => return None,
            Phase::New | Phase::Starting { .. } | Phase::Running | Phase::Failed => None,
        };
        self.containers.iter().filter_map(Container::deadline).chain(of_pod).min()
    }

    /// The states that `status` shows, in the plan's order. `epoch_ms` is the time since 1970 at which the steady clock showed 0.
    pub(crate) fn status(&self, epoch_ms: u64) -> Vec<ContainerStatus> {
        self.containers.iter().map(|container| container.status(epoch_ms)).collect()
    }

    fn ask(&mut self, index: usize, input: container::Input, now: u64, effects: &mut Vec<Effect>) {
        let of_index = |effect| match effect {
            container::Effect::Create { run } => Effect::Create { index, run },
            container::Effect::Start => Effect::Start { index },
            container::Effect::Terminate => Effect::Terminate { index },
            container::Effect::Kill => Effect::Kill { index },
            container::Effect::Ended(exit) => Effect::Ended { index, exit },
            container::Effect::Emit(kind) => Effect::Emit(kind),
        };
        effects.extend(self.containers[index].step(input, now).into_iter().map(of_index));
    }

    fn ask_all(&mut self, input: &container::Input, now: u64, effects: &mut Vec<Effect>) {
        (0..self.containers.len()).for_each(|index| self.ask(index, input.clone(), now, effects));
    }

    /// Does what the last input has made possible or necessary.
    fn advance(&mut self, now: u64, effects: &mut Vec<Effect>) {
        if let Phase::Starting { stage } = self.phase {
            self.advance_start(stage, now, effects);
        }
        let over = self.containers.iter().all(Container::is_over);
        match self.phase {
            Phase::Running if over => self.finish(effects),
            Phase::Stopping(_) if over => self.finish(effects),
            Phase::Stopping(Stop::Grace { kill_at }) if now >= kill_at => {
                // Counted from now: a late tick must not shorten the wait.
                let give_up_at = now.saturating_add(KILL_WAIT_MS);
                self.phase = Phase::Stopping(Stop::Killed { give_up_at });
                self.ask_all(&container::Input::Kill, now, effects);
            }
            Phase::Stopping(Stop::Killed { give_up_at }) if now >= give_up_at => {
                // Output that is not read must not hide how its container ended.
                self.ask_all(&container::Input::Conclude, now, effects);
                self.finish(effects);
            }
            _ => {}
        }
    }

    fn begin_stage(&mut self, stage: usize, now: u64, effects: &mut Vec<Effect>) {
        self.phase = Phase::Starting { stage };
        for index in self.members(stage) {
            self.ask(index, container::Input::Create, now, effects);
        }
    }

    fn members(&self, stage: usize) -> Range<usize> {
        self.stages.get(stage).map_or(0..0, |stage| stage.members.clone())
    }

    fn advance_start(&mut self, stage: usize, now: u64, effects: &mut Vec<Effect>) {
        // Ends are held back while the pod starts, so a container that is over has failed.
        if self.containers.iter().any(Container::is_over) {
            self.phase = Phase::Failed;
            for index in 0..self.containers.len() {
                self.ask(index, container::Input::Retire, now, effects);
                self.ask(index, container::Input::Kill, now, effects);
            }
            return;
        }
        let members = &self.containers[self.members(stage)];
        if members.iter().all(Container::has_started) {
            if stage + 1 < self.stages.len() {
                self.begin_stage(stage + 1, now, effects);
                return self.advance_start(stage + 1, now, effects);
            }
            self.phase = Phase::Running;
            effects.push(Effect::Emit(EventKind::PodStarted));
            self.ask_all(&container::Input::Release, now, effects);
        } else if members.iter().all(Container::is_created) {
            for index in self.members(stage) {
                self.ask(index, container::Input::Start, now, effects);
            }
        }
    }

    fn stop(&mut self, grace_ms: u64, now: u64, effects: &mut Vec<Effect>) {
        let wanted = now.saturating_add(grace_ms);
        match self.phase {
            Phase::Stopping(Stop::Grace { kill_at }) => {
                self.phase = Phase::Stopping(Stop::Grace { kill_at: kill_at.min(wanted) });
            }
            Phase::Stopping(Stop::Killed { .. }) | Phase::Finished => {}
            Phase::New | Phase::Starting { .. } | Phase::Running | Phase::Failed => {
                self.phase = Phase::Stopping(Stop::Grace { kill_at: wanted });
                effects.push(Effect::Emit(EventKind::ShuttingDown));
                self.ask_all(&container::Input::Retire, now, effects);
                if grace_ms > 0 {
                    self.ask_all(&container::Input::Terminate, now, effects);
                }
            }
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Finished;
        effects.extend([Effect::Emit(EventKind::PodEnded), Effect::Finish]);
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
