//! The requests of one connection, one after the other, until it ends or becomes a stream.

use super::connection::Connection;
use super::{attach, exec, follow};
use crate::machine::Input;
use crate::message::Message;
use crate::pod::Pod;
use magikvm_proto::codec::CodecError;
use magikvm_proto::id::ContainerName;
use magikvm_proto::limits::GRACE_PERIOD_BOUND_SECS;
use magikvm_proto::signal::Signal;
use magikvm_proto::wire::{Done, EXEC_USER, Hello, Refusal, RefusalCode, Reply, Request, Stats, Status};
use serde::Serialize;

/// What `hello` lists as supported by this agent.
const CAPABILITIES: [&str; 12] = [
    "hello", "ping", "status", "signal", "exec", EXEC_USER, "logs", "attach", "stats", "events", "clock",
    "shutdown",
];

/// Serves a connection to its end.
pub(super) fn serve(pod: &Pod, mut connection: Connection) {
    loop {
        let line = match connection.read_line() {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => {
                if matches!(error, CodecError::LineTooLong) {
                    connection.try_send(&refused(&error.to_string()));
                }
                return;
            }
        };
        let request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                connection.try_send(&refused(&format!("invalid request: {error}")));
                return;
            }
        };
        drop(line);
        let answered = match request {
            Request::Exec(request) => return exec::serve(pod, connection, &request),
            Request::Attach { container, stdin } => return attach::serve(pod, connection, &container, stdin),
            Request::Logs => return follow::logs(pod, connection),
            Request::Events { since } => return follow::events(pod, connection, since),
            request => answer(pod, &mut connection, request),
        };
        if answered.is_err() {
            return;
        }
    }
}

fn refused(message: &str) -> Reply<Done> {
    Reply::Error(Refusal::new(RefusalCode::Invalid, message))
}

fn reply<T: Serialize>(connection: &mut Connection, result: Result<T, Refusal>) -> Result<(), CodecError> {
    connection.send(&match result {
        Ok(value) => Reply::Ok(value),
        Err(refusal) => Reply::Error(refusal),
    })
}

fn answer(pod: &Pod, connection: &mut Connection, request: Request) -> Result<(), CodecError> {
    match request {
        Request::Hello { .. } => reply(connection, Ok(hello(pod))),
        Request::Status => {
            // Read before the states: a client then asks again for an event in between instead of missing it.
            let last_event = pod.events.last();
            reply(connection, Ok(Status { containers: pod.status(), last_event }))
        }
        Request::Signal { container, signal } => {
            reply(connection, send_signal(pod, container.as_ref(), signal))
        }
        Request::Stats => {
            let containers =
                pod.members.iter().filter_map(|member| pod.containers.stats(&member.plan.name)).collect();
            let guest = pod.home.stats(&pod.containers.helpers());
            reply(connection, Ok(Stats { containers, guest }))
        }
        Request::Clock { realtime_ns } => reply(connection, pod.home.set_clock(realtime_ns)),
        Request::Shutdown { grace_ms } => {
            let sent = reply(connection, Ok(Done {}));
            let grace_ms = grace_ms.min(GRACE_PERIOD_BOUND_SECS * 1000);
            pod.tell(Message::Input(Input::Stop { grace_ms }));
            sent
        }
        Request::Ping
        | Request::Exec(_)
        | Request::Attach { .. }
        | Request::Logs
        | Request::Events { .. } => reply(connection, Ok(Done {})),
    }
}

fn hello(pod: &Pod) -> Hello {
    Hello {
        generation: magikvm_proto::GENERATION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pod: pod.plan.as_ref().map(|plan| plan.pod.clone()),
        capabilities: CAPABILITIES.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// Whether a process can be sent this signal number.
pub(super) fn check_signal(signal: i32) -> Result<(), Refusal> {
    let unknown =
        |_| Refusal::new(RefusalCode::Invalid, format!("{signal} is not a signal number (1 to 64)"));
    Signal::try_from(signal).map(drop).map_err(unknown)
}

fn send_signal(pod: &Pod, container: Option<&ContainerName>, signal: i32) -> Result<Done, Refusal> {
    check_signal(signal)?;
    match container {
        None => {
            for member in &pod.members {
                member.signal(signal);
            }
        }
        Some(name) => {
            let (member, _) = pod.running(name)?;
            if !member.signal(signal) {
                return Err(Refusal::new(
                    RefusalCode::Conflict,
                    format!("container {:?} has just ended", name.as_str()),
                ));
            }
        }
    }
    Ok(Done {})
}
