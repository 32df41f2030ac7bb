//! Cancellation, on request or at a deadline. Long work checks it; must not know the work.

use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Why work was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// On request.
    #[error("it was cancelled")]
    Cancelled,
    /// At the deadline.
    #[error("it took longer than {seconds} s")]
    TimedOut { seconds: u64 },
}

/// A cancellation that may be requested at any time from any thread, and a deadline. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    deadline: Option<(Instant, Duration)>,
}

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    /// The same cancellation with a deadline from now on.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let deadline = Instant::now().checked_add(timeout).map(|end| (end, timeout));
        Self { token: self.token.clone(), deadline }
    }

    /// A part of the work that can be cancelled alone, and is cancelled with the whole.
    #[must_use]
    pub(super) fn part(&self) -> Self {
        Self { token: self.token.child_token(), deadline: self.deadline }
    }

    /// Requests the cancellation.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// An error when the work is cancelled.
    pub fn check(&self) -> Result<(), Stopped> {
        match self.deadline {
            _ if self.token.is_cancelled() => Err(Stopped::Cancelled),
            Some((end, timeout)) if Instant::now() >= end => {
                Err(Stopped::TimedOut { seconds: timeout.as_secs() })
            }
            _ => Ok(()),
        }
    }

    /// Waits until the work is cancelled.
    pub(super) async fn stopped(&self) -> Stopped {
        match self.deadline {
            None => {
                self.token.cancelled().await;
                Stopped::Cancelled
            }
            Some((end, timeout)) => tokio::select! {
                () = self.token.cancelled() => Stopped::Cancelled,
                () = tokio::time::sleep_until(end.into()) => Stopped::TimedOut { seconds: timeout.as_secs() },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_hears_of_it_and_a_deadline_is_one() {
        let cancel = Cancel::new();
        let timed = cancel.with_timeout(Duration::from_secs(3600));
        assert_eq!((cancel.check(), timed.check()), (Ok(()), Ok(())));
        assert_eq!(cancel.with_timeout(Duration::ZERO).check(), Err(Stopped::TimedOut { seconds: 0 }));
        cancel.cancel();
        assert_eq!(timed.check(), Err(Stopped::Cancelled));
    }
}
