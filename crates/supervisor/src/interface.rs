//! What the supervisor needs from its surroundings: something that makes containers, and a home. Each isolation class implements both.
#![warn(missing_docs)]

use crate::text;
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::ContainerPlan;
use magikvm_proto::wire::{
    ClockSet, ContainerStats, ExecRequest, ExitStatus, GuestStats, ProgramProblem, Refusal, RefusalCode,
};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Debug};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// Called once with a process's exit status, after the process was reaped, possibly before the call that made the process returns.
pub type Ended = Box<dyn FnOnce(ExitStatus) + Send>;

/// Called when a process ends that making or reaping containers depends on: with what it is, as the subject of a sentence, and how it ended. May
/// be called more than once.
pub type Broken = Box<dyn Fn(&'static str, ExitStatus) + Send + Sync>;

/// Makes containers and additional processes in them, and ends them. Calls may block; the supervisor chooses the thread.
pub trait Containers: Debug + Send + Sync {
    /// Begins to report ends. Called once, before any other call.
    fn begin(&self, broken: Broken) -> io::Result<()>;

    /// Makes a container up to the point where its program would start. What an earlier run left is removed first.
    fn create(&self, order: CreateOrder<'_>, ended: Ended) -> Result<Created, Failure>;

    /// Makes another process in a running container up to the point where its program would start.
    fn exec(&self, order: ExecOrder<'_>, ended: Ended) -> Result<Created, Failure>;

    /// Kills everything of the subject, whether its program has started or not.
    fn kill(&self, subject: Subject<'_>);

    /// Waits until nothing of the subject runs, or until the deadline, and forgets what has ended.
    fn await_gone(&self, subject: Subject<'_>, deadline: Instant) -> Gone;

    /// What the container's last run has left as its termination message, at most [`magikvm_proto::lifecycle::MAX_TERMINATION_MESSAGE`]
    /// bytes. Called when nothing of the run is left. `None` if it left nothing.
    fn termination_message(&self, container: &ContainerName) -> Option<String>;

    /// A container's resource use; `None` when the container does not exist now.
    fn stats(&self, container: &ContainerName) -> Option<ContainerStats>;

    /// Process ids of the supervisor's own processes, without the calling one.
    fn helpers(&self) -> Vec<i32>;
}

/// Where the supervisor runs.
pub trait Home: Debug + Send + Sync {
    /// Writes one line to the log for people who debug a failed pod: the console of a VM.
    fn note(&self, text: &str);

    /// Sets the clock that the containers see to the host's time, in nanoseconds since 1970, if it is off by more than
    /// [`magikvm_proto::budget::CLOCK_TOLERANCE_MS`].
    fn set_clock(&self, realtime_ns: u64) -> Result<ClockSet, Refusal>;

    /// The listening socket of a door, for `poll`. That of [`Door::Forward`] is non-blocking.
    fn listener(&self, door: Door) -> BorrowedFd<'_>;

    /// Accepts a connection, non-blocking. `None` for a peer that is not the pod's owner; its connection is closed.
    fn accept(&self, door: Door) -> io::Result<Option<OwnedFd>>;

    /// Resource use of the whole surroundings. `helpers` are those of [`Containers::helpers`].
    fn stats(&self, helpers: &[i32]) -> GuestStats;

    /// Ends the surroundings, and the pod with them. Never returns.
    fn end(&self) -> !;
}

/// The two sockets of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The agent's requests.
    Agent,
    /// Forwarded connections.
    Forward,
}

/// An order to make a container.
#[derive(Debug)]
pub struct CreateOrder<'a> {
    /// Its plan.
    pub plan: &'a ContainerPlan,
    /// How often it was made before.
    pub run: u32,
    /// Its standard input, output and error; empty if the plan wants a terminal.
    pub stdio: Vec<OwnedFd>,
}

/// An order to make an additional process.
#[derive(Debug)]
pub struct ExecOrder<'a> {
    /// The program and the container.
    pub request: &'a ExecRequest,
    /// Unique among the execs of this pod.
    pub id: u64,
    /// What becomes of its descendants when it ends.
    pub descendants: Descendants,
    /// Its standard input, output and error; empty if the request wants a terminal.
    pub stdio: Vec<OwnedFd>,
}

/// What becomes of the processes that the process of an exec leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Descendants {
    /// They stay, and belong to the container.
    Stay,
    /// They are killed and, where the system allows it, reaped: a PID 1 that reaps nothing would keep them as zombies, which count as processes
    /// of the container. The process that is made may then be an attendant of the program.
    End,
}

/// A process that exists and waits for its start. Dropping it without calling `start` ends the process.
pub struct Created {
    /// Its process id, as the supervisor sees it.
    pub pid: i32,
    /// Sends signals to it.
    pub process: Arc<dyn Process>,
    /// Master of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    /// Starts its program, and returns when the program runs.
    pub start: Box<dyn FnOnce() -> Result<(), Failure> + Send>,
}

impl Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created").field("pid", &self.pid).finish_non_exhaustive()
    }
}

/// The first process of a container, or the process of an exec.
pub trait Process: Debug + Send + Sync {
    /// Sends a signal, 1 to 64. Fails when the process has ended; never reaches another process.
    fn signal(&self, number: i32) -> io::Result<()>;
}

/// What to kill or to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// Everything of a container, its execs included.
    Container(&'a ContainerName),
    /// The process of one exec and its descendants.
    Exec {
        /// Its container.
        container: &'a ContainerName,
        /// Its [`ExecOrder::id`].
        id: u64,
    },
}

/// The outcome for a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// None of its processes runs any more.
    pub completely: bool,
    /// The kernel's OOM killer killed one of its processes.
    pub oom_killed: bool,
}

/// Why a process could not be made.
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
    /// The program is there and may not or cannot be executed.
    NotExecutable,
    /// The container does not exist any more, or its creation was cancelled.
    Gone,
    /// Anything else.
    Other,
}

impl Failure {
    /// A failure whose message is cut to the wire's limit.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: Refusal::new(RefusalCode::Internal, message).message }
    }

    /// Builds a failure from any error and its causes.
    pub fn other(error: &(impl std::error::Error + 'static)) -> Self {
        Self::new(FailureKind::Other, text::chain(error))
    }
}

impl FailureKind {
    /// The problem of the program, if that is the reason.
    pub fn program(self) -> Option<ProgramProblem> {
        match self {
            Self::NoProgram => Some(ProgramProblem::Missing),
            Self::NotExecutable => Some(ProgramProblem::NotExecutable),
            Self::Gone | Self::Other => None,
        }
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
