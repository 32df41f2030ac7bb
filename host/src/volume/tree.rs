//! The tree that a pod is given of this machine: entries `0`, `1`, …, each a directory or a file, to be changed or only read. It is mounts
//! within the jail of the process that serves it, so nothing of it is left when that ends.

use super::host::OpenedPath;
use crate::jail::{self, JailMount, MountSource, Submounts};
use magikvm_proto::volume::Access;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the tree of the machine with this id is, in a jail. Unlike anything that could be there without one.
pub fn place(machine: &str) -> PathBuf {
    Path::new("/").join(format!("magikvm-shared-{machine}"))
}

/// Everything that a pod is given of this machine.
#[derive(Debug, Default)]
pub struct Shared {
    entries: Vec<(OwnedFd, Access)>,
}

impl Shared {
    /// Adds what was found; returns its number.
    pub fn add(&mut self, found: &OpenedPath, access: Access) -> io::Result<u32> {
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push((found.fd.try_clone()?, access));
        Ok(number)
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The tree at this place, for a jail that is made as long as this is there.
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
