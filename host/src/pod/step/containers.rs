//! What the supervisor says of the pod's containers, as the host shows it.

use super::{Effect, Machine, cut};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::store::record::{ContainerPhase, ContainerView, Stage, Terminated};
use magikvm_proto::id::ContainerName;
use magikvm_proto::wire::{EventKind, ExitStatus};
use std::time::Duration;

impl Machine {
    pub(super) fn guest(&mut self, kind: EventKind, now_ms: u64) -> Vec<Effect> {
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
            EventKind::PodStarted
            | EventKind::PodFailed { .. }
            | EventKind::ShuttingDown
            | EventKind::PodEnded => Vec::new(),
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
}

/// The run of a container that has just ended.
pub(super) fn terminated(
    view: &ContainerView,
    exit: ExitStatus,
    message: Option<String>,
    now_ms: u64,
) -> Terminated {
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
            let message = format!("starts again in {:.1} s", Duration::from_millis(wait).as_secs_f64());
            view.last = Some(run);
            ContainerPhase::Waiting { reason: "CrashLoopBackOff".to_owned(), message: Some(message) }
        }
    };
}
