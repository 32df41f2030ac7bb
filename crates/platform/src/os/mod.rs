//! The differences between Linux and macOS behind the same names: one file for each system, with the same functions. Everything above is
//! the same on both.
//!
//! Owns: the calls that only one system has. Must not know: what they are used for.

mod interest;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg_attr(target_os = "linux", path = "poller_linux.rs")]
#[cfg_attr(target_os = "macos", path = "poller_macos.rs")]
mod poller;
mod rights;

pub use interest::Interest;
#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(target_os = "macos")]
pub use macos::*;
pub use poller::Poller;
pub use rights::{receive_with, send_with};
