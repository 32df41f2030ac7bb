//! Panics that end an extension and nothing else. Owns: which threads belong to extensions.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Panics {
    /// A panic of this thread ends the program.
    EndTheProgram,
    /// It is caught.
    Caught,
    /// One is being caught.
    Unwinding,
}

thread_local! {
    static PANICS: Cell<Panics> = const { Cell::new(Panics::EndTheProgram) };
}

/// Whether the panic that is being reported belongs to an extension, so that the program goes on. For the panic hook of a program that runs a
/// supervisor, after it has reported the panic; nothing else may call it.
///
/// It does not return for a panic while the thread unwinds already (a destructor has panicked), which would abort the program. The thread
/// stays, and its extension misses its deadline.
pub fn contains_panic() -> bool {
    match PANICS.get() {
        Panics::EndTheProgram => false,
        Panics::Caught => {
            PANICS.set(Panics::Unwinding);
            true
        }
        Panics::Unwinding => loop {
            std::thread::park();
        },
    }
}

/// Does the work of an extension's thread. The error is the message of its panic.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    PANICS.set(Panics::Caught);
    // What the work may have left half changed is the extension's own, and nobody uses that any more.
    let done = catch_unwind(AssertUnwindSafe(work));
    PANICS.set(Panics::EndTheProgram);
    done.map_err(|payload| {
        let message = message(&*payload);
        // Dropping what somebody has panicked with may panic, too.
        std::mem::forget(payload);
        message
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message").to_owned()
}
