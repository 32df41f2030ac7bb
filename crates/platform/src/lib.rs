//! The differences between the supported systems, and basic services of the host: atomic files, locks that show which processes are alive,
//! signals that end a process, untrusted text made safe to show, and trees of files that are sent, which the guest's supervisor sends too
//! ([`tree`]).
//!
//! Must not know: images, pods, VMs.

pub mod atomic;
pub mod helper;
pub mod lock;
pub mod os;
pub mod regular;
pub mod signals;
pub mod text;
pub mod thread;
pub mod tree;
