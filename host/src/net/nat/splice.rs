//! Moves bytes between the guest's side of a connection (smoltcp's buffers) and the host's socket, as far as the receiving side has room.

use super::super::stream::no_signal;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use smoltcp::socket::tcp::Socket;
use std::os::fd::{AsRawFd, OwnedFd};

/// Whether bytes for the peer wait because the host's socket takes no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocked {
    Yes,
    No,
}

/// What is left at the host's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Empty,
    /// Perhaps: there was no room for more.
    HasMore,
    /// The peer has ended its side.
    Ended,
}

/// Writes what the guest has sent.
pub(super) fn to_peer(from: &mut Socket<'_>, to: &OwnedFd) -> nix::Result<Blocked> {
    while from.can_recv() {
        let sent = from.recv(|bytes| match send(to.as_raw_fd(), bytes, no_signal()) {
            Ok(length) => (length, Ok(())),
            Err(errno) => (0, Err(errno)),
        });
        match sent.unwrap_or(Ok(())) {
            Ok(()) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Blocked::Yes),
            Err(errno) => return Err(errno),
        }
    }
    Ok(Blocked::No)
}

/// Reads what the peer has sent.
pub(super) fn to_guest(to: &mut Socket<'_>, from: &OwnedFd) -> nix::Result<Source> {
    while to.can_send() {
        let mut room = 0;
        let got = to.send(|space| {
            room = space.len();
            match recv(from.as_raw_fd(), space, MsgFlags::empty()) {
                Ok(length) => (length, Ok(length)),
                Err(errno) => (0, Err(errno)),
            }
        });
        match got.unwrap_or(Err(Errno::EPIPE)) {
            Ok(0) => return Ok(Source::Ended),
            Ok(length) if length < room => return Ok(Source::Empty),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Source::Empty),
            Err(errno) => return Err(errno),
        }
    }
    Ok(Source::HasMore)
}
