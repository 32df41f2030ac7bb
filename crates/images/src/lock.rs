//! Locks of the store. There are three kinds: the index lock (short, around every read or change of `index.json`), a build lock for each
//! root file system or blob that is being created (long), and a shared lock on the first byte of each of these in use, held by every
//! process that has resolved it.
//!
//! The kernel releases all of them when their holder dies. Order: build lock, then index lock. A holder of the index lock only tries other
//! locks without waiting. The lock of the blobs' directory is last; it is held while a blob gets or loses its name.

use super::cancel::{Cancel, Stopped};
use magikvm_platform::atomic::{self, FileError};
use magikvm_platform::lock::open;
use magikvm_platform::os;
use magikvm_platform::text::ignore;
use nix::libc;
use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Whether others may hold the lock too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Shared,
    Alone,
}

/// Waits for a lock file that is never removed.
pub(super) fn wait(path: &Path, hold: Hold) -> Result<File, FileError> {
    let file = open(path)?;
    match hold {
        Hold::Shared => file.lock_shared(),
        Hold::Alone => file.lock(),
    }
    .map_err(FileError::at("lock", path))?;
    Ok(file)
}

/// Like [`wait`], for callers that may be cancelled.
pub(super) fn wait_unless_stopped(
    path: &Path,
    hold: Hold,
    cancel: &Cancel,
) -> Result<Result<File, Stopped>, FileError> {
    if let Err(stopped) = cancel.check() {
        return Ok(Err(stopped));
    }
    let file = open(path)?;
    let at_once = match hold {
        Hold::Shared => file.try_lock_shared(),
        Hold::Alone => file.try_lock(),
    };
    match at_once {
        Ok(()) => return Ok(Ok(file)),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(FileError::at("lock", path)(error)),
    }
    // Waiting in the kernel reacts at once. A cancelled caller leaves a thread behind until it is its turn.
    let (tell, told) = sync_channel(1);
    let waiting = std::thread::Builder::new().spawn(move || {
        let locked = match hold {
            Hold::Shared => file.lock_shared(),
            Hold::Alone => file.lock(),
        };
        ignore(tell.send(locked.map(|()| file)), "given up; the lock goes with the file");
    });
    drop(waiting.map_err(FileError::at("start a thread that locks", path))?);
    loop {
        match told.recv_timeout(LOOK_EVERY) {
            Ok(locked) => return locked.map(Ok).map_err(FileError::at("lock", path)),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(stopped) = cancel.check() {
                    return Ok(Err(stopped));
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(FileError::at("lock", path)(io::ErrorKind::Other.into()));
            }
        }
    }
}

/// Waits for the lock of a directory, which is held only briefly.
pub(super) fn wait_dir(path: &Path, hold: Hold) -> Result<File, FileError> {
    let dir = File::open(path).map_err(FileError::at("open", path))?;
    match hold {
        Hold::Shared => dir.lock_shared(),
        Hold::Alone => dir.lock(),
    }
    .map_err(FileError::at("lock", path))?;
    Ok(dir)
}

/// Takes a lock file that is never removed, exclusively, if it is free.
pub(super) fn attempt(path: &Path) -> Result<Option<File>, FileError> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(FileError::at("lock", path)(error)),
    }
}

/// Interval between two attempts to take a lock.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The right to create one thing. Dropping it removes its file.
#[derive(Debug)]
pub(super) struct BuildLock {
    path: PathBuf,
    _file: File,
}

impl BuildLock {
    /// Takes the lock. If another process has it, calls `busy` once and waits until it is free or the wait is cancelled.
    pub(super) fn wait(
        path: PathBuf,
        busy: &mut dyn FnMut(),
        cancel: &Cancel,
    ) -> Result<Result<Self, Stopped>, FileError> {
        let mut told = false;
        loop {
            if let Err(stopped) = cancel.check() {
                return Ok(Err(stopped));
            }
            let file = open(&path)?;
            match file.try_lock() {
                // The previous holder may have removed the file meanwhile; then retry with the new one.
                Ok(()) if is_at(&file, &path) => return Ok(Ok(Self { path, _file: file })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !std::mem::replace(&mut told, true) {
                        busy();
                    }
                    // A wait in the kernel could not be cancelled.
                    std::thread::sleep(LOOK_EVERY);
                }
                Err(TryLockError::Error(error)) => return Err(FileError::at("lock", &path)(error)),
            }
        }
    }

    /// Takes the lock if it is free.
    pub(super) fn attempt(path: PathBuf) -> Result<Option<Self>, FileError> {
        let file = open(&path)?;
        let locked = file.try_lock().is_ok() && is_at(&file, &path);
        // Not `then_some`: a discarded value would remove the holder's file when it is dropped.
        Ok(locked.then(|| Self { path, _file: file }))
    }
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        // Removed while it is still locked, so that a waiter sees that its file is gone. A remaining file is swept later.
        drop(atomic::remove(&self.path));
    }
}

/// Whether the open file is the one at the path.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(found)) => (open.dev(), open.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

/// Locks the first byte of an open file (QEMU locks bytes from 100 on). False: another lock conflicts.
pub(super) fn lock_in_use(file: &File, path: &Path, hold: Hold) -> Result<bool, FileError> {
    match os::set_lock(file, &first_byte(hold)) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(errno) => Err(FileError::at("lock", path)(errno.into())),
    }
}

/// Whether a process holds the first byte. It does not disturb anybody; the answer is valid as long as nobody can take the lock.
pub(super) fn is_held(file: &File, path: &Path) -> Result<bool, FileError> {
    let mut range = first_byte(Hold::Alone);
    os::get_lock(file, &mut range).map_err(|errno| FileError::at("inspect", path)(errno.into()))?;
    Ok(range.l_type != os::NO_LOCK)
}

fn first_byte(hold: Hold) -> libc::flock {
    let kind = match hold {
        Hold::Shared => os::READ_LOCK,
        Hold::Alone => os::WRITE_LOCK,
    };
    let short = |number: i32| i16::try_from(number).unwrap_or(0);
    libc::flock { l_type: kind, l_whence: short(libc::SEEK_SET), l_start: 0, l_len: 1, l_pid: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_the_build_lock_and_its_file_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let lock = BuildLock::attempt(path.clone()).unwrap().unwrap();
        assert!(BuildLock::attempt(path.clone()).unwrap().is_none());
        let (told, heard) = std::sync::mpsc::channel();
        let waiting = path.clone();
        let other = std::thread::spawn(move || {
            BuildLock::wait(waiting, &mut || told.send(()).unwrap(), &Cancel::new())
        });
        heard.recv().unwrap();
        drop(lock);
        let lock = other.join().unwrap().unwrap().unwrap();
        assert!(BuildLock::attempt(path.clone()).unwrap().is_none());
        let given_up = Cancel::new();
        given_up.cancel();
        assert_eq!(
            BuildLock::wait(path.clone(), &mut || {}, &given_up).unwrap().err(),
            Some(Stopped::Cancelled)
        );
        drop(lock);
        assert!(!path.exists());
    }

    #[test]
    fn who_waits_for_a_lock_can_give_up_and_then_does_not_get_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let take = |hold, cancel: &Cancel| wait_unless_stopped(&path, hold, cancel).unwrap();
        let readers = [(); 2].map(|()| take(Hold::Shared, &Cancel::new()).unwrap());
        for timeout in [Duration::ZERO, LOOK_EVERY * 2] {
            let timed = Cancel::new().with_timeout(timeout);
            assert_eq!(take(Hold::Alone, &timed).err(), Some(Stopped::TimedOut { seconds: 0 }));
        }
        drop(readers);
        // The cancelled waiter gets its turn and passes it on.
        drop(take(Hold::Alone, &Cancel::new()).unwrap());
        drop(take(Hold::Shared, &Cancel::new()).unwrap());
    }

    #[test]
    fn a_file_in_use_by_two_is_free_when_both_are_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rootfs");
        std::fs::write(&path, "x").unwrap();
        let [a, b] = [File::open(&path).unwrap(), File::open(&path).unwrap()];
        assert!(
            lock_in_use(&a, &path, Hold::Shared).unwrap() && lock_in_use(&b, &path, Hold::Shared).unwrap()
        );
        let alone = open(&path).unwrap();
        assert!(is_held(&alone, &path).unwrap() && is_held(&alone, &path).unwrap());
        assert!(!lock_in_use(&alone, &path, Hold::Alone).unwrap());
        drop(a);
        assert!(!lock_in_use(&alone, &path, Hold::Alone).unwrap());
        drop(b);
        assert!(!is_held(&alone, &path).unwrap());
        assert!(lock_in_use(&alone, &path, Hold::Alone).unwrap());
    }
}
