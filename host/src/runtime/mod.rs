//! Runtime classes: what differs between them is how a sandbox is prepared and started, and nothing else.

pub mod oci;
pub mod seccomp;
