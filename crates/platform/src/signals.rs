//! Signals that would end this process, for callers that block them and wait for them. Must not know what work they end.

use crate::os;
use nix::sys::signal::{SigSet, Signal};

/// INT, TERM and HUP, except those that the process inherited as ignored (`nohup`, `trap '' INT`): a blocked signal would be received even
/// if it is ignored.
pub fn ending() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .filter(|signal| !os::is_ignored(*signal))
        .collect()
}
