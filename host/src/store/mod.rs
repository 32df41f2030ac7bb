//! State on disk: where everything is, who may write it, and how it is undone.

#[cfg(target_os = "linux")]
pub mod cni;
pub mod layout;
pub mod limits;
#[cfg(feature = "vmm")]
pub mod record;
pub mod remove;
pub mod sandbox;
pub mod trust;
pub mod undo;

pub use magikvm_platform::{atomic, lock, regular, text, thread};
