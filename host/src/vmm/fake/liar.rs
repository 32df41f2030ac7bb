//! A guest's lies: a proxy between the host and the fake guest's supervisor, which forwards everything that it does not lie about.

use super::Manner;
use crate::agent::{AgentStream, GuestStream, StreamError};
use magikvm_proto::GENERATION;
use magikvm_proto::codec::{CodecError, read_message, write_message};
use magikvm_proto::id::ContainerName;
use magikvm_proto::stream::{Side, Traffic};
use magikvm_proto::wire::{Done, Event, EventKind, Hello, Refusal, RefusalCode, Reply, Request};
use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Longer than any test waits.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Starts the proxy and returns the supervisor's end.
pub(super) fn between(manner: Manner, host: UnixStream) -> io::Result<UnixStream> {
    let (ours, supervisors) = UnixStream::pair()?;
    std::thread::spawn(move || {
        if serve(manner, &host, &ours).is_err() {
            // One of the two has gone.
        }
        for end in [&host, &ours] {
            if end.shutdown(Shutdown::Both).is_err() {
                // The host has gone already.
            }
        }
    });
    Ok(supervisors)
}

fn serve(manner: Manner, mut host: &UnixStream, mut supervisor: &UnixStream) -> Result<(), CodecError> {
    let mut from_host = BufReader::new(host);
    let mut from_supervisor = BufReader::new(supervisor);
    while let Some(request) = read_message::<Request>(&mut from_host)? {
        match lie(manner, &request, host)? {
            Said::Lie => continue,
            Said::Nothing => {}
        }
        write_message(&mut supervisor, &request)?;
        let mut answer = Vec::new();
        from_supervisor.read_until(b'\n', &mut answer)?;
        host.write_all(&answer)?;
        match request {
            Request::Exec(_) | Request::Attach { .. } | Request::Logs | Request::Events { .. } => {
                lie_in_stream(manner, &request, host)?;
                return splice((from_host, host), (from_supervisor, supervisor));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Carries bytes both ways until one side ends.
fn splice(
    (mut from_host, mut host): (BufReader<&UnixStream>, &UnixStream),
    (mut from_supervisor, supervisor): (BufReader<&UnixStream>, &UnixStream),
) -> Result<(), CodecError> {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut to_supervisor = supervisor;
            if io::copy(&mut from_host, &mut to_supervisor).is_err() {
                // Nobody reads any more.
            }
            if supervisor.shutdown(Shutdown::Write).is_err() {
                // The other side has gone.
            }
        });
        io::copy(&mut from_supervisor, &mut host)?;
        host.shutdown(Shutdown::Both)?;
        Ok(())
    })
}

/// What was sent to the host in place of the supervisor's answer.
enum Said {
    Lie,
    Nothing,
}

fn lie(manner: Manner, request: &Request, mut host: &UnixStream) -> Result<Said, CodecError> {
    match (manner, request) {
        (Manner::Silent | Manner::SilentOnce, Request::Hello { .. }) => std::thread::sleep(FOR_EVER),
        (Manner::Garbage, Request::Hello { .. }) => host.write_all(b"\x00\xff nonsense }\n")?,
        (Manner::EndlessLine, Request::Hello { .. }) => loop {
            host.write_all(&[b'x'; 4096])?;
        },
        (Manner::Generation | Manner::Vanish | Manner::NoClock, Request::Hello { .. }) => {
            let generation = if manner == Manner::Generation { 99 } else { GENERATION };
            let hello = Hello { generation, version: "fake".to_owned(), pod: None, capabilities: Vec::new() };
            write_message(&mut host, &Reply::Ok(hello))?;
            if manner == Manner::Vanish {
                std::process::exit(7);
            }
        }
        (Manner::GarbageClock, Request::Clock { .. }) => {
            host.write_all(b"{\"status\":\"ok\",\"offset_ms\":1e99}\n")?;
        }
        (Manner::NoClock, Request::Clock { .. }) => {
            let message = "not a request: unknown variant `clock`\x1b[2J";
            write_message(&mut host, &Reply::<Done>::Error(Refusal::new(RefusalCode::Invalid, message)))?;
        }
        (Manner::Deaf, Request::Hello { .. } | Request::Events { .. } | Request::Logs) => {
            return Ok(Said::Nothing);
        }
        (Manner::Deaf, _) => std::thread::sleep(FOR_EVER),
        (Manner::UnknownContainer | Manner::FloodEvents | Manner::FloodRestarts, Request::Events { .. }) => {
            write_message(&mut host, &Reply::Ok(Done {}))?;
            lie_about_events(manner, host)?;
        }
        _ => return Ok(Said::Nothing),
    }
    Ok(Said::Lie)
}

/// Sends made-up events as long as the host listens.
fn lie_about_events(manner: Manner, host: &UnixStream) -> Result<(), CodecError> {
    let stream =
        AgentStream::new(GuestStream::own(host.try_clone()?), Side::Guest, Traffic::EVENTS, &[], None)?;
    let failed = |error: StreamError| CodecError::from(io::Error::other(error));
    let tell = |kind: EventKind| {
        let mut line = Vec::new();
        write_message(&mut line, &Event { seq: 1, kind })?;
        stream.send(0, &line).map_err(failed)
    };
    let started = |container: ContainerName, restart_count| EventKind::ContainerStarted {
        container,
        pid: 2,
        restart_count,
        post_start: false,
        ready: true,
    };
    match manner {
        Manner::UnknownContainer => {
            let nobody = "nobody".parse().map_err(|_| io::ErrorKind::InvalidInput);
            tell(started(nobody.map_err(io::Error::from)?, 0))?;
        }
        Manner::FloodEvents => loop {
            tell(EventKind::ShuttingDown)?;
        },
        _ => {
            let names: Vec<ContainerName> = super::plan()
                .map(|plan| plan.containers.into_iter().map(|container| container.name).collect())
                .unwrap_or_default();
            for name in &names {
                tell(started(name.clone(), 0))?;
            }
            tell(EventKind::PodStarted)?;
            for (restart_count, name) in (1..).zip(names.iter().cycle()) {
                tell(started(name.clone(), restart_count))?;
            }
        }
    }
    while stream.next().map_err(failed)?.is_some() {}
    Ok(())
}

/// Frames that no honest guest sends, ahead of the supervisor's frames.
fn lie_in_stream(manner: Manner, request: &Request, mut host: &UnixStream) -> io::Result<()> {
    match (manner, request) {
        // One byte longer than any frame.
        (Manner::HugeFrame, Request::Logs) => host.write_all(&[0, 0, 0x3f, 0xfd]),
        (Manner::SlowFrame, Request::Logs) => {
            host.write_all(&[0, 0])?;
            // Longer than a frame may take after its beginning without a deadline extension.
            std::thread::sleep(Duration::from_secs(10));
            host.write_all(&[0, 16])?;
            host.write_all(b"one half, other\n")
        }
        _ => Ok(()),
    }
}
