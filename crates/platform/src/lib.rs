//! What the systems that magikvm runs on do differently, and what every part of the host needs of them: atomic files, locks that say who is
//! alive, signals that end a process, and text of untrusted parties made safe to show.
//!
//! Must not know: images, pods, VMs.

pub mod atomic;
pub mod lock;
pub mod os;
pub mod signals;
pub mod text;
