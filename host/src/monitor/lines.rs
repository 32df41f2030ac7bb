//! The connections that the monitor keeps to the agent for what must never wait behind clients. They are made at the start of the pod and
//! used again and again.

use super::message::{Message, spawn};
use crate::agent::{AgentConnection, AgentError, Connector};
use crate::store::text::ignore;
use magikvm_proto::limits::MONITOR_CONNECTIONS;
use magikvm_proto::wire::Request;
use serde::de::DeserializeOwned;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Time for a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// One connection, used by one request at a time.
#[derive(Debug)]
pub(super) struct Line {
    agent: Connector,
    kept: Mutex<Option<AgentConnection>>,
}

impl Line {
    fn new(agent: &Connector) -> Self {
        Self { agent: agent.clone(), kept: Mutex::default() }
    }

    /// Connects if there is no connection. A failure is not one yet: the next request tries again.
    fn open(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            *kept = self.agent.connect(CONNECT_WAIT).ok();
        }
    }

    /// Sends a request and waits at most `wait` for its answer. A connection that turns out to be closed is replaced.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        wait: Duration,
        request: impl Fn() -> Request,
    ) -> Result<T, AgentError> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut connection) = kept.take() {
            match connection.request_within(&request(), wait) {
                Err(AgentError::Closed | AgentError::Unreachable(_)) => {}
                answer => {
                    *kept = is_usable(&answer).then_some(connection);
                    return answer;
                }
            }
        }
        let mut connection = self.agent.connect(CONNECT_WAIT)?;
        let answer = connection.request_within(&request(), wait);
        *kept = is_usable(&answer).then_some(connection);
        answer
    }
}

/// Whether the next request may use the same connection: this one was answered.
fn is_usable<T>(answer: &Result<T, AgentError>) -> bool {
    matches!(answer, Ok(_) | Err(AgentError::Refused(_)))
}

/// All of them. Each purpose has its own, so that none waits for another one.
#[derive(Debug)]
pub(super) struct Lines {
    /// The pod's end.
    pub(super) stop: Line,
    pub(super) clock: Line,
    /// Requests of clients that take no time: signals and figures.
    pub(super) requests: Line,
}

/// Those of [`Lines`], the events and the logs.
const COUNT: usize = 5;
const _: () = assert!(COUNT <= MONITOR_CONNECTIONS);

impl Lines {
    pub(super) fn new(agent: &Connector) -> Arc<Self> {
        let line = || Line::new(agent);
        Arc::new(Self { stop: line(), clock: line(), requests: line() })
    }

    /// Connects on a thread, because the pod need not wait for it.
    pub(super) fn open(self: &Arc<Self>, outbox: &SyncSender<Message>) {
        let lines = Arc::clone(self);
        let opening = spawn("lines", outbox, move || {
            [&lines.stop, &lines.clock, &lines.requests].into_iter().for_each(Line::open);
        });
        ignore(opening, "each connection is then made by its first request");
    }
}
