//! What the supervisor needs of its surroundings: something that makes containers, and a home. Each class of isolation implements both.
#![warn(missing_docs)]

use crate::text;
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::ContainerPlan;
use magikvm_proto::wire::{
    ClockSet, ContainerStats, ExecRequest, ExitStatus, GuestStats, Refusal, RefusalCode,
};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Debug};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Called once with a process's exit status, after the process was reaped. It may be called before the call that made the process returns.
pub type Ended = Box<dyn FnOnce(ExitStatus) + Send>;

/// Called with a reason when something ends without which no container can be made or reaped.
pub type Broken = Box<dyn Fn(&'static str) + Send + Sync>;

/// Makes containers and further processes in them, and ends them. Calls may block; the supervisor chooses the thread.
pub trait Containers: Debug + Send + Sync {
    /// Begins to serve: from now on ends are reported. Called once, before any other call.
    fn begin(&self, broken: Broken) -> io::Result<()>;

    /// Makes a container up to the point where its program would start. What an earlier run has left is removed first.
    fn create(&self, order: CreateOrder<'_>, ended: Ended) -> Result<Created, Failure>;

    /// Makes a further process in a running container up to the point where its program would start.
    fn exec(&self, order: ExecOrder<'_>, ended: Ended) -> Result<Created, Failure>;

    /// Kills everything of the subject, whether its program has started or not.
    fn kill(&self, subject: Subject<'_>);

    /// Waits until nothing of the subject runs, or until the deadline, and forgets what is gone.
    fn await_gone(&self, subject: Subject<'_>, deadline: Instant) -> Gone;

    /// What a container uses; `None` when it does not exist now.
    fn stats(&self, container: &ContainerName) -> Option<ContainerStats>;

    /// Process ids of the supervisor's own processes beside the calling one.
    fn helpers(&self) -> Vec<i32>;
}

/// Where the supervisor runs.
pub trait Home: Debug + Send + Sync {
    /// Writes one line for whoever has to find out why a pod failed: the console of a VM.
    fn note(&self, text: &str);

    /// Sets the clock that the containers see to the host's time, in nanoseconds since 1970, if it is off by more than
    /// [`magikvm_proto::budget::CLOCK_TOLERANCE_MS`].
    fn set_clock(&self, realtime_ns: u64) -> Result<ClockSet, Refusal>;

    /// The listening socket behind a door, for `poll`. The one of [`Door::Forward`] is non-blocking.
    fn listener(&self, door: Door) -> BorrowedFd<'_>;

    /// Accepts a connection, non-blocking; `None` for a peer that is not the pod's owner, whose connection is closed.
    fn accept(&self, door: Door) -> io::Result<Option<OwnedFd>>;

    /// What the whole of the surroundings uses. `helpers` are those of [`Containers::helpers`].
    fn stats(&self, helpers: &[i32]) -> GuestStats;

    /// Ends the surroundings, and with them the pod. Never returns.
    fn end(&self) -> !;
}

/// The two ways into the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The agent's requests.
    Agent,
    /// Forwarded connections.
    Forward,
}

/// A container to be made.
#[derive(Debug)]
pub struct CreateOrder<'a> {
    /// Its plan.
    pub plan: &'a ContainerPlan,
    /// How often it was made before.
    pub run: u32,
    /// Its standard input, output and error; empty if the plan wants a terminal.
    pub stdio: Vec<OwnedFd>,
}

/// A further process to be made.
#[derive(Debug)]
pub struct ExecOrder<'a> {
    /// What to run, and in which container.
    pub request: &'a ExecRequest,
    /// Different from that of every other exec of this pod.
    pub id: u64,
    /// Its standard input, output and error; empty if the request wants a terminal.
    pub stdio: Vec<OwnedFd>,
}

/// A process that exists and waits for its start. Dropped without the call of `start`, it is ended.
pub struct Created {
    /// Its process id, as the supervisor sees it.
    pub pid: i32,
    /// For signals.
    pub process: Arc<dyn Process>,
    /// Master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    /// Lets its program start, and returns when the program runs.
    pub start: Box<dyn FnOnce() -> Result<(), Failure> + Send>,
}

impl Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// The first process of a container, or the process of an exec.
pub trait Process: Debug + Send + Sync {
    /// Sends it a signal, 1 to 64. It fails when the process has ended; it never reaches another process.
    fn signal(&self, number: i32) -> io::Result<()>;
}

/// What is to be killed or waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Everything of a container, its execs included.
    Container(&'a ContainerName),
    /// The process of one exec and its descendants.
    Exec {
        /// In which container.
        container: &'a ContainerName,
        /// Its [`ExecOrder::id`].
        id: u64,
    },
}

/// What became of a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Nothing of it runs any more.
    pub completely: bool,
    /// The kernel has killed a process of it for want of memory.
    pub oom_killed: bool,
}

/// Why there is no process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people.
    pub message: String,
}

/// Kinds of [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The container has no such program.
    NoProgram,
    /// The container does not exist any more, or the creation was cancelled.
    Gone,
    /// Anything else.
    Other,
}

impl Failure {
    /// A failure whose message is cut to what the wire allows.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: Refusal::new(RefusalCode::Internal, message).message }
    }

    /// From any error and its causes.
    pub fn other(error: &(impl std::error::Error + 'static)) -> Self {
        Self::new(FailureKind::Other, text::chain(error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::other(&error)
    }
}

impl From<nix::errno::Errno> for Failure {
    fn from(error: nix::errno::Errno) -> Self {
        Self::other(&error)
    }
}
