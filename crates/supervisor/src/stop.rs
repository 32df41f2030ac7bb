//! The order and the times of a stop: TERM to the last container first, each with its share of what is left of the
//! grace period; KILL for all that remain at its end. Pure.

use crate::machine::Effect;
use magikvm_proto::budget::{GUEST_LOG_DRAIN_MS, GUEST_TEARDOWN_MS};

/// From KILL to the end of waiting for it, in milliseconds: a process the kernel can't kill must not keep the VM.
const KILL_WAIT_MS: u64 = 1_000;

const _: () = assert!(KILL_WAIT_MS + GUEST_LOG_DRAIN_MS < GUEST_TEARDOWN_MS);

/// A stop in progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stop {
    kill_at: u64,
    killed: bool,
    /// The container that was sent TERM last, and until when it alone is waited for.
    current: Option<(usize, u64)>,
}

impl Stop {
    /// Begins at `now`.
    pub(crate) fn new(grace_ms: u64, now: u64) -> Self {
        Self { kill_at: now.saturating_add(grace_ms), killed: false, current: None }
    }

    /// When [`Stop::advance`] is due, whatever else happens.
    pub(crate) fn deadline(&self) -> u64 {
        if self.killed {
            return self.kill_at.saturating_add(KILL_WAIT_MS);
        }
        self.current.map_or(self.kill_at, |(_, until)| until.min(self.kill_at))
    }

    /// Goes on; `alive` are the places of the containers that have not ended, in order. Whether it is over.
    pub(crate) fn advance(&mut self, alive: &[usize], now: u64, effects: &mut Vec<Effect>) -> bool {
        if alive.is_empty() {
            return true;
        }
        if now >= self.kill_at {
            if self.killed {
                return now >= self.kill_at.saturating_add(KILL_WAIT_MS);
            }
            self.killed = true;
            effects.extend(alive.iter().rev().map(|&index| Effect::Kill { index }));
            // Lateness must not shorten the wait.
            self.kill_at = now;
            return false;
        }
        match self.current {
            Some((index, until)) if alive.contains(&index) && now < until => {}
            _ => self.terminate_next(alive, now, effects),
        }
        false
    }

    fn terminate_next(&mut self, alive: &[usize], now: u64, effects: &mut Vec<Effect>) {
        let before = self.current.map_or(usize::MAX, |(index, _)| index);
        let left: Vec<usize> = alive.iter().copied().filter(|&index| index < before).collect();
        let Some(&index) = left.last() else {
            // All were told; the rest of the time is everybody's.
            self.current = Some((0, self.kill_at));
            return;
        };
        let share = (self.kill_at - now) / u64::try_from(left.len()).unwrap_or(1).max(1);
        self.current = Some((index, now + share));
        effects.push(Effect::Terminate { index });
    }
}
