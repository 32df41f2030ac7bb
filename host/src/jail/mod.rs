//! The jail: walls around a process of a machine, made of what the kernel has. Whoever is in it, be it a guest that owns its VMM, sees the
//! files, devices and system calls that were given to it, and nothing else of the machine.
//!
//! A process is started in it in this way: a [`JailSpec`] says what is to be within; [`command`] is this program with a hidden verb, on which
//! standard input, output and error are set as for any other; [`spawn_jailed`] starts it. The process builds the walls
//! around itself and then executes another program, or goes on in this one ([`Inside`]). Which walls it had is said by [`Layers`].
//!
//! Owns: mounts, ids, namespaces, filters, limits. Must not know: machines and pods.

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
mod spec;
mod start;

#[cfg(target_os = "linux")]
pub use cgroup::{make_cgroup, place_cgroup};
#[cfg(target_os = "linux")]
pub use ids::{give, identity};
#[cfg(target_os = "linux")]
pub use inside::enter;
#[cfg(not(target_os = "linux"))]
pub use nowhere::{Handover, enter, give, identity, make_cgroup, place_cgroup};
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

/// A process that could not be put into its jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// What the two sides have to say to each other could not be said.
    #[error("cannot talk to the process that builds its jail")]
    Channel(#[source] std::io::Error),
    /// The process ended, or fell silent.
    #[error("the process ended while it built its jail")]
    Ended,
    /// A step that was refused.
    #[error("cannot build the jail: {step}{}", .path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Step {
        step: String,
        /// On which path, where it is about one.
        path: Option<PathBuf>,
        #[source]
        source: std::io::Error,
    },
    /// A wall that was required.
    #[error("--require-jail: there is no layer `{}` here: {}", .0.layer, .0.why)]
    Missing(Missing),
    /// The specification of a jail that nothing can be made of.
    #[error("the jail's specification is wrong: {0}")]
    Spec(String),
}

/// A process in its jail, right before what it is for.
#[derive(Debug)]
pub struct Jailed {
    /// Its number; it is a child of this process.
    pub pid: i32,
    pub layers: Layers,
    /// What will be known of its end.
    pub watch: Option<Watch>,
}

/// The command of a process that builds its jail: standard input, output and error are to be set on it, and nothing else. It has no environment.
pub fn command() -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env_clear();
    Ok(command)
}
