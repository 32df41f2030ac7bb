//! Waiting for something that happens in another process: by asking again until a deadline, never by hoping that a sleep is long enough.

use std::time::{Duration, Instant};

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(3);

/// Asks until there is an answer; fails the test, saying `what` was waited for, after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain: {what}", limit.as_secs());
        std::thread::sleep(PAUSE);
    }
}

/// Asks until it is so; fails the test after 20 s.
#[track_caller]
pub fn until(what: &str, mut ask: impl FnMut() -> bool) {
    wait_for(what, Duration::from_secs(20), || ask().then_some(()));
}
