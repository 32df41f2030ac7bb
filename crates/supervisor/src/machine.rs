//! What to do next with the pod's containers. Pure: (state, input, time) gives (state, effects). Owns: the
//! all-or-nothing start, restarts with the kubelet's backoff, the order and the time shares of a stop. Must not
//! know: processes, threads, clocks.

use crate::stop::Stop;
use magikvm_proto::budget::{RESTART_BACKOFF_FIRST_MS, RESTART_BACKOFF_MAX_MS, RESTART_BACKOFF_RESET_MS};
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::RestartPolicy;
use magikvm_proto::wire::{ContainerState, ContainerStatus, EventKind, ExitStatus};

/// How long an ended container's output may take to be read to its end, in milliseconds. After that its end is told
/// anyway.
const DRAIN_MS: u64 = 3_000;
/// Exit code of a container that could not be started (the kubelet's `StartError`).
const START_ERROR: i32 = 128;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Begin.
    Boot,
    /// One container's news.
    Container {
        /// Its place in the plan.
        index: usize,
        /// Of which of its runs.
        run: u32,
        /// What.
        news: News,
    },
    /// The pod is to stop.
    Stop {
        /// From the first TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
    /// A deadline of [`Machine::deadline`] has passed.
    Tick,
}

/// What happened to a run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// It exists and waits for its start.
    Created {
        /// Process id.
        pid: i32,
    },
    /// Its program runs.
    Started,
    /// It could not be created or started.
    Failed {
        /// Why.
        message: String,
    },
    /// Its process 1 was reaped and the rest of it killed.
    Ended(ExitStatus),
    /// All it printed is in the log buffer.
    Drained,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Make a container.
    Create {
        /// Its place in the plan.
        index: usize,
        /// The new run's number.
        run: u32,
    },
    /// Let a created container's program start.
    Start {
        /// Its place in the plan.
        index: usize,
    },
    /// Send TERM to its process 1.
    Terminate {
        /// Its place in the plan.
        index: usize,
    },
    /// Kill all of it, and give up on it if it is not created yet.
    Kill {
        /// Its place in the plan.
        index: usize,
    },
    /// Tell the host.
    Emit(EventKind),
    /// A run has ended and its output was read.
    Ended {
        /// Its place in the plan.
        index: usize,
        /// How.
        exit: ExitStatus,
    },
    /// Nothing is left to do: end the VM.
    Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Creating,
    Created { pid: i32 },
    Starting { pid: i32, ended: Option<ExitStatus> },
    Running { pid: i32, since: u64 },
    Draining { pid: i32, exit: ExitStatus, ran_ms: u64, until: u64 },
    Waiting { until: u64 },
    Over(ExitStatus),
}

#[derive(Debug, Clone)]
struct Cell {
    name: ContainerName,
    phase: Phase,
    run: u32,
    /// Restarts since the backoff was last reset.
    step: u32,
    drained: bool,
    last_exit: Option<ExitStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PodPhase {
    /// No container starts before all are created.
    Starting,
    Running,
    /// The first start failed; nothing of the pod may run.
    Failed,
    Stopping(Stop),
    Finished,
}

/// The pod's state.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    policy: RestartPolicy,
    pod: PodPhase,
    cells: Vec<Cell>,
}

impl Cell {
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Over(_))
    }

    /// How long to wait before the next start, in milliseconds, as the kubelet does: not at all after a first
    /// crash, then longer and longer, from the beginning again after a long run.
    fn backoff(&mut self, ran_ms: u64) -> u64 {
        if ran_ms >= RESTART_BACKOFF_RESET_MS {
            self.step = 0;
        }
        let step = self.step;
        self.step = step.saturating_add(1);
        match step.checked_sub(1) {
            None => 0,
            Some(doublings) => {
                let factor = 1u64.checked_shl(doublings).unwrap_or(u64::MAX);
                RESTART_BACKOFF_FIRST_MS.saturating_mul(factor).min(RESTART_BACKOFF_MAX_MS)
            }
        }
    }
}

impl Machine {
    /// A pod that has not begun.
    pub(crate) fn new(policy: RestartPolicy, names: impl IntoIterator<Item = ContainerName>) -> Self {
        let cell = |name| Cell { name, phase: Phase::Idle, run: 0, step: 0, drained: false, last_exit: None };
        Self { policy, pod: PodPhase::Starting, cells: names.into_iter().map(cell).collect() }
    }

    /// Takes one input at `now` (milliseconds on any steady clock).
    pub(crate) fn step(&mut self, input: Input, now: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Boot => (0..self.cells.len()).for_each(|index| self.create(index, &mut effects)),
            Input::Container { index, run, news } => {
                if self.cells.get(index).is_some_and(|cell| cell.run == run) {
                    self.news(index, news, now, &mut effects);
                }
            }
            Input::Stop { grace_ms } => self.stop(grace_ms, now, &mut effects),
            Input::Tick => self.tick(now, &mut effects),
        }
        self.advance_stop(now, &mut effects);
        effects
    }

    /// Number of a container's present run.
    pub(crate) fn run(&self, index: usize) -> Option<u32> {
        self.cells.get(index).map(|cell| cell.run)
    }

    /// When [`Input::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let of_cell = |cell: &Cell| match cell.phase {
            Phase::Draining { until, .. } | Phase::Waiting { until } => Some(until),
            _ => None,
        };
        let of_stop = match &self.pod {
            PodPhase::Stopping(stop) => Some(stop.deadline()),
            _ => None,
        };
        self.cells.iter().filter_map(of_cell).chain(of_stop).min()
    }

    /// What `status` tells.
    pub(crate) fn status(&self) -> Vec<ContainerStatus> {
        self.cells
            .iter()
            .map(|cell| ContainerStatus {
                name: cell.name.clone(),
                restart_count: cell.run,
                state: match cell.phase {
                    Phase::Idle | Phase::Creating | Phase::Created { .. } | Phase::Starting { .. } => {
                        ContainerState::Waiting { reason: "ContainerCreating".to_owned() }
                    }
                    Phase::Running { pid, .. } | Phase::Draining { pid, .. } => {
                        ContainerState::Running { pid }
                    }
                    Phase::Waiting { .. } => {
                        ContainerState::Waiting { reason: "CrashLoopBackOff".to_owned() }
                    }
                    Phase::Over(exit) => ContainerState::Terminated { exit },
                },
                last_exit: cell.last_exit,
            })
            .collect()
    }

    fn create(&mut self, index: usize, effects: &mut Vec<Effect>) {
        let cell = &mut self.cells[index];
        cell.phase = Phase::Creating;
        cell.drained = false;
        effects.push(Effect::Create { index, run: cell.run });
    }

    fn restart(&mut self, index: usize, effects: &mut Vec<Effect>) {
        self.cells[index].run += 1;
        self.create(index, effects);
    }

    /// Whether containers may be made and started at all.
    fn alive(&self) -> bool {
        matches!(self.pod, PodPhase::Starting | PodPhase::Running)
    }

    fn news(&mut self, index: usize, news: News, now: u64, effects: &mut Vec<Effect>) {
        match (news, self.cells[index].phase) {
            (News::Created { pid }, Phase::Creating) => self.created(index, pid, effects),
            (News::Started, Phase::Starting { pid, ended }) => self.started(index, pid, ended, now, effects),
            (News::Failed { message }, Phase::Creating | Phase::Created { .. } | Phase::Starting { .. }) => {
                self.failed(index, message, now, effects);
            }
            (News::Ended(exit), Phase::Starting { pid, .. }) => {
                self.cells[index].phase = Phase::Starting { pid, ended: Some(exit) };
            }
            (News::Ended(exit), Phase::Created { .. }) => {
                let message = format!("ended before it was started (code {})", exit.code);
                self.failed(index, message, now, effects);
            }
            (News::Ended(exit), Phase::Running { pid, since }) => {
                self.ended(index, pid, exit, now - since, now, effects)
            }
            (News::Drained, phase) => {
                self.cells[index].drained = true;
                if let Phase::Draining { exit, ran_ms, .. } = phase {
                    self.exited(index, exit, ran_ms, now, effects);
                }
            }
            // News of a state that is past.
            _ => {}
        }
    }

    fn created(&mut self, index: usize, pid: i32, effects: &mut Vec<Effect>) {
        self.cells[index].phase = Phase::Created { pid };
        if !self.alive() {
            // Nothing of it ran: over as soon as its process is killed, with nothing to tell.
            effects.push(Effect::Kill { index });
            self.cells[index].phase = Phase::Over(ExitStatus::exited(START_ERROR));
            return;
        }
        effects.push(Effect::Emit(EventKind::ContainerCreated { container: self.cells[index].name.clone() }));
        if self.pod == PodPhase::Running {
            self.start(index, effects);
        } else if self.cells.iter().all(|cell| matches!(cell.phase, Phase::Created { .. })) {
            (0..self.cells.len()).for_each(|index| self.start(index, effects));
        }
    }

    fn start(&mut self, index: usize, effects: &mut Vec<Effect>) {
        if let Phase::Created { pid } = self.cells[index].phase {
            self.cells[index].phase = Phase::Starting { pid, ended: None };
            effects.push(Effect::Start { index });
        }
    }

    fn started(
        &mut self,
        index: usize,
        pid: i32,
        ended: Option<ExitStatus>,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let cell = &mut self.cells[index];
        cell.phase = Phase::Running { pid, since: now };
        let (container, restart_count) = (cell.name.clone(), cell.run);
        effects.push(Effect::Emit(EventKind::ContainerStarted { container, pid, restart_count }));
        if self.pod == PodPhase::Starting && self.cells.iter().all(|cell| cell.has_started()) {
            self.pod = PodPhase::Running;
            effects.push(Effect::Emit(EventKind::PodStarted));
            self.tell_held_back_ends(now, effects);
        }
        if self.pod == PodPhase::Failed {
            effects.push(Effect::Kill { index });
        }
        if let Some(exit) = ended {
            self.ended(index, pid, exit, 0, now, effects);
        }
    }

    /// Ends of containers that were quicker than their neighbours' start.
    fn tell_held_back_ends(&mut self, now: u64, effects: &mut Vec<Effect>) {
        for index in 0..self.cells.len() {
            if let Phase::Draining { exit, ran_ms, .. } = self.cells[index].phase
                && self.cells[index].drained
            {
                self.exited(index, exit, ran_ms, now, effects);
            }
        }
    }

    fn failed(&mut self, index: usize, message: String, now: u64, effects: &mut Vec<Effect>) {
        let exit = ExitStatus::exited(START_ERROR);
        let restart_in_ms = (self.pod == PodPhase::Running && self.policy.restarts(exit.code))
            .then(|| self.cells[index].backoff(0));
        let container = self.cells[index].name.clone();
        let mut told = vec![Effect::Kill { index }];
        if self.alive() || self.pod == PodPhase::Failed {
            told.push(Effect::Emit(EventKind::ContainerFailed { container, message, restart_in_ms }));
        }
        effects.extend(told);
        match restart_in_ms {
            Some(delay) => self.cells[index].phase = Phase::Waiting { until: now + delay },
            None => self.cells[index].phase = Phase::Over(exit),
        }
        if restart_in_ms == Some(0) {
            self.restart(index, effects);
        }
        if self.pod == PodPhase::Starting {
            self.give_up(index, effects);
            self.tell_held_back_ends(now, effects);
        }
    }

    /// The first start failed: nothing of the pod may stay.
    fn give_up(&mut self, failed: usize, effects: &mut Vec<Effect>) {
        self.pod = PodPhase::Failed;
        for index in (0..self.cells.len()).rev().filter(|&index| index != failed) {
            match self.cells[index].phase {
                Phase::Created { .. } => {
                    effects.push(Effect::Kill { index });
                    self.cells[index].phase = Phase::Over(ExitStatus::exited(START_ERROR));
                }
                Phase::Starting { .. } | Phase::Running { .. } => effects.push(Effect::Kill { index }),
                // When its creation is reported it is killed.
                Phase::Creating
                | Phase::Idle
                | Phase::Draining { .. }
                | Phase::Waiting { .. }
                | Phase::Over(_) => {}
            }
        }
    }

    fn ended(
        &mut self,
        index: usize,
        pid: i32,
        exit: ExitStatus,
        ran_ms: u64,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        if self.cells[index].drained && self.pod != PodPhase::Starting {
            self.exited(index, exit, ran_ms, now, effects);
        } else {
            self.cells[index].phase = Phase::Draining { pid, exit, ran_ms, until: now + DRAIN_MS };
        }
    }

    fn exited(&mut self, index: usize, exit: ExitStatus, ran_ms: u64, now: u64, effects: &mut Vec<Effect>) {
        // Its end is told after the pod's start, so that a host that waits for the start sees them in order.
        if self.pod == PodPhase::Starting {
            return;
        }
        let restarts = self.pod == PodPhase::Running && self.policy.restarts(exit.code);
        let cell = &mut self.cells[index];
        let restart_in_ms = restarts.then(|| cell.backoff(ran_ms));
        effects.push(Effect::Ended { index, exit });
        effects.push(Effect::Emit(EventKind::ContainerExited {
            container: cell.name.clone(),
            exit,
            restart_in_ms,
        }));
        match restart_in_ms {
            None => cell.phase = Phase::Over(exit),
            Some(delay) => {
                cell.last_exit = Some(exit);
                cell.phase = Phase::Waiting { until: now + delay };
            }
        }
        if restart_in_ms == Some(0) {
            self.restart(index, effects);
        }
    }

    fn tick(&mut self, now: u64, effects: &mut Vec<Effect>) {
        for index in 0..self.cells.len() {
            match self.cells[index].phase {
                Phase::Draining { pid, exit, ran_ms, until } if now >= until => {
                    if self.pod == PodPhase::Starting {
                        self.cells[index].drained = true;
                        self.cells[index].phase =
                            Phase::Draining { pid, exit, ran_ms, until: now + DRAIN_MS };
                    }
                    self.exited(index, exit, ran_ms, now, effects);
                }
                Phase::Waiting { until } if now >= until => self.restart(index, effects),
                _ => {}
            }
        }
    }

    fn stop(&mut self, grace_ms: u64, now: u64, effects: &mut Vec<Effect>) {
        if matches!(self.pod, PodPhase::Stopping(_) | PodPhase::Finished) {
            return;
        }
        self.pod = PodPhase::Stopping(Stop::new(grace_ms, now));
        effects.push(Effect::Emit(EventKind::ShuttingDown));
        self.tell_held_back_ends(now, effects);
        for index in 0..self.cells.len() {
            let cell = &mut self.cells[index];
            match cell.phase {
                Phase::Waiting { .. } => {
                    cell.phase = Phase::Over(cell.last_exit.unwrap_or(ExitStatus::exited(START_ERROR)))
                }
                // Nothing of them ran, so there is nothing to give time to.
                Phase::Creating | Phase::Created { .. } => {
                    cell.phase = Phase::Over(ExitStatus::exited(START_ERROR));
                    effects.push(Effect::Kill { index });
                }
                _ => {}
            }
        }
    }

    fn advance_stop(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let PodPhase::Stopping(stop) = &mut self.pod else { return };
        let alive: Vec<usize> = (0..self.cells.len()).filter(|&index| !self.cells[index].is_over()).collect();
        if !stop.advance(&alive, now, effects) {
            return;
        }
        // Output that nobody takes must not hide how its container ended.
        for index in alive {
            if let Phase::Draining { exit, ran_ms, .. } = self.cells[index].phase {
                self.exited(index, exit, ran_ms, now, effects);
            }
        }
        self.pod = PodPhase::Finished;
        effects.push(Effect::Finish);
    }
}

impl Cell {
    fn has_started(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Draining { .. })
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
