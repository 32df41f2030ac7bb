//! Systems on which no directories are shared.

use super::{HostPathKind, VolumeError};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// A file of the host, which never exists here.
#[derive(Debug)]
pub struct OpenedPath {
    pub(super) fd: OwnedFd,
}

impl OpenedPath {
    /// Fails, since hostPath volumes need Linux.
    pub fn open(path: &Path, _wanted: HostPathKind) -> Result<Self, VolumeError> {
        let source = io::Error::new(io::ErrorKind::Unsupported, "hostPath volumes need Linux");
        Err(VolumeError::Open { path: path.to_owned(), source })
    }

    /// Fails for the same reason.
    pub fn check(path: &Path, wanted: HostPathKind) -> Result<(), VolumeError> {
        Self::open(path, wanted).map(|_| ())
    }

    /// Never called, since no such value exists.
    pub fn within(&self, _sub_path: &str) -> Result<Self, VolumeError> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|source| VolumeError::Open { path: Path::new("").to_owned(), source })?;
        Ok(Self { fd })
    }
}
