//! PID 1's side of the spawner. Calls block; the caller chooses the thread.

use super::{Answer, Job, Order, receive, send};
use crate::sys;
use magikvm_proto::budget::GUEST_EXEC_START_MS;
use magikvm_proto::plan::{ContainerPlan, ProcessNamespace};
use magikvm_proto::wire::ExecRequest;
use magikvm_supervisor::sync::{self, lock};
use magikvm_supervisor::{Descendants, Failure, FailureKind};
use nix::poll::PollFlags;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const EXEC_LIMIT: Duration = Duration::from_millis(GUEST_EXEC_START_MS);
/// How long a container may take to be made. Processes of another container can stop its first one in a PID namespace that they share.
const CREATE_LIMIT: Duration = Duration::from_secs(300);
/// How long a container's program may take to run once it is ordered to start. A file system that hangs must not hold the container in this
/// state for ever.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Until when something must have happened, and how long that was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// For the start of a container's program.
    pub(crate) fn of_start() -> Self {
        Self::after(START_LIMIT)
    }
}

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
    /// Until when its program must run.
    pub(crate) deadline: Option<Deadline>,
    /// Master of its terminal, if it has one.
    pub(crate) terminal: Option<OwnedFd>,
}

fn lost(error: &io::Error) -> Failure {
    Failure::new(FailureKind::Other, format!("the worker that makes the process does not answer: {error}"))
}

fn unheard(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failure::new(
            FailureKind::Gone,
            "the process that makes containers (spawner) has ended, and the pod ends with it",
        ),
        _ => Failure::new(FailureKind::Other, format!("the spawner does not answer: {error}")),
    }
}

fn ended() -> Failure {
    Failure::new(FailureKind::Other, "the worker that makes the process has died")
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
        processes: ProcessNamespace,
        stdio: &[OwnedFd],
    ) -> Result<Pending, Failure> {
        let pending = self.request(
            &Job::Create { plan: Box::new(plan.clone()), run, processes },
            &stdio.iter().collect::<Vec<_>>(),
            Some(Deadline::after(CREATE_LIMIT)),
        )?;
        Ok(Pending { deadline: None, ..pending })
    }

    /// Makes another process in the container of `init`, up to the point where its program would start.
    pub(crate) fn exec(
        &self,
        request: &ExecRequest,
        id: u64,
        descendants: Descendants,
        init: &OwnedFd,
        stdio: &[OwnedFd],
    ) -> Result<Pending, Failure> {
        let mut fds = vec![init];
        fds.extend(stdio);
        let deadline = Deadline::after(EXEC_LIMIT);
        self.request(&Job::Exec { request: request.clone(), id, descendants }, &fds, Some(deadline))
    }

    /// Makes the process that holds the pod's shared PID namespace and returns its process id.
    pub(crate) fn namespace(&self) -> Result<i32, Failure> {
        let pending = self.request(&Job::Namespace, &[], None)?;
        let pid = pending.pid;
        start(&pending.channel, None)?;
        Ok(pid)
    }

    fn request(&self, job: &Job, fds: &[&OwnedFd], deadline: Option<Deadline>) -> Result<Pending, Failure> {
        let (channel, worker) = sys::message_pair().map_err(|error| lost(&error))?;
        sys::send_message(&*lock(&self.requests), &[0], &[worker.as_raw_fd()])
            .map_err(|error| unheard(&error))?;
        drop(worker);
        send(&channel, job, fds).map_err(|error| lost(&error))?;
        match answer(&channel, deadline)? {
            Some((Answer::Created { pid }, fds)) => {
                let mut fds = fds.into_iter();
                let pidfd = fds.next().ok_or_else(ended)?;
                Ok(Pending { channel, pid, pidfd, deadline, terminal: fds.next() })
            }
            Some((Answer::Failed(failure), _)) => Err(failure),
            Some((Answer::Started, _)) | None => Err(ended()),
        }
    }
}

/// Starts the program of a waiting process, and returns when the program runs.
pub(crate) fn start(channel: &OwnedFd, deadline: Option<Deadline>) -> Result<(), Failure> {
    send(channel, &Order::Start, &[]).map_err(|error| lost(&error))?;
    match answer(channel, deadline)? {
        Some((Answer::Started, _)) => Ok(()),
        Some((Answer::Failed(failure), _)) => Err(failure),
        Some((Answer::Created { .. }, _)) | None => Err(ended()),
    }
}

/// The worker's next answer and its descriptors; `None` if the worker has gone.
fn answer(channel: &OwnedFd, deadline: Option<Deadline>) -> Result<Option<(Answer, Vec<OwnedFd>)>, Failure> {
    if let Some(Deadline { at, limit }) = deadline {
        let [found] = sync::wait([(channel.as_fd(), PollFlags::POLLIN)], Some(at))?;
        if !(found.read || found.hang_up) {
            let limit = limit.as_secs();
            let message =
                format!("the process did not start within {limit} s; the container may have stopped it");
            return Err(Failure::new(FailureKind::Other, message));
        }
    }
    receive::<Answer>(channel).map_err(|error| lost(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_spawner_nothing_is_made_and_the_error_says_so() {
        let (ours, theirs) = sys::message_pair().unwrap();
        drop(theirs);
        let failure = Spawner::new(ours, 1).namespace().unwrap_err();
        assert_eq!(failure.kind, FailureKind::Gone);
        assert!(failure.message.contains("(spawner) has ended"), "{failure}");
    }

    #[test]
    fn a_worker_that_says_nothing_is_not_waited_for_after_the_deadline() {
        let (ours, theirs) = sys::message_pair().unwrap();
        let failure = answer(&ours, Some(Deadline { at: Instant::now(), limit: EXEC_LIMIT })).unwrap_err();
        assert!(failure.message.contains("did not start within 60 s"), "{failure}");
        send(&theirs, &Answer::Started, &[]).unwrap();
        let deadline = Some(Deadline::of_start());
        assert!(matches!(answer(&ours, deadline), Ok(Some((Answer::Started, _)))));
        drop(theirs);
        assert!(matches!(answer(&ours, deadline), Ok(None)));
    }
}
