//! Ctrl-C (and TERM, HUP) during work that can be given up: the first one asks for that, the second ends the program at once.

use crate::image::Cancel;
use crate::signals;
use crate::store::thread::{self, ThreadError};

/// Signals are turned into a request to give up, from now on to the end of the program.
#[derive(Debug)]
pub(super) struct Interrupt;

impl Interrupt {
    /// Call it before any thread is started: threads inherit what they do not listen to.
    pub(super) fn cancels(cancel: &Cancel) -> Result<Self, ThreadError> {
        let signals = signals::ending();
        if signals.thread_block().is_err() {
            // They then end the program as usual; what it leaves is swept by the next one.
            return Ok(Self);
        }
        let cancel = cancel.clone();
        thread::start("signals", move || {
            if signals.wait().is_ok() {
                cancel.cancel();
            }
            if signals.wait().is_ok() {
                std::process::exit(130);
            }
        })?;
        Ok(Self)
    }
}
