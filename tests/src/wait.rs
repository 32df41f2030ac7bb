//! Waiting for something that happens in another process: by asking again until a deadline, never by hoping that a sleep is long enough.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(3);
/// How much longer everything may take in the lab, where a processor that is emulated emulates another one.
const LAB_TIME_FACTOR: u32 = 4;

/// What every limit is multiplied by in this process.
pub fn time_factor() -> u32 {
    if magikvm_lab::is_inside() { LAB_TIME_FACTOR } else { 1 }
}

/// Asks until there is an answer; fails the test, saying `what` was waited for, after `limit`, times [`time_factor`].
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let limit = limit * time_factor();
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", limit.as_secs());
        std::thread::sleep(PAUSE);
    }
}

/// Asks until it is so; fails the test after 20 s, times [`time_factor`].
#[track_caller]
pub fn until(what: &str, mut ask: impl FnMut() -> bool) {
    wait_for(what, Duration::from_secs(20), || ask().then_some(()));
}
