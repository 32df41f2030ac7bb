//! The jail: isolation layers around a process of a VM, built with the kernel's means. Whoever controls the process, even a guest that
//! took over its VMM, sees the files, devices and system calls that were given to it and nothing else of the host.
//!
//! To start a process in a jail, describe its contents in a [`JailSpec`], take the [`command`] (this program with a hidden verb), set its
//! standard input, output and error as for any other, and start it with [`spawn_jailed`]. The process builds the layers around itself and
//! then executes another program or continues in this one ([`Inside`]). [`Layers`] reports which layers it got.
//!
//! Owns: mounts, ids, namespaces, filters, limits. Must not know: VMs and pods.

#[cfg(target_os = "linux")]
mod caps;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod channel;
#[cfg(target_os = "linux")]
mod failed;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
mod ids;
#[cfg(target_os = "linux")]
mod inside;
#[cfg(target_os = "linux")]
mod landlock;
#[cfg(not(target_os = "linux"))]
mod nowhere;
#[cfg(target_os = "linux")]
mod outside;
#[cfg(target_os = "linux")]
pub mod scope;
mod spec;
mod start;

#[cfg(target_os = "linux")]
pub use cgroup::{
    PARENT as CGROUP_PARENT, all_cgroups, cannot_make, cgroup_mounts, controllers, make_cgroup, place_cgroup,
    stir,
};
#[cfg(target_os = "linux")]
pub use ids::{SubordinateIds, give, identity, map_caller, map_range};
#[cfg(target_os = "linux")]
pub use inside::enter;
#[cfg(not(target_os = "linux"))]
pub use nowhere::{Handover, all_cgroups, enter, give, identity, make_cgroup, place_cgroup};
#[cfg(target_os = "linux")]
pub use outside::Handover;
pub use spec::{
    Access, Cgroup, Descriptor, HostNetwork, Identity, Inside, JailMount, JailSpec, Limits, MountSource,
    PodUser, Procfs, Requirement, Submounts, SyscallFilter,
};
pub use start::{StartError, spawn_jailed};

use crate::process::{Layers, Missing, Watch};
use std::path::PathBuf;
use std::process::Command;

/// The hidden verb that makes a process build its jail.
pub const JAIL_VERB: &str = "__jail";

/// Why a process could not be put into its jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The two sides could not communicate.
    #[error("cannot talk to the process that builds its jail")]
    Channel(#[source] std::io::Error),
    /// The process ended or fell silent.
    #[error("the process ended while it built its jail")]
    Ended,
    /// A step that failed.
    #[error("cannot build the jail: {step}{}", .path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Step {
        step: String,
        /// The path of the step, if it has one.
        path: Option<PathBuf>,
        #[source]
        source: std::io::Error,
    },
    /// A required layer is not available.
    #[error("--require-jail: the host does not provide the layer `{}`: {}", .0.layer, .0.why)]
    Missing(Missing),
    /// The specification cannot be carried out.
    #[error("the jail's specification is wrong: {0}")]
    Spec(String),
}

/// A process in its jail, right before its program begins.
#[derive(Debug)]
pub struct Jailed {
    /// Its process id; it is a child of this process.
    pub pid: i32,
    pub layers: Layers,
    /// Reports a violation when it ends.
    pub watch: Option<Watch>,
}

/// The command of a process that builds its jail: the caller sets only standard input, output and error. Its environment is empty.
pub fn command() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env_clear();
    Ok(command)
}
