//! What is known of the life of the VM, for threads whose streams it explains.

use crate::agent::DeadlineExtension;
use crate::process::Motion;
use crate::vmm::qmp::DiskRoom;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Whether the VM stands still or has ended.
#[derive(Debug, Default)]
pub(super) struct Life {
    over: Mutex<bool>,
    changed: Condvar,
    /// How often it was stopped or went on: odd while it stands.
    turns: AtomicU64,
    reasons: Mutex<Reasons>,
}

/// Why it stands still.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Reasons {
    stopped: bool,
    disk_full: bool,
}

impl Life {
    /// Another VM of the pod begins. No thread of the one before is left.
    pub(super) fn begin(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.set(|reasons| *reasons = Reasons::default());
    }

    pub(super) fn set_motion(&self, motion: Motion) {
        self.set(|reasons| reasons.stopped = motion != Motion::Running);
    }

    pub(super) fn set_disk(&self, room: DiskRoom) {
        self.set(|reasons| reasons.disk_full = room == DiskRoom::None);
    }

    fn set(&self, change: impl FnOnce(&mut Reasons)) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut reasons);
        if self.stands() != (*reasons != Reasons::default()) {
            self.turns.fetch_add(1, Ordering::Release);
        }
    }

    pub(super) fn stands(&self) -> bool {
        self.turns.load(Ordering::Acquire) % 2 == 1
    }

    /// For a stream of the VM's: it may be late while it stands, and for as long again when it has stood.
    pub(super) fn deadline_extension(self: &Arc<Self>) -> DeadlineExtension {
        let life = Arc::clone(self);
        let mut seen = life.turns.load(Ordering::Acquire);
        DeadlineExtension::new(move || {
            let turns = life.turns.load(Ordering::Acquire);
            std::mem::replace(&mut seen, turns) != turns || turns % 2 == 1
        })
    }

    pub(super) fn end(&self) {
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(super) fn is_over(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    pub(super) fn ends_within(&self, wait: Duration) -> bool {
        let over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
        *self.changed.wait_timeout_while(over, wait, |over| !*over).unwrap_or_else(PoisonError::into_inner).0
    }
}
