//! The supervising process of a pod, whatever isolates it: a VM, namespaces or a WebAssembly sandbox.
//!
//! It creates containers, restarts them, keeps their output, serves the host's requests (exec, attach, logs, events, forwarded ports,
//! stats) and ends the pod. The semantics of a Pod are implemented here once. Two traits stand for what makes a container and for what
//! surrounds the supervisor: [`Containers`] and [`Home`]. [`run`] is the whole life. Code that only watches the pod is an [`extension`].
//!
//! Owns: the pod's state machine, its output, events and connections. Must not know: how containers are isolated, where the supervisor runs,
//! which socket family its connections have.

mod agent;
mod create;
mod events;
pub mod extension;
pub mod files;
mod forward;
mod handler;
mod interface;
mod machine;
mod message;
mod output;
mod pod;
mod reactor;
mod service_directory;
pub mod sync;
pub mod sys;
pub mod text;

pub use interface::{
    Broken, Containers, CreateOrder, Created, Descendants, Door, Ended, ExecOrder, Failure, FailureKind,
    Gone, Home, Process, Subject,
};
pub use reactor::{block_signals, run};
pub use service_directory::ServiceDirectory;

use extension::Extension;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::site::Site;

/// The extensions that belong to every supervisor, as far as the plan wants them. Must be called when the pod's directories are made, and
/// before its containers are.
pub fn extensions(site: &Site, plan: &GuestPlan) -> Vec<Box<dyn Extension>> {
    ServiceDirectory::of(site, plan).map(|one| Box::new(one) as Box<dyn Extension>).into_iter().collect()
}

/// What reads the answers of probed servers and the requests of containers, for the fuzz targets.
#[doc(hidden)]
pub mod parsers {
    pub use crate::handler::{answer, h2};
    pub use crate::service_directory::reply;
}
