//! Connections to the guest that the pod's monitor has made and lends to this process. The monitor learns that this process has gone, or has
//! no more use for the connection, from the socket on which it was asked: it ends the connection then.

use crate::os;
use crate::store::sandbox::Destination;
use magikvm_proto::codec::{CodecError, write_message};
use magikvm_proto::wire::{Done, Refusal, Reply};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Longest request, including its newline.
pub const MAX_LOAN_REQUEST: usize = 128;
/// Longest answer: a refusal with the longest message and all its escapes.
const MAX_ANSWER: usize = 32 << 10;

/// A request for a connection: one line. The answer is a line with a [`Reply`] of [`Done`], which the connection's descriptor comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum LoanRequest {
    Connect { to: Destination },
}

/// A connection to the guest. A lent one ends when this value is dropped, since that closes the socket on which it was asked for.
#[derive(Debug)]
pub struct GuestStream {
    stream: UnixStream,
    /// Held for its end.
    _loan: Option<UnixStream>,
}

impl GuestStream {
    /// A connection that this process has made itself.
    pub(crate) fn own(stream: UnixStream) -> Self {
        Self { stream, _loan: None }
    }

    /// The socket, for what its traits do not offer.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.stream
    }
}

impl AsFd for GuestStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Read for GuestStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for GuestStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why no connection was lent.
#[derive(Debug, thiserror::Error)]
pub enum LoanError {
    #[error("the pod's monitor cannot be reached")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Refused(Refusal),
    /// The monitor has ended.
    #[error("the pod's monitor closed the connection")]
    Closed,
    #[error("the pod's monitor gave no valid answer")]
    Nonsense,
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(crate) struct Loan {
    monitor: UnixStream,
    answer: Vec<u8>,
    received: Vec<OwnedFd>,
}

impl Loan {
    /// Asks on a new connection to the monitor, whose socket has room for a line.
    pub(crate) fn ask(monitor: UnixStream, to: Destination) -> io::Result<Self> {
        write_message(&mut &monitor, &LoanRequest::Connect { to }).map_err(|error| match error {
            CodecError::Io(error) => error,
            error => io::Error::other(error),
        })?;
        Ok(Self { monitor, answer: Vec::new(), received: Vec::new() })
    }

    /// Reads once; `None` when more has to arrive. Blocks as the socket does.
    pub(crate) fn go_on(&mut self) -> Result<Option<GuestStream>, LoanError> {
        let mut buffer = [0; 4096];
        let count = os::receive_with(self.monitor.as_fd(), &mut buffer, &mut self.received)?;
        if count == 0 {
            return Err(LoanError::Closed);
        }
        self.answer.extend_from_slice(&buffer[..count]);
        if !self.answer.ends_with(b"\n") {
            return if self.answer.len() >= MAX_ANSWER { Err(LoanError::Nonsense) } else { Ok(None) };
        }
        match serde_json::from_slice(&self.answer) {
            Ok(Reply::Ok(Done {})) => {
                let lent = self.received.pop().ok_or(LoanError::Nonsense)?;
                let loan = self.monitor.try_clone()?;
                Ok(Some(GuestStream { stream: UnixStream::from(lent), _loan: Some(loan) }))
            }
            Ok(Reply::Error(refusal)) => Err(LoanError::Refused(Refusal::new(refusal.code, refusal.message))),
            Err(_) => Err(LoanError::Nonsense),
        }
    }

    /// The socket on which the answer arrives.
    pub(crate) fn socket(&self) -> &UnixStream {
        &self.monitor
    }
}
