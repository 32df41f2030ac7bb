//! The home of the fake guest's supervisor: a process that listens on Unix sockets in its working directory.

use super::{Manner, console, forward, liar};
use crate::store::layout::{AGENT_SOCK, FORWARD_SOCK};
use magikvm_proto::wire::{ClockSet, GuestStats, Refusal};
use magikvm_supervisor::sync::lock;
use magikvm_supervisor::{Door, Home};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Mutex;

#[derive(Debug)]
pub(super) struct FakeHome {
    manner: Manner,
    agent: UnixListener,
    forward: UnixListener,
    /// By how much the clock is ahead, in milliseconds.
    clock_ms: Mutex<i64>,
}

impl FakeHome {
    pub(super) fn listen(manner: Manner) -> io::Result<Self> {
        let agent = UnixListener::bind(AGENT_SOCK)?;
        let forward = if forward::lies(manner) {
            forward::listen(manner)?;
            // The supervisor's listener, to which nobody connects.
            UnixListener::bind("unused.sock")?
        } else {
            UnixListener::bind(FORWARD_SOCK)?
        };
        forward.set_nonblocking(true)?;
        let clock_ms = if manner == Manner::LateClock { -30_012 } else { 0 };
        Ok(Self { manner, agent, forward, clock_ms: Mutex::new(clock_ms) })
    }
}

impl Home for FakeHome {
    fn note(&self, text: &str) {
        console(&format!("fake: {text}\n"));
    }

    /// The process shares the host's clock, so that it simulates one.
    fn set_clock(&self, _realtime_ns: u64) -> Result<ClockSet, Refusal> {
        let offset_ms = std::mem::take(&mut *lock(&self.clock_ms));
        let lie = self.manner == Manner::LyingClock;
        Ok(ClockSet { offset_ms: if lie { i64::MIN } else { offset_ms } })
    }

    fn listener(&self, door: Door) -> BorrowedFd<'_> {
        match door {
            Door::Agent => self.agent.as_fd(),
            Door::Forward => self.forward.as_fd(),
        }
    }

    fn accept(&self, door: Door) -> io::Result<Option<OwnedFd>> {
        let listener = match door {
            Door::Agent => &self.agent,
            Door::Forward => &self.forward,
        };
        let (mut stream, _) = listener.accept()?;
        if door == Door::Agent && self.manner.lies() {
            stream = liar::between(self.manner, stream)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Some(stream.into()))
    }

    fn stats(&self, _helpers: &[i32]) -> GuestStats {
        GuestStats {
            uptime_ms: 5000,
            memory_total_bytes: 128 << 20,
            memory_available_bytes: 100 << 20,
            init_pss_bytes: 4 << 20,
        }
    }

    fn end(&self) -> ! {
        if self.manner == Manner::Immortal {
            loop {
                std::thread::park();
            }
        }
        std::process::exit(0)
    }
}
