//! Resource use of the supervisor and of the system that it sees, from /proc. Must not know: containers, connections.

use magikvm_proto::wire::GuestStats;
use std::fs::File;

/// Most bytes of a file of /proc that are read.
const MAX_FILE: u64 = 64 << 10;

/// The supervisor consists of this process and `helpers`.
pub fn stats(helpers: &[i32]) -> GuestStats {
    let memory = text("/proc/meminfo");
    let pss = |pid: &str| kib(&text(&format!("/proc/{pid}/smaps_rollup")), "Pss:");
    GuestStats {
        uptime_ms: uptime_ms(&text("/proc/uptime")),
        memory_total_bytes: kib(&memory, "MemTotal:"),
        memory_available_bytes: kib(&memory, "MemAvailable:"),
        init_pss_bytes: pss("self") + helpers.iter().map(|pid| pss(&pid.to_string())).sum::<u64>(),
    }
}

fn text(path: &str) -> String {
    let bytes =
        File::open(path).and_then(|file| crate::rootfs::read_capped(file, MAX_FILE)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A value in bytes that a file of /proc gives in KiB; 0 if it is missing.
fn kib(text: &str, key: &str) -> u64 {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    value.unwrap_or(0).saturating_mul(1024)
}

/// `/proc/uptime` (seconds with two decimals) in milliseconds.
fn uptime_ms(text: &str) -> u64 {
    let Some((seconds, hundredths)) = text.split_whitespace().next().and_then(|first| first.split_once('.'))
    else {
        return 0;
    };
    let parse = |text: &str| text.parse::<u64>().unwrap_or(0);
    parse(seconds).saturating_mul(1000).saturating_add(parse(hundredths).saturating_mul(10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_in_their_units() {
        assert_eq!(kib("MemTotal:       1234 kB\nMemFree: 1 kB\n", "MemTotal:"), 1234 * 1024);
        assert_eq!(kib("Pss:                 100 kB\nPss_Dirty: 7 kB\n", "Pss:"), 100 * 1024);
        assert_eq!(kib("", "Pss:"), 0);
        assert_eq!(uptime_ms("12.34 5.00\n"), 12_340);
        assert_eq!(uptime_ms("junk"), 0);
    }
}
