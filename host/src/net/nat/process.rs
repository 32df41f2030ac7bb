//! The process of the NAT. It reads its settings from standard input, and then carries packets between the filter and the host's sockets as
//! long as the filter exists.
#![allow(
    unsafe_code,
    reason = "taking descriptors by their numbers, and a setting of the C library's allocator"
)]

use super::super::stream::{FrameStream, TooLong};
use super::outside::{Host, NatConfig};
use super::poller::{Interest, Ready};
use super::{Nat, OUTPUT_FULL, Token, handover};
use crate::process::{SettingsError, serve};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// The hidden verb of the NAT.
pub const NAT_VERB: &str = "__nat";
/// Its descriptor of the stream to the filter.
pub const WIRE: i32 = 4;
/// Its descriptor of the socket that holds those of published UDP ports.
pub const PUBLISHED: i32 = 5;

/// Why the NAT cannot continue.
#[derive(Debug, thiserror::Error)]
enum NatError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("cannot use a descriptor")]
    Descriptor(#[source] Errno),
    #[error(transparent)]
    Frame(#[from] TooLong),
}

/// The main function of the NAT. Returns only on failure, with an exit code.
pub fn main() -> i32 {
    keep_large_buffers_apart();
    serve("magikvm's NAT", run)
}

fn run(config: NatConfig) -> Result<(), NatError> {
    // SAFETY: the descriptors were given to this process for this purpose, and nothing else in it uses their numbers.
    let take = |number| unsafe { OwnedFd::from_raw_fd(number) };
    let wire = FrameStream::new("the filter", take(WIRE)).map_err(NatError::Descriptor)?;
    let sockets =
        handover::receive(&take(PUBLISHED), config.published.len()).map_err(NatError::Descriptor)?;
    for socket in &sockets {
        fcntl(socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(NatError::Descriptor)?;
    }
    let published: Vec<(OwnedFd, u16)> = sockets.into_iter().zip(config.published.iter().copied()).collect();
    let nat = Nat::new(Host(config), published, Instant::now()).map_err(NatError::Descriptor)?;
    carry(nat, wire)
}

/// Buffers of connections get pages of their own, so that unused ones take no memory and freed ones go back to the host at once.
fn keep_large_buffers_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use nix::libc;
        const LARGE: libc::c_int = 48 << 10;
        // SAFETY: it takes numbers, and this process has one thread.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

/// Returns when the filter is gone.
fn carry(mut nat: Nat<Host>, mut wire: FrameStream) -> Result<(), NatError> {
    let token = Token::Wire.number();
    let mut watched = Interest::NONE;
    let mut ready: Vec<Ready> = Vec::new();
    loop {
        let is_full = wire.waiting() >= OUTPUT_FULL;
        let mut is_there = true;
        if is_full {
            wait_for(&wire).map_err(NatError::Descriptor)?;
            is_there &= wire.read();
            ready.clear();
        } else {
            let interest = Interest { read: true, write: wire.waiting() > 0 };
            nat.poller.set(&wire, token, watched, interest).map_err(NatError::Descriptor)?;
            watched = interest;
            let time = nat.due().map(|due| due.saturating_duration_since(Instant::now()));
            nat.poller.wait(&mut ready, time).map_err(NatError::Descriptor)?;
            if ready.iter().any(|one| one.token == token && one.read) {
                is_there &= wire.read();
            }
        }
        let now = Instant::now();
        wire.frames(|frame, out| nat.from_guest(frame, now, out))?;
        for &one in &ready {
            nat.host_is_ready(one, now, &mut wire.output);
        }
        nat.tick(now, &mut wire.output);
        is_there &= wire.write();
        if !is_there {
            return Ok(());
        }
        if nat.is_idle() {
            wire.rest();
        }
    }
}

/// Waits for the stream only: nothing more is read from the host's sockets until the guest has taken what there is. The guest's packets are
/// still taken, so that nobody waits for somebody who waits for him.
fn wait_for(wire: &FrameStream) -> nix::Result<()> {
    let mut fds = [PollFd::new(wire.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
