//! PID 1's side of the spawner. Calls block; the caller chooses the thread.

use super::{Answer, Job, Order, receive, send};
use crate::sys;
use magikvm_proto::plan::ContainerPlan;
use magikvm_proto::wire::ExecRequest;
use magikvm_supervisor::sync::lock;
use magikvm_supervisor::{Failure, FailureKind};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

/// The connection to the spawner.
#[derive(Debug)]
pub(crate) struct Spawner {
    requests: Mutex<OwnedFd>,
    pid: i32,
}

/// A process that exists and waits for its start. Its worker ends it when the channel is closed
/// without [`start`].
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) channel: OwnedFd,
    /// Process id in the first PID namespace.
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    /// Master of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

fn lost(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Other, format!("the spawner does not answer: {error}"))
}

fn ended() -> Failure {
    Failure::new(FailureKind::Other, "the process that was to make it has died")
}

impl Spawner {
    pub(super) fn new(requests: OwnedFd, pid: i32) -> Self {
        Self { requests: Mutex::new(requests), pid }
    }

    /// Process id of the spawner.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Makes a container up to the point where its program would start. The container takes over its standard streams.
    pub(crate) fn create(
        &self,
        plan: &ContainerPlan,
        run: u32,
        pod_namespace: Option<i32>,
        stdio: &[OwnedFd],
    ) -> Result<Pending, Failure> {
        self.request(
            &Job::Create { plan: plan.clone(), run, pod_namespace },
            &stdio.iter().collect::<Vec<_>>(),
        )
    }

    /// Makes another process in the container of `init`, up to the point where its program would start.
    pub(crate) fn exec(
        &self,
        request: &ExecRequest,
        id: u64,
        init: &OwnedFd,
        stdio: &[OwnedFd],
    ) -> Result<Pending, Failure> {
        let mut fds = vec![init];
        fds.extend(stdio);
        self.request(&Job::Exec { request: request.clone(), id }, &fds)
    }

    /// Makes the process that holds the pod's shared PID namespace and returns its process id.
    pub(crate) fn namespace(&self) -> Result<i32, Failure> {
        let pending = self.request(&Job::Namespace, &[])?;
        let pid = pending.pid;
        start(&pending.channel)?;
        Ok(pid)
    }

    fn request(&self, job: &Job, fds: &[&OwnedFd]) -> Result<Pending, Failure> {
        let (channel, worker) = sys::message_pair().map_err(|error| lost(&error))?;
        sys::send_message(&*lock(&self.requests), &[0], &[worker.as_raw_fd()])
            .map_err(|error| lost(&error))?;
        drop(worker);
        send(&channel, job, fds).map_err(|error| lost(&error))?;
        match receive::<Answer>(&channel).map_err(|error| lost(&error))? {
            Some((Answer::Created { pid }, fds)) => {
                let mut fds = fds.into_iter();
                let pidfd = fds.next().ok_or_else(ended)?;
                Ok(Pending { channel, pid, pidfd, terminal: fds.next() })
            }
            Some((Answer::Failed(failure), _)) => Err(failure),
            Some((Answer::Started, _)) | None => Err(ended()),
        }
    }
}

/// Starts the program of a waiting process, and returns when the program runs.
pub(crate) fn start(channel: &OwnedFd) -> Result<(), Failure> {
    send(channel, &Order::Start, &[]).map_err(|error| lost(&error))?;
    match receive::<Answer>(channel).map_err(|error| lost(&error))? {
        Some((Answer::Started, _)) => Ok(()),
        Some((Answer::Failed(failure), _)) => Err(failure),
        Some((Answer::Created { .. }, _)) | None => Err(ended()),
    }
}
