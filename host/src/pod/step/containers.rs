//! Applies the supervisor's reports about the pod's containers.

use super::{Effect, Machine, Start, StartProgress, cut};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::store::record::Stage;
use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::state::{ContainerState, ContainerStatus, Terminated};
use magikvm_proto::text;
use magikvm_proto::wire::{EventKind, ProgramProblem};

/// Bytes of the termination messages of all containers together, of which each has the same part (the kubelet's
/// `MaxPodTerminationMessageLogLength`).
const MAX_POD_MESSAGES: usize = 12 << 10;

impl Machine {
    pub(super) fn guest(&mut self, kind: EventKind, now_ms: u64) -> Vec<Effect> {
        match kind {
            EventKind::ContainerCreated { container } => {
                let created = |status: &mut ContainerStatus, _: &mut Start| {
                    if matches!(status.state, ContainerState::Waiting { .. }) {
                        status.state = ContainerState::creating();
                    }
                };
                self.on(&container, created, Some(StartProgress::Created))
            }
            EventKind::ContainerStarted { container, restart_count, post_start, ready, .. } => {
                let begun = |status: &mut ContainerStatus, start: &mut Start| {
                    if let ContainerState::Terminated(run) = &status.state {
                        status.last = Some(run.clone());
                    }
                    status.restart_count = restart_count;
                    start.hook_since = post_start.then_some(now_ms);
                    (status.started, status.ready) = (ready && !post_start, ready && !post_start);
                    status.state = if post_start {
                        ContainerState::creating()
                    } else {
                        ContainerState::Running { started_ms: now_ms }
                    };
                };
                let is_sidecar = self.role(&container) == Some(Role::Sidecar);
                let is_through = is_sidecar && ready && !post_start;
                let progress = if is_through { StartProgress::Through } else { StartProgress::Started };
                self.on(&container, begun, Some(progress))
            }
            EventKind::ContainerCondition { container, started, ready } => {
                let changed = |status: &mut ContainerStatus, start: &mut Start| {
                    if let Some(started_ms) = start.hook_since.take() {
                        status.state = ContainerState::Running { started_ms };
                    }
                    let running = matches!(status.state, ContainerState::Running { .. });
                    (status.started, status.ready) = (started && running, started && ready && running);
                };
                let is_sidecar = self.role(&container) == Some(Role::Sidecar);
                let progress = (is_sidecar && started).then_some(StartProgress::Through);
                self.on(&container, changed, progress)
            }
            EventKind::ContainerExited { container, exit, message, restart_in_ms } => {
                let longest = MAX_POD_MESSAGES / self.state.containers.len().max(1);
                let message = message.map(|message| text::cut(cut(&message), longest).to_owned());
                let ended = |status: &mut ContainerStatus, start: &mut Start| {
                    let started_ms = start.hook_since.take().or_else(|| started_ms(status));
                    let run = Terminated::ended(exit, started_ms, now_ms).of_run(status.restart_count);
                    after_run(status, Terminated { message, ..run }, restart_in_ms);
                };
                let is_init = self.role(&container) == Some(Role::Init);
                let is_through = is_init && exit.code == 0 && restart_in_ms.is_none();
                let mut effects = self.on(&container, ended, is_through.then_some(StartProgress::Through));
                effects.extend(self.tried_again(&container, restart_in_ms));
                if is_init && exit.code != 0 && restart_in_ms.is_none() && self.failing.is_none() {
                    effects.extend(self.init_failed(&container, exit.code, now_ms));
                }
                effects
            }
            EventKind::ContainerFailed { container, message, program, restart_in_ms } => {
                if self.state.stage == Stage::Starting && restart_in_ms.is_none() && self.failing.is_none() {
                    return self.start_failed(&container, cut(&message), program);
                }
                let failed = |status: &mut ContainerStatus, _: &mut Start| {
                    // A restart that fails counts as one, as in the kubelet.
                    status.restart_count += u32::from(status.last.is_some());
                    let run = Terminated::not_started(cut(&message), now_ms).of_run(status.restart_count);
                    after_run(status, run, restart_in_ms);
                };
                let mut effects = self.on(&container, failed, None);
                effects.extend(self.tried_again(&container, restart_in_ms));
                effects
            }
            EventKind::PodStarted if self.state.stage == Stage::Starting && self.failing.is_none() => {
                self.state.stage = Stage::Running;
                self.state.started_ms = Some(now_ms);
                vec![Effect::Disarm, Effect::Ready]
            }
            EventKind::PodFailed { message, killed } => self.supervisor_failed(cut(&message), killed, now_ms),
            EventKind::ContainerKilling { container, .. } => {
                self.on(&container, |status, _| status.ready = false, None)
            }
            EventKind::DeadlineExceeded => self.deadline_exceeded(now_ms),
            EventKind::PodEnded => self.pod_ended(now_ms),
            EventKind::PodStarted
            | EventKind::ProbeFailed { .. }
            | EventKind::HookFailed { .. }
            | EventKind::ExtensionFailed { .. }
            | EventKind::ShuttingDown => Vec::new(),
        }
    }

    fn role(&self, container: &ContainerName) -> Option<Role> {
        self.state.containers.iter().find(|status| status.name == *container).map(|status| status.role)
    }

    /// Changes one container. A supervisor that names an unknown container has broken the contract.
    fn on(
        &mut self,
        container: &ContainerName,
        change: impl FnOnce(&mut ContainerStatus, &mut Start),
        progress: Option<StartProgress>,
    ) -> Vec<Effect> {
        let Some(index) = self.state.containers.iter().position(|status| status.name == *container) else {
            return self
                .agent_lost(&format!("it reports a container {container} that the pod does not have"));
        };
        let start = &mut self.starts[index];
        change(&mut self.state.containers[index], start);
        let progressed = progress.is_some_and(|progress| progress > start.progress);
        start.progress = progress.map_or(start.progress, |progress| progress.max(start.progress));
        self.progressed(progressed)
    }

    /// Arms the deadline of the start anew when there is progress, and drops it while a workload works.
    fn progressed(&mut self, progressed: bool) -> Vec<Effect> {
        if self.state.stage != Stage::Starting || !self.agent_up || self.failing.is_some() {
            return Vec::new();
        }
        let works = self.workload_works();
        let waited = std::mem::replace(&mut self.waits_for_workload, works);
        match (waited, self.waits_for_workload) {
            (false, true) => vec![Effect::Disarm],
            (true, false) => vec![Effect::Arm { after_ms: self.waits.ready_ms }],
            (false, false) if progressed => vec![Effect::Arm { after_ms: self.waits.ready_ms }],
            (false, false) | (true, true) => Vec::new(),
        }
    }

    /// Whether the start waits for a program of the pod.
    fn workload_works(&self) -> bool {
        self.state.containers.iter().zip(&self.starts).any(|(status, start)| {
            let initializes = status.role != Role::Main && start.progress != StartProgress::Through;
            let runs = matches!(status.state, ContainerState::Running { .. });
            start.hook_since.is_some() || (initializes && runs)
        })
    }

    /// The start waits for the next run of a container that initializes the pod.
    fn tried_again(&mut self, container: &ContainerName, restart_in_ms: Option<u64>) -> Option<Effect> {
        let wait_ms = restart_in_ms?;
        let waits = self.state.stage == Stage::Starting && self.agent_up && self.failing.is_none();
        let initializes = self.role(container).is_some_and(|role| role != Role::Main);
        (waits && initializes && !self.waits_for_workload)
            .then(|| Effect::Arm { after_ms: self.waits.ready_ms.saturating_add(wait_ms) })
    }

    /// Nothing of a pod runs when one of its init containers has failed for good. The supervisor has killed the rest, and is asked to end
    /// so that it hands over all of the output.
    fn init_failed(&mut self, container: &ContainerName, code: i32, now_ms: u64) -> Vec<Effect> {
        let message = format!("init container {container} failed with exit code {code}");
        let failure = Failure::message(RunStage::Container, Blame::Workload, message).hint(
            "The last lines of its log tell why; with `restartPolicy: OnFailure` or `Always` it would be tried again.",
        );
        self.begin_to_fail(failure, 0, now_ms)
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
                "Check `command` of this container in the manifest, and that its image contains the program.",
            ),
            Some(ProgramProblem::NotExecutable) => Failure { program, ..failure }.hint(
                "Check the mode and the format of the program in the image; a script needs an interpreter in its first line.",
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
    status.started = false;
    status.ready = status.role == Role::Init && run.exit.code == 0;
    status.state = match restart_in_ms {
        None => ContainerState::Terminated(run),
        // It is created at once.
        Some(0) => {
            status.last = Some(run);
            ContainerState::creating()
        }
        Some(wait_ms) => {
            status.last = Some(run);
            ContainerState::back_off(wait_ms)
        }
    };
}
