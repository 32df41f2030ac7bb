//! One probe of a container. Pure. Owns: when it is run next, and what its results in a row mean. Must not know: how it is carried out, and
//! what follows from it.
//!
//! ```text
//!           begin             due, and not running            answered
//!   Idle ──────────▶ Waiting ──────────────────────▶ Running ──────────▶ Waiting
//!     ▲                 │                               │
//!     └─────────────────┴──────────── stop ─────────────┘
//! ```
//!
//! The first run follows the initial delay at once. The next one begins a period after the beginning of the last one, or right after
//! its end if it took longer: a probe never runs twice at a time. Results count in a row, as in the kubelet; a run that could not be
//! carried out counts as nothing.

use super::Handled;
use magikvm_proto::lifecycle::{ProbeKind, ProbePlan};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Waiting { due: u64 },
    Running { begun: u64 },
}

/// What an answer has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    /// It succeeded as often in a row as its threshold says.
    Succeeded,
    /// It failed as often in a row as its threshold says.
    Failed,
}

#[derive(Debug, Clone)]
pub(super) struct Probe {
    kind: ProbeKind,
    plan: ProbePlan,
    state: State,
    /// The last result, and how often it came in a row.
    row: Option<(bool, u32)>,
}

impl Probe {
    pub(super) fn new(kind: ProbeKind, plan: ProbePlan) -> Self {
        Self { kind, plan, state: State::Idle, row: None }
    }

    pub(super) fn kind(&self) -> ProbeKind {
        self.kind
    }

    pub(super) fn plan(&self) -> &ProbePlan {
        &self.plan
    }

    /// Begins to probe a container that runs since `since`.
    pub(super) fn begin(&mut self, since: u64, now: u64) {
        self.row = None;
        let after = since.saturating_add(self.plan.initial_delay_secs.saturating_mul(1000));
        self.state = State::Waiting { due: after.max(now) };
    }

    /// Stops to probe; returns whether it is being run and has to be cancelled.
    pub(super) fn stop(&mut self) -> bool {
        let running = matches!(self.state, State::Running { .. });
        self.state = State::Idle;
        running
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        match self.state {
            State::Waiting { due } => Some(due),
            State::Idle | State::Running { .. } => None,
        }
    }

    /// Whether it is to be run now.
    pub(super) fn tick(&mut self, now: u64) -> bool {
        let due = matches!(self.state, State::Waiting { due } if due <= now);
        if due {
            self.state = State::Running { begun: now };
        }
        due
    }

    /// Counts the answer of the run that is under way.
    pub(super) fn answered(&mut self, answer: &Handled, now: u64) -> Change {
        let State::Running { begun } = self.state else { return Change::Nothing };
        let next = begun.saturating_add(self.plan.period_secs.saturating_mul(1000));
        self.state = State::Waiting { due: next.max(now) };
        let success = match answer {
            Handled::Success => true,
            Handled::Failure(_) => false,
            Handled::Error(_) => return Change::Nothing,
        };
        let count = match self.row {
            Some((same, count)) if same == success => count.saturating_add(1),
            _ => 1,
        };
        self.row = Some((success, count));
        match success {
            true if count >= self.plan.success_threshold => Change::Succeeded,
            false if count >= self.plan.failure_threshold => Change::Failed,
            _ => Change::Nothing,
        }
    }

    /// Whether the failure that was counted last is worth an event: the first ones, and then fewer and fewer.
    pub(super) fn is_news(&self) -> bool {
        match self.row {
            Some((false, count)) => count <= self.plan.failure_threshold || count.is_power_of_two(),
            _ => true,
        }
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
