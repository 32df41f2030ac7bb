//! The protocol between a process that builds its jail and the process that started it: JSON lines over a socket pair, sometimes with a
//! descriptor.

use crate::os;
use crate::process::Layers;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// How long each side waits for the other. The work in between takes milliseconds.
const WAIT_SECS: i64 = 20;
/// Longest line. A specification has at most a hundred paths.
const MAX_LINE: usize = 4 << 20;

/// Messages from the process that builds its jail.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub(super) enum FromInside {
    /// It has made a user namespace, whose ids must be mapped.
    Ids,
    /// It continues as another process, because the first process of a process namespace is always a new one.
    Forked {
        pid: i32,
    },
    /// All isolation layers but the last one are in place.
    Walled {
        layers: Layers,
    },
    /// The last layer is in place too. The message carries the descriptor that reports violations.
    Filtered,
    Failed {
        step: String,
        path: Option<PathBuf>,
        errno: i32,
    },
}

/// Messages to the process that builds its jail.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "said", rename_all = "snake_case")]
pub(super) enum FromOutside {
    /// Its ids were mapped, or mapping failed.
    Mapped { failure: Option<String> },
    /// It may continue with these layers.
    Go,
}

#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    buffer: Vec<u8>,
    received: Vec<OwnedFd>,
}

impl Channel {
    /// Both ends. They are closed in executed programs.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self::over(ours)?, theirs))
    }

    pub(super) fn over(socket: OwnedFd) -> io::Result<Self> {
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(WAIT_SECS))?;
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(WAIT_SECS))?;
        Ok(Self { socket, buffer: Vec::new(), received: Vec::new() })
    }

    pub(super) fn number(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends a message, with a descriptor if there is one.
    pub(super) fn send<T: Serialize>(
        &self,
        message: &T,
        mut descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
        line.push(b'\n');
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            let sent = os::send_with(self.socket.as_fd(), rest, descriptor.take())?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// The next message of the other side; `None` when that side is gone.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(io::Error::other);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if self.fill()? == 0 {
                return Ok(None);
            }
        }
    }

    /// The descriptor that arrived with the last message.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.received.pop()
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0u8; 16 << 10];
        let read = match os::receive_with(self.socket.as_fd(), &mut chunk, &mut self.received) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            read => read?,
        };
        self.buffer.extend_from_slice(&chunk[..read]);
        Ok(read)
    }
}
