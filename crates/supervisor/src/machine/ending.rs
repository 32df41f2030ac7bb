//! How a running container is ended. Pure. Owns: the order of its preStop hook, its stop signal and KILL, and their times. Must not know:
//! why it is ended, and what its processes are.
//!
//! ```text
//!                 preStop is over        it is its turn         the grace period is over
//!   PreStop ─────────────────────▶ Turn ───────────────▶ Asked ─────────────────────────▶ Killed
//! ```
//!
//! A container without the hook begins with `Turn`, and one whose turn it is goes on at once. When the grace period ends before the
//! container was asked, it is asked then and has [`LEAST_MS`] more, as in the kubelet.

/// What a container has at least from its stop signal to KILL when its hook, or others that had to end before it, have used up the grace
/// period, in milliseconds (the kubelet's `minimumGracePeriodInSeconds`).
pub(super) const LEAST_MS: u64 = 2_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    PreStop,
    Turn,
    Asked,
    Killed,
}

/// An action to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Run its preStop hook.
    RunHook,
    CancelHook,
    /// Send it the stop signal.
    Ask,
    Kill,
}

/// Whether a container is asked to end at once, or only after others have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    Later,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ending {
    step: Step,
    turn: Turn,
    kill_at: u64,
    /// Whether something has to be over before the stop signal, so that the container keeps [`LEAST_MS`] after it.
    waited: bool,
}

impl Ending {
    /// Begins to end a container whose program runs.
    pub(super) fn begin(has_hook: bool, turn: Turn, kill_at: u64, now: u64) -> (Self, Vec<Act>) {
        let waited = has_hook || turn == Turn::Later;
        let step = if has_hook { Step::PreStop } else { Step::Turn };
        let mut ending = Self { step, turn, kill_at, waited };
        let acts = if has_hook { vec![Act::RunHook] } else { ending.go_on(now) };
        (ending, acts)
    }

    pub(super) fn kill_at(&self) -> u64 {
        self.kill_at
    }

    pub(super) fn runs_hook(&self) -> bool {
        self.step == Step::PreStop
    }

    pub(super) fn is_killed(&self) -> bool {
        self.step == Step::Killed
    }

    pub(super) fn deadline(&self) -> Option<u64> {
        (self.step != Step::Killed).then_some(self.kill_at)
    }

    /// The grace period ends earlier; it never ends later.
    pub(super) fn shorten(&mut self, kill_at: u64) {
        self.kill_at = self.kill_at.min(kill_at);
    }

    pub(super) fn hook_over(&mut self, now: u64) -> Vec<Act> {
        if self.step != Step::PreStop {
            return Vec::new();
        }
        self.step = Step::Turn;
        self.go_on(now)
    }

    /// Those that had to end before it have ended.
    pub(super) fn its_turn(&mut self, now: u64) -> Vec<Act> {
        self.turn = Turn::Now;
        self.go_on(now)
    }

    pub(super) fn kill(&mut self) -> Vec<Act> {
        let hook = self.step == Step::PreStop;
        if self.step == Step::Killed {
            return Vec::new();
        }
        self.step = Step::Killed;
        hook.then_some(Act::CancelHook).into_iter().chain([Act::Kill]).collect()
    }

    pub(super) fn tick(&mut self, now: u64) -> Vec<Act> {
        if now < self.kill_at {
            return Vec::new();
        }
        match self.step {
            Step::PreStop => {
                self.step = Step::Turn;
                let mut acts = vec![Act::CancelHook];
                acts.extend(self.its_turn(now));
                acts
            }
            Step::Turn => self.its_turn(now),
            Step::Asked => self.kill(),
            Step::Killed => Vec::new(),
        }
    }

    fn go_on(&mut self, now: u64) -> Vec<Act> {
        if self.step != Step::Turn || self.turn == Turn::Later {
            return Vec::new();
        }
        self.step = Step::Asked;
        if self.waited {
            self.kill_at = self.kill_at.max(now.saturating_add(LEAST_MS));
        }
        vec![Act::Ask]
    }
}
