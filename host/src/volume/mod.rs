//! The files of the host that a pod uses: hostPath volumes. Each path is opened once, and the opened file is the one that is checked and
//! shared, whatever happens to its path meanwhile. All of them form one directory tree, which exists only for the process that serves it,
//! and which the guest sees as one virtio-fs device.
//!
//! Owns: finding files on the host ([`host`]), the volumes that survive pods (`claims`), the tree ([`tree`]), and serving it where the VMM does not ([`serve`]). Must not know:
//! manifests, images, VMMs.

#[cfg(feature = "vmm")]
pub mod claims;
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

/// The required type of a hostPath (core/v1 `HostPathType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathKind {
    /// A directory or a regular file.
    Any,
    Directory,
    /// A directory, created if nothing exists.
    DirectoryOrCreate,
    File,
    /// A regular file, created if nothing exists.
    FileOrCreate,
}

/// Who may use a claim at a time (core/v1 `PersistentVolumeAccessMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AccessMode {
    ReadWriteOnce,
    ReadOnlyMany,
    ReadWriteMany,
    ReadWriteOncePod,
}

impl AccessMode {
    pub const ALL: [(&str, Self); 4] = [
        ("ReadWriteOnce", Self::ReadWriteOnce),
        ("ReadOnlyMany", Self::ReadOnlyMany),
        ("ReadWriteMany", Self::ReadWriteMany),
        ("ReadWriteOncePod", Self::ReadWriteOncePod),
    ];

    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

/// What holds the content of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ClaimForm {
    /// A directory of the host, which any number of pods can share. Nothing limits its size but the host's disk.
    #[default]
    Directory,
    /// A file system in a file, as large as was asked for. One VM can have it at a time.
    Disk,
}

impl ClaimForm {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Disk => "disk",
        }
    }
}

/// When the files of a claim get the group of the volumes (core/v1 `PodFSGroupChangePolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum GroupChange {
    #[default]
    Always,
    /// Only if its root directory has not got it.
    OnRootMismatch,
}

/// Why a file of the host cannot be shared as requested.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The path does not exist or cannot be reached.
    #[error("cannot use hostPath {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The path does not exist and could not be created.
    #[error("cannot create hostPath {}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The path has another type than requested.
    #[error("hostPath {} is {found}, not {wanted}", path.display())]
    Kind { path: PathBuf, found: &'static str, wanted: &'static str },
    /// A link on the way leads out of it, perhaps to another file system. What is mounted beneath it is part of it.
    #[error("subPath {sub_path:?} leaves hostPath {}: a link on the way leads out of it", path.display())]
    Outside { path: PathBuf, sub_path: String },
    /// A path within it cannot be opened or made.
    #[error("cannot use subPath {sub_path:?} of hostPath {}", path.display())]
    SubPath {
        path: PathBuf,
        sub_path: String,
        #[source]
        source: io::Error,
    },
}
