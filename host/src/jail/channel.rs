//! The protocol between a process that builds its jail and the process that started it: JSON lines over a socket pair, sometimes with a
//! descriptor.
#![allow(unsafe_code, reason = "taking a descriptor by its number is an unsafe call")]

use crate::process::Layers;
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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
    pub(super) fn send<T: Serialize>(&self, message: &T, descriptor: Option<RawFd>) -> io::Result<()> {
        let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
        line.push(b'\n');
        let mut rest = line.as_slice();
        let given: Vec<RawFd> = descriptor.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&given)];
        let mut control: &[ControlMessage<'_>] = if given.is_empty() { &[] } else { &rights };
        while !rest.is_empty() {
            let parts = [IoSlice::new(rest)];
            match sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    control = &[];
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
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
        let mut space = cmsg_space!([RawFd; 1]);
        let (read, descriptors) = loop {
            let mut parts = [IoSliceMut::new(&mut chunk)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Ok(message) => {
                    let rights = message.cmsgs()?.filter_map(|control| match control {
                        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
                        _ => None,
                    });
                    break (message.bytes, rights.flatten().collect::<Vec<RawFd>>());
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => break (0, Vec::new()),
                Err(errno) => return Err(errno.into()),
            }
        };
        for number in descriptors {
            // SAFETY: the kernel has just created this descriptor for this process; nothing else owns its number.
            self.received.push(unsafe { OwnedFd::from_raw_fd(number) });
        }
        self.buffer.extend_from_slice(&chunk[..read]);
        Ok(read)
    }
}
