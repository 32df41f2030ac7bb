//! What can be done to a sandbox that runs, by whoever does not wait for its end.

use crate::store::sandbox::ProcessRef;
use std::fmt::Debug;

/// A handle on a running sandbox. It stays valid when the sandbox has ended, and then does nothing.
pub trait SandboxControl: Debug + Send + Sync {
    /// The sandbox's processes, the guest's own first.
    fn processes(&self) -> &[ProcessRef];
    /// Ends the sandbox at once.
    fn kill(&self);
    /// Makes the sandbox stand still. That it does is told to whoever waits for its end.
    fn pause(&self);
    /// Lets the sandbox go on, whoever stopped it.
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
        // The guest's processors stand before what serves them does.
        self.0.iter().for_each(ProcessRef::stop);
    }

    fn resume(&self) {
        self.0.iter().rev().for_each(ProcessRef::go_on);
    }
}
