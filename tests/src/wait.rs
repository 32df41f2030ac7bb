//! Waits for events in other processes by polling until a deadline, never by a sleep that is hopefully long enough.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(3);
/// Factor for all limits in the lab, where an emulated processor emulates another one.
const LAB_TIME_FACTOR: u32 = 4;

/// The factor for all limits in this process.
pub fn time_factor() -> u32 {
    if magikvm_lab::is_inside() { LAB_TIME_FACTOR } else { 1 }
}

/// Polls until there is an answer. Fails the test with `what` after `limit` times [`time_factor`].
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

/// Polls until the condition holds. Fails the test after 20 s times [`time_factor`].
#[track_caller]
pub fn until(what: &str, mut ask: impl FnMut() -> bool) {
    wait_for(what, Duration::from_secs(20), || ask().then_some(()));
}
