//! The threads around the event loop. Each turns one blocking source (the agent's streams, the end of the VM) into messages.

use super::clock;
use super::life::Life;
use super::lines::Lines;
use super::message::{Message, send, spawn};
use super::unwritten::Overflow;
use crate::agent::{
    AgentConnection, AgentError, Connector, DeadlineExtension, EventStream, Received, StreamError,
};
use crate::net::report;
use crate::os::Removals;
use crate::pod::events::{EventLog, HostEvent, PodEvent};
use crate::pod::logs::{LogLimits, LogStream, LogWriter};
use crate::pod::step::{DiskState, Input};
use crate::runtime::Sandbox;
use crate::store::atomic::FileError;
use crate::store::layout::PodDir;
use crate::store::text::{chain, ignore};
use crate::store::thread::ThreadError;
use crate::vmm::qmp::{DiskRoom, DiskWatch};
use magikvm_proto::budget;
use magikvm_proto::id::ContainerName;
use magikvm_proto::path::AGENT_LISTENING;
use magikvm_proto::stream::{STDERR, Traffic, log_source};
use magikvm_proto::wire::{Done, Request, StreamMessage};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::error::Error;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// Time for the guest to announce that its agent listens. After it the agent is tried all the same.
const LISTENING_WAIT: Duration = Duration::from_secs(20);
/// Time for a connection to an agent that has answered before.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Time for the agent to answer that it ends the pod.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);
/// Time between the end of a stream and the end of its VM that explains it.
const VM_END_WAIT: Duration = Duration::from_secs(1);

/// Where the output of the containers goes.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) writers: Vec<LogWriter>,
    pub(super) overflow: Overflow,
}

/// Opens the logs of containers, in the order of the plan, because the guest names containers by their index in it.
pub(super) fn logs(
    dir: &PodDir,
    containers: &[ContainerName],
    limits: LogLimits,
) -> Result<Vec<LogWriter>, FileError> {
    containers.iter().map(|name| LogWriter::open(&dir.container_log(name), limits)).collect()
}

/// Starts all watchers. The last message is `SandboxGone`, sent when the sandbox has ended and the streams are drained; no watcher is left then.
pub(super) fn start(
    mut sandbox: Box<dyn Sandbox>,
    dir: &PodDir,
    logs: Logs,
    events: EventLog,
    lines: Arc<Lines>,
    life: Arc<Life>,
    outbox: SyncSender<Message>,
) -> Result<(), FileError> {
    let failed = |error: ThreadError| FileError::at("follow the pod in", dir.path())(error.into());
    let (agent, console) = (sandbox.running().agent().clone(), sandbox.running().console());
    let (to_loop, seen) = (outbox.clone(), Arc::clone(&life));
    let follower = spawn("agent", &outbox, move || {
        // Early connections can wedge a vsock device. A guest that announces nothing is tried all the same.
        console.wait_for(AGENT_LISTENING, Instant::now() + LISTENING_WAIT);
        follow_agent(&agent, logs, &events, &lines, &to_loop, &seen);
    })
    .map_err(failed)?;
    spawn("sandbox", &outbox.clone(), move || {
        let end = sandbox.wait(&mut |motion| {
            life.set_motion(motion);
            send(&outbox, Input::Motion(motion));
        });
        life.end();
        ignore(follower.join(), "the loop has learnt of a panic");
        // A second boot uses the same volumes.
        drop(sandbox);
        send(&outbox, Input::SandboxGone { end });
    })
    .map_err(failed)?;
    Ok(())
}

/// How long a removed directory may go unnoticed where nothing announces it, in milliseconds.
const DIRECTORY_LOOK_MS: u16 = 60_000;

/// Tells the loop when the pod's directory is no longer in its place: then nobody can find the pod, so that it must not go on. Ends when what it returns is
/// dropped. Linux takes more than ten milliseconds to end a watch, for which the end of the monitor would have to wait.
pub(super) fn directory(dir: &PodDir, outbox: SyncSender<Message>) -> Result<PipeWriter, FileError> {
    let path = dir.path().to_owned();
    let identity = dir.identity().map_err(FileError::at("look at", &path))?;
    let changes = Removals::of(&path);
    let dir = dir.clone();
    let (mut over, ends) = io::pipe().map_err(FileError::at("watch", &path))?;
    spawn("directory", &outbox.clone(), move || {
        while dir.identity().is_ok_and(|there| there == identity) {
            match &changes {
                Ok(changes) => changes.wait(DIRECTORY_LOOK_MS, Some(over.as_fd())),
                // There are no watches left (`fs.inotify.max_user_instances`).
                Err(_) => wait_readable(over.as_fd(), DIRECTORY_LOOK_MS / 10),
            }
            if is_over(&mut over) {
                return;
            }
        }
        send(&outbox, Input::DirectoryGone);
    })
    .map_err(|error| FileError::at("watch", &path)(error.into()))?;
    Ok(ends)
}

/// Waits until it can be read or is closed, or for the limit.
fn wait_readable(pipe: BorrowedFd<'_>, limit_ms: u16) {
    let mut polled = [PollFd::new(pipe, PollFlags::POLLIN)];
    ignore(poll(&mut polled, PollTimeout::from(limit_ms)), "the caller looks again");
}

/// Whether the other end was closed.
fn is_over(pipe: &mut PipeReader) -> bool {
    let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Records the refusals of the pod's network filter until the filter ends.
pub(super) fn refusals(
    reports: File,
    events: EventLog,
    outbox: &SyncSender<Message>,
) -> Result<(), ThreadError> {
    spawn("refusals", outbox, move || {
        report::read(reports, |refused| events.write(PodEvent::Host(HostEvent::Refused(refused))));
    })?;
    Ok(())
}

/// Reports when the VM stands still because the host's disk is full, until its VMM ends.
pub(super) fn disk(
    watch: DiskWatch,
    life: Arc<Life>,
    outbox: &SyncSender<Message>,
) -> Result<(), ThreadError> {
    let to_loop = outbox.clone();
    spawn("disk", outbox, move || {
        let dir = watch.dir().to_owned();
        watch.follow(|room| {
            life.set_disk(room);
            let state = match room {
                DiskRoom::None => DiskState::Full { dir: dir.clone() },
                DiskRoom::Enough => DiskState::HasRoom,
            };
            send(&to_loop, Input::Disk(state));
        });
    })?;
    Ok(())
}

/// Reports that a stream of the agent broke, unless the VM has ended: then the VM's end says more.
fn report_lost(outbox: &SyncSender<Message>, life: &Life, error: &(dyn Error + 'static)) {
    let hung_up = matches!(error.downcast_ref(), Some(AgentError::Closed | AgentError::Unreachable(_)))
        || matches!(error.downcast_ref(), Some(StreamError::Closed | StreamError::Io(_) | StreamError::Late));
    if !(hung_up && life.ends_within(VM_END_WAIT)) {
        send(outbox, lost(error));
    }
}

fn lost(error: &(dyn Error + 'static)) -> Input {
    Input::AgentLost { why: chain(error) }
}

/// Waits for the agent, then reads events on this thread and logs on another one, both to their end.
fn follow_agent(
    connector: &Connector,
    logs: Logs,
    events: &EventLog,
    lines: &Arc<Lines>,
    outbox: &SyncSender<Message>,
    life: &Arc<Life>,
) {
    let deadline = Instant::now() + Duration::from_millis(budget::HOST_BOOT_WAIT_MS);
    let (mut connection, hello) = match connector.connect_when_up(deadline, &|| !life.is_over()) {
        Ok(up) => up,
        // The VM's end or the loop's deadline says more than a missing answer.
        Err(AgentError::Unreachable(_) | AgentError::Closed | AgentError::Timeout(_)) => return,
        Err(error) => return send(outbox, lost(&error)),
    };
    send(outbox, Input::AgentUp);
    lines.open(outbox);
    connection.extend_deadlines(life.deadline_extension());
    if !clock::tell_at_start(&mut connection, &hello, events) {
        connection = match connector.connect_extending(CONNECT_WAIT, life.deadline_extension()) {
            Ok(connection) => connection,
            Err(error) => return report_lost(outbox, life, &error),
        };
    }
    let (for_logs, log_outbox, log_life) = (connector.clone(), outbox.clone(), Arc::clone(life));
    let log_thread = match spawn("logs", outbox, move || {
        if let Err(error) = follow_logs(&for_logs, logs, log_life.deadline_extension()) {
            report_lost(&log_outbox, &log_life, &*error);
        }
    }) {
        Ok(thread) => thread,
        Err(error) => return send(outbox, Input::MonitorFailed { why: chain(&error) }),
    };
    if let Err(error) = follow_events(connection, events, outbox) {
        report_lost(outbox, life, &*error);
    }
    ignore(log_thread.join(), "the loop has learnt of a panic");
}

fn follow_events(
    mut connection: AgentConnection,
    log: &EventLog,
    outbox: &SyncSender<Message>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Done {} = connection.request(&Request::Events { since: 0 })?;
    let mut stream = EventStream::new(connection.into_stream(Traffic::EVENTS)?);
    while let Some(event) = stream.event()? {
        log.write(PodEvent::Guest(event.clone()));
        send(outbox, Input::Guest(event));
    }
    Err(Box::new(AgentError::Closed))
}

/// Copies the pod's output to its logs until the guest reports the end. If a log cannot be written (a full disk), only a client in the foreground gets
/// this output, and the pod goes on: a container that blocks for ever in a write would be worse.
fn follow_logs(
    connector: &Connector,
    logs: Logs,
    extension: DeadlineExtension,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let Logs { mut writers, mut overflow } = logs;
    let mut connection = connector.connect_extending(CONNECT_WAIT, extension)?;
    let Done {} = connection.request(&Request::Logs)?;
    // Usually the guest closes a connection. The end of the logs is its last message, and it waits until the host closes this one.
    let stream = connection.into_stream(Traffic::logs(writers.len()))?;
    while let Some(received) = stream.next()? {
        let (channel, bytes) = match received {
            Received::Data { channel, bytes } => (channel, bytes),
            Received::Message(StreamMessage::Run { container, run }) => {
                writers.get_mut(usize::from(container)).into_iter().for_each(|log| log.begin_run(run));
                continue;
            }
            // Logs have no other messages.
            Received::Message(_) => continue,
        };
        let (container, output) = log_source(channel);
        let output = if output == STDERR { LogStream::Stderr } else { LogStream::Stdout };
        // The stream has no other channels.
        let Some(log) = writers.get_mut(container) else { continue };
        // The next write may succeed.
        if let Err(lost) = log.write(output, &bytes) {
            overflow.take(container, &lost);
        }
    }
    stream.close();
    Ok(())
}

/// Asks the agent to end the pod. If that fails, the loop need not wait for the deadline, unless the pod is ending by itself at this
/// moment.
pub(super) fn shut_down(lines: Arc<Lines>, grace_ms: u64, life: Arc<Life>, outbox: SyncSender<Message>) {
    let to_loop = outbox.clone();
    let started = spawn("shutdown", &to_loop, move || {
        let asked = lines.stop.ask::<Done>(SHUTDOWN_WAIT, || Request::Shutdown { grace_ms });
        match asked {
            // A VM that ends at once may end before its answer is read.
            Ok(_) | Err(AgentError::Closed) => {}
            Err(_) if life.ends_within(VM_END_WAIT) => {}
            Err(_) => send(&outbox, Input::Deadline),
        }
    });
    if started.is_err() {
        // Nobody can ask the guest. The loop itself must not wait for room in its queue.
        ignore(to_loop.try_send(Message::Input(Input::Deadline)), "the deadline comes later by itself");
    }
}
