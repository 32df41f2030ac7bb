//! Applies the supervisor's reports about the pod's containers.

use super::{Effect, Machine, StartProgress, cut};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::store::record::Stage;
use magikvm_proto::id::ContainerName;
use magikvm_proto::state::{ContainerState, ContainerStatus, Terminated};
use magikvm_proto::wire::{EventKind, ProgramProblem};

impl Machine {
    pub(super) fn guest(&mut self, kind: EventKind, now_ms: u64) -> Vec<Effect> {
        match kind {
            EventKind::ContainerCreated { container } => {
                self.on(&container, |_| {}, Some(StartProgress::Created))
            }
            EventKind::ContainerStarted { container, restart_count, .. } => {
                let begun = |status: &mut ContainerStatus| {
                    if let ContainerState::Terminated(run) = &status.state {
                        status.last = Some(run.clone());
                    }
                    status.restart_count = restart_count;
                    status.state = ContainerState::Running { started_ms: now_ms };
                };
                self.on(&container, begun, Some(StartProgress::Started))
            }
            EventKind::ContainerExited { container, exit, restart_in_ms } => {
                let ended = |status: &mut ContainerStatus| {
                    let run = Terminated::ended(exit, started_ms(status), now_ms);
                    after_run(status, run, restart_in_ms);
                };
                self.on(&container, ended, None)
            }
            EventKind::ContainerFailed { container, message, program, restart_in_ms } => {
                if self.state.stage == Stage::Starting {
                    return self.start_failed(&container, cut(&message), program);
                }
                let failed = |status: &mut ContainerStatus| {
                    after_run(status, Terminated::not_started(cut(&message), now_ms), restart_in_ms);
                };
                self.on(&container, failed, None)
            }
            EventKind::PodStarted if self.state.stage == Stage::Starting => {
                self.state.stage = Stage::Running;
                self.state.started_ms = Some(now_ms);
                vec![Effect::Disarm, Effect::Ready]
            }
            EventKind::PodFailed { message } if self.state.stage == Stage::Starting => {
                let message = format!("the guest cannot start the pod: {}", cut(&message));
                self.fail(Failure::message(RunStage::Boot, Blame::Internal, message))
            }
            EventKind::PodEnded => self.pod_ended(now_ms),
            EventKind::PodStarted | EventKind::PodFailed { .. } | EventKind::ShuttingDown => Vec::new(),
        }
    }

    /// Changes one container. A supervisor that names an unknown container has broken the contract.
    fn on(
        &mut self,
        container: &ContainerName,
        change: impl FnOnce(&mut ContainerStatus),
        progress: Option<StartProgress>,
    ) -> Vec<Effect> {
        let Some(index) = self.state.containers.iter().position(|status| status.name == *container) else {
            return self
                .agent_lost(&format!("it reports a container {container} that the pod does not have"));
        };
        change(&mut self.state.containers[index]);
        match progress {
            Some(progress) if progress > self.progress[index] => {
                self.progress[index] = progress;
                self.progressed()
            }
            _ => Vec::new(),
        }
    }

    /// The start has made progress, so that the deadline begins anew.
    fn progressed(&self) -> Vec<Effect> {
        match self.state.stage {
            Stage::Starting if self.agent_up => vec![Effect::Arm { after_ms: self.ready_wait_ms }],
            _ => Vec::new(),
        }
    }

    /// Nothing of a pod runs when one of its containers could not be started.
    fn start_failed(
        &mut self,
        container: &ContainerName,
        message: &str,
        program: Option<ProgramProblem>,
    ) -> Vec<Effect> {
        let message = format!("container {container} could not be started: {message}");
        let failure = Failure::message(RunStage::Container, Blame::Workload, message);
        self.fail(match program {
            Some(ProgramProblem::Missing) => Failure { program, ..failure }.hint(
                "check `command` of this container in the manifest, and that its image contains the program.",
            ),
            Some(ProgramProblem::NotExecutable) => Failure { program, ..failure }.hint(
                "check the mode and the format of the program in the image; a script needs an interpreter in its first line.",
            ),
            Some(ProgramProblem::Unknown) | None => failure,
        })
    }
}

/// Start of a container's present run, if it has started.
pub(super) fn started_ms(status: &ContainerStatus) -> Option<u64> {
    match status.state {
        ContainerState::Running { started_ms } => Some(started_ms),
        ContainerState::Waiting { .. } | ContainerState::Terminated(_) => None,
    }
}

fn after_run(status: &mut ContainerStatus, run: Terminated, restart_in_ms: Option<u64>) {
    status.state = match restart_in_ms {
        None => ContainerState::Terminated(run),
        Some(wait_ms) => {
            status.last = Some(run);
            ContainerState::back_off(wait_ms)
        }
    };
}
