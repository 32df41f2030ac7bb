//! Makes processes. Owns: every fork of the supervisor.
//!
//! libcontainer forks with a raw clone3 and then runs ordinary code in the copy, which is sound only in a process
//! that has one thread. PID 1 has many. So PID 1 forks one copy, the *spawner*, before its first thread, and the spawner
//! never starts one. The spawner only receives a socket, forks, and lets the copy (a *worker*) talk
//! through that socket. A worker takes one [`Job`], does it, and exits; all descriptors of a container pass from
//! the supervisor straight to its worker, so nothing of one container is ever open in another.
//!
//! **No exit is lost.** A container's first process is a child of its worker until the worker exits, and only then of
//! PID 1. The worker exits after PID 1 has taken the process id and sent [`Order::Start`], so PID 1 knows every
//! process before it can reap it.
//!
//! **Additional processes** (`exec`) do not use libcontainer's tenant builder: it drops the container's seccomp filter
//! (libcontainer 0.7 rebuilds `linux` without it), so an exec could open the vsock that containers must not open.
//! [`exec`] joins the namespaces itself and uses libcontainer's own capability and seccomp code.

pub(crate) mod client;
mod confine;
mod create;
mod exec;
mod identity;
mod namespace;
mod program;
mod streams;

use crate::cgroup::Tree;
use crate::sys::{self, Users};
use crate::user::IdMaps;
use magikvm_proto::plan::{ContainerPlan, ProcessNamespace};
use magikvm_proto::site::Site;
use magikvm_proto::wire::{ExecRequest, WindowSize};
use magikvm_supervisor::{Descendants, Failure, FailureKind};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Most bytes of one message between PID 1 and a worker: an exec of the longest wire line fits.
const MAX_MESSAGE: usize = 160 << 10;

/// Why the spawner can't be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnerError {
    #[error("cannot start the spawner")]
    Start(#[source] io::Error),
}

/// What a worker does.
#[derive(Debug, Serialize, Deserialize)]
enum Job {
    /// Makes a container. Descriptors: stdin, stdout, stderr; with a terminal only a placeholder for stdin.
    Create {
        plan: Box<ContainerPlan>,
        /// How often the container was made before.
        run: u32,
        /// Whether it joins the PID namespace that the pod's containers share.
        processes: ProcessNamespace,
    },
    /// Starts another process in a container. Descriptors: the container's pidfd, then stdin, stdout, stderr
    /// without a terminal.
    Exec {
        request: ExecRequest,
        /// Unique number that names its cgroup.
        id: u64,
        descendants: Descendants,
    },
    /// Makes the process that holds the pod's shared PID namespace.
    Namespace,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The process exists and waits for its start. Descriptors: its pidfd, then the terminal's master if it has
    /// one.
    Created {
        /// Process id in the first PID namespace.
        pid: i32,
    },
    Started,
    Failed(Failure),
}

/// What PID 1 tells a worker whose process waits.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Start,
}

/// What every forked copy needs to know, set before the fork.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) site: Site,
    pub(crate) tree: Tree,
    pub(crate) users: Users,
    /// The ids of the pod's users.
    pub(crate) ids: IdMaps,
    /// Writes one line to the log.
    pub(crate) note: fn(&str),
}

/// Size of a terminal until it is set.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, cols: 80 };

/// Forks the spawner. Must be called before the first thread. `forked` is called first in the copy.
pub(crate) fn start(context: &Context, forked: fn()) -> Result<client::Spawner, SpawnerError> {
    let (ours, theirs) = sys::message_pair().map_err(SpawnerError::Start)?;
    match sys::fork_single_threaded().map_err(|errno| SpawnerError::Start(errno.into()))? {
        sys::Fork::Parent { child } => Ok(client::Spawner::new(ours, child)),
        sys::Fork::Child => {
            forked();
            drop(ours);
            serve(&theirs, context)
        }
    }
}

fn serve(requests: &OwnedFd, context: &Context) -> ! {
    sys::set_process_name(c"spawner");
    if let Err(error) = sys::ignore_children().map_err(io::Error::from).and_then(|()| silence_stdio()) {
        (context.note)(&format!("spawner: {error}"));
        sys::exit_now(1);
    }
    loop {
        let mut byte = [0];
        let worker = match sys::receive_message(requests, &mut byte) {
            Ok((1, mut fds)) if fds.len() == 1 => fds.pop(),
            Ok((0, _)) => sys::exit_now(0),
            _ => None,
        };
        let Some(channel) = worker else { continue };
        match sys::fork_single_threaded() {
            Ok(sys::Fork::Child) => work(&channel, context),
            Ok(sys::Fork::Parent { .. }) => {}
            // The closed channel tells PID 1 that there is no worker.
            Err(errno) => (context.note)(&format!("spawner: cannot fork: {errno}")),
        }
    }
}

/// The kernel opened the console as the standard streams of PID 1. No container process may inherit it.
fn silence_stdio() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for stream in 0..3 {
        sys::connect_stdio(&null, stream)?;
    }
    Ok(())
}

fn work(channel: &OwnedFd, context: &Context) -> ! {
    sys::set_process_name(c"worker");
    let result = sys::default_signals().map_err(Failure::from).and_then(|()| {
        let (job, fds): (Job, Vec<OwnedFd>) = receive(channel)?.ok_or_else(gone)?;
        match job {
            Job::Create { plan, run, processes } => {
                create::create(channel, context, &plan, run, processes, fds)
            }
            Job::Exec { request, id, descendants } => {
                exec::exec(channel, context, &request, id, descendants, fds)
            }
            Job::Namespace => namespace::hold(channel, context),
        }
    });
    let answer = match result {
        Ok(()) => Answer::Started,
        Err(failure) => Answer::Failed(failure),
    };
    // PID 1 may have given up on this worker; nobody else needs the answer.
    send(channel, &answer, &[]).ok();
    sys::exit_now(0)
}

fn gone() -> Failure {
    Failure::new(FailureKind::Gone, "cancelled")
}

/// Waits for PID 1's order to go on. Without the order the process must not start.
fn await_start(channel: &OwnedFd) -> Result<(), Failure> {
    match receive::<Order>(channel)? {
        Some((Order::Start, _)) => Ok(()),
        None => Err(gone()),
    }
}

fn send<T: Serialize>(channel: &OwnedFd, message: &T, fds: &[&OwnedFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    sys::send_message(channel, &bytes, &fds)
}

/// `None` when the other end is closed.
fn receive<T: serde::de::DeserializeOwned>(channel: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let (len, fds) = sys::receive_message(channel, &mut buffer)?;
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..len])?, fds)))
}
