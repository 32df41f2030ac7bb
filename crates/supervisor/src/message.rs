//! What the supervisor's threads tell its main thread.

use crate::machine::Input;
use magikvm_proto::wire::ExitStatus;

/// What threads tell the supervisor.
#[derive(Debug)]
pub(crate) enum Message {
    Input(Input),
    /// The process 1 of a container was reaped.
    Reaped {
        /// Its place in the plan.
        index: usize,
        run: u32,
        exit: ExitStatus,
    },
    /// A process that nothing works without is gone.
    HelperDied(&'static str),
    /// Somebody sent PID 1 a signal that means "end".
    Signalled,
}
