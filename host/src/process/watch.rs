//! What a process did that its list of system calls does not have.

use std::sync::{Arc, Mutex, PoisonError};

/// A system call that was not allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub call: String,
}

/// Where a violation is written down, as soon as there is one.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<Mutex<Option<Violation>>>);

impl Watch {
    pub fn violation(&self) -> Option<Violation> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes one down, if it is the first.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "there are no filters"))]
    pub(crate) fn note(&self, violation: Violation) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(violation);
    }
}
