//! The pod as shared by the supervisor's threads: the plan, every container's live process, its output and state. Owns: no
//! decisions (the reactor makes them), no connections.

use crate::events::EventLog;
use crate::interface::{Containers, Home, Process};
use crate::message::Message;
use crate::output::attach::Hub;
use crate::output::buffer::LogBuffer;
use crate::sync::lock;
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::{ContainerPlan, GuestPlan};
use magikvm_proto::state::{ContainerState, ContainerStatus, Terminated, WaitingReason};
use magikvm_proto::wire::{Refusal, RefusalCode};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

#[derive(Debug)]
pub(crate) struct Pod {
    /// The plan; absent when it could not be read.
    pub(crate) plan: Option<GuestPlan>,
    /// Its containers, in the plan's order.
    pub(crate) members: Vec<Member>,
    pub(crate) events: EventLog,
    pub(crate) logs: Arc<LogBuffer>,
    pub(crate) containers: Arc<dyn Containers>,
    /// The surroundings of the supervisor.
    pub(crate) home: Arc<dyn Home>,
    next_exec: AtomicU64,
    status: Mutex<Vec<ContainerStatus>>,
    supervisor: Mutex<Sender<Message>>,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) plan: ContainerPlan,
    /// The callers attached to it.
    pub(crate) hub: Arc<Hub>,
    live: Mutex<Option<Arc<Live>>>,
}

/// A container's PID 1 from its creation to its end.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) run: u32,
    pub(crate) process: Arc<dyn Process>,
    /// The master of its terminal.
    pub(crate) terminal: Option<Arc<OwnedFd>>,
    /// Where its input goes, non-blocking; nothing once closed or if it never had any.
    pub(crate) stdin: Mutex<Option<Arc<OwnedFd>>>,
}

impl Member {
    /// A container that does not run.
    pub(crate) fn new(plan: ContainerPlan) -> Self {
        Self { plan, hub: Arc::default(), live: Mutex::default() }
    }

    pub(crate) fn live(&self) -> Option<Arc<Live>> {
        lock(&self.live).clone()
    }

    /// Sets the current process.
    pub(crate) fn set_live(&self, live: Live) {
        *lock(&self.live) = Some(Arc::new(live));
    }

    /// Forgets the process, which has ended.
    pub(crate) fn ended(&self, run: u32) {
        let mut live = lock(&self.live);
        if live.as_ref().is_some_and(|live| live.run == run) {
            *live = None;
        }
    }

    /// Sends a signal to its PID 1; returns whether there was one.
    pub(crate) fn signal(&self, signal: i32) -> bool {
        self.live().is_some_and(|live| live.process.signal(signal).is_ok())
    }
}

impl Pod {
    /// A pod without any running container.
    pub(crate) fn new(
        plan: Option<GuestPlan>,
        logs: Arc<LogBuffer>,
        containers: Arc<dyn Containers>,
        home: Arc<dyn Home>,
        supervisor: Sender<Message>,
    ) -> Self {
        let members = plan.iter().flat_map(|plan| plan.containers.iter().cloned()).map(Member::new).collect();
        Self {
            plan,
            members,
            events: EventLog::default(),
            logs,
            containers,
            home,
            next_exec: AtomicU64::new(1),
            status: Mutex::default(),
            supervisor: Mutex::new(supervisor),
        }
    }

    pub(crate) fn member(&self, name: &ContainerName) -> Result<&Member, Refusal> {
        let missing =
            || Refusal::new(RefusalCode::NotFound, format!("the pod has no container {:?}", name.as_str()));
        self.members.iter().find(|member| &member.plan.name == name).ok_or_else(missing)
    }

    /// A container's process; refused if none is running.
    pub(crate) fn running(&self, name: &ContainerName) -> Result<(&Member, Arc<Live>), Refusal> {
        let member = self.member(name)?;
        Ok((member, member.live().ok_or_else(|| self.not_running(name))?))
    }

    /// Why a container without a process has none.
    pub(crate) fn not_running(&self, name: &ContainerName) -> Refusal {
        let status = self.status().into_iter().find(|status| status.name == *name);
        let why =
            status.map_or_else(|| "it was not created yet".to_owned(), |status| why_not_running(&status));
        Refusal::new(RefusalCode::Conflict, format!("container {:?} is not running: {why}", name.as_str()))
    }

    /// A number that is unique among the execs of this pod.
    pub(crate) fn exec_id(&self) -> u64 {
        self.next_exec.fetch_add(1, Ordering::Relaxed)
    }

    /// The container states that the supervisor published last.
    pub(crate) fn status(&self) -> Vec<ContainerStatus> {
        lock(&self.status).clone()
    }

    pub(crate) fn set_status(&self, status: Vec<ContainerStatus>) {
        *lock(&self.status) = status;
    }

    /// Sends a message to the supervisor, which lives as long as this process.
    pub(crate) fn tell(&self, message: Message) {
        lock(&self.supervisor).send(message).ok();
    }
}

/// What a container does instead of running.
fn why_not_running(status: &ContainerStatus) -> String {
    match &status.state {
        ContainerState::Waiting { reason, message } => {
            let message = message.as_deref().map_or(String::new(), |message| format!(": {message}"));
            let what = match reason {
                WaitingReason::PodInitializing => "its init containers and sidecars come first",
                WaitingReason::ContainerCreating => "it is being created",
                WaitingReason::CrashLoopBackOff => "it waits for its restart",
            };
            let last = status.last.as_ref().map_or(String::new(), |run| format!("; {}", ended(run)));
            format!("{what} ({reason}{message}){last}")
        }
        ContainerState::Terminated(run) => ended(run),
        // The end of its process is known, and that of the container is not yet.
        ContainerState::Running { .. } => "it has just ended".to_owned(),
    }
}

fn ended(run: &Terminated) -> String {
    format!("its last run ended with exit code {} ({})", run.exit.code, run.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::lifecycle::Role;
    use magikvm_proto::wire::ExitStatus;

    #[test]
    fn a_container_that_does_not_run_says_what_it_does_instead() {
        let name: ContainerName = "web".parse().unwrap();
        let waiting = |reason| ContainerStatus::waiting(name.clone(), Role::Main, reason);
        let first = waiting(WaitingReason::PodInitializing);
        assert_eq!(why_not_running(&first), "its init containers and sidecars come first (PodInitializing)");
        let run = Terminated::ended(ExitStatus::exited(3), Some(1), 2);
        let creating = waiting(WaitingReason::ContainerCreating);
        let back_off = ContainerStatus {
            state: ContainerState::back_off(20_000),
            last: Some(run.clone()),
            ..creating.clone()
        };
        assert_eq!(
            why_not_running(&back_off),
            "it waits for its restart (CrashLoopBackOff: back-off 20s restarting failed container); \
             its last run ended with exit code 3 (Error)"
        );
        let over = ContainerStatus { state: ContainerState::Terminated(run), ..creating.clone() };
        assert_eq!(why_not_running(&over), "its last run ended with exit code 3 (Error)");
        let just = ContainerStatus { state: ContainerState::Running { started_ms: 1 }, ..creating };
        assert_eq!(why_not_running(&just), "it has just ended");
    }
}
