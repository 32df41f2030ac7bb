//! The client of the wire protocol. The guest is hostile: every call has a deadline, the codec caps every length, and nothing that the
//! guest says can make this side panic, wait for ever or grow.

mod events;
mod lent;
mod stream;
mod timed;

pub use crate::store::sandbox::{Connector, Destination, Handshake};
pub use events::EventStream;
pub(crate) use lent::Loan;
pub use lent::{GuestStream, LoanError, LoanRequest, MAX_LOAN_REQUEST};
pub use stream::{AgentStream, Received, StreamError};
pub use timed::DeadlineExtension;

use crate::os;
use crate::store::layout::FORWARD_SOCK;
use magikvm_proto::budget::HOST_EXEC_START_WAIT_MS;
use magikvm_proto::codec::{self, CodecError};
use magikvm_proto::limits::REQUEST_TIMEOUT_SECS;
use magikvm_proto::path::FORWARD_PORT;
use magikvm_proto::stream::{Side, Traffic};
use magikvm_proto::wire::{ExecRequest, ExecStarted, Hello, Refusal, Reply, Request};
use serde::de::DeserializeOwned;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use timed::Timed;

/// Longest answer to the request for a port (`OK 1234567890\n`).
const MAX_HANDSHAKE: usize = 64;

/// Timeout of the first attempt to reach a booting guest, made when the guest has reported that it listens. A guest that creates many
/// containers on a slow processor may answer late, and reconnecting would only give it more work.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);
/// Longest timeout of a later attempt. Each has twice the time of the one before, since the guest may only be slow.
const MAX_ATTEMPT: Duration = Duration::from_secs(10);

/// Why the agent did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody listens yet or any more.
    #[error("the pod's agent cannot be reached")]
    Unreachable(#[source] io::Error),
    /// It did not answer in time.
    #[error("the pod's agent did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error(transparent)]
    Refused(Refusal),
    /// It sent something that is not an answer.
    #[error("the pod's agent sent something that is not an answer")]
    Nonsense(#[source] CodecError),
    /// It ended the connection instead of answering.
    #[error("the pod's agent closed the connection")]
    Closed,
    /// The guest speaks another generation of the wire protocol.
    #[error("the pod's supervisor speaks generation {found} of the wire, this magikvm {expected}")]
    Generation { found: u32, expected: u32 },
}

/// A connection for consecutive requests.
#[derive(Debug)]
pub struct AgentConnection {
    reader: BufReader<Timed>,
    writer: GuestStream,
}

impl Connector {
    /// How to reach the guest's port for forwarded connections, which is beside the agent's.
    #[must_use]
    pub fn forwards(&self) -> Self {
        match self.handshake {
            Handshake::Direct => {
                Self { socket: self.socket.with_file_name(FORWARD_SOCK), handshake: Handshake::Direct }
            }
            Handshake::Port(_) => {
                Self { socket: self.socket.clone(), handshake: Handshake::Port(FORWARD_PORT) }
            }
            Handshake::Broker(_) => {
                Self { socket: self.socket.clone(), handshake: Handshake::Broker(Destination::Forward) }
            }
        }
    }

    /// Connects, waiting at most `wait` for the agent's side to accept.
    pub fn connect(&self, wait: Duration) -> Result<AgentConnection, AgentError> {
        self.connect_with(wait, None)
    }

    /// Connects to a VM that may be paused at any time, which may then delay everything.
    pub fn connect_extending(
        &self,
        wait: Duration,
        extension: DeadlineExtension,
    ) -> Result<AgentConnection, AgentError> {
        self.connect_with(wait, Some(extension))
    }

    fn connect_with(
        &self,
        wait: Duration,
        extension: Option<DeadlineExtension>,
    ) -> Result<AgentConnection, AgentError> {
        let deadline = Instant::now() + wait;
        let stream = os::connect_unix(&self.socket).map_err(AgentError::Unreachable)?;
        let stream = match self.handshake {
            Handshake::Direct | Handshake::Port(_) => GuestStream::own(stream),
            Handshake::Broker(to) => borrow(stream, to, deadline)?,
        };
        let timed = Timed::new(stream.socket().try_clone().map_err(AgentError::Unreachable)?);
        let mut connection = AgentConnection { reader: BufReader::new(timed), writer: stream };
        if let Some(extension) = extension {
            connection.extend_deadlines(extension);
        }
        if let Handshake::Port(port) = self.handshake {
            connection.set_deadline(Some(deadline));
            let agreed = connection
                .writer
                .write_all(format!("CONNECT {port}\n").as_bytes())
                .and_then(|()| connection.read_handshake());
            agreed.map_err(AgentError::Unreachable)?;
            connection.set_deadline(None);
        }
        Ok(connection)
    }

    /// Connects, retrying until the agent answers `hello`, `still_wanted` returns false, or the deadline passes: a guest that has not
    /// booted yet refuses.
    pub fn connect_when_up(
        &self,
        deadline: Instant,
        still_wanted: &dyn Fn() -> bool,
    ) -> Result<(AgentConnection, Hello), AgentError> {
        let started = Instant::now();
        let mut limit = FIRST_ATTEMPT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let until = Instant::now() + limit.min(left);
            let attempt = self.connect(limit.min(left)).and_then(|mut connection| {
                let hello = connection.hello(until)?;
                Ok((connection, hello))
            });
            let quick = match attempt {
                Err(AgentError::Unreachable(ref error)) => !is_timeout(error),
                Err(AgentError::Closed) => true,
                Err(AgentError::Timeout(_)) => false,
                result => return result,
            };
            if left.is_zero() {
                return Err(AgentError::Timeout(started.elapsed()));
            }
            if !still_wanted() {
                return Err(AgentError::Closed);
            }
            if quick {
                // The far end appears when the guest is up, which nothing on this side announces.
                std::thread::sleep(Duration::from_millis(5).min(left));
            } else {
                limit = (limit * 2).min(MAX_ATTEMPT);
            }
        }
    }
}

impl AgentConnection {
    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.reader.get_mut().set_deadline(deadline);
    }

    /// From now on, callers of this connection wait for a VM that may be paused at any time.
    pub fn extend_deadlines(&mut self, extension: DeadlineExtension) {
        self.reader.get_mut().extend_deadlines(extension);
    }

    /// Reads the one line byte by byte, so that nothing behind it is consumed.
    fn read_handshake(&mut self) -> io::Result<()> {
        let mut line = Vec::new();
        while line.len() < MAX_HANDSHAKE {
            let mut byte = [0u8];
            self.reader.read_exact(&mut byte)?;
            if byte == *b"\n" {
                let agreed = line.starts_with(b"OK ");
                return if agreed { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) };
            }
            line.push(byte[0]);
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Sends a request and waits at most `wait` for the whole answer.
    pub fn request_within<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        wait: Duration,
    ) -> Result<T, AgentError> {
        self.ask(request, wait, Instant::now() + wait)
    }

    /// Sends a request and waits at most the protocol's default of 30 s for the whole answer.
    pub fn request<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, AgentError> {
        self.request_within(request, Duration::from_secs(REQUEST_TIMEOUT_SECS))
    }

    /// Starts a process in a container, for which the guest may take longer than for other requests.
    pub fn exec(&mut self, request: ExecRequest) -> Result<ExecStarted, AgentError> {
        self.request_within(&Request::Exec(request), Duration::from_millis(HOST_EXEC_START_WAIT_MS))
    }

    fn ask<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        wait: Duration,
        deadline: Instant,
    ) -> Result<T, AgentError> {
        self.set_deadline(Some(deadline));
        self.writer
            .socket()
            .set_write_timeout(Some(wait.max(Duration::from_millis(1))))
            .map_err(AgentError::Unreachable)?;
        let sent = codec::write_message(&mut self.writer, request);
        let answer = sent.and_then(|()| codec::read_message::<Reply<T>>(&mut self.reader));
        self.set_deadline(None);
        match answer {
            Ok(Some(Reply::Ok(answer))) => Ok(answer),
            Ok(Some(Reply::Error(refusal))) => {
                Err(AgentError::Refused(Refusal::new(refusal.code, refusal.message)))
            }
            Ok(None) | Err(CodecError::Truncated) => Err(AgentError::Closed),
            Err(CodecError::Io(error)) if is_timeout(&error) => Err(AgentError::Timeout(wait)),
            Err(CodecError::Io(error)) if is_closed(&error) => Err(AgentError::Closed),
            Err(CodecError::Io(error)) => Err(AgentError::Unreachable(error)),
            Err(error) => Err(AgentError::Nonsense(error)),
        }
    }

    /// Whether the agent says that it is capable of this.
    pub fn has(&mut self, capability: &str) -> Result<bool, AgentError> {
        let hello = self.hello(Instant::now() + Duration::from_secs(REQUEST_TIMEOUT_SECS))?;
        Ok(hello.capabilities.iter().any(|one| one == capability))
    }

    fn hello(&mut self, deadline: Instant) -> Result<Hello, AgentError> {
        let expected = magikvm_proto::GENERATION;
        let wait = deadline.saturating_duration_since(Instant::now());
        let hello: Hello = self.ask(&Request::Hello { generation: expected }, wait, deadline)?;
        if hello.generation == expected {
            Ok(hello)
        } else {
            Err(AgentError::Generation { found: hello.generation, expected })
        }
    }

    /// For use after an `ok` that turns the connection into a stream.
    pub fn into_stream(self, traffic: Traffic) -> Result<AgentStream, AgentError> {
        let rest = self.reader.buffer().to_vec();
        let extension = self.reader.into_inner().take_extension();
        AgentStream::new(self.writer, Side::Host, traffic, &rest, extension).map_err(AgentError::Unreachable)
    }
}

/// Waits for the monitor to lend a connection.
fn borrow(monitor: UnixStream, to: Destination, deadline: Instant) -> Result<GuestStream, AgentError> {
    let mut loan = Loan::ask(monitor, to).map_err(AgentError::Unreachable)?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        loan.socket().set_read_timeout(Some(left)).map_err(AgentError::Unreachable)?;
        match loan.go_on() {
            Ok(Some(stream)) => return Ok(stream),
            Ok(None) => {}
            Err(LoanError::Io(error)) => return Err(AgentError::Unreachable(error)),
            Err(LoanError::Refused(refusal)) => return Err(AgentError::Refused(refusal)),
            Err(LoanError::Closed) => return Err(AgentError::Closed),
            Err(LoanError::Nonsense) => {
                return Err(AgentError::Unreachable(io::ErrorKind::InvalidData.into()));
            }
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
    )
}

#[cfg(test)]
mod tests;
