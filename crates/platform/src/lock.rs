//! Locks that say which processes are alive. A lock belongs to an open file (OFD), so the kernel releases it however its process dies.

use crate::atomic::FileError;
use crate::os;
use crate::regular::{self, Access};
use crate::text::ignore;
use crate::thread;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

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
    file: File,
}

impl Lock {
    /// Whether it is the lock of the file at this path, and not of one that was there before.
    fn is_at(&self, path: &Path) -> bool {
        let identity = |found: std::fs::Metadata| (found.dev(), found.ino());
        self.file.metadata().map(identity).ok() == std::fs::metadata(path).map(identity).ok()
    }
}

impl AsFd for Lock {
    /// A process that has the open file keeps the lock, too.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
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
                return Ok(Some(Lock { file }));
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
            Ok(()) => return Ok(Lock { file }),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(FileError::at("lock", path)(errno.into())),
        }
    }
}

/// Takes the lock at `path`, waiting for its holder for a limited time; `None` when the holder has it still.
pub fn wait_for(path: &Path, limit: Duration) -> Result<Option<Lock>, FileError> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(lock) = acquire(path)? {
            return Ok(Some(lock));
        }
        let file = open(path)?;
        let (give, given) = channel();
        // No system call waits for a lock and for a time. A thread whose wait is over too late drops the lock at once.
        thread::start("lock", move || {
            let taken = loop {
                match os::set_lock_waiting(&file, &whole_file()) {
                    Err(nix::errno::Errno::EINTR) => {}
                    taken => break taken,
                }
            };
            ignore(give.send(taken.map(|()| Lock { file })), "nobody waits any more");
        })
        .map_err(|error| FileError::at("lock", path)(error.into()))?;
        match given.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(lock)) if lock.is_at(path) => return Ok(Some(lock)),
            // The file was replaced.
            Ok(Ok(_)) => {}
            Ok(Err(errno)) => return Err(FileError::at("lock", path)(errno.into())),
            Err(_) => return Ok(None),
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
        let deadline = Instant::now() + Duration::from_secs(5);
        while state(&path).unwrap() == LockState::Held && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(state(&path).unwrap(), LockState::Free);
        assert!(acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_is_waited_for_as_long_as_it_may_take() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = acquire(&path).unwrap().expect("free");
        assert!(wait_for(&path, Duration::from_millis(20)).unwrap().is_none());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait_for(&path, Duration::from_secs(60)).unwrap());
            drop(held);
            assert!(waiter.join().unwrap().is_some());
        });
        assert!(wait_for(&dir.path().join("gone/lock"), Duration::from_secs(60)).is_err());
    }

    #[test]
    fn a_lock_in_a_directory_that_is_gone_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(acquire(&dir.path().join("gone/lock")).is_err());
    }
}
