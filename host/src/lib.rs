//! The magikvm host: runs a Kubernetes Pod on this machine inside one hardware microVM, with no daemon.
//!
//! [`pod::interface::PodRuntimeInterface`] is the library's surface: run_pod, stop_pod, pause_pod, resume_pod, delete_pod. Modules may use only those below them:
//! `cli`, `monitor`, `pod`, `runtime`, `manifest`, `vmm`, `net`, `volume`, `jail`, `process`, `agent`, `image`, `store`, `signals`, `os`.

pub mod agent;
pub mod cli;
pub mod jail;
pub mod manifest;
pub mod monitor;
pub mod net;
pub mod pod;
pub mod process;
pub mod runtime;
pub mod store;
pub mod vmm;
pub mod volume;

pub use magikvm_images as image;
pub use magikvm_platform::{os, signals};
pub use pod::interface::PodRuntimeInterface;
