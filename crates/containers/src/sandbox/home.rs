//! The pod's namespaces as the supervisor's home: two Unix sockets, the host's clock, and the end of PID 1.

use super::inside::{Doors, note};
use crate::sys::exit_now;
use magikvm_proto::wire::{ClockSet, GuestStats, Refusal};
use magikvm_supervisor::{Door, Home};
use nix::sys::socket::{SockFlag, accept4, getsockopt, sockopt::PeerCredentials};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Namespaces {
    doors: Doors,
    started: Instant,
}

impl Namespaces {
    pub(super) fn new(doors: Doors) -> Self {
        Self { doors, started: Instant::now() }
    }
}

impl Home for Namespaces {
    fn note(&self, text: &str) {
        note(text);
    }

    /// The pod has the host's clock.
    fn set_clock(&self, _realtime_ns: u64) -> Result<ClockSet, Refusal> {
        Ok(ClockSet { offset_ms: 0 })
    }

    fn listener(&self, door: Door) -> BorrowedFd<'_> {
        match door {
            Door::Agent => self.doors.agent.as_fd(),
            Door::Forward => self.doors.forward.as_fd(),
        }
    }

    fn accept(&self, door: Door) -> io::Result<Option<OwnedFd>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let raw = accept4(self.listener(door).as_raw_fd(), flags)?;
        let connection = crate::sys::adopt(raw);
        // Processes outside the pod have no number in it. The sockets' directory lets in the pod's owner only.
        let is_outside = getsockopt(&connection, PeerCredentials)?.pid() == 0;
        Ok(is_outside.then_some(connection))
    }

    fn stats(&self, helpers: &[i32]) -> GuestStats {
        let uptime_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        GuestStats { uptime_ms, ..crate::stats::stats(helpers) }
    }

    fn end(&self) -> ! {
        // The kernel ends every other process of the pod.
        exit_now(0)
    }
}
