//! `exec`: an additional process and its streams. Nothing here waits for one side only, so neither a host that
//! does not read nor a process that does not read can delay the timeout or the kill. Bytes that one side does not take stay in the
//! stream's windows.

use super::connection::Connection;
use super::input::{AtEnd, Input};
use super::requests::check_signal;
use super::stream::{Broken, Stream};
use crate::create::{Streams, non_blocking, pipes};
use crate::interface::{
    Containers, Descendants, ExecOrder, Failure, FailureKind, Process as Handle, Subject,
};
use crate::output::{Channel, MAX_CHUNK};
use crate::pod::Pod;
use crate::sync::{self, Bell, Ready, lock};
use crate::sys;
use magikvm_proto::id::ContainerName;
use magikvm_proto::stream::Traffic;
use magikvm_proto::wire::{
    ExecRequest, ExecStarted, ExitStatus, Refusal, RefusalCode, Reply, StreamMessage, UrgentMessage,
    WindowSize,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long killed processes may take to end before they are left to the container's end.
const CLEAN_UP: Duration = Duration::from_millis(200);
/// How often one output is read before others have their turn.
const TURNS: usize = 8;

/// The end of a process; its bell rings when the process has ended.
struct End {
    status: Mutex<Option<ExitStatus>>,
    bell: Bell,
}

struct Process {
    pid: i32,
    handle: Arc<dyn Handle>,
    terminal: Option<OwnedFd>,
    outputs: Vec<(Channel, OwnedFd)>,
    stdin: Input,
    end: Arc<End>,
    group: Group,
}

/// The process and its descendants, which are killed and waited for together.
#[derive(Clone)]
struct Group {
    containers: Arc<dyn Containers>,
    container: ContainerName,
    id: u64,
}

impl Group {
    fn kill(&self) {
        self.containers.kill(Subject::Exec { container: &self.container, id: self.id });
    }

    /// Removes the group if its processes end in time.
    fn clean_up(&self) {
        let subject = Subject::Exec { container: &self.container, id: self.id };
        self.containers.await_gone(subject, Instant::now() + CLEAN_UP);
    }
}

/// What the caller hears. If the container has ended meanwhile, its state says more than what the exec found.
fn refusal(pod: &Pod, container: &ContainerName, failure: Failure) -> Refusal {
    let code = match failure.kind {
        FailureKind::NoProgram => RefusalCode::NotFound,
        FailureKind::NotExecutable => RefusalCode::NotExecutable,
        FailureKind::Gone => match pod.running(container) {
            Ok(_) => RefusalCode::Conflict,
            Err(not_running) => return not_running,
        },
        FailureKind::Other => RefusalCode::Internal,
    };
    Refusal::new(code, failure.message)
}

/// Serves `exec`.
pub(super) fn serve(pod: &Pod, mut connection: Connection, request: &ExecRequest) {
    let process = match start(pod, request) {
        Ok(process) => process,
        Err(refusal) => return connection.try_send(&Reply::<ExecStarted>::Error(refusal)),
    };
    let deadline = request.timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
    let group = process.group.clone();
    let end = Arc::clone(&process.end);
    if connection.send(&Reply::Ok(ExecStarted { pid: process.pid })).is_ok()
        && let Ok(stream) = Stream::new(connection, Traffic::PROCESS)
    {
        Session { stream, process, deadline, timed_out: false }.run().ok();
    }
    // The host closed the connection or violated the protocol before the end.
    if lock(&end.status).is_none() {
        group.kill();
    }
    // Background processes of the exec stay, as with any exec, and end with the container.
    group.clean_up();
}

fn start(pod: &Pod, request: &ExecRequest) -> Result<Process, Refusal> {
    request.check().map_err(|message| Refusal::new(RefusalCode::Invalid, message))?;
    pod.running(&request.container)?;
    let internal = |error: std::io::Error| Refusal::new(RefusalCode::Internal, error.to_string());
    let mut streams = match request.terminal {
        None => pipes(request.stdin).map_err(internal)?,
        Some(_) => Streams { theirs: Vec::new(), stdin: None, outputs: Vec::new() },
    };
    let end = Arc::new(End { status: Mutex::default(), bell: Bell::new().map_err(internal)? });
    let told = Arc::clone(&end);
    let ended = Box::new(move |status| {
        *lock(&told.status) = Some(status);
        told.bell.ring();
    });
    let id = pod.exec_id();
    let group = Group { containers: Arc::clone(&pod.containers), container: request.container.clone(), id };
    // The order holds the process's ends of the streams, so that they close when the process ends.
    let stdio = std::mem::take(&mut streams.theirs);
    let order = ExecOrder { request, id, descendants: Descendants::Stay, stdio };
    let mut created = pod.containers.exec(order, ended).map_err(|failure| {
        group.kill();
        group.clean_up();
        refusal(pod, &request.container, failure)
    })?;
    let terminal = created.terminal.take();
    if let Some(master) = &terminal {
        non_blocking(master).map_err(internal)?;
        streams.outputs.push((Channel::Stdout, master.try_clone().map_err(internal)?));
        if request.stdin {
            streams.stdin = Some(master.try_clone().map_err(internal)?);
        }
    }
    let (pid, handle) = (created.pid, Arc::clone(&created.process));
    match (created.start)() {
        Ok(()) => {
            let at_end = if terminal.is_some() { AtEnd::EndOfTransmission } else { AtEnd::LetGo };
            let stdin = Input::new(streams.stdin.map(Arc::new), at_end);
            Ok(Process { pid, handle, terminal, outputs: streams.outputs, stdin, end, group })
        }
        Err(failure) => {
            group.kill();
            group.clean_up();
            Err(refusal(pod, &request.container, failure))
        }
    }
}

struct Session {
    stream: Stream,
    process: Process,
    deadline: Option<Instant>,
    timed_out: bool,
}

/// What can be done now.
struct Found {
    host: Ready,
    /// Outputs that may be read.
    outputs: Vec<bool>,
}

impl Session {
    fn run(mut self) -> Result<(), Broken> {
        let mut buffer = vec![0; MAX_CHUNK];
        // A closed input is reported at once to the caller.
        self.process.stdin.feed(self.stream.link());
        loop {
            let found = self.wait()?;
            if self.deadline.is_some_and(|at| at <= Instant::now()) {
                self.deadline = None;
                self.timed_out = true;
                self.process.group.kill();
            }
            self.process.end.bell.hush();
            self.stream.turn(found.host)?;
            while let Some(message) = self.stream.link().take_urgent() {
                self.obey(&serde_json::from_slice(&message).map_err(Broken::Urgent)?);
            }
            self.process.stdin.feed(self.stream.link());
            self.read_outputs(&found.outputs, &mut buffer)?;
            self.stream.flush()?;
            let status = *lock(&self.process.end.status);
            if let Some(mut status) = status
                && self.process.outputs.is_empty()
                && self.stream.link().room() > 0
            {
                status.timed_out = self.timed_out;
                return self.stream.finish(&StreamMessage::Exit(status));
            }
        }
    }

    /// Waits for something to do.
    fn wait(&mut self) -> Result<Found, Broken> {
        let reading = self.stream.link().room() > 0;
        let mut fds = Vec::new();
        if reading {
            fds.extend(self.process.outputs.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        let (before, stdin) = (fds.len(), self.process.stdin.waits_for(self.stream.link()));
        fds.extend(stdin.map(|stdin| PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)));
        let stdin = (fds.len() > before).then_some(before);
        fds.push(PollFd::new(self.process.end.bell.as_fd(), PollFlags::POLLIN));
        fds.push(PollFd::new(self.stream.as_fd(), self.stream.interest()));
        let over = lock(&self.process.end.status).is_some();
        // After the process has ended its outputs are only drained, without waiting.
        let at_once = over && reading;
        sync::poll_until(&mut fds, if at_once { Some(Instant::now()) } else { self.deadline })?;
        let outputs = if reading {
            (0..self.process.outputs.len()).map(|index| over || sync::ready(&fds[index]).read).collect()
        } else {
            vec![false; self.process.outputs.len()]
        };
        let host = fds.last().map(sync::ready).unwrap_or_default();
        let unread = stdin.is_some_and(|index| sync::ready(&fds[index]).hang_up);
        drop(fds);
        if unread {
            self.process.stdin.close();
        }
        Ok(Found { host, outputs })
    }

    fn obey(&self, message: &UrgentMessage) {
        match message {
            UrgentMessage::Resize(size) => resize(self.process.terminal.as_ref(), *size),
            UrgentMessage::Signal { signal } => {
                if check_signal(*signal).is_ok() {
                    // If the process has already ended, nothing is left to kill.
                    self.process.handle.signal(*signal).ok();
                }
            }
        }
    }

    /// Reads each ready output as far as the host has room. Removes those that ended, and empty ones after the process's end.
    fn read_outputs(&mut self, ready: &[bool], buffer: &mut [u8]) -> Result<(), Broken> {
        let over = lock(&self.process.end.status).is_some();
        for index in (0..self.process.outputs.len()).rev() {
            if !ready.get(index).copied().unwrap_or(false) {
                continue;
            }
            for _ in 0..TURNS {
                let room = self.stream.link().room().min(buffer.len());
                if room == 0 {
                    break;
                }
                let (channel, fd) = &self.process.outputs[index];
                match nix::unistd::read(fd, &mut buffer[..room]) {
                    Ok(len) if len > 0 => {
                        self.stream.link().send(channel.number(), &buffer[..len]);
                        self.stream.flush()?;
                        if len == room {
                            continue;
                        }
                    }
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) if !over => {}
                    // The end, or EIO: nobody has the other end of the terminal open.
                    _ => drop(self.process.outputs.remove(index)),
                }
                break;
            }
        }
        Ok(())
    }
}

/// Gives a terminal the caller's size. Does nothing without a terminal.
pub(super) fn resize(terminal: Option<&OwnedFd>, size: WindowSize) {
    if let Some(terminal) = terminal {
        // This fails only when the process has just ended.
        sys::set_window_size(terminal, size).ok();
    }
}
