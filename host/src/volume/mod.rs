//! What a pod has of this machine's files: hostPath volumes. What is asked for is opened once; what was opened is what was checked and what
//! is shared, whatever becomes of its path meanwhile. All of it is one directory tree, which exists only for the process that serves it, and
//! of which the guest sees one virtio-fs device.
//!
//! Owns: finding things on this machine ([`host`]), the tree ([`tree`]), and serving it where the VMM does not ([`serve`]). Must not know:
//! manifests, images, VMMs.

#[cfg(feature = "vmm")]
#[cfg_attr(not(target_os = "linux"), path = "nowhere.rs")]
pub mod host;
#[cfg(all(feature = "vmm", target_os = "linux"))]
pub mod serve;
#[cfg(feature = "vmm")]
pub mod tree;

use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// What must be at a hostPath (core/v1 `HostPathType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathKind {
    /// A directory or a regular file.
    Any,
    Directory,
    /// A directory, made if nothing is there.
    DirectoryOrCreate,
    File,
    /// A regular file, made if nothing is there.
    FileOrCreate,
}

/// Something on this machine that can't be shared as asked for.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// Not there, or not to be reached.
    #[error("cannot use hostPath {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// There is nothing, and it could not be made.
    #[error("cannot make hostPath {}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Something else than it should be.
    #[error("hostPath {} is {found}, not {wanted}", path.display())]
    Kind { path: PathBuf, found: &'static str, wanted: &'static str },
    /// A path within it that is not there, or leads out of it.
    #[error("cannot use subPath {sub_path:?} of hostPath {}", path.display())]
    SubPath {
        path: PathBuf,
        sub_path: String,
        #[source]
        source: io::Error,
    },
}
