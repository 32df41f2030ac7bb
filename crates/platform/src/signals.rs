//! Signals that would end this process, for those who block them and wait for them instead. Knows no work that they end.

use crate::os;
use nix::sys::signal::{SigSet, Signal};

/// INT, TERM and HUP, but for those that were to be ignored (`nohup`, `trap '' INT`): a signal that is blocked would be waited for all
/// the same.
pub fn ending() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .filter(|signal| !os::is_ignored(*signal))
        .collect()
}
