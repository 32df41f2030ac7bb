//! The monitor's socket, for requests that only the monitor can carry out.

use super::lines::Lines;
use super::message::{LifeRequest, Message, spawn};
use crate::agent::AgentError;
use crate::os;
use crate::pod::control::ControlRequest;
use crate::pod::step::PauseRequest;
use crate::store::atomic::FileError;
use crate::store::layout::PodDir;
use crate::store::text::{chain, ignore};
use magikvm_proto::codec::{read_message, write_message};
use magikvm_proto::limits::REQUEST_TIMEOUT_SECS;
use magikvm_proto::wire::{Refusal, RefusalCode, Reply, Request};
use serde_json::{Map, Value};
use std::io::BufReader;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time for a client to send its request.
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// Time for the agent to answer a request that takes no time.
const AGENT_WAIT: Duration = Duration::from_secs(REQUEST_TIMEOUT_SECS);

/// The way to the agent, for requests that clients make through the monitor, so that they never wait behind other clients.
#[derive(Debug, Clone, Default)]
pub(super) struct Agent(Arc<Mutex<Option<Arc<Lines>>>>);

impl Agent {
    /// The lines to the present VM replace those to the one before.
    pub(super) fn set(&self, lines: Arc<Lines>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(lines);
    }

    /// From now on clients are told that the pod is being started.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn ask(&self, request: &Request) -> Result<Value, Refusal> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(lines) = lines else {
            return Err(Refusal::new(RefusalCode::Conflict, "the pod is being started"));
        };
        lines.requests.ask(AGENT_WAIT, || request.clone()).map_err(|error| match error {
            AgentError::Refused(refusal) => refusal,
            error => Refusal::new(RefusalCode::Internal, chain(&error)),
        })
    }
}

/// Listens in the pod's directory and forwards each request to the reactor or to the agent.
pub(super) fn listen(dir: &PodDir, agent: Agent, to_reactor: SyncSender<Message>) -> Result<(), FileError> {
    let path = dir.control_sock();
    let listener = os::bind_unix(&path).map_err(FileError::at("listen on", &path))?;
    spawn("control", &to_reactor.clone(), move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let (agent, to_serve) = (agent.clone(), to_reactor.clone());
            // A client that cannot be served now sees its connection end, and may try again.
            let served = spawn("client", &to_reactor, move || serve(&stream, &agent, &to_serve));
            ignore(served, "the connection ended with the thread's closure");
        }
    })
    .map_err(|error| FileError::at("listen on", &path)(error.into()))?;
    Ok(())
}

fn serve(mut stream: &UnixStream, agent: &Agent, to_reactor: &SyncSender<Message>) {
    if stream.set_read_timeout(Some(REQUEST_WAIT)).is_err() {
        return;
    }
    let reply = match read_message(&mut BufReader::new(stream)) {
        Ok(Some(request)) => match carry_out(request, agent, to_reactor) {
            Some(Ok(value)) => Reply::Ok(value),
            Some(Err(refusal)) => Reply::Error(refusal),
            None => return,
        },
        Ok(None) => return,
        Err(error) => Reply::Error(Refusal::new(RefusalCode::Invalid, error.to_string())),
    };
    ignore(write_message(&mut stream, &reply), "the client has gone; its request was carried out");
}

/// Waits for the outcome of a request; `None` when the pod's end leaves it without one.
fn carry_out(
    request: ControlRequest,
    agent: &Agent,
    to_reactor: &SyncSender<Message>,
) -> Option<Result<Value, Refusal>> {
    let request = match request {
        ControlRequest::Signal { container, signal } => {
            return Some(agent.ask(&Request::Signal { container, signal }));
        }
        ControlRequest::Stats => return Some(agent.ask(&Request::Stats)),
        ControlRequest::Stop { grace_ms } => LifeRequest::Stop { grace_ms },
        ControlRequest::Pause => LifeRequest::Motion(PauseRequest::Pause),
        ControlRequest::Resume => LifeRequest::Motion(PauseRequest::Resume),
    };
    let (done, wait) = channel();
    to_reactor.send(Message::Control { request, done }).ok()?;
    // The reactor drops `done` unused only when the process ends.
    wait.recv().ok().map(|done| done.map(|()| Value::Object(Map::new())))
}
