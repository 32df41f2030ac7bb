//! What the supervisor's threads tell its main thread.

use crate::machine::Input;
use magikvm_proto::wire::ExitStatus;

/// A message to the supervisor's main thread.
#[derive(Debug)]
pub(crate) enum Message {
    Input(Input),
    /// The PID 1 of a container was reaped.
    Reaped {
        /// Its index in the plan.
        index: usize,
        run: u32,
        exit: ExitStatus,
    },
    /// A process ended that the supervisor can't work without.
    HelperDied {
        /// The subject of a sentence.
        what: &'static str,
        exit: ExitStatus,
    },
    /// The supervisor received a signal that asks it to end.
    Signalled,
}
