//! The system call for which a process was killed.

use std::sync::{Arc, Mutex, PoisonError};

/// A system call that was not on the process's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub call: String,
}

/// Where a violation is recorded as soon as it happens.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<Option<Violation>>>);

impl Watch {
    pub fn violation(&self) -> Option<Violation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records a violation if it is the first.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there are no filters"))]
    pub(crate) fn note(&self, violation: Violation) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(violation);
    }
}
