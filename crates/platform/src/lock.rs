//! Locks that say which processes are alive. A lock belongs to an open file (OFD), so the kernel releases it however its process dies.

use crate::atomic::FileError;
use crate::os;
use crate::regular::{self, Access};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether a live process holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockState {
    /// Nobody holds it, or there is no lock file.
    Free,
    /// A live process holds it.
    Held,
}

/// A held lock. It is released when it is dropped or when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

fn whole_file() -> nix::libc::flock {
    nix::libc::flock {
        l_type: os::WRITE_LOCK,
        // SEEK_SET
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Opens a lock file, creating it with mode 0600.
pub fn open(path: &Path) -> Result<File, FileError> {
    regular::open(path, Access::Lock)
}

/// Takes the lock at `path`, creating its file; `None` when another process holds it. Never waits.
pub fn acquire(path: &Path) -> Result<Option<Lock>, FileError> {
    loop {
        let file = open(path)?;
        match os::set_lock(&file, &whole_file()) {
            Ok(()) => {}
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => return Ok(None),
            Err(errno) => return Err(FileError::at("lock", path)(errno.into())),
        }
        // The file may have been removed between open and lock. The lock then guards nothing, and the new file counts.
        let mine = file.metadata().map_err(FileError::at("look at", path))?;
        match std::fs::metadata(path) {
            Ok(there) if there.ino() == mine.ino() && there.dev() == mine.dev() => {
                return Ok(Some(Lock { _file: file }));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(FileError::at("lock", path)(error));
            }
            Err(error) => return Err(FileError::at("look at", path)(error)),
        }
    }
}

/// Takes the lock at `path`, waiting for its holder. Only for locks that are held briefly.
pub fn wait(path: &Path) -> Result<Lock, FileError> {
    let file = open(path)?;
    loop {
        match os::set_lock_waiting(&file, &whole_file()) {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(FileError::at("lock", path)(errno.into())),
        }
    }
}

/// Whether a process holds the lock at `path`. Does not take the lock, so asking never disturbs anybody.
pub fn state(path: &Path) -> Result<LockState, FileError> {
    let file = match regular::open(path, Access::Read) {
        Ok(file) => file,
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(LockState::Free),
        Err(error) => return Err(error),
    };
    let mut asked = whole_file();
    os::get_lock(&file, &mut asked).map_err(|errno| FileError::at("query the lock", path)(errno.into()))?;
    let free = asked.l_type == os::NO_LOCK;
    Ok(if free { LockState::Free } else { LockState::Held })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_has_one_holder_and_asking_does_not_take_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(state(&path).unwrap(), LockState::Free);
        let held = acquire(&path).unwrap().expect("free");
        assert!(acquire(&path).unwrap().is_none());
        assert_eq!(state(&path).unwrap(), LockState::Held);
        drop(held);
        // A child that another test is starting has a copy of every open file until it executes its program.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while state(&path).unwrap() == LockState::Held && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(state(&path).unwrap(), LockState::Free);
        assert!(acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_in_a_directory_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(acquire(&dir.path().join("gone/lock")).is_err());
    }
}
