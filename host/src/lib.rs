//! The magikvm host: runs a Kubernetes Pod on this host inside one hardware microVM, without a daemon.
//!
//! [`pod::interface::PodRuntimeInterface`] is the library's surface: run_pod, stop_pod, pause_pod, resume_pod, delete_pod. A module may
//! use only the modules to its right:
//! `cli`, `monitor`, `pod`, `runtime`, `manifest`, `vmm`, `nested`, `net`, `volume`, `jail`, `process`, `agent`, `image`, `store`, `signals`, `os`.
//!
//! Without the feature `vmm` only the manifest parser, the frame filter and the NAT remain.

pub mod agent;
#[cfg(feature = "vmm")]
pub mod cli;
#[cfg(feature = "vmm")]
pub mod jail;
pub mod manifest;
#[cfg(feature = "vmm")]
pub mod monitor;
pub mod nested;
pub mod net;
#[cfg(feature = "vmm")]
pub mod pod;
#[cfg(feature = "vmm")]
pub mod process;
#[cfg(feature = "vmm")]
pub mod runtime;
pub mod store;
#[cfg(feature = "vmm")]
pub mod vmm;
pub mod volume;

pub use magikvm_images as image;
pub use magikvm_platform::{os, signals};
#[cfg(feature = "vmm")]
pub use pod::interface::PodRuntimeInterface;

/// Becomes a process of a pod, if this program was started as one, and returns its exit code at its end. A program that uses the library calls this
/// first in `main`, before it starts a thread: the monitor and other processes of its pods are copies of the same program with a hidden verb as their
/// first argument (docs/processes.md).
#[cfg(feature = "vmm")]
pub fn become_pod_process() -> Option<std::process::ExitCode> {
    cli::become_hidden_process()
}
