//! Systems on which nothing is shared.

use super::{HostPathKind, VolumeError};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Something that is on this machine, whatever its path comes to mean.
#[derive(Debug)]
pub struct OpenedPath {
    pub(super) fd: OwnedFd,
}

impl OpenedPath {
    /// Says that it is for Linux.
    pub fn open(path: &Path, _wanted: HostPathKind) -> Result<Self, VolumeError> {
        let source = io::Error::new(io::ErrorKind::Unsupported, "hostPath volumes are for Linux");
        Err(VolumeError::Open { path: path.to_owned(), source })
    }

    /// There never is one.
    pub fn within(&self, _sub_path: &str) -> Result<Self, VolumeError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|source| VolumeError::Open { path: Path::new("").to_owned(), source })?;
        Ok(Self { fd })
    }
}
