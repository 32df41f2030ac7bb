//! What Linux and macOS do in different ways, under the same names: one file for each system, with the same functions. All above is the same
//! on both.
//!
//! Owns: the calls that only one of them has. Must not know: what they are for.

mod interest;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg_attr(target_os = "linux", path = "poller_linux.rs")]
#[cfg_attr(target_os = "macos", path = "poller_macos.rs")]
mod poller;

pub use interest::Interest;
#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(target_os = "macos")]
pub use macos::*;
pub use poller::Poller;
