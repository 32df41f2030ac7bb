//! Networks of CNI (the Container Network Interface, versions 0.3.0 to 1.1.0): a pod of the class `pod-containers` joins one that the administrator
//! of the host has configured. Pure: reading a configuration ([`conf`]), what each plugin is told ([`chain`]), reading a result ([`result`]).
//! With effects: finding files and programs ([`find`]), connecting a pod ([`connect`]). What undoes a connection is data of the undo journal
//! ([`crate::store::cni`]).
//!
//! Must not know: manifests, sandboxes, and how a pod's network namespace is made.

#[cfg(target_os = "linux")]
pub mod chain;
pub mod conf;
#[cfg(target_os = "linux")]
pub mod connect;
pub mod find;
pub mod result;

pub use conf::NetworkName;
#[cfg(target_os = "linux")]
pub use connect::CniError;
pub use find::Places;
