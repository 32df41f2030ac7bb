//! Turns panics into messages with their location.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

thread_local! {
    /// The message of this thread's last panic, while panics are caught in it.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Suppresses messages of caught panics on standard error. To be called once, before any of them.
pub(crate) fn install() {
    let usual = take_hook();
    set_hook(Box::new(move |panic| {
        let caught = SAID.with_borrow_mut(|said| match said {
            Some(said) => {
                *said = panic.to_string();
                true
            }
            None => false,
        });
        if !caught {
            usual(panic);
        }
    }));
}

/// Runs a function and returns its panic as the error.
pub(crate) fn caught<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    let outer = SAID.replace(Some(String::new()));
    let outcome = catch_unwind(AssertUnwindSafe(what));
    let said = SAID.replace(outer).unwrap_or_default();
    outcome.map_err(|_| said)
}
