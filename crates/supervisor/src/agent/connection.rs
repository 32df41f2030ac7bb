//! One non-blocking connection that reads and writes lines. Every wait has a deadline.

use crate::sync;
use magikvm_proto::codec::{CodecError, write_message};
use magikvm_proto::limits::{MAX_LINE_LEN, REQUEST_TIMEOUT_SECS};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::unistd::{read, write};
use serde::Serialize;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Most bytes of one read while waiting for lines.
const READ: usize = 4096;
/// Limit for the rest of a line that began, and for taking a reply.
const TIMEOUT: Duration = Duration::from_secs(REQUEST_TIMEOUT_SECS);

/// Most bytes of one write. A write becomes a packet, and above about 32 KiB the kernel spreads a packet
/// over several buffers, which not every vsock device on the host can read (`vhost-device-vsock` 0.3 drops it, and
/// the stream loses its middle).
const MAX_WRITE: usize = 16 << 10;

/// A connection and the bytes that were read from it but not used yet.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    timeout: Duration,
}

/// Result of a read that does not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// More bytes.
    Some,
    Nothing,
    /// The other side sends no more.
    End,
}

fn late() -> CodecError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

impl Connection {
    /// Takes over a connected, non-blocking socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, input: Vec::new(), timeout: TIMEOUT }
    }

    /// Bytes read and not used yet.
    pub(crate) fn input(&mut self) -> &mut Vec<u8> {
        &mut self.input
    }

    /// The next line without its newline; `None` at a clean end. Waits without a limit for its first byte, but not for
    /// its last one.
    pub(crate) fn read_line(&mut self) -> Result<Option<Vec<u8>>, CodecError> {
        let mut began = (!self.input.is_empty()).then(Instant::now);
        loop {
            if let Some(end) = self.input.iter().take(MAX_LINE_LEN).position(|&byte| byte == b'\n') {
                let mut line: Vec<u8> = self.input.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.input.len() >= MAX_LINE_LEN {
                return Err(CodecError::LineTooLong);
            }
            let deadline = began.map(|at| at + self.timeout);
            if deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(late());
            }
            sync::wait([(self.socket.as_fd(), PollFlags::POLLIN)], deadline)?;
            match self.fill(READ)? {
                Filled::End if self.input.is_empty() => return Ok(None),
                Filled::End => return Err(CodecError::Truncated),
                Filled::Some => began = began.or_else(|| Some(Instant::now())),
                Filled::Nothing => {}
            }
        }
    }

    /// Reads at most `limit` bytes without waiting.
    pub(crate) fn fill(&mut self, limit: usize) -> io::Result<Filled> {
        let old = self.input.len();
        self.input.resize(old + limit, 0);
        let result = read(&self.socket, &mut self.input[old..]);
        self.input.truncate(old + result.unwrap_or(0));
        match result {
            Ok(0) => Ok(Filled::End),
            Ok(_) => Ok(Filled::Some),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Filled::Nothing),
            Err(Errno::ECONNRESET | Errno::ENOTCONN) => Ok(Filled::End),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes as much as the socket takes without waiting.
    pub(crate) fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match write(&self.socket, &bytes[..bytes.len().min(MAX_WRITE)]) {
            Ok(len) => Ok(len),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), CodecError> {
        let deadline = Instant::now() + self.timeout;
        while !bytes.is_empty() {
            let written = self.write_some(bytes)?;
            bytes = &bytes[written..];
            if written == 0 {
                if deadline <= Instant::now() {
                    return Err(late());
                }
                let [found] =
                    sync::wait([(self.socket.as_fd(), PollFlags::POLLOUT | sync::HANG_UP)], Some(deadline))?;
                if found.hang_up {
                    return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
                }
            }
        }
        Ok(())
    }

    pub(crate) fn send(&mut self, message: &impl Serialize) -> Result<(), CodecError> {
        let mut line = Vec::new();
        write_message(&mut line, message)?;
        self.write_all(&line)
    }

    /// Sends one message if that is possible without waiting.
    pub(crate) fn try_send(&mut self, message: &impl Serialize) {
        let mut line = Vec::new();
        if write_message(&mut line, message).is_ok() {
            self.write_some(&line).ok();
        }
    }

    /// Waits until everything sent has left the guest, or until the deadline.
    pub(crate) fn wait_sent(&self, deadline: Instant) {
        while Instant::now() < deadline && crate::sys::unsent_bytes(&self.socket) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the host has closed the connection, or until the deadline.
    pub(crate) fn wait_closed(&mut self, deadline: Instant) {
        while Instant::now() < deadline {
            self.input.clear();
            let waited =
                sync::wait([(self.socket.as_fd(), PollFlags::POLLIN | sync::HANG_UP)], Some(deadline));
            if waited.is_err() || !matches!(self.fill(READ), Ok(Filled::Some | Filled::Nothing)) {
                return;
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Connection) {
        let (host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        (host, Connection::new(guest.into()))
    }

    #[test]
    fn lines_come_one_by_one_and_a_clean_end_is_none() {
        let (mut host, mut guest) = pair();
        host.write_all(b"one\ntwo\n").unwrap();
        drop(host);
        assert_eq!(guest.read_line().unwrap().unwrap(), b"one");
        assert_eq!(guest.read_line().unwrap().unwrap(), b"two");
        assert!(guest.read_line().unwrap().is_none());
    }

    #[test]
    fn an_endless_line_is_refused_before_it_is_held() {
        let (mut host, mut guest) = pair();
        let flood = std::thread::spawn(move || while host.write_all(&[b'x'; 4096]).is_ok() {});
        assert!(matches!(guest.read_line(), Err(CodecError::LineTooLong)));
        assert!(guest.input.len() < MAX_LINE_LEN + READ);
        drop(guest);
        flood.join().unwrap();
    }

    #[test]
    fn a_line_that_does_not_end_in_time_is_given_up_but_silence_is_not() {
        let (mut host, mut guest) = pair();
        guest.timeout = Duration::from_millis(20);
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            host.write_all(b"one\nhalf").unwrap();
            host
        });
        assert_eq!(guest.read_line().unwrap().unwrap(), b"one");
        let host = late.join().unwrap();
        let timed_out =
            |error: &CodecError| matches!(error, CodecError::Io(e) if e.kind() == io::ErrorKind::TimedOut);
        assert!(guest.read_line().is_err_and(|error| timed_out(&error)));
        drop(host);
    }

    #[test]
    fn a_host_that_does_not_read_is_given_up() {
        let (host, mut guest) = pair();
        guest.timeout = Duration::from_millis(20);
        let long = "x".repeat(60_000);
        assert!((0..100).any(|_| guest.send(&long).is_err()));
        drop(host);
    }

    #[test]
    fn a_line_cut_short_is_an_error() {
        let (mut host, mut guest) = pair();
        host.write_all(b"{\"action\"").unwrap();
        drop(host);
        assert!(matches!(guest.read_line(), Err(CodecError::Truncated)));
    }
}
