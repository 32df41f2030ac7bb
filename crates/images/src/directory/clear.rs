//! Removes unpacked trees, which may be as deep as images allow and contain directories that their owner cannot write to.

use super::{DIRECTORY, Identity, identity};
use magikvm_platform::os::Unopened;
use rustix::fs::{AtFlags, CWD, Dir, Mode, openat, unlinkat};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A directory whose content is being removed, and its ancestors.
struct Level {
    /// Device and inode number of the parent.
    above: Option<Identity>,
    name: Vec<u8>,
    /// Remaining subdirectories.
    left: Vec<Vec<u8>>,
}

/// Removes the content of a directory. For complete or partial trees of `unpack`: they may be deeper than files can be open, and contain
/// directories that nobody may write to.
pub fn clear_unpacked(dir: &Path) -> io::Result<()> {
    let mut here = open_writable(CWD, dir.as_os_str().as_bytes())?;
    let left = remove_files(&here)?;
    let mut levels = vec![Level { above: None, name: Vec::new(), left }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            let above = Some(identity(&here)?);
            here = open_writable(here.as_fd(), &name)?;
            levels.push(Level { above, name, left: remove_files(&here)? });
            continue;
        }
        let Level { above, name, .. } = match levels.pop() {
            Some(level) if !levels.is_empty() => level,
            _ => break,
        };
        here = openat(&here, "..", DIRECTORY, Mode::empty())?;
        if Some(identity(&here)?) != above {
            return Err(io::Error::other("a directory was moved while it was being removed"));
        }
        unlinkat(&here, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Removes everything but directories, and returns the names of these.
fn remove_files(dir: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    let mut directories = Vec::new();
    for name in names {
        match unlinkat(dir, &name[..], AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => directories.push(name),
            Err(error) => return Err(error),
        }
    }
    Ok(directories)
}

/// A directory in which the caller may do everything, if the caller owns it.
fn open_writable(above: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    Unopened::find(above, name, DIRECTORY)?.set_mode(Mode::RWXU)?;
    openat(above, name, DIRECTORY, Mode::empty())
}
