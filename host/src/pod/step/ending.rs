//! The ways in which a pod ends: by a user's request, by a deadline, or because its agent or its sandbox is gone.

use super::containers::started_ms;
use super::{Effect, Machine, PauseRequest, cut};
use crate::pod::events::HostEvent;
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::process::Motion;
use crate::store::record::{Broken, Stage};
use crate::store::sandbox::{SandboxEnd, SandboxFailure};
use magikvm_proto::budget;
use magikvm_proto::state::{ContainerState, Terminated};
use std::time::Duration;

/// For a VM that another process has stopped: neither time nor a quieter host would help.
const STOPPED_HINT: &str =
    "find out which process sent SIGSTOP, and run the pod again; `magikvm pause` is for pods that run.";

impl Machine {
    /// A later request may shorten the grace period but never lengthen it, because requests can overtake each other.
    pub(super) fn shut_down(&mut self, grace_ms: u64, now_ms: u64) -> Vec<Effect> {
        let Some(mut effects) = self.begin_to_stop(grace_ms, now_ms) else { return Vec::new() };
        effects.push(Effect::Shutdown { grace_ms });
        effects.push(Effect::Arm { after_ms: grace_ms + budget::HOST_SHUTDOWN_WAIT_MS });
        effects
    }

    /// The supervisor reports that the pod is over. It ends by itself, so the host only waits for it. In a pod that is still starting nothing
    /// has run: there the end of the sandbox is the failure of the run.
    pub(super) fn pod_ended(&mut self, now_ms: u64) -> Vec<Effect> {
        if !matches!(self.state.stage, Stage::Running | Stage::Stopping) {
            return Vec::new();
        }
        // A container that waited for its next run ends with the outcome of its last one.
        for status in &mut self.state.containers {
            if matches!(status.state, ContainerState::Waiting { .. })
                && let Some(run) = status.last.take()
            {
                status.state = ContainerState::Terminated(run);
            }
        }
        let Some(mut effects) = self.begin_to_stop(0, now_ms) else { return Vec::new() };
        effects.push(Effect::Arm { after_ms: budget::HOST_SHUTDOWN_WAIT_MS });
        effects
    }

    /// `None` if an earlier request ends the pod by then anyway.
    fn begin_to_stop(&mut self, grace_ms: u64, now_ms: u64) -> Option<Vec<Effect>> {
        self.state.stage = Stage::Stopping;
        let kill_ms = now_ms.saturating_add(grace_ms);
        if self.kill_ms.is_some_and(|earlier| earlier <= kill_ms) {
            return None;
        }
        self.kill_ms = Some(kill_ms);
        // A paused pod can neither be asked nor end.
        let stands = self.motion != Motion::Running || self.request == Some(PauseRequest::Pause);
        Some(if stands { vec![Effect::Resume] } else { Vec::new() })
    }

    pub(super) fn stop(&mut self, grace_ms: u64, now_ms: u64) -> Vec<Effect> {
        match self.state.stage {
            Stage::Starting | Stage::Pulling => {
                let message = "the pod was stopped or removed while it was being started";
                self.give_up(Failure::message(RunStage::Cancelled, Blame::User, message))
            }
            Stage::Running | Stage::Stopping => self.shut_down(grace_ms, now_ms),
            Stage::Ended => Vec::new(),
        }
    }

    pub(super) fn cancel(&mut self) -> Vec<Effect> {
        match self.state.stage {
            Stage::Pulling => self.give_up_pull(),
            Stage::Starting => self.fail(Failure::message(
                RunStage::Cancelled,
                Blame::User,
                "the run was cancelled before the pod was up",
            )),
            Stage::Running | Stage::Stopping | Stage::Ended => Vec::new(),
        }
    }

    /// Gives the start up for a reason that the client does not know.
    fn give_up(&mut self, failure: Failure) -> Vec<Effect> {
        match self.state.stage {
            Stage::Pulling => {
                self.given_up_for = Some(failure);
                self.give_up_pull()
            }
            _ => self.fail(failure),
        }
    }

    pub(super) fn directory_gone(&mut self) -> Vec<Effect> {
        match self.state.stage {
            Stage::Starting | Stage::Pulling => {
                let message = "the pod's directory was removed while the pod was being started";
                self.give_up(Failure::message(RunStage::Cancelled, Blame::User, message))
            }
            // The sockets went with the directory, so that the guest cannot be asked to end.
            Stage::Running | Stage::Stopping => {
                self.state.stage = Stage::Stopping;
                vec![Effect::Kill]
            }
            Stage::Ended => Vec::new(),
        }
    }

    pub(super) fn monitor_failed(&mut self, why: &str) -> Vec<Effect> {
        let message = format!("the pod's monitor failed: {why}");
        match self.state.stage {
            // A puller ends with the run.
            Stage::Starting | Stage::Pulling => {
                let failure = Failure::message(RunStage::Agent, Blame::Internal, message);
                self.fail(failure.because(SandboxFailure::MonitorFailed))
            }
            Stage::Running | Stage::Stopping => {
                self.state.stage = Stage::Stopping;
                self.state.broken = Some(Broken { reason: SandboxFailure::MonitorFailed, message });
                vec![Effect::Kill]
            }
            Stage::Ended => Vec::new(),
        }
    }

    /// The end of a pod whose loop cannot go on.
    pub fn end_at_once(&mut self, why: &str, now_ms: u64) -> Vec<Effect> {
        self.monitor_failed(why);
        let how = "the pod's monitor failed".to_owned();
        self.sandbox_gone(&SandboxEnd { failure: SandboxFailure::MonitorFailed, how }, now_ms)
    }

    pub(super) fn fail(&mut self, failure: Failure) -> Vec<Effect> {
        self.state.stage = Stage::Ended;
        vec![Effect::Fail(Box::new(failure))]
    }

    pub(super) fn agent_lost(&mut self, why: &str) -> Vec<Effect> {
        let why = cut(why);
        match self.state.stage {
            Stage::Starting | Stage::Pulling => {
                let message = format!("the pod's agent broke off: {why}");
                let failure = Failure::message(RunStage::Agent, Blame::Workload, message);
                self.fail(failure.because(SandboxFailure::AgentBroke))
            }
            Stage::Running => {
                self.state.stage = Stage::Stopping;
                let message = format!("the pod's agent broke off: {why}");
                self.state.broken = Some(Broken { reason: SandboxFailure::AgentBroke, message });
                vec![Effect::Kill]
            }
            // While the pod stops, silence means nothing: the deadline is armed, and the host waits for the sandbox's end.
            Stage::Stopping | Stage::Ended => Vec::new(),
        }
    }

    pub(super) fn sandbox_gone(&mut self, end: &SandboxEnd, now_ms: u64) -> Vec<Effect> {
        if matches!(self.state.stage, Stage::Starting | Stage::Pulling) {
            let (stage, when) = if self.agent_up {
                (RunStage::Agent, "before all containers ran")
            } else {
                (RunStage::Boot, "before its agent answered")
            };
            let message = format!("the VM ended {when}: {}", end.how);
            let failure = Failure::message(stage, end.blame(), message);
            return self.fail(failure.because(end.failure));
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
        for status in &mut self.state.containers {
            if status.state.terminated().is_none() {
                let run = Terminated::unknown(&why, started_ms(status), now_ms);
                status.state = ContainerState::Terminated(run);
            }
        }
        self.state.stage = Stage::Ended;
        self.state.paused_ms = None;
        self.state.ended_ms = Some(now_ms);
        // The guest reports an orderly end itself.
        let note = self.state.broken.as_ref().map(|broken| {
            Effect::Note(HostEvent::Broken { reason: broken.reason, message: broken.message.clone() })
        });
        note.into_iter().chain([Effect::End]).collect()
    }

    pub(super) fn deadline(&mut self) -> Vec<Effect> {
        let secs = |ms: u64| ms / 1000;
        let stands = match self.motion {
            Motion::Running => "",
            Motion::PartlyStopped | Motion::Stopped => "; its processes were stopped by a signal (SIGSTOP)",
        };
        match (self.state.stage, self.agent_up) {
            (Stage::Starting, false) => {
                let limit = secs(budget::HOST_BOOT_WAIT_MS);
                let message = format!("the pod's agent did not answer within {limit} s of its start{stands}");
                let failure = Failure::message(RunStage::Boot, Blame::Internal, message);
                let failure = match self.motion {
                    Motion::Running => failure,
                    Motion::PartlyStopped | Motion::Stopped => failure.hint(STOPPED_HINT),
                };
                self.fail(failure.because(SandboxFailure::AgentSilent))
            }
            (Stage::Starting, true) => {
                let limit = Duration::from_millis(self.ready_wait_ms).as_secs_f64();
                let message = format!("not all containers ran: there was no progress for {limit} s{stands}");
                let hint = match self.motion {
                    Motion::Running => {
                        "allow more time with `magikvm run --ready-timeout 5m` if it only needs longer."
                    }
                    Motion::PartlyStopped | Motion::Stopped => STOPPED_HINT,
                };
                let failure = Failure::message(RunStage::Agent, Blame::Workload, message).hint(hint);
                self.fail(failure.because(SandboxFailure::AgentSilent))
            }
            (Stage::Stopping, _) => {
                self.state.broken.get_or_insert_with(|| Broken {
                    reason: SandboxFailure::GuestStuck,
                    message: "the guest did not end in time and was killed".to_owned(),
                });
                vec![Effect::Kill]
            }
            (Stage::Pulling | Stage::Running | Stage::Ended, _) => Vec::new(),
        }
    }
}
