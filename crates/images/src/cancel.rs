//! Giving up: because somebody asked, or because the time is over. Long work looks here; knows nothing of the work.

use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Why work was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// Somebody asked for it.
    #[error("it was cancelled")]
    Cancelled,
    /// It took too long.
    #[error("it took longer than {seconds} s")]
    TimedOut { seconds: u64 },
}

/// A request to give up that may come at any time, from any thread, and a deadline. Clones are one and the same.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    token: CancellationToken,
    deadline: Option<(Instant, Duration)>,
}

impl Cancel {
    pub fn new() -> Self {
        Self::default()
    }

    /// The same request to give up, and a deadline from now on.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let deadline = Instant::now().checked_add(timeout).map(|end| (end, timeout));
        Self { token: self.token.clone(), deadline }
    }

    /// A part of the work that can be given up alone, and is given up with the whole.
    #[must_use]
    pub(super) fn part(&self) -> Self {
        Self { token: self.token.child_token(), deadline: self.deadline }
    }

    /// Asks to give up.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// An error when it is time to give up.
    pub fn check(&self) -> Result<(), Stopped> {
        match self.deadline {
            _ if self.token.is_cancelled() => Err(Stopped::Cancelled),
            Some((end, timeout)) if Instant::now() >= end => {
                Err(Stopped::TimedOut { seconds: timeout.as_secs() })
            }
            _ => Ok(()),
        }
    }

    /// Waits until it is time to give up.
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
