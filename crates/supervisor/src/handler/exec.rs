//! `exec`: a program in the container, its output and its end. Nothing is stored on a disk, and no session of a client is needed.

use super::wire::Limit;
use super::{Outcome, Purpose};
use crate::create::non_blocking;
use crate::interface::{Descendants, ExecOrder, Failure, FailureKind, Process, Subject};
use crate::pod::Pod;
use crate::sync::{self, Bell, lock};
use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::MAX_PROBE_OUTPUT;
use magikvm_proto::wire::{ExecRequest, ExitStatus};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::pipe2;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long killed processes may take to end before they are left to the container's end.
const CLEAN_UP: Duration = Duration::from_millis(200);
/// How long the attendant of a killed probe may take to reap it. Only a process of the container that stops the attendant makes it late, or a
/// host that is very busy; without it, a PID 1 that reaps nothing would keep the dead.
const REAP: Duration = Duration::from_secs(5);
/// Bytes that are read at once.
const PIECE: usize = 4096;
/// How often the output is read before others have their turn.
const TURNS: usize = 16;

/// The end of a program; its bell rings then.
struct End {
    status: Mutex<Option<ExitStatus>>,
    bell: Bell,
}

/// Runs a program and judges its end. `None` if it was cancelled.
pub(super) fn run(
    pod: &Pod,
    container: &ContainerName,
    command: &[String],
    purpose: Purpose,
    limit: &Limit,
) -> Option<Outcome> {
    let id = pod.exec_id();
    let subject = Subject::Exec { container, id };
    // A hook may leave processes in the background, as any exec may; those of a probe would become more and more.
    let descendants = match purpose {
        Purpose::Probe => Descendants::End,
        Purpose::Hook => Descendants::Stay,
    };
    let mut program = None;
    let outcome = Program::begin(pod, container, id, command, descendants).and_then(|(begun, start)| {
        let program = program.insert(begun);
        start()?;
        Ok(program.watch(limit)?)
    });
    if descendants == Descendants::End || !matches!(outcome, Ok(Verdict::Ended(..))) {
        pod.containers.kill(subject);
        let patience = if descendants == Descendants::End { REAP } else { CLEAN_UP };
        program.iter().for_each(|program| program.await_end(patience));
    }
    pod.containers.await_gone(subject, Instant::now() + CLEAN_UP);
    let shown = command.join(" ");
    match outcome {
        Ok(Verdict::Cancelled) => None,
        Ok(Verdict::TimedOut) => Some(Outcome::Failure(format!("command {shown:?} timed out"))),
        Ok(Verdict::Ended(status, _)) if status.code == 0 => Some(Outcome::Success),
        Ok(Verdict::Ended(status, output)) => Some(Outcome::Failure(describe(&shown, &status, &output))),
        Err(failure) => Some(match failure.kind {
            // It ends before it is probed, or the program could not be made, which says nothing about the container.
            FailureKind::Gone | FailureKind::Other => Outcome::Error(failure.message),
            FailureKind::NoProgram | FailureKind::NotExecutable => Outcome::Failure(failure.message),
        }),
    }
}

/// What a program said, or how it ended if it said nothing.
fn describe(command: &str, status: &ExitStatus, output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    match text.trim() {
        "" => format!("command {command:?} exited with {}", status.code),
        said => said.to_owned(),
    }
}

enum Verdict {
    Ended(ExitStatus, Vec<u8>),
    TimedOut,
    Cancelled,
}

struct Program {
    /// It, or its attendant.
    process: Arc<dyn Process>,
    /// Both of its outputs, in the order of their bytes; gone after its end.
    output: Option<OwnedFd>,
    kept: Vec<u8>,
    end: Arc<End>,
}

/// Starts a program.
type Start = Box<dyn FnOnce() -> Result<(), Failure> + Send>;

impl Program {
    /// The program, waiting for its start.
    fn begin(
        pod: &Pod,
        container: &ContainerName,
        id: u64,
        command: &[String],
        descendants: Descendants,
    ) -> Result<(Self, Start), Failure> {
        let request = ExecRequest {
            container: container.clone(),
            args: command.to_vec(),
            user: None,
            env: Vec::new(),
            cwd: None,
            terminal: None,
            stdin: false,
            timeout_ms: None,
            files: None,
        };
        let (output, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        non_blocking(&output)?;
        let stdio = vec![OwnedFd::from(File::open("/dev/null")?), theirs.try_clone()?, theirs];
        let end = Arc::new(End { status: Mutex::default(), bell: Bell::new()? });
        let told = Arc::clone(&end);
        let ended = Box::new(move |status| {
            *lock(&told.status) = Some(status);
            told.bell.ring();
        });
        let order = ExecOrder { request: &request, id, descendants, stdio };
        let created = pod.containers.exec(order, ended)?;
        let process = created.process;
        Ok((Self { process, output: Some(output), kept: Vec::new(), end }, created.start))
    }

    /// Gives an attendant the time to reap what was killed. One that a process of its container has stopped is killed too.
    fn await_end(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while lock(&self.end.status).is_none() && Instant::now() < deadline {
            if sync::wait([(self.end.bell.as_fd(), PollFlags::POLLIN)], Some(deadline)).is_err() {
                break;
            }
        }
        // This fails when it has ended.
        self.process.signal(libc::SIGKILL).ok();
    }

    /// Reads its output until it has ended.
    fn watch(&mut self, limit: &Limit) -> io::Result<Verdict> {
        loop {
            let over = *lock(&self.end.status);
            if let Some(status) = over {
                // Processes that it left in the background may hold its output open.
                self.read()?;
                return Ok(Verdict::Ended(status, std::mem::take(&mut self.kept)));
            }
            let bells = [limit.bell(), &self.end.bell];
            let mut fds: Vec<PollFd<'_>> =
                bells.map(|bell| PollFd::new(bell.as_fd(), PollFlags::POLLIN)).into();
            fds.extend(self.output.iter().map(|output| PollFd::new(output.as_fd(), PollFlags::POLLIN)));
            sync::poll_until(&mut fds, limit.deadline())?;
            let found: Vec<bool> = fds.iter().map(|fd| sync::ready(fd).read).collect();
            match found[..] {
                [true, ..] => return Ok(Verdict::Cancelled),
                [_, true, ..] => {}
                [_, _, true] => self.read()?,
                _ => return Ok(Verdict::TimedOut),
            }
        }
    }

    /// Reads what there is. What is too much is forgotten, so that a program that says much does not wait.
    fn read(&mut self) -> io::Result<()> {
        let mut piece = [0; PIECE];
        // Others have their turn: the deadline, and the one who cancels.
        for _ in 0..TURNS {
            let Some(output) = &self.output else { break };
            match nix::unistd::read(output, &mut piece) {
                Ok(0) => self.output = None,
                Ok(count) => {
                    let room = MAX_PROBE_OUTPUT - self.kept.len();
                    self.kept.extend_from_slice(&piece[..count.min(room)]);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
