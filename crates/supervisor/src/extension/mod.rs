//! Extensions: code that runs in the supervising process of a pod beside the supervisor, the same in a VM and in namespaces.
//!
//! An extension learns the plan when it starts, then everything that the host is told, with the states of the containers, and at last that the
//! pod ends. It decides nothing: containers start, restart and stop without it, and its failure is an event of the pod
//! ([`magikvm_proto::wire::EventKind::ExtensionFailed`]) and never the pod's end.
//!
//! ```text
//!              start            event ...           stop
//!   waiting ----------> going ----------> going ----------> over
//!                 |               |                |
//!                 +---------------+----------------+--- error, panic, deadline ---> over, and an event of the pod
//! ```
//!
//! **Threads.** Each extension has a thread of its own and a queue of [`MAX_WAITING`] events. The supervisor's main thread only appends to
//! the queue. Where that is full, the events in it are dropped, and the extension hears how many it has missed. Another thread watches the
//! deadlines. A thread that misses one cannot be ended; it is not used any more, and its result is ignored.
//!
//! **Panics.** The panic hook of a program that runs a supervisor asks [`contains_panic`] and does not end the program if that says so. An
//! extension must start threads with [`Threads::start`]: the supervisor does not know others as the extension's. What is not contained is
//! what Rust does not unwind: overflow of a stack, exhausted memory, errors of unsafe code.
//!
//! Owns: the trait, the threads and deadlines of extensions. Must not know: what an extension does.

#![warn(missing_docs)]

mod contain;
mod host;
#[cfg(test)]
mod tests;

pub use contain::contains_panic;
pub use host::Threads;
pub(crate) use host::{Around, Extensions};

use crate::sync::Bell;
use magikvm_proto::budget::EXTENSION_STOP_MS;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::state::ContainerStatus;
use magikvm_proto::wire::EventKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// Events that wait for an extension.
pub const MAX_WAITING: usize = 64;
/// How long [`Extension::start`] may take. The pod does not wait for it.
pub const START_DEADLINE: Duration = Duration::from_secs(5);
/// How long one call of [`Extension::event`] may take.
pub const EVENT_DEADLINE: Duration = Duration::from_secs(2);
/// How long an extension may take for the events that still wait and for [`Extension::stop`]. The end of the pod waits for that.
pub const STOP_DEADLINE: Duration = Duration::from_millis(EXTENSION_STOP_MS);

/// Why an extension can't go on. It is shown to the pod's owner with its causes.
pub type ExtensionError = Box<dyn std::error::Error + Send + Sync>;

/// Code that runs beside the supervisor. The calls come one after the other, on a thread that serves only this extension. After an error, a
/// panic or a missed deadline there are no more calls, and the value is dropped.
pub trait Extension: Send {
    /// Its name in events: lower-case letters, digits and hyphens.
    fn name(&self) -> &'static str;

    /// Called once, before any other call. Containers may be running already. At most [`START_DEADLINE`].
    fn start(&mut self, pod: &PodView<'_>, threads: &Threads) -> Result<(), ExtensionError>;

    /// Something has happened. At most [`EVENT_DEADLINE`].
    fn event(&mut self, occurrence: &Occurrence, pod: &PodView<'_>) -> Result<(), ExtensionError>;

    /// The pod ends; called once, after all events. [`Ending`] has begun. At most [`STOP_DEADLINE`], with the events that waited.
    fn stop(&mut self) -> Result<(), ExtensionError>;
}

/// What an extension sees of the pod.
#[derive(Debug)]
pub struct PodView<'a> {
    /// The plan, which never changes.
    pub plan: &'a GuestPlan,
    /// The present states of all containers in the plan's order. They are never older than the event that comes with them.
    pub containers: &'a [ContainerStatus],
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occurrence {
    /// The host is told this.
    Event(EventKind),
    /// The extension was too slow, and this number of events was dropped. The states of the containers are up to date.
    Missed {
        /// Number of dropped events.
        events: u64,
    },
}

/// The end of an extension, for its threads.
#[derive(Debug, Clone)]
pub struct Ending(Arc<Bell>);

impl Ending {
    /// Whether the end has begun.
    pub fn has_begun(&self) -> bool {
        crate::sync::wait([(self.as_fd(), nix::poll::PollFlags::POLLIN)], Some(std::time::Instant::now()))
            .is_ok_and(|[ready]| ready.read)
    }
}

/// Becomes readable when the end begins, for `poll`. Must not be read.
impl AsFd for Ending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The page of the documentation, whose example is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../../docs/extensions.md")]
struct Page;
