//! Timeouts, and the pauses before another attempt. Pure except for the jitter.

use reqwest::header::{HeaderMap, RETRY_AFTER};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

/// Timeouts and attempts of one repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing {
    /// Attempts at the last endpoint without one new byte.
    pub(super) attempts: u32,
    /// The same at a mirror, after which other endpoints follow.
    pub(super) mirror_attempts: u32,
    /// Pause before the second attempt; it doubles from there.
    pub(super) first_wait: Duration,
    /// Longest pause that a registry may ask for.
    pub(super) longest_wait: Duration,
    /// For name lookup, connection and TLS together.
    pub(super) connect: Duration,
    pub(super) stall: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            attempts: 5,
            mirror_attempts: 2,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
        }
    }
}

impl Timing {
    /// The pause after this many failures in a row.
    pub(super) fn wait(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << failures.saturating_sub(1).min(16));
        // Clients that failed at the same moment should not retry at the same moment: 75 % to 125 %.
        let jitter = u32::try_from(RandomState::new().hash_one(failures) % 51).unwrap_or(0) + 75;
        let wait = doubled.min(self.longest_wait).saturating_mul(jitter) / 100;
        wait.max(retry_after.unwrap_or_default()).min(self.longest_wait)
    }
}

/// The pause that `Retry-After` asks for: seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(SystemTime::from(moment).duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_end_somewhere() {
        let timing = Timing::default();
        for (failures, around) in [(1, 500), (2, 1000), (3, 2000), (4, 4000)] {
            let wait = timing.wait(failures, None).as_millis();
            assert!((around * 3 / 4..=around * 5 / 4).contains(&wait), "{failures}: {wait}");
        }
        assert!(timing.wait(u32::MAX, None) <= timing.longest_wait);
        assert_eq!(timing.wait(1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(timing.wait(1, Some(Duration::MAX)), timing.longest_wait);
    }

    #[test]
    fn retry_after_has_two_forms() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("12"), Some(Duration::from_secs(12)));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert!(of("Fri, 01 Jan 2100 00:00:00 GMT").unwrap() > Duration::from_secs(3600));
        assert_eq!((of("soon"), of("-1"), of("99999999999999999999999")), (None, None, None));
    }
}
