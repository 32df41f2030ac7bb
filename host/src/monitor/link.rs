//! The monitor's end of the socket pair to the process that started it.

use crate::pod::launch::{FromMonitor, ToMonitor};
use crate::store::text::ignore;
use magikvm_proto::codec::{read_message, write_message};
use std::io::{BufReader, Read};
use std::os::unix::net::UnixStream;

/// The monitor's end. That the other side is gone is no error: it may be killed at any time.
#[derive(Debug)]
pub(super) struct Link {
    socket: UnixStream,
}

impl Link {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Says something, if anybody listens.
    pub(super) fn send(&self, message: &FromMonitor) {
        ignore(write_message(&mut &self.socket, message), "nobody listens any more");
    }

    /// Calls `on_cancel` if the other side asks for it. Ends when the other side is gone.
    pub(super) fn watch(&self, on_cancel: impl Fn() + Send + 'static) -> std::io::Result<()> {
        let mut reader = BufReader::new(self.socket.try_clone()?);
        std::thread::spawn(move || {
            while let Ok(Some(ToMonitor::Cancel)) = read_message::<ToMonitor>(&mut reader) {
                on_cancel();
            }
        });
        Ok(())
    }

    /// Waits until the other side has closed its end (or died).
    pub(super) fn wait_for_close(&self) {
        let mut rest = [0u8; 64];
        while matches!((&self.socket).read(&mut rest), Ok(1..)) {}
    }
}
