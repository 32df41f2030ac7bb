//! The monitor's end of the socket pair to the process that started it (the client).

use crate::pod::launch::{FromMonitor, ToMonitor};
use crate::store::text::ignore;
use crate::store::thread;
use magikvm_proto::codec::{read_message, write_message};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// A client that has gone is not an error, because it may be killed at any time.
#[derive(Debug, Clone)]
pub(super) struct Link {
    socket: Arc<UnixStream>,
    /// One message at a time.
    turn: Arc<Mutex<()>>,
}

impl Link {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket: Arc::new(socket), turn: Arc::default() }
    }

    /// Sends a message if the client still listens.
    pub(super) fn send(&self, message: &FromMonitor) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(message);
    }

    fn write(&self, message: &FromMonitor) {
        ignore(write_message(&mut &*self.socket, message), "the client has gone");
    }

    /// Sends a message once the client has room for it, or not at all after the deadline. Returns whether it was sent, or nobody is there to get it.
    /// Nobody else has to wait meanwhile.
    pub(super) fn send_by(&self, message: &FromMonitor, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
            ignore(
                poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)),
                "it is asked again",
            );
            let found = polled[0].revents().unwrap_or(PollFlags::empty());
            if found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                return true;
            }
            let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            // Another thread may have taken the room.
            if self.has_room() {
                self.write(message);
                return true;
            }
            drop(turn);
            if left.is_zero() {
                return false;
            }
        }
    }

    /// Sends a message that a later one replaces, if the client has room for it. The loop must not wait for a client that is stopped.
    pub(super) fn send_if_room(&self, message: &FromMonitor) {
        if self.has_room() {
            self.send(message);
        }
    }

    /// A Unix socket can be written to while three quarters of its buffer are free, which is far more than one message.
    fn has_room(&self) -> bool {
        let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Calls `on_cancel` if the client cancels. Returns when the client has gone.
    pub(super) fn watch(&self, on_cancel: impl Fn() + Send + 'static) -> std::io::Result<()> {
        let mut reader = BufReader::new(self.socket.try_clone()?);
        thread::start("link", move || {
            while let Ok(Some(ToMonitor::Cancel)) = read_message::<ToMonitor>(&mut reader) {
                on_cancel();
            }
        })?;
        Ok(())
    }

    /// Waits until the client has closed its end or died.
    pub(super) fn wait_for_close(&self) {
        let mut rest = [0u8; 64];
        while matches!((&*self.socket).read(&mut rest), Ok(1..)) {}
    }
}
