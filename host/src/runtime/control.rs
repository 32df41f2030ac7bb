//! Control of a running sandbox, for threads that do not wait for its end.

use crate::store::sandbox::ProcessRef;
use std::fmt::Debug;

/// A handle on a running sandbox. After the sandbox's end it stays valid and does nothing.
pub trait SandboxControl: Debug + Send + Sync {
    /// The sandbox's processes, the guest's one first.
    fn processes(&self) -> &[ProcessRef];
    /// Ends the sandbox at once.
    fn kill(&self);
    /// Pauses the sandbox. The thread that waits for its end learns when it is paused.
    fn pause(&self);
    /// Resumes the sandbox, whoever stopped it.
    fn resume(&self);
}

/// A sandbox that is stopped by stopping its processes.
#[derive(Debug)]
pub(super) struct BySignals(pub(super) Vec<ProcessRef>);

impl SandboxControl for BySignals {
    fn processes(&self) -> &[ProcessRef] {
        &self.0
    }

    fn kill(&self) {
        self.0.iter().for_each(ProcessRef::kill);
    }

    fn pause(&self) {
        // The guest's processors stop before the processes that serve them.
        self.0.iter().for_each(ProcessRef::stop);
    }

    fn resume(&self) {
        self.0.iter().rev().for_each(ProcessRef::go_on);
    }
}
