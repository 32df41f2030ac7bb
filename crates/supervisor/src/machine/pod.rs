//! The life of the pod. Pure: `(state, input, now) -> (state, effects)`. Owns: the order of the start, that the pod starts
//! completely or not at all, the stop, and when the pod is over. Must not know: the life of one container ([`container`] does).
//!
//! ```text
//!         Boot             a step is through: the next;              all main containers are over,
//!   New ──────▶ Starting ──── after the last: PodStarted ──▶ Running ──── and no sidecar runs ──┐
//!    │             │  │                                       │   │                             │
//!    │             │  │ one failed                       Stop │   │ all main containers are     │
//!    │             │  ▼                                       │   │ over, a sidecar runs        ▼
//!    │             │ Failed ─────────┐                        │   │                         Finished
//!    │ Stop        │ Stop            │ Stop                   ▼   ▼                    PodEnded, Finish
//!    └─────────────┴─────────────────┴──────────────────▶ Stopping ────────────────────────────▲
//!                                                  all are over, or 1 s after KILL
//! ```
//!
//! **Start.** The pod starts in steps, one after the other. Each init container is a step that is through when the container has ended with
//! 0; each sidecar is one that is through when it was started, which means that its postStart hook and its startup probe have succeeded.
//! The last step is all main containers: all of them are created, and none of them starts before all are; it is through when all run,
//! and then the pod runs. An init container that has failed for good, and any container that cannot be created or started in its first
//! run, fails the pod: the others are killed, and the pod waits for the host's stop, so that the host can read what happened.
//!
//! **Stop.** Every main container is ended at once and has the whole grace period; its preStop hook counts. Sidecars are sent their stop
//! signal in reverse order, each after everything behind it has ended, within what is left of the grace period, and have at least 2 s for it.
//! Their preStop hooks run at once, as in the kubelet. KILL follows for those that remain. A later request can only shorten the grace period.
//! One second after the last KILL the pod is over even if the kernel could not kill a process, which must not keep the sandbox alive.
//!
//! **End.** A running pod is over when every main container has ended for good. Its sidecars are stopped then as in a stop with the pod's
//! grace period, and it ends by itself. A pod that reaches its deadline (`activeDeadlineSeconds`) says so and is stopped.
//!
//! The happy path is described in [`super`].

use super::container::{self, Container};
use super::ending::Turn;
use super::rules::Rules;
use super::{Effect, Input};
use magikvm_proto::budget::{EXTENSION_STOP_MS, GUEST_LOG_DRAIN_MS, GUEST_TEARDOWN_MS};
use magikvm_proto::lifecycle::Role;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::state::ContainerStatus;
use magikvm_proto::wire::EventKind;
use std::ops::Range;

/// How long killed processes are waited for, in milliseconds.
const KILL_WAIT_MS: u64 = 1_000;

const _: () = assert!(
    super::ending::LEAST_MS + KILL_WAIT_MS + EXTENSION_STOP_MS + GUEST_LOG_DRAIN_MS < GUEST_TEARDOWN_MS
);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    New,
    /// The step that was begun: the index of its first container.
    Starting {
        step: usize,
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
    Grace {
        kill_at: u64,
    },
    /// The grace period is over. Containers that could be asked only now have a moment more.
    Late,
    /// The remaining containers were killed.
    Killed {
        give_up_at: u64,
    },
}

#[derive(Debug, Clone)]
pub(crate) struct Machine {
    phase: Phase,
    containers: Vec<Container>,
    /// How many of them are init containers and sidecars.
    before: usize,
    grace_ms: u64,
    /// The longest life of the pod.
    longest_ms: Option<u64>,
    /// When that ends.
    ends_at: Option<u64>,
}

impl Machine {
    /// A pod that has not begun.
    pub(crate) fn new(plan: &GuestPlan) -> Self {
        let rules = plan.containers.iter().map(|container| Rules::new(plan, container));
        Self::of_rules(rules, plan.grace_ms, plan.deadline_ms)
    }

    /// A pod whose plan could not be read. It never begins, and ends on request.
    pub(crate) fn without_plan() -> Self {
        Self::of_rules([], 0, None)
    }

    pub(super) fn of_rules(
        rules: impl IntoIterator<Item = Rules>,
        grace_ms: u64,
        longest_ms: Option<u64>,
    ) -> Self {
        let containers: Vec<Container> = rules.into_iter().map(Container::new).collect();
        let before = containers.iter().take_while(|container| container.role() != Role::Main).count();
        Self { phase: Phase::New, containers, before, grace_ms, longest_ms, ends_at: None }
    }

    /// Handles one input at `now`.
    pub(crate) fn step(&mut self, input: Input, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.phase == Phase::Finished {
            return effects;
        }
        match input {
            Input::Boot if self.phase == Phase::New => {
                self.ends_at = self.longest_ms.map(|longest| now.saturating_add(longest));
                self.begin_step(0, now, &mut effects);
            }
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
            Phase::Stopping(Stop::Grace { kill_at }) => Some(kill_at),
            Phase::Stopping(Stop::Killed { give_up_at }) => Some(give_up_at),
            Phase::Starting { .. } | Phase::Running => self.ends_at,
            Phase::Finished => return None,
            Phase::New | Phase::Failed | Phase::Stopping(Stop::Late) => None,
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
            container::Effect::Handle { run, task, timeout_ms } => {
                Effect::Handle { index, run, task, timeout_ms }
            }
            container::Effect::Cancel(task) => Effect::Cancel { index, task },
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
        if let Phase::Starting { step } = self.phase {
            self.advance_start(step, now, effects);
        }
        if matches!(self.phase, Phase::Starting { .. } | Phase::Running)
            && self.ends_at.is_some_and(|ends_at| ends_at <= now)
        {
            effects.push(Effect::Emit(EventKind::DeadlineExceeded));
            self.stop(self.grace_ms, now, effects);
        }
        if self.phase == Phase::Running && self.containers[self.before..].iter().all(Container::is_over) {
            self.begin_to_stop(now.saturating_add(self.grace_ms), now, effects);
        }
        if let Phase::Stopping(stop) = self.phase {
            self.advance_stop(stop, now, effects);
        }
    }

    fn advance_stop(&mut self, stop: Stop, now: u64, effects: &mut Vec<Effect>) {
        self.give_turns(now, effects);
        let all = |holds: fn(&Container) -> bool| self.containers.iter().all(holds);
        if all(Container::is_over) {
            return self.finish(effects);
        }
        match stop {
            Stop::Grace { kill_at } if now < kill_at => {}
            Stop::Grace { .. } | Stop::Late if all(Container::is_killed) => {
                // Counted from now: a late tick must not shorten the wait.
                let give_up_at = now.saturating_add(KILL_WAIT_MS);
                self.phase = Phase::Stopping(Stop::Killed { give_up_at });
            }
            Stop::Grace { .. } | Stop::Late => self.phase = Phase::Stopping(Stop::Late),
            Stop::Killed { give_up_at } if now >= give_up_at => {
                // Output that is not read must not hide how its container ended.
                self.ask_all(&container::Input::Conclude, now, effects);
                self.finish(effects);
            }
            Stop::Killed { .. } => {}
        }
    }

    /// A sidecar is asked to end when everything behind it has ended.
    fn give_turns(&mut self, now: u64, effects: &mut Vec<Effect>) {
        for index in (0..self.before).rev() {
            if self.containers[index + 1..].iter().all(Container::is_over)
                && self.containers[index].role() == Role::Sidecar
            {
                self.ask(index, container::Input::Turn, now, effects);
            }
        }
    }

    fn begin_step(&mut self, step: usize, now: u64, effects: &mut Vec<Effect>) {
        self.phase = Phase::Starting { step };
        for index in self.members(step) {
            self.ask(index, container::Input::Create, now, effects);
        }
    }

    fn members(&self, step: usize) -> Range<usize> {
        if step < self.before { step..step + 1 } else { self.before..self.containers.len() }
    }

    fn advance_start(&mut self, step: usize, now: u64, effects: &mut Vec<Effect>) {
        // Ends of main containers are held back while the pod starts, so one that is over has failed. A sidecar restarts always.
        let failed = |container: &Container| {
            container.is_over() && !(container.role() == Role::Init && container.has_succeeded())
        };
        if self.containers.iter().any(failed) {
            self.phase = Phase::Failed;
            for index in 0..self.containers.len() {
                self.ask(index, container::Input::Retire, now, effects);
                self.ask(index, container::Input::Kill, now, effects);
            }
            return;
        }
        let members = &self.containers[self.members(step)];
        let is_through = |container: &Container| match container.role() {
            Role::Init => container.is_over(),
            Role::Sidecar => container.has_been_started(),
            Role::Main => container.has_begun(),
        };
        if members.iter().all(is_through) {
            if step < self.before {
                self.begin_step(step + 1, now, effects);
                return self.advance_start(step + 1, now, effects);
            }
            self.phase = Phase::Running;
            effects.push(Effect::Emit(EventKind::PodStarted));
            self.ask_all(&container::Input::Release, now, effects);
        } else if step >= self.before && members.iter().all(Container::is_created) {
            for index in self.members(step) {
                self.ask(index, container::Input::Start, now, effects);
            }
        }
    }

    fn stop(&mut self, grace_ms: u64, now: u64, effects: &mut Vec<Effect>) {
        let wanted = now.saturating_add(grace_ms);
        match self.phase {
            Phase::Stopping(Stop::Grace { kill_at }) => {
                let kill_at = kill_at.min(wanted);
                self.phase = Phase::Stopping(Stop::Grace { kill_at });
                self.ask_all_to_end(kill_at, now, effects);
            }
            Phase::Stopping(Stop::Late) if grace_ms == 0 => self.ask_all_to_end(wanted, now, effects),
            Phase::Stopping(Stop::Late | Stop::Killed { .. }) | Phase::Finished => {}
            Phase::New | Phase::Starting { .. } | Phase::Running | Phase::Failed => {
                effects.push(Effect::Emit(EventKind::ShuttingDown));
                self.begin_to_stop(wanted, now, effects);
            }
        }
    }

    fn begin_to_stop(&mut self, kill_at: u64, now: u64, effects: &mut Vec<Effect>) {
        self.phase = Phase::Stopping(Stop::Grace { kill_at });
        self.ask_all_to_end(kill_at, now, effects);
    }

    /// Asks every container to end, or kills it at once when there is no time left.
    fn ask_all_to_end(&mut self, kill_at: u64, now: u64, effects: &mut Vec<Effect>) {
        for index in 0..self.containers.len() {
            if kill_at <= now {
                self.ask(index, container::Input::Retire, now, effects);
                self.ask(index, container::Input::Kill, now, effects);
                continue;
            }
            let turn = match self.containers[index].role() {
                Role::Sidecar => Turn::Later,
                Role::Init | Role::Main => Turn::Now,
            };
            self.ask(index, container::Input::Stop { kill_at, turn }, now, effects);
        }
    }

    fn finish(&mut self, effects: &mut Vec<Effect>) {
        self.phase = Phase::Finished;
        effects.extend([Effect::Emit(EventKind::PodEnded), Effect::Finish]);
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "order_tests.rs"]
mod order_tests;
