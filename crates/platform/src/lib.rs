//! The differences between the supported systems, and the basic services that every part of the host uses: atomic files, locks that show
//! which processes are alive, signals that end a process, and untrusted text made safe to show.
//!
//! Must not know: images, pods, VMs.

pub mod atomic;
pub mod lock;
pub mod os;
pub mod regular;
pub mod signals;
pub mod text;
pub mod thread;
