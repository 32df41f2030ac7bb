//! Dials the guest for one connection without ever blocking: connects to the VMM's socket, passes its handshake if it has one, sends one
//! line and receives one line.

use super::error::ForwardError;
use crate::agent::{Connector, GuestStream, Handshake, Loan, LoanError};
use crate::os;
use magikvm_proto::codec::write_message;
use magikvm_proto::forward::{ForwardRequest, MAX_ANSWER_LEN};
use magikvm_proto::limits::FORWARD_TIMEOUT_SECS;
use magikvm_proto::stream::{Link, Side, Traffic};
use magikvm_proto::wire::{Done, Reply};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How long the guest may take to answer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(FORWARD_TIMEOUT_SECS + 5);
/// Longest answer to the request for a port (`OK 1234567890\n`).
const MAX_HANDSHAKE: usize = 64;

/// A connection that is being dialled.
#[derive(Debug)]
pub(super) struct Dial {
    stream: Stream,
    request: Vec<u8>,
    expects: Expects,
    line: Vec<u8>,
}

/// Who the dial waits for.
#[derive(Debug)]
enum Stream {
    Monitor(Loan),
    Guest(GuestStream),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Handshake,
    Answer,
}

#[derive(Debug)]
pub(super) enum Progress {
    Waits,
    /// The monitor has lent this connection, on which the guest is to be asked.
    Lent(GuestStream),
    Agreed(Box<Link>),
    Failed(ForwardError),
}

impl Dial {
    /// Connects and asks. [`ForwardError::Unreachable`] with `WouldBlock`: try again later.
    pub(super) fn start(guest: &Connector, port: u16) -> Result<(Self, Instant), ForwardError> {
        let failed = ForwardError::Unreachable;
        let mut request = Vec::new();
        write_message(&mut request, &ForwardRequest::Forward { port }).map_err(|_| ForwardError::Nonsense)?;
        let stream = os::connect_unix_at_once(&guest.socket).map_err(failed)?;
        let stream = match guest.handshake {
            Handshake::Broker(to) => Stream::Monitor(Loan::ask(stream, to).map_err(failed)?),
            Handshake::Direct | Handshake::Port(_) => Stream::Guest(GuestStream::own(stream)),
        };
        let mut dial = Self { stream, request, expects: Expects::Answer, line: Vec::new() };
        match guest.handshake {
            // The guest is asked when the monitor has lent a connection.
            Handshake::Broker(_) => {}
            Handshake::Direct => dial.ask().map_err(failed)?,
            Handshake::Port(port) => {
                dial.expects = Expects::Handshake;
                dial.write(format!("CONNECT {port}\n").as_bytes()).map_err(failed)?;
            }
        }
        Ok((dial, Instant::now() + DIAL_TIMEOUT))
    }

    /// A new socket has room for a line.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Monitor(_) => Err(ErrorKind::NotConnected.into()),
            Stream::Guest(stream) => stream.write_all(bytes),
        }
    }

    fn ask(&mut self) -> io::Result<()> {
        let request = std::mem::take(&mut self.request);
        self.expects = Expects::Answer;
        match self.write(&request) {
            // A guest that has closed the connection may have said why; that is read next.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }

    /// Whether it can be closed. `vhost-device-vsock` 0.3 ends, or spins, when a connection is closed before it has said OK.
    pub(super) fn may_be_closed(&self) -> bool {
        self.expects == Expects::Answer
    }

    /// Goes on with a lent connection. Nobody may wait for the dial's socket any more.
    pub(super) fn take_over(&mut self, lent: GuestStream) -> Result<(), ForwardError> {
        lent.socket().set_nonblocking(true).map_err(ForwardError::Unreachable)?;
        self.stream = Stream::Guest(lent);
        self.ask().map_err(ForwardError::Unreachable)
    }

    /// Reads the data that has arrived.
    pub(super) fn go_on(&mut self) -> Progress {
        let stream = match &mut self.stream {
            Stream::Guest(stream) => stream,
            Stream::Monitor(loan) => return borrowed(loan.go_on()),
        };
        let mut buffer = [0; 4096];
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Progress::Failed(ForwardError::Closed),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Progress::Waits;
            }
            Err(error) => return Progress::Failed(ForwardError::Unreachable(error)),
        };
        self.line.extend_from_slice(&buffer[..count]);
        let Some(end) = self.line.iter().position(|&byte| byte == b'\n') else {
            let max = if self.expects == Expects::Handshake { MAX_HANDSHAKE } else { MAX_ANSWER_LEN };
            let too_long = self.line.len() >= max;
            return if too_long { Progress::Failed(ForwardError::Nonsense) } else { Progress::Waits };
        };
        let rest = self.line.split_off(end + 1);
        let line = std::mem::take(&mut self.line);
        match self.expects {
            // Nothing follows before the guest was asked.
            Expects::Handshake if line.starts_with(b"OK ") && rest.is_empty() => match self.ask() {
                Ok(()) => Progress::Waits,
                Err(error) => Progress::Failed(ForwardError::Unreachable(error)),
            },
            Expects::Handshake => Progress::Failed(ForwardError::Nonsense),
            Expects::Answer => answered(&line, &rest),
        }
    }

    /// The connection to the guest; `None` before there is one.
    pub(super) fn into_stream(self) -> Option<GuestStream> {
        match self.stream {
            Stream::Monitor(_) => None,
            Stream::Guest(stream) => Some(stream),
        }
    }
}

fn borrowed(answer: Result<Option<GuestStream>, LoanError>) -> Progress {
    match answer {
        Ok(None) => Progress::Waits,
        Ok(Some(lent)) => Progress::Lent(lent),
        Err(LoanError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Progress::Waits,
        Err(error) => Progress::Failed(error.into()),
    }
}

fn answered(line: &[u8], rest: &[u8]) -> Progress {
    match serde_json::from_slice::<Reply<Done>>(line) {
        Ok(Reply::Ok(Done {})) => {
            let mut link = Box::new(Link::new(Side::Host, Traffic::PORT));
            match link.receive(rest) {
                Ok(()) => Progress::Agreed(link),
                Err(violation) => Progress::Failed(ForwardError::Violation(violation)),
            }
        }
        Ok(Reply::Error(refusal)) => Progress::Failed(ForwardError::Refused(
            magikvm_proto::wire::Refusal::new(refusal.code, refusal.message),
        )),
        Err(_) => Progress::Failed(ForwardError::Nonsense),
    }
}

impl AsFd for Dial {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.stream {
            Stream::Monitor(loan) => loan.socket().as_fd(),
            Stream::Guest(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Destination;
    use std::os::unix::net::{UnixListener, UnixStream};

    /// What is made of a guest that says this and closes the connection before it is asked.
    fn hears(said: &[u8]) -> ForwardError {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("broker.sock");
        let _monitor = UnixListener::bind(&socket).unwrap();
        let broker = Connector { socket, handshake: Handshake::Broker(Destination::Forward) };
        let (mut dial, _) = Dial::start(&broker, 80).unwrap();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest.write_all(said).unwrap();
        drop(guest);
        dial.take_over(GuestStream::own(ours)).unwrap();
        match dial.go_on() {
            Progress::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_guest_said_before_it_closed_the_connection_is_heard() {
        assert!(matches!(hears(b"nonsense\n"), ForwardError::Nonsense));
        assert!(matches!(hears(b""), ForwardError::Closed));
        let refusal = magikvm_proto::wire::Refusal::new(magikvm_proto::wire::RefusalCode::Busy, "too many");
        let mut line = Vec::new();
        write_message(&mut line, &Reply::<Done>::Error(refusal)).unwrap();
        assert!(matches!(hears(&line), ForwardError::Refused(_)));
    }
}
