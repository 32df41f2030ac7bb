//! `exec`: one further process and its streams. Nothing here ever waits for one side only, so neither a host that
//! does not read nor a process that does not can hold up the timeout or the kill.

use super::connection::{Connection, Filled};
use super::follow::output_header;
use super::frames::{MAX_INPUT, Outbox, Sink, parse};
use super::requests::check_signal;
use crate::create::{Streams, non_blocking, pipes};
use crate::interface::{Containers, ExecOrder, Failure, FailureKind, Process as Handle, Subject};
use crate::output::{Channel, MAX_CHUNK};
use crate::pod::Pod;
use crate::sync::{self, Bell, lock};
use crate::sys;
use magikvm_proto::codec::CodecError;
use magikvm_proto::id::ContainerName;
use magikvm_proto::wire::{
    ExecRequest, ExecStarted, ExitStatus, FrameHeader, Refusal, RefusalCode, Reply, Stream, WindowSize,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a terminal takes for the end of input.
const END_OF_TRANSMISSION: [u8; 1] = [4];
/// How long killed processes may take to be gone before they are left to the container's end.
const CLEAN_UP: Duration = Duration::from_millis(200);

/// The end of a process, rung when it comes.
struct End {
    status: Mutex<Option<ExitStatus>>,
    bell: Bell,
}

struct Process {
    pid: i32,
    handle: Arc<dyn Handle>,
    terminal: Option<OwnedFd>,
    outputs: Vec<(Channel, OwnedFd)>,
    stdin: Sink,
    end: Arc<End>,
    group: Group,
}

/// The process and its descendants, to be killed and waited for.
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

    /// Forgets it if it is gone in time.
    fn clean_up(&self) {
        let subject = Subject::Exec { container: &self.container, id: self.id };
        self.containers.await_gone(subject, Instant::now() + CLEAN_UP);
    }
}

fn refusal(failure: Failure) -> Refusal {
    let code = match failure.kind {
        FailureKind::NoProgram => RefusalCode::NotFound,
        FailureKind::Gone => RefusalCode::Conflict,
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
    if connection.send(&Reply::Ok(ExecStarted { pid: process.pid })).is_ok() {
        Session { connection, process, out: Outbox::default(), deadline, timed_out: false }.run().ok();
    }
    // The host closed the connection, or broke the protocol, before the end.
    if lock(&end.status).is_none() {
        group.kill();
    }
    // What the process left running in the background stays, as with any exec, and goes with the container.
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
    // The process's ends go with the order, so that they close when it ends.
    let order = ExecOrder { request, id, stdio: std::mem::take(&mut streams.theirs) };
    let mut created = pod.containers.exec(order, ended).map_err(|failure| {
        group.clean_up();
        refusal(failure)
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
        Ok(()) => Ok(Process {
            pid,
            handle,
            terminal,
            outputs: streams.outputs,
            stdin: Sink::new(streams.stdin.map(Arc::new)),
            end,
            group,
        }),
        Err(failure) => {
            group.clean_up();
            Err(refusal(failure))
        }
    }
}

struct Session {
    connection: Connection,
    process: Process,
    out: Outbox,
    deadline: Option<Instant>,
    timed_out: bool,
}

impl Session {
    fn run(&mut self) -> Result<(), CodecError> {
        loop {
            let (outputs, host) = self.wait()?;
            if self.deadline.is_some_and(|at| at <= Instant::now()) {
                self.deadline = None;
                self.timed_out = true;
                self.process.group.kill();
            }
            self.process.end.bell.hush();
            if host && !self.read_host()? {
                return Ok(());
            }
            self.process.stdin.flush();
            self.read_outputs(&outputs)?;
            self.out.flush(&mut self.connection)?;
            let status = *lock(&self.process.end.status);
            if let Some(mut status) = status
                && self.process.outputs.is_empty()
                && self.out.is_empty()
            {
                status.timed_out = self.timed_out;
                return self.connection.send_frame(&FrameHeader::control(Stream::Exit(status)), &[]);
            }
        }
    }

    /// Waits for something to do: which outputs may be read, and whether the host said something.
    fn wait(&self) -> Result<(Vec<bool>, bool), CodecError> {
        let mut host = sync::HANG_UP;
        // What the host sends waits in the socket while the process does not take what it has sent already.
        host.set(PollFlags::POLLIN, self.process.stdin.waits_for().is_none());
        host.set(PollFlags::POLLOUT, !self.out.is_empty());
        let mut fds = vec![
            PollFd::new(self.connection.as_fd(), host),
            PollFd::new(self.process.end.bell.as_fd(), PollFlags::POLLIN),
        ];
        let reading = self.out.is_empty();
        if reading {
            fds.extend(self.process.outputs.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        }
        if let Some(stdin) = self.process.stdin.waits_for() {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        let over = lock(&self.process.end.status).is_some();
        // After its end the process's outputs are only emptied, not waited for.
        let at_once = over && reading;
        sync::poll_until(&mut fds, if at_once { Some(Instant::now()) } else { self.deadline })?;
        let host = sync::ready(&fds[0]);
        let outputs = if reading {
            (0..self.process.outputs.len()).map(|index| over || sync::ready(&fds[2 + index]).read).collect()
        } else {
            vec![false; self.process.outputs.len()]
        };
        Ok((outputs, host.hang_up || host.read))
    }

    /// Takes what the host sent; `false` once it is gone.
    fn read_host(&mut self) -> Result<bool, CodecError> {
        if self.process.stdin.waits_for().is_some() {
            // Woken by the hang-up alone.
            return Ok(false);
        }
        let limit = MAX_INPUT.saturating_sub(self.connection.input().len());
        let filled = self.connection.fill(limit.min(MAX_CHUNK))?;
        while let Some((header, payload)) = parse(self.connection.input())? {
            self.take(&header.stream, &payload);
        }
        Ok(filled != Filled::End)
    }

    fn take(&mut self, stream: &Stream, payload: &[u8]) {
        match stream {
            Stream::Stdin => self.process.stdin.push(payload),
            Stream::End if self.process.terminal.is_some() => self.process.stdin.push(&END_OF_TRANSMISSION),
            Stream::End => self.process.stdin.end(),
            Stream::Resize(size) => resize(self.process.terminal.as_ref(), *size),
            Stream::Signal { signal } => {
                if check_signal(*signal).is_ok() {
                    // Gone already is as good.
                    self.process.handle.signal(*signal).ok();
                }
            }
            Stream::Stdout { .. } | Stream::Stderr { .. } | Stream::Exit(_) => {}
        }
    }

    /// Reads each ready output once, into frames. Ended ones go; after the process's end, empty ones too.
    fn read_outputs(&mut self, ready: &[bool]) -> Result<(), CodecError> {
        let over = lock(&self.process.end.status).is_some();
        let mut buffer = Vec::new();
        for index in (0..self.process.outputs.len()).rev() {
            if !ready.get(index).copied().unwrap_or(false) {
                continue;
            }
            buffer.resize(MAX_CHUNK, 0);
            let (channel, fd) = &self.process.outputs[index];
            match nix::unistd::read(fd, &mut buffer) {
                Ok(len) if len > 0 => self.out.push(&output_header(*channel, 0, len), &buffer[..len])?,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if !over => {}
                // The end, or EIO: nobody has the other end of the terminal open.
                _ => drop(self.process.outputs.remove(index)),
            }
        }
        Ok(())
    }
}

/// Gives a terminal its caller's size; without a terminal there is nothing to do.
pub(super) fn resize(terminal: Option<&OwnedFd>, size: WindowSize) {
    if let Some(terminal) = terminal {
        // Fails only when the process has just gone.
        sys::set_window_size(terminal, size).ok();
    }
}
