//! The wall clock, which the host sets. Only containers depend on it: every deadline of vminit uses the steady clock.
//! Must not know: connections, pods.

use magikvm_proto::budget::CLOCK_TOLERANCE_MS;
use magikvm_proto::wire::{ClockSet, Refusal, RefusalCode};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use std::time::Duration;

/// Sets the clock to the host's time (nanoseconds since 1970) if it is off by more than the tolerance. Returns how far it was off.
pub(crate) fn follow(host_ns: u64) -> Result<ClockSet, Refusal> {
    let failed = |what: &str, errno: nix::Error| {
        Refusal::new(RefusalCode::Internal, format!("the clock cannot be {what}: {}", errno.desc()))
    };
    let own = clock_gettime(ClockId::CLOCK_REALTIME).map_err(|errno| failed("read", errno))?;
    let own_ns = i128::from(own.tv_sec()) * 1_000_000_000 + i128::from(own.tv_nsec());
    let offset_ms = offset_ms(own_ns, host_ns);
    if is_off(offset_ms) {
        let time = TimeSpec::from_duration(Duration::from_nanos(host_ns));
        clock_settime(ClockId::CLOCK_REALTIME, time).map_err(|errno| failed("set", errno))?;
    }
    Ok(ClockSet { offset_ms })
}

/// How far the guest's clock is ahead of the host's.
fn offset_ms(own_ns: i128, host_ns: u64) -> i64 {
    let ms = (own_ns - i128::from(host_ns)) / 1_000_000;
    i64::try_from(ms).unwrap_or(if ms < 0 { i64::MIN } else { i64::MAX })
}

fn is_off(offset_ms: i64) -> bool {
    offset_ms.unsigned_abs() > CLOCK_TOLERANCE_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_times_have_a_difference() {
        assert_eq!(offset_ms(5_000_000_000, 35_012_000_000), -30_012);
        assert_eq!(offset_ms(35_012_999_999, 5_000_000_000), 30_012);
        assert_eq!(offset_ms(0, u64::MAX), -18_446_744_073_709);
        assert_eq!(offset_ms(i128::MAX, 0), i64::MAX);
        assert_eq!(offset_ms(i128::MIN / 2, u64::MAX), i64::MIN);
    }

    #[test]
    fn only_a_clock_that_is_off_is_set() {
        let off = [i64::MIN, -30_012, -51, -50, 0, 50, 51, i64::MAX].map(is_off);
        assert_eq!(off, [true, true, true, false, false, false, true, true]);
    }
}
