//! The pod's state machine: `(state, input) -> (state, effects)`, pure. The monitor feeds it and carries the effects out.

use super::events::{ClockReason, HostEvent};
use super::failure::{Blame, Failure, RunStage};
use crate::process::Motion;
use crate::store::record::{Broken, ContainerPhase, ContainerView, PodState, SCHEMA, Stage, Terminated};
use crate::store::sandbox::{SandboxEnd, SandboxFailure};
use magikvm_proto::budget;
use magikvm_proto::id::ContainerName;
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::wire::{Event, EventKind, ExitStatus, Refusal, RefusalCode};

/// What happens to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The agent answered for the first time.
    AgentUp,
    /// The guest says that something happened.
    Guest(Event),
    /// The connection for events is gone or carried nonsense, although the VM runs.
    AgentLost {
        /// What was seen.
        why: String,
    },
    /// The VM is gone, and all it had to say was read.
    VmGone {
        /// How it ended.
        end: SandboxEnd,
    },
    /// A user wants it to end.
    Stop {
        /// From TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
    /// The user who started it changed his mind before it ran.
    Cancel,
    /// The armed deadline has passed.
    Deadline,
    /// A user wants it to pause or to go on.
    Wish(Wish),
    /// Processes of the VM were stopped or go on, by whosever will.
    Motion(Motion),
    /// The host's clock was set, or the host was suspended.
    HostClockJumped,
}

/// What a user may want of a running pod's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That it stands still.
    Pause,
    /// That it goes on.
    Resume,
}

/// What is to be done about it, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell whoever waits that the pod runs.
    Ready,
    /// The run has failed; roll everything back.
    Fail(Box<Failure>),
    /// Ask the agent to end the pod.
    Shutdown {
        /// From TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
    /// End the VM's processes.
    KillVm,
    /// Stop the VM's processes.
    StopVm,
    /// Let the VM's processes go on.
    ContinueVm,
    /// Tell the guest what time it is.
    TellTime(ClockReason),
    /// Write this down among the pod's events.
    Note(HostEvent),
    /// Deliver `Deadline` after so many milliseconds, in place of any earlier one.
    Arm {
        /// Milliseconds.
        after_ms: u64,
    },
    /// The deadline is of no interest any more.
    Disarm,
    /// The pod has ended; keep its record, take away the rest.
    End,
}

/// A pod's state, with what the machine needs beside what is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// What is shown.
    pub state: PodState,
    agent_up: bool,
    /// When the grace period ends, once the guest was asked to end; milliseconds since 1970.
    kill_ms: Option<u64>,
    /// What the VM's processes do.
    motion: Motion,
    /// What a user wanted of them last.
    wish: Option<Wish>,
}

impl Machine {
    /// A pod whose VM is being started. Arm [`budget::HOST_BOOT_WAIT_MS`] with it.
    pub fn new(containers: &[ContainerName]) -> Self {
        let view = |name: &ContainerName| ContainerView {
            name: name.clone(),
            restart_count: 0,
            phase: ContainerPhase::Waiting { reason: "ContainerCreating".to_owned(), message: None },
            last: None,
        };
        let state = PodState {
            schema: SCHEMA,
            stage: Stage::Starting,
            started_ms: None,
            paused_ms: None,
            ended_ms: None,
            broken: None,
            pod_ips: Vec::new(),
            host_ip: None,
            containers: containers.iter().map(view).collect(),
            annotations: Default::default(),
            processes: Vec::new(),
            ports: Vec::new(),
            agent: None,
        };
        Self { state, agent_up: false, kill_ms: None, motion: Motion::Running, wish: None }
    }

    /// Takes one input at a time (milliseconds since 1970) and says what to do.
    pub fn step(&mut self, input: Input, now_ms: u64) -> Vec<Effect> {
        if self.state.stage == Stage::Ended {
            return Vec::new();
        }
        match input {
            Input::AgentUp => self.agent_up(),
            Input::Guest(event) => self.guest(event.kind, now_ms),
            Input::AgentLost { why } => self.agent_lost(&why),
            Input::VmGone { end } => self.vm_gone(&end, now_ms),
            Input::Stop { grace_ms } => self.stop(grace_ms, now_ms),
            Input::Cancel => self.cancel(),
            Input::Deadline => self.deadline(),
            Input::Wish(wish) => self.wish(wish),
            Input::Motion(motion) => self.motion(motion, now_ms),
            Input::HostClockJumped => self.tell_time(ClockReason::HostClock),
        }
    }

    /// What a wish has come to; `None` while that is open.
    pub fn outcome(&self, wish: Wish) -> Option<Result<(), Refusal>> {
        let wanted = match wish {
            Wish::Pause => Motion::Stopped,
            Wish::Resume => Motion::Running,
        };
        let refused = |why: &str| Some(Err(Refusal::new(RefusalCode::Conflict, why)));
        match self.state.stage {
            Stage::Starting => refused("it is being started"),
            Stage::Stopping if wish == Wish::Pause => refused("it is being stopped"),
            Stage::Ended => refused("it has ended"),
            _ if self.wish != Some(wish) => refused("another wish has come after this one"),
            _ => (self.motion == wanted).then_some(Ok(())),
        }
    }

    fn wish(&mut self, wish: Wish) -> Vec<Effect> {
        let (wanted, effect) = match (wish, self.state.stage) {
            (Wish::Pause, Stage::Running) => (Motion::Stopped, Effect::StopVm),
            (Wish::Resume, Stage::Running | Stage::Stopping) => (Motion::Running, Effect::ContinueVm),
            _ => return Vec::new(),
        };
        let earlier = self.wish.replace(wish);
        // Signals of an earlier wish may be on their way still, so that what was seen last is not to be trusted.
        let may_change = earlier.is_some_and(|earlier| earlier != wish);
        if self.motion != wanted || may_change { vec![effect] } else { Vec::new() }
    }

    fn motion(&mut self, motion: Motion, now_ms: u64) -> Vec<Effect> {
        self.motion = motion;
        if motion != Motion::Running {
            if self.state.paused_ms.is_some() {
                return Vec::new();
            }
            self.state.paused_ms = Some(now_ms);
            return vec![Effect::Note(HostEvent::Paused)];
        }
        let mut effects = Vec::new();
        if self.state.paused_ms.take().is_some() {
            effects.push(Effect::Note(HostEvent::Resumed));
        }
        effects.extend(self.tell_time(ClockReason::Pause));
        effects
    }

    /// A guest that is starting is told when its agent answers first, one that stands still when it goes on.
    fn tell_time(&self, reason: ClockReason) -> Vec<Effect> {
        let runs = matches!(self.state.stage, Stage::Running | Stage::Stopping);
        if runs && self.motion == Motion::Running { vec![Effect::TellTime(reason)] } else { Vec::new() }
    }

    fn agent_up(&mut self) -> Vec<Effect> {
        self.agent_up = true;
        match self.state.stage {
            Stage::Starting => vec![Effect::Arm { after_ms: budget::HOST_READY_WAIT_MS }],
            _ => Vec::new(),
        }
    }

    fn guest(&mut self, kind: EventKind, now_ms: u64) -> Vec<Effect> {
        match kind {
            EventKind::ContainerCreated { container } => self.on(&container, |_| {}),
            EventKind::ContainerStarted { container, restart_count, .. } => self.on(&container, |view| {
                if let ContainerPhase::Terminated(run) = &view.phase {
                    view.last = Some(run.clone());
                }
                view.restart_count = restart_count;
                view.phase = ContainerPhase::Running { started_ms: now_ms };
            }),
            EventKind::ContainerExited { container, exit, restart_in_ms } => {
                let mut effects = self.on(&container, |view| {
                    let run = terminated(view, exit, None, now_ms);
                    after_run(view, run, restart_in_ms);
                });
                effects.extend(self.end_if_over(now_ms));
                effects
            }
            EventKind::ContainerFailed { container, message, restart_in_ms } => {
                self.container_failed(&container, cut(&message), restart_in_ms, now_ms)
            }
            EventKind::PodStarted if self.state.stage == Stage::Starting => {
                self.state.stage = Stage::Running;
                self.state.started_ms = Some(now_ms);
                let mut effects = vec![Effect::Disarm, Effect::Ready];
                effects.extend(self.end_if_over(now_ms));
                effects
            }
            EventKind::PodFailed { message } if self.state.stage == Stage::Starting => {
                let message = format!("the guest cannot start the pod: {}", cut(&message));
                self.fail(Failure::message(RunStage::Boot, Blame::Internal, message))
            }
            EventKind::PodStarted | EventKind::PodFailed { .. } | EventKind::ShuttingDown => Vec::new(),
        }
    }

    /// Changes one container; a guest that names one that is not there has broken the contract.
    fn on(&mut self, container: &ContainerName, change: impl FnOnce(&mut ContainerView)) -> Vec<Effect> {
        match self.state.containers.iter_mut().find(|view| view.name == *container) {
            Some(view) => {
                change(view);
                Vec::new()
            }
            None => {
                self.agent_lost(&format!("it reports a container {container} that the pod does not have"))
            }
        }
    }

    fn container_failed(
        &mut self,
        container: &ContainerName,
        message: &str,
        restart_in_ms: Option<u64>,
        now_ms: u64,
    ) -> Vec<Effect> {
        if self.state.stage == Stage::Starting {
            let failure = Failure::message(
                RunStage::Container,
                Blame::Workload,
                format!("container {container} could not be started: {message}"),
            );
            return self.fail(failure);
        }
        let mut effects = self.on(container, |view| {
            let run = terminated(view, ExitStatus::exited(128), Some(message.to_owned()), now_ms);
            after_run(view, run, restart_in_ms);
        });
        effects.extend(self.end_if_over(now_ms));
        effects
    }

    /// A running pod whose containers have all ended for good is ended.
    fn end_if_over(&mut self, now_ms: u64) -> Vec<Effect> {
        let over =
            self.state.containers.iter().all(|view| matches!(view.phase, ContainerPhase::Terminated(_)));
        if !over || self.state.stage != Stage::Running {
            return Vec::new();
        }
        self.shut_down(0, now_ms)
    }

    /// A later wish may shorten the grace period, never lengthen it: wishes can overtake each other on their way here.
    fn shut_down(&mut self, grace_ms: u64, now_ms: u64) -> Vec<Effect> {
        self.state.stage = Stage::Stopping;
        let kill_ms = now_ms.saturating_add(grace_ms);
        if self.kill_ms.is_some_and(|earlier| earlier <= kill_ms) {
            return Vec::new();
        }
        self.kill_ms = Some(kill_ms);
        // A pod that stands still could not be asked.
        let stands = self.motion != Motion::Running || self.wish == Some(Wish::Pause);
        let mut effects = if stands { vec![Effect::ContinueVm] } else { Vec::new() };
        effects.push(Effect::Shutdown { grace_ms });
        effects.push(Effect::Arm { after_ms: grace_ms + budget::HOST_SHUTDOWN_WAIT_MS });
        effects
    }

    fn stop(&mut self, grace_ms: u64, now_ms: u64) -> Vec<Effect> {
        match self.state.stage {
            Stage::Starting => self.cancel(),
            Stage::Running | Stage::Stopping => self.shut_down(grace_ms, now_ms),
            Stage::Ended => Vec::new(),
        }
    }

    fn cancel(&mut self) -> Vec<Effect> {
        if self.state.stage != Stage::Starting {
            return Vec::new();
        }
        self.fail(Failure::message(
            RunStage::Cancelled,
            Blame::User,
            "the run was cancelled before the pod was up",
        ))
    }

    fn fail(&mut self, failure: Failure) -> Vec<Effect> {
        self.state.stage = Stage::Ended;
        vec![Effect::Fail(Box::new(failure))]
    }

    fn agent_lost(&mut self, why: &str) -> Vec<Effect> {
        let why = cut(why);
        match self.state.stage {
            Stage::Starting => {
                let message = format!("the pod's agent broke off: {why}");
                let failure = Failure::message(RunStage::Agent, Blame::Workload, message);
                self.fail(failure.because(SandboxFailure::AgentBroke))
            }
            Stage::Running => {
                self.state.stage = Stage::Stopping;
                let message = format!("the pod's agent broke off: {why}");
                self.state.broken = Some(Broken { reason: SandboxFailure::AgentBroke, message });
                vec![Effect::KillVm]
            }
            // While it stops, silence is no news: the deadline is armed, and the VM's end is waited for.
            Stage::Stopping | Stage::Ended => Vec::new(),
        }
    }

    fn vm_gone(&mut self, end: &SandboxEnd, now_ms: u64) -> Vec<Effect> {
        if self.state.stage == Stage::Starting {
            let (stage, when) = if self.agent_up {
                (RunStage::Agent, "before all containers ran")
            } else {
                (RunStage::Boot, "before its agent answered")
            };
            let message = format!("the VM ended {when}: {}", end.how);
            return self.fail(Failure::message(stage, Blame::Internal, message).because(end.failure));
        }
        if self.state.stage == Stage::Running {
            let message = format!("the VM ended while the pod ran: {}", end.how);
            self.state.broken = Some(Broken { reason: end.failure, message });
        }
        let why = self
            .state
            .broken
            .as_ref()
            .map(|broken| broken.message.clone())
            .unwrap_or_else(|| "the VM ended before this container's end was seen".to_owned());
        for view in &mut self.state.containers {
            if !matches!(view.phase, ContainerPhase::Terminated(_)) {
                let mut run = terminated(view, ExitStatus::signaled(9), Some(why.clone()), now_ms);
                run.reason = "ContainerStatusUnknown".to_owned();
                view.phase = ContainerPhase::Terminated(run);
            }
        }
        self.state.stage = Stage::Ended;
        self.state.paused_ms = None;
        self.state.ended_ms = Some(now_ms);
        vec![Effect::End]
    }

    fn deadline(&mut self) -> Vec<Effect> {
        let secs = |ms: u64| ms / 1000;
        let stands = match self.motion {
            Motion::Running => "",
            Motion::PartlyStopped | Motion::Stopped => "; somebody has stopped its processes (SIGSTOP)",
        };
        match (self.state.stage, self.agent_up) {
            (Stage::Starting, false) => {
                let limit = secs(budget::HOST_BOOT_WAIT_MS);
                let message = format!("the VM's agent did not answer within {limit} s of its start{stands}");
                let failure = Failure::message(RunStage::Boot, Blame::Internal, message);
                self.fail(failure.because(SandboxFailure::AgentSilent))
            }
            (Stage::Starting, true) => {
                let limit = secs(budget::HOST_READY_WAIT_MS);
                let message =
                    format!("not all containers ran within {limit} s of the agent's first answer{stands}");
                let failure = Failure::message(RunStage::Agent, Blame::Workload, message);
                self.fail(failure.because(SandboxFailure::AgentSilent))
            }
            (Stage::Stopping, _) => {
                self.state.broken.get_or_insert_with(|| Broken {
                    reason: SandboxFailure::GuestStuck,
                    message: "the guest did not end in time and was killed".to_owned(),
                });
                vec![Effect::KillVm]
            }
            (Stage::Running | Stage::Ended, _) => Vec::new(),
        }
    }
}

/// What a guest said or made us say, short enough to be kept and passed on.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_MESSAGE_LEN)]
}

/// The run of a container that has just ended.
fn terminated(view: &ContainerView, exit: ExitStatus, message: Option<String>, now_ms: u64) -> Terminated {
    let started_ms = match &view.phase {
        ContainerPhase::Running { started_ms } => Some(*started_ms),
        _ => None,
    };
    let reason = match (&message, exit) {
        (Some(_), _) => "StartError",
        (None, ExitStatus { oom_killed: true, .. }) => "OOMKilled",
        (None, ExitStatus { code: 0, .. }) => "Completed",
        (None, _) => "Error",
    };
    Terminated { exit, reason: reason.to_owned(), message, started_ms, finished_ms: now_ms }
}

fn after_run(view: &mut ContainerView, run: Terminated, restart_in_ms: Option<u64>) {
    view.phase = match restart_in_ms {
        None => ContainerPhase::Terminated(run),
        Some(wait) => {
            let message =
                format!("starts again in {:.1} s", std::time::Duration::from_millis(wait).as_secs_f64());
            view.last = Some(run);
            ContainerPhase::Waiting { reason: "CrashLoopBackOff".to_owned(), message: Some(message) }
        }
    };
}

#[cfg(test)]
mod pausing;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn names(count: usize) -> Vec<ContainerName> {
        (0..count).map(|n| format!("c{n}").parse().unwrap()).collect()
    }

    pub(super) fn guest(kind: EventKind) -> Input {
        Input::Guest(Event { seq: 1, kind })
    }

    pub(super) fn gone(how: &str) -> Input {
        Input::VmGone { end: SandboxEnd { failure: SandboxFailure::GuestEnded, how: how.to_owned() } }
    }

    pub(super) fn started(n: usize) -> Input {
        guest(EventKind::ContainerStarted { container: names(n + 1)[n].clone(), pid: 7, restart_count: 0 })
    }

    fn exited(n: usize, exit: ExitStatus, restart_in_ms: Option<u64>) -> Input {
        guest(EventKind::ContainerExited { container: names(n + 1)[n].clone(), exit, restart_in_ms })
    }

    #[test]
    fn an_ordinary_life() {
        let mut pod = Machine::new(&names(2));
        assert_eq!(pod.step(Input::AgentUp, 1), [Effect::Arm { after_ms: budget::HOST_READY_WAIT_MS }]);
        assert!(pod.step(started(0), 2).is_empty());
        assert!(pod.step(started(1), 3).is_empty());
        assert_eq!(pod.step(guest(EventKind::PodStarted), 4), [Effect::Disarm, Effect::Ready]);
        assert!(pod.step(exited(0, ExitStatus::exited(0), None), 5).is_empty());
        let effects = pod.step(exited(1, ExitStatus::exited(3), None), 6);
        assert_eq!(
            effects,
            [Effect::Shutdown { grace_ms: 0 }, Effect::Arm { after_ms: budget::HOST_SHUTDOWN_WAIT_MS }]
        );
        assert_eq!(pod.step(gone("exit 0"), 7), [Effect::End]);
        assert_eq!(pod.state.stage, Stage::Ended);
        assert_eq!(pod.state.broken, None);
        let ContainerPhase::Terminated(run) = &pod.state.containers[1].phase else { panic!() };
        assert_eq!(
            (run.exit.code, run.reason.as_str(), run.started_ms, run.finished_ms),
            (3, "Error", Some(3), 6)
        );
    }

    #[test]
    fn a_container_that_is_over_before_the_others_run_is_no_failure() {
        let mut pod = Machine::new(&names(1));
        pod.step(Input::AgentUp, 1);
        pod.step(started(0), 2);
        assert!(pod.step(exited(0, ExitStatus::exited(1), None), 3).is_empty());
        let effects = pod.step(guest(EventKind::PodStarted), 4);
        assert_eq!(effects[..3], [Effect::Disarm, Effect::Ready, Effect::Shutdown { grace_ms: 0 }]);
    }

    #[test]
    fn a_restart_keeps_the_earlier_run_and_the_pod_alive() {
        let mut pod = Machine::new(&names(1));
        pod.step(started(0), 2);
        pod.step(guest(EventKind::PodStarted), 3);
        let oom = ExitStatus { oom_killed: true, ..ExitStatus::signaled(9) };
        assert!(pod.step(exited(0, oom, Some(10_000)), 4).is_empty());
        let view = &pod.state.containers[0];
        assert!(
            matches!(&view.phase, ContainerPhase::Waiting { reason, .. } if reason == "CrashLoopBackOff")
        );
        assert_eq!(view.last.as_ref().unwrap().reason, "OOMKilled");
        let again = EventKind::ContainerStarted { container: names(1)[0].clone(), pid: 8, restart_count: 1 };
        pod.step(guest(again), 5);
        assert_eq!(pod.state.containers[0].restart_count, 1);
        assert_eq!(pod.state.containers[0].last.as_ref().unwrap().reason, "OOMKilled");
    }

    #[test]
    fn each_way_to_fail_a_start_has_its_stage() {
        let fails = |up: bool, input: Input| {
            let mut pod = Machine::new(&names(1));
            if up {
                pod.step(Input::AgentUp, 1);
            }
            match pod.step(input, 2).as_slice() {
                [Effect::Fail(failure)] => failure.stage,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(fails(false, gone("exit 1")), RunStage::Boot);
        assert_eq!(fails(true, gone("exit 1")), RunStage::Agent);
        assert_eq!(fails(false, Input::Deadline), RunStage::Boot);
        assert_eq!(fails(true, Input::Deadline), RunStage::Agent);
        assert_eq!(fails(true, Input::AgentLost { why: "x".into() }), RunStage::Agent);
        assert_eq!(fails(true, guest(EventKind::PodFailed { message: "x".into() })), RunStage::Boot);
        let missing = EventKind::ContainerFailed {
            container: names(1)[0].clone(),
            message: "x".into(),
            restart_in_ms: None,
        };
        assert_eq!(fails(true, guest(missing)), RunStage::Container);
        assert_eq!(fails(true, started(5)), RunStage::Agent);
        assert_eq!(fails(false, Input::Cancel), RunStage::Cancelled);
        assert_eq!(fails(true, Input::Stop { grace_ms: 1 }), RunStage::Cancelled);
    }

    #[test]
    fn a_grace_period_can_be_shortened_only() {
        let mut pod = Machine::new(&names(1));
        pod.step(started(0), 1);
        pod.step(guest(EventKind::PodStarted), 2);
        assert_eq!(pod.step(Input::Stop { grace_ms: 5000 }, 10)[0], Effect::Shutdown { grace_ms: 5000 });
        assert!(pod.step(Input::Stop { grace_ms: 5000 }, 20).is_empty());
        assert_eq!(pod.step(Input::Stop { grace_ms: 0 }, 30)[0], Effect::Shutdown { grace_ms: 0 });
        assert!(pod.step(Input::Stop { grace_ms: 300_000 }, 31).is_empty());
        assert_eq!(pod.step(Input::Deadline, 40), [Effect::KillVm]);
    }

    #[test]
    fn a_vm_that_dies_takes_its_containers_status_with_it() {
        let mut pod = Machine::new(&names(1));
        pod.step(started(0), 1);
        pod.step(guest(EventKind::PodStarted), 2);
        assert_eq!(pod.step(gone("signal 9"), 3), [Effect::End]);
        assert!(pod.state.broken.as_ref().unwrap().message.contains("signal 9"));
        let ContainerPhase::Terminated(run) = &pod.state.containers[0].phase else { panic!() };
        assert_eq!((run.reason.as_str(), run.exit.code), ("ContainerStatusUnknown", 137));
    }

    pub(super) fn any_input() -> impl Strategy<Value = Input> {
        let exit =
            prop_oneof![(0..256i32).prop_map(ExitStatus::exited), (1..64i32).prop_map(ExitStatus::signaled)];
        let name = (0..4usize).prop_map(|n| names(n + 1)[n].clone());
        prop_oneof![
            Just(Input::AgentUp),
            Just(Input::Wish(Wish::Pause)),
            Just(Input::Wish(Wish::Resume)),
            prop_oneof![Just(Motion::Running), Just(Motion::PartlyStopped), Just(Motion::Stopped)]
                .prop_map(Input::Motion),
            Just(Input::HostClockJumped),
            Just(Input::Cancel),
            Just(Input::Deadline),
            (0..400_000u64).prop_map(|grace_ms| Input::Stop { grace_ms }),
            Just(Input::AgentLost { why: "x".into() }),
            Just(gone("x")),
            Just(guest(EventKind::PodStarted)),
            Just(guest(EventKind::ShuttingDown)),
            Just(guest(EventKind::PodFailed { message: "x".into() })),
            (name.clone(), any::<i32>(), any::<u32>()).prop_map(|(container, pid, restart_count)| guest(
                EventKind::ContainerStarted { container, pid, restart_count }
            )),
            (name.clone(), exit, proptest::option::of(any::<u64>())).prop_map(
                |(container, exit, restart_in_ms)| guest(EventKind::ContainerExited {
                    container,
                    exit,
                    restart_in_ms
                })
            ),
            (name, proptest::option::of(any::<u64>())).prop_map(|(container, restart_in_ms)| guest(
                EventKind::ContainerFailed { container, message: "x".into(), restart_in_ms }
            )),
        ]
    }

    proptest! {
        /// Whatever a guest says and in whatever order, the pod is said to be ready at most once, ends exactly once, and after its end
        /// nothing is done any more.
        #[test]
        fn any_history_is_survived(inputs in proptest::collection::vec(any_input(), 0..60)) {
            let mut pod = Machine::new(&names(3));
            let (mut ready, mut ends, mut bounded) = (0, 0, false);
            for (now, input) in inputs.into_iter().enumerate() {
                let ended_before = pod.state.stage == Stage::Ended;
                let effects = pod.step(input, u64::try_from(now).unwrap());
                prop_assert!(!ended_before || effects.is_empty());
                for effect in &effects {
                    match effect {
                        Effect::Ready => ready += 1,
                        Effect::End | Effect::Fail(_) => ends += 1,
                        Effect::Arm { .. } | Effect::KillVm => bounded = true,
                        Effect::Disarm => bounded = false,
                        _ => {}
                    }
                }
                prop_assert_eq!(ends > 0, pod.state.stage == Stage::Ended);
                prop_assert!(!matches!(effects.last(), Some(Effect::Fail(_))) || ready == 0);
                // Whoever is stopping has a deadline or a killed VM: nobody waits for ever.
                prop_assert!(bounded || pod.state.stage != Stage::Stopping);
            }
            prop_assert!(ready <= 1 && ends <= 1);
            let mut last = pod.clone();
            last.step(gone("end"), 99);
            prop_assert_eq!(last.state.stage, Stage::Ended);
            for view in &last.state.containers {
                prop_assert!(pod.state.started_ms.is_none() || matches!(view.phase, ContainerPhase::Terminated(_)));
            }
        }
    }
}
