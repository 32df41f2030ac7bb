//! The magikvm host: runs a Kubernetes Pod on this machine inside one hardware microVM, with no daemon.
//!
//! Modules may use only those below them: `cli`, `monitor`, `pod`, `manifest`, `runtime`, `vmm`, `agent`, `image`, `store`.

pub mod agent;
pub mod image;
pub mod manifest;
pub mod runtime;
pub mod store;
pub mod vmm;
