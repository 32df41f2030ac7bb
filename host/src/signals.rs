//! Signals that would end this process, for those who block them and wait for them instead. Knows no work that they end.

use nix::sys::signal::{SigSet, Signal};

/// INT, TERM and HUP, but for those that were to be ignored (`nohup`, `trap '' INT`): a signal that is blocked would be waited for all
/// the same.
pub fn ending() -> SigSet {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .filter(|signal| ignored >> (*signal as i32 - 1) & 1 == 0)
        .collect()
}

/// The set of ignored signals (proc_pid_status(5): bit 0 is signal 1). None is said to be ignored when it is not known.
fn ignored(status: &str) -> u64 {
    let field = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    field.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(ignored("Name:\tx\nSigBlk:\t0000000000004000\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!((ignored(""), ignored("SigIgn:\tx")), (0, 0));
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        // Rust's own start makes SIGPIPE one of them.
        assert_eq!(ignored(&own) >> (Signal::SIGPIPE as i32 - 1) & 1, 1);
    }
}
