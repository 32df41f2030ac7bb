//! Linux containers for the pod's supervisor: its trait [`Containers`] implemented with libcontainer. The same code makes containers inside a VM
//! and directly on a host.
//!
//! Owns: every fork of the supervisor's process, its only wait for children, control groups, bundles, device rules. Must not know: when and why a
//! container is made or ended, connections, how volumes and images are mounted.
//!
//! Order matters. [`LinuxContainers::start`] forks before the first thread of the process (see [`spawner`]); everything else may come later.

mod bundle;
mod cgroup;
mod containers;
mod devices;
mod env_file;
mod layer;
mod message;
mod mount_point;
mod mount_table;
mod mounts;
pub mod pod;
mod reaper;
mod rootfs;
pub mod sandbox;
mod spawner;
mod stats;
mod sys;
mod user;
mod volumes;

pub use cgroup::CgroupError;
pub use containers::{LinuxContainers, PodCgroup, StartError};
pub use rootfs::read_capped;
pub use spawner::SpawnerError;
pub use stats::stats;
pub use sys::exit_now;
