//! The harness of the end-to-end tests: a private state directory for each test, real processes with time limits, container images made on the
//! spot, a real registry, and the leak oracle. Knows the product only by its command line and its files.
#![allow(clippy::unwrap_used, reason = "a harness: a panic is a failed test, and says where")]

pub mod bench;
pub mod command;
pub mod escape;
pub mod figures;
pub mod floor;
pub mod guest;
pub mod host;
pub mod images;
pub mod inmate;
pub mod layout;
pub mod leaks;
pub mod manifest;
pub mod memory;
pub mod mounts;
pub mod net;
pub mod processes;
pub mod programs;
pub mod proxy;
pub mod registry;
pub mod rootless;
pub mod snapshots;
pub mod terminal;
pub mod tools;
pub mod user;
pub mod virtual_machine;
pub mod wait;

pub use command::{Cmd, Output, Running};
pub use host::Host;
pub use manifest::Pod;
pub use wait::wait_for;
