//! The tree of shared host files that a pod gets: entries `0`, `1`, …, each a directory or a file, read-only or writable. It consists of
//! mounts within the jail of the process that serves it, so nothing remains when that process ends.

use super::host::OpenedPath;
use crate::jail::{self, JailMount, MountSource, Submounts};
use magikvm_proto::volume::Access;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The path of the tree of this VM within a jail, unlike any path that could exist outside.
pub fn place(machine: &str) -> PathBuf {
    Path::new("/").join(format!("magikvm-shared-{machine}"))
}

/// All files of the host that a pod gets.
#[derive(Debug, Default)]
pub struct Shared {
    entries: Vec<(OwnedFd, Access)>,
}

impl Shared {
    /// Adds an opened path and returns its number.
    pub fn add(&mut self, found: &OpenedPath, access: Access) -> io::Result<u32> {
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push((found.fd.try_clone()?, access));
        Ok(number)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in their order: a descriptor, and whether the pod may write.
    pub fn entries(&self) -> &[(OwnedFd, Access)] {
        &self.entries
    }

    /// The mounts of the tree at this path, for a jail that is built while this value exists.
    pub fn mounts(&self, place: &Path) -> Vec<JailMount> {
        let mount = |(number, (fd, access)): (usize, &(OwnedFd, Access))| JailMount {
            source: MountSource::Fd(fd.as_raw_fd()),
            target: place.join(number.to_string()),
            access: match access {
                Access::ReadOnly => jail::Access::ReadOnly,
                Access::ReadWrite => jail::Access::ReadWrite,
            },
            submounts: Submounts::With,
        };
        self.entries.iter().enumerate().map(mount).collect()
    }
}
