//! The magikvm host: runs a Kubernetes Pod on this machine inside one hardware microVM, with no daemon.
//!
//! [`pod::interface::PodRuntimeInterface`] is the library's surface: run_pod, stop_pod, pause_pod, resume_pod, delete_pod. Modules may use only those below them:
//! `cli`, `monitor`, `pod`, `runtime`, `manifest`, `vmm`, `net`, `volume`, `jail`, `process`, `agent`, `image`, `store`, `signals`, `os`.

pub mod agent;
pub mod cli;
pub mod image;
pub mod jail;
pub mod manifest;
pub mod monitor;
pub mod net;
pub mod os;
pub mod pod;
pub mod process;
pub mod runtime;
pub mod signals;
pub mod store;
pub mod vmm;
pub mod volume;

pub use pod::interface::PodRuntimeInterface;
