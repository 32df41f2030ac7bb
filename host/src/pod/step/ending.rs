//! The ways in which a pod ends: by a user's request, by a deadline, or because its agent or its sandbox is gone.

use super::booting::STOPPED_HINT;
use super::containers::started_ms;
use super::{Effect, Machine, PauseRequest, Start, StartProgress, cut};
use crate::pod::events::HostEvent;
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::process::Motion;
use crate::store::record::{Broken, DiskFull, FailedReason, Stage};
use crate::store::sandbox::{SandboxEnd, SandboxFailure};
use magikvm_proto::budget;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::state::{ContainerState, ContainerStatus, Terminated};
use std::time::Duration;

/// The end of a sentence about a VM that was silent.
pub(super) fn stands(motion: Motion, disk: Option<&DiskFull>) -> &'static str {
    match (motion, disk) {
        (Motion::PartlyStopped | Motion::Stopped, _) => "; its processes were stopped by a signal (SIGSTOP)",
        (Motion::Running, Some(_)) => "; the host's disk is full",
        (Motion::Running, None) => "",
    }
}

impl Machine {
    /// A later request may shorten the grace period but never lengthen it, because requests can overtake each other.
    pub(super) fn shut_down(&mut self, grace_ms: u64, now_ms: u64) -> Vec<Effect> {
        let Some(mut effects) = self.begin_to_stop(grace_ms, now_ms) else { return Vec::new() };
        if grace_ms == 0 && self.state.disk_full.is_some() {
            effects.extend(self.end_without_room());
            return effects;
        }
        effects.push(Effect::Shutdown { grace_ms });
        effects.push(Effect::Arm { after_ms: grace_ms + budget::HOST_SHUTDOWN_WAIT_MS });
        effects
    }

    /// Kills a VM that stands still because the host's disk is full.
    fn end_without_room(&mut self) -> Option<Effect> {
        let DiskFull { dir, .. } = self.state.disk_full.as_ref()?;
        let message = format!(
            "the host's disk with {} was full, so that the guest stood still and was killed",
            dir.display()
        );
        self.state.broken.get_or_insert(Broken { reason: SandboxFailure::HostDiskFull, message });
        Some(Effect::Kill)
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
        Some(self.resume_to_end())
    }

    /// A paused pod can neither be asked nor end.
    fn resume_to_end(&self) -> Vec<Effect> {
        let stands = self.motion != Motion::Running || self.request == Some(PauseRequest::Pause);
        if stands { vec![Effect::Resume] } else { Vec::new() }
    }

    pub(super) fn stop(&mut self, grace_ms: u64, now_ms: u64) -> Vec<Effect> {
        match self.state.stage {
            Stage::Starting | Stage::Pulling => {
                let message = "the pod was stopped or removed while it was being started";
                let failure = Failure::message(RunStage::Cancelled, Blame::User, message);
                if grace_ms > 0 && self.has_begun_to_run() {
                    return self.begin_to_fail(failure, grace_ms, now_ms);
                }
                self.give_up(failure)
            }
            Stage::Running | Stage::Stopping => self.shut_down(grace_ms, now_ms),
            Stage::Ended => Vec::new(),
        }
    }

    pub(super) fn cancel(&mut self, now_ms: u64) -> Vec<Effect> {
        let message = "the run was cancelled before the pod was up";
        let failure = Failure::message(RunStage::Cancelled, Blame::User, message);
        match self.state.stage {
            Stage::Pulling => self.give_up_pull(),
            Stage::Starting if self.has_begun_to_run() && self.failing.is_none() => {
                self.begin_to_fail(failure, self.grace_ms, now_ms)
            }
            Stage::Starting => self.fail(failure),
            Stage::Running | Stage::Stopping | Stage::Ended => Vec::new(),
        }
    }

    /// Whether an init container or a sidecar runs or has run, so that the end of the pod is not that of its sandbox alone.
    fn has_begun_to_run(&self) -> bool {
        let begun = |(status, start): (&ContainerStatus, &Start)| {
            status.role != Role::Main && start.progress >= StartProgress::Started
        };
        self.agent_up && self.state.containers.iter().zip(&self.starts).any(begun)
    }

    /// The start has failed. The supervisor is asked to end within the grace period, and the failure is reported when the sandbox is gone.
    pub(super) fn begin_to_fail(&mut self, failure: Failure, grace_ms: u64, now_ms: u64) -> Vec<Effect> {
        if self.state.stage != Stage::Starting {
            return Vec::new();
        }
        // The first failure is the cause of the later ones.
        self.failing.get_or_insert_with(|| Box::new(failure));
        let kill_ms = now_ms.saturating_add(grace_ms);
        if self.kill_ms.is_some_and(|earlier| earlier <= kill_ms) {
            return Vec::new();
        }
        self.kill_ms = Some(kill_ms);
        let after_ms = grace_ms.saturating_add(budget::HOST_SHUTDOWN_WAIT_MS);
        let mut effects = self.resume_to_end();
        effects.extend([Effect::Shutdown { grace_ms }, Effect::Arm { after_ms }]);
        effects
    }

    /// The supervisor stops the pod because it has reached the end of its longest life.
    pub(super) fn deadline_exceeded(&mut self, now_ms: u64) -> Vec<Effect> {
        match self.state.stage {
            Stage::Starting => {
                let message = "the pod was active longer than its `activeDeadlineSeconds` before all of its containers ran";
                let failure = Failure::message(RunStage::Container, Blame::Workload, message)
                    .hint("Raise `spec.activeDeadlineSeconds` if its init containers need longer.");
                self.begin_to_fail(failure, self.grace_ms, now_ms)
            }
            Stage::Running | Stage::Stopping => {
                self.state.failed = Some(FailedReason::DeadlineExceeded);
                self.shut_down(self.grace_ms, now_ms)
            }
            Stage::Pulling | Stage::Ended => Vec::new(),
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
        // What has made the start fail says more than how the rest has ended.
        vec![Effect::Fail(self.failing.take().unwrap_or_else(|| Box::new(failure)))]
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

    /// The supervisor cannot start the pod, or cannot go on and stops it.
    pub(super) fn supervisor_failed(&mut self, why: &str, killed: bool, now_ms: u64) -> Vec<Effect> {
        let reason = if killed { SandboxFailure::SandboxKilled } else { SandboxFailure::SandboxFailed };
        match self.state.stage {
            Stage::Starting => {
                let message = format!("the supervisor cannot start the pod: {why}");
                let failure = Failure::message(RunStage::Boot, reason.blame(), message);
                self.fail(if killed { failure.because(reason) } else { failure })
            }
            Stage::Running => {
                let message = format!("the sandbox failed while the pod ran: {why}");
                self.state.broken = Some(Broken { reason, message });
                self.shut_down(self.grace_ms, now_ms)
            }
            Stage::Pulling | Stage::Stopping | Stage::Ended => Vec::new(),
        }
    }

    pub(super) fn sandbox_gone(&mut self, end: &SandboxEnd, now_ms: u64) -> Vec<Effect> {
        if matches!(self.state.stage, Stage::Starting | Stage::Pulling) {
            let (stage, when) = if self.agent_up {
                (RunStage::Agent, "before all containers ran")
            } else {
                (RunStage::Boot, "before its agent answered")
            };
            let message = format!("the sandbox ended {when}: {}", end.how);
            let failure = Failure::message(stage, end.blame(), message);
            return self.fail(failure.because(end.failure));
        }
        if self.state.stage == Stage::Running {
            let message = format!("the sandbox ended while the pod ran: {}", end.how);
            self.state.broken = Some(Broken { reason: end.failure, message });
        }
        let why = self
            .state
            .broken
            .as_ref()
            .map(|broken| broken.message.clone())
            .unwrap_or_else(|| "the sandbox ended before this container's end was seen".to_owned());
        for status in &mut self.state.containers {
            if status.state.terminated().is_none() {
                let run = Terminated::unknown(&why, started_ms(status), now_ms).of_run(status.restart_count);
                status.state = ContainerState::Terminated(run);
            }
            (status.ready, status.started) = (false, false);
        }
        self.state.stage = Stage::Ended;
        self.state.paused_ms = None;
        self.state.disk_full = None;
        self.state.ended_ms = Some(now_ms);
        // The guest reports an orderly end itself.
        let note = self.state.broken.as_ref().map(|broken| {
            Effect::Note(HostEvent::Broken { reason: broken.reason, message: broken.message.clone() })
        });
        note.into_iter().chain([Effect::End]).collect()
    }

    pub(super) fn deadline(&mut self) -> Vec<Effect> {
        match (self.state.stage, self.agent_up) {
            (Stage::Starting, false) => self.agent_silent(),
            (Stage::Starting, true) => {
                let disk = self.state.disk_full.as_ref();
                let stands = stands(self.motion, disk);
                let limit = Duration::from_millis(self.waits.ready_ms).as_secs_f64();
                let message = format!("not all containers ran: there was no progress for {limit} s{stands}");
                if disk.is_some() && self.motion == Motion::Running {
                    let failure = Failure::message(RunStage::Agent, Blame::Environment, message);
                    return self.fail(failure.because(SandboxFailure::HostDiskFull));
                }
                let hint = match self.motion {
                    Motion::Running => {
                        "Allow more time with `magikvm run --ready-timeout 5m` if it only needs longer."
                    }
                    Motion::PartlyStopped | Motion::Stopped => STOPPED_HINT,
                };
                let failure = Failure::message(RunStage::Agent, Blame::Workload, message).hint(hint);
                self.fail(failure.because(SandboxFailure::AgentSilent))
            }
            (Stage::Stopping, _) if self.state.disk_full.is_some() => {
                self.end_without_room().into_iter().collect()
            }
            (Stage::Stopping, _) => {
                self.state.broken.get_or_insert_with(|| Broken {
                    reason: SandboxFailure::SandboxStuck,
                    message: "the pod did not end in time and was killed".to_owned(),
                });
                vec![Effect::Kill]
            }
            (Stage::Pulling | Stage::Running | Stage::Ended, _) => Vec::new(),
        }
    }
}
