//! Frequency of this processor's time stamp counter.
#![allow(unsafe_code, reason = "reading the counter is an intrinsic")]

/// Kilohertz, measured over some milliseconds against the monotonic clock; `None` on processors without the counter. Accurate to some ten
/// parts in a million, which is the error that a guest's clock may have until it is set.
#[cfg(target_arch = "x86_64")]
pub(super) fn khz() -> Option<u64> {
    use std::time::{Duration, Instant};
    const SPAN: Duration = Duration::from_millis(4);
    // Reads both clocks at one moment. Of several attempts, the least interrupted one counts.
    let sample = || {
        (0..5)
            .map(|_| {
                let before = Instant::now();
                // SAFETY: every x86-64 processor has the instruction; it reads a register.
                let ticks = unsafe { core::arch::x86_64::_rdtsc() };
                (before.elapsed(), before, ticks)
            })
            .min()
    };
    let (_, begun, first) = sample()?;
    while begun.elapsed() < SPAN {
        std::hint::spin_loop();
    }
    let (_, ended, last) = sample()?;
    let nanos = u64::try_from((ended - begun).as_nanos()).ok()?;
    last.checked_sub(first)?.checked_mul(1_000_000)?.checked_div(nanos)
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn khz() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::khz;

    #[test]
    fn two_measurements_agree() {
        let (one, two) = (khz().unwrap(), khz().unwrap());
        assert!(one > 100_000 && one.abs_diff(two) < one / 100, "{one} {two}");
    }
}
