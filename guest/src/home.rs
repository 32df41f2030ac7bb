//! The VM as the supervisor's home: its console, clock, vsock and end.

use crate::{clock, console, power, sys};
use magikvm_containers::stats;
use magikvm_proto::path::{AGENT_PORT, FORWARD_PORT, HOST_CID};
use magikvm_proto::wire::{ClockSet, GuestStats, Refusal};
use magikvm_supervisor::{Door, Home};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub(crate) struct Vm {
    agent: OwnedFd,
    forward: OwnedFd,
}

impl Vm {
    /// Listens on the ports of both doors. From here on the kernel accepts the host's connections, even while vminit is still busy.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { agent: sys::vsock_listen(AGENT_PORT)?, forward: sys::vsock_listen_for_many(FORWARD_PORT)? })
    }
}

impl Home for Vm {
    fn note(&self, text: &str) {
        console::say(text);
    }

    fn set_clock(&self, realtime_ns: u64) -> Result<ClockSet, Refusal> {
        clock::follow(realtime_ns)
    }

    fn listener(&self, door: Door) -> BorrowedFd<'_> {
        match door {
            Door::Agent => self.agent.as_fd(),
            Door::Forward => self.forward.as_fd(),
        }
    }

    fn accept(&self, door: Door) -> io::Result<Option<OwnedFd>> {
        let (connection, peer) = sys::vsock_accept(&self.listener(door))?;
        // A container can reach this port through the loopback transport, but with another context id.
        Ok((peer == HOST_CID).then_some(connection))
    }

    fn stats(&self, helpers: &[i32]) -> GuestStats {
        stats(helpers)
    }

    fn end(&self) -> ! {
        power::end_vm()
    }
}
