//! The jail: walls around a process of a machine, made of what the kernel has. Whoever is in it, be it a guest that owns its VMM, sees the
//! files, devices and system calls that were given to it, and nothing else of the machine.
//!
//! A process is started in it in this way: a [`JailSpec`] says what is to be within; `jail::command` is this program with a hidden verb, on which
//! standard input, output and error are set as for any other; `vmm::process::spawn_jailed` starts it. The process builds the walls
//! around itself and then executes another program, or goes on in this one ([`Inside`]). Which walls it had is said by [`Layers`].
//!
//! Owns: mounts, ids, namespaces, filters, limits. Must not know: machines and pods.

mod spec;

pub use spec::{
    Access, Cgroup, Descriptor, HostNetwork, Identity, Inside, JailMount, JailSpec, Layer, Layers, Limits,
    Missing, MountSource, PodUser, Procfs, Requirement, Submounts, SyscallFilter,
};

/// The hidden verb that makes a process build its jail.
pub const JAIL_VERB: &str = "__jail";
