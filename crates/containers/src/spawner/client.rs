//! PID 1's side of the spawner. Calls block; the caller chooses the thread.

use super::{Answer, Failure, FailureKind, Job, Order, receive, send};
use crate::sync::lock;
use crate::sys;
use magikvm_proto::plan::ContainerPlan;
use magikvm_proto::wire::ExecRequest;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// The way to the spawner.
#[derive(Debug)]
pub(crate) struct Spawner {
    requests: Mutex<OwnedFd>,
    pid: i32,
    next_exec: AtomicU64,
}

/// A process that exists and waits for its start. Dropped without [`Pending::start`], its worker makes an end of
/// it.
#[derive(Debug)]
pub(crate) struct Pending {
    channel: OwnedFd,
    /// Process id in the first PID namespace.
    pub(crate) pid: i32,
    /// Its handle.
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
        Self { requests: Mutex::new(requests), pid, next_exec: AtomicU64::new(1) }
    }

    /// Process id of the spawner.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Makes a container (its stdio belongs to it from here on) up to the point where its program would start.
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

    /// A number for one exec; it names the cgroup.
    pub(crate) fn exec_id(&self) -> u64 {
        self.next_exec.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a further process in the container of `init`, up to the point where its program would start.
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

    /// Makes the process that holds the pod's shared PID namespace: its process id.
    pub(crate) fn namespace(&self) -> Result<i32, Failure> {
        let pending = self.request(&Job::Namespace, &[])?;
        let pid = pending.pid;
        pending.start()?;
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

impl Pending {
    /// Lets the program start and waits until it has.
    pub(crate) fn start(self) -> Result<(OwnedFd, Option<OwnedFd>), Failure> {
        send(&self.channel, &Order::Start, &[]).map_err(|error| lost(&error))?;
        match receive::<Answer>(&self.channel).map_err(|error| lost(&error))? {
            Some((Answer::Started, _)) => Ok((self.pidfd, self.terminal)),
            Some((Answer::Failed(failure), _)) => Err(failure),
            Some((Answer::Created { .. }, _)) | None => Err(ended()),
        }
    }
}
