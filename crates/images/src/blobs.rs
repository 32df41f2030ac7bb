//! The store's blobs: unmodified layers and manifests, each in a file named after its sha256 (`blobs/<hex>`). A file under its name is
//! complete and verified. A held blob (its first byte is locked) is not removed.

use super::digest::{Digest, Hasher};
use super::index::ImageBlob;
use super::lock::{self, BuildLock, Hold};
use magikvm_platform::atomic::{self, FileError, Staged};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A blob that is not removed while this value lives.
#[derive(Debug)]
pub(super) struct HeldBlob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// The open file with a shared lock on its first byte.
    pub(super) file: Arc<File>,
}

/// An existing blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeenBlob {
    pub(super) digest: Digest,
    written: Option<SystemTime>,
}

impl SeenBlob {
    /// The age of the blob; zero if the clock was set back.
    pub(super) fn age(&self) -> Duration {
        self.written.and_then(|written| written.elapsed().ok()).unwrap_or_default()
    }
}

/// The blobs of one store.
#[derive(Debug, Clone)]
pub(super) struct Blobs {
    dir: PathBuf,
    locks: PathBuf,
}

impl Blobs {
    /// The blobs in these directories, which exist.
    pub(super) fn new(dir: PathBuf, locks: PathBuf) -> Self {
        Self { dir, locks }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a blob, if it exists.
    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// The lock for fetching a blob.
    pub(super) fn lock_path(&self, digest: &Digest) -> PathBuf {
        self.locks.join(format!("blob-{}.lock", digest.hex()))
    }

    /// Whether a blob exists with the expected size.
    pub(super) fn has(&self, part: &ImageBlob) -> bool {
        fs::metadata(self.path(&part.digest))
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == part.size_bytes)
    }

    /// Holds a blob if it exists, without checking its content.
    pub(super) fn hold(&self, digest: &Digest) -> Result<Option<HeldBlob>, FileError> {
        let path = self.path(digest);
        // A FIFO or the like is replaced when the blob is fetched.
        if fs::symlink_metadata(&path).is_ok_and(|there| !there.is_file()) {
            return Ok(None);
        }
        let Some(file) = atomic::open_if_there(&path)? else { return Ok(None) };
        // A remover holds the lock exclusively for a moment; the blob is then as good as gone.
        if !lock::lock_in_use(&file, &path, Hold::Shared)? {
            return Ok(None);
        }
        let metadata = file.metadata().map_err(FileError::at("inspect", &path))?;
        let there = metadata.nlink() > 0;
        Ok(there.then(|| HeldBlob { digest: *digest, size: metadata.len(), file: Arc::new(file) }))
    }

    /// Holds a blob that exists and is undamaged. A damaged one is removed, so that it can be fetched again.
    pub(super) fn hold_verified(
        &self,
        digest: &Digest,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<HeldBlob>, FileError> {
        let Some(held) = self.hold(digest)? else { return Ok(None) };
        let path = self.path(digest);
        match digest_of(&held.file, goes_on).map_err(FileError::at("read", &path))? {
            Some(found) if found != *digest => {
                drop(held);
                self.remove_unheld(digest)?;
                Ok(None)
            }
            // Cancelled meanwhile; the caller notices that itself.
            _ => Ok(Some(held)),
        }
    }

    /// Puts a file under its digest and holds it.
    pub(super) fn keep(&self, mut staged: Staged, digest: &Digest) -> Result<HeldBlob, FileError> {
        let path = self.path(digest);
        let file = staged.file().try_clone().map_err(FileError::at("open", &path))?;
        let size = file.metadata().map_err(FileError::at("inspect", &path))?.len();
        // Locked before it gets its name, so that a sweep never finds it unheld.
        lock::lock_in_use(&file, staged.temporary_path(), Hold::Shared)?;
        file.sync_all().map_err(FileError::at("sync", &path))?;
        let _turn = lock::wait_dir(&self.dir, Hold::Shared)?;
        staged.commit_as(&path, 0o600)?;
        Ok(HeldBlob { digest: *digest, size, file: Arc::new(file) })
    }

    /// Stores a small blob from memory.
    pub(super) fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<HeldBlob, FileError> {
        let mut staged = Staged::new(&self.path(digest))?;
        io::Write::write_all(staged.file(), bytes).map_err(FileError::at("write", &self.path(digest)))?;
        self.keep(staged, digest)
    }

    /// Removes a blob that nobody holds. Returns the bytes freed; `None` when it is held.
    pub(super) fn remove_unheld(&self, digest: &Digest) -> Result<Option<u64>, FileError> {
        // No other file may get the name between the check and the removal.
        let _turn = lock::wait_dir(&self.dir, Hold::Alone)?;
        remove_unheld(&self.path(digest))
    }

    /// All blobs in order.
    pub(super) fn list(&self) -> Result<Vec<SeenBlob>, FileError> {
        let failed = FileError::at("list", &self.dir);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(FileError::at("list", &self.dir))?;
            let digest = entry.file_name().to_str().map(Digest::from_hex);
            // A file that vanishes meanwhile is skipped.
            if let (Some(Ok(digest)), Ok(metadata)) = (digest, entry.metadata()) {
                let written = metadata.modified().ok();
                found.push(SeenBlob { digest, written });
            }
        }
        found.sort_by_key(|blob| blob.digest);
        Ok(found)
    }

    /// Removes the lock files of killed processes.
    pub(super) fn sweep_locks(&self) -> Result<(), FileError> {
        for entry in fs::read_dir(&self.locks).map_err(FileError::at("list", &self.locks))? {
            let path = entry.map_err(FileError::at("list", &self.locks))?.path();
            if path.extension().is_some_and(|extension| extension == "lock") {
                // Taking and dropping a lock removes its file.
                drop(BuildLock::attempt(path)?);
            }
        }
        Ok(())
    }
}

/// Removes a file whose first byte is unlocked. Returns the bytes freed; `None` when it is in use.
pub(super) fn remove_unheld(path: &Path) -> Result<Option<u64>, FileError> {
    if fs::symlink_metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        atomic::remove(path)?;
        return Ok(Some(0));
    }
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(0)),
        file => file.map_err(FileError::at("open", path))?,
    };
    if !lock::lock_in_use(&file, path, Hold::Alone)? {
        return Ok(None);
    }
    let freed = file.metadata().map_err(FileError::at("inspect", path))?.blocks() * 512;
    atomic::remove(path)?;
    Ok(Some(freed))
}

/// The digest of a whole file, whatever its position; `None` after a cancellation.
pub(super) fn digest_of(file: &File, goes_on: &mut dyn FnMut() -> bool) -> io::Result<Option<Digest>> {
    use std::os::unix::fs::FileExt;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while goes_on() {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(Some(hasher.finish())),
            got => {
                hasher.update(&buffer[..got]);
                at += got as u64;
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs(dir: &Path) -> Blobs {
        for name in ["blobs", "locks"] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        Blobs::new(dir.join("blobs"), dir.join("locks"))
    }

    #[test]
    fn a_held_blob_stays_and_a_damaged_one_goes() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(dir.path());
        let digest = Digest::of(b"layer");
        assert!(blobs.hold(&digest).unwrap().is_none());
        let held = blobs.put(&digest, b"layer").unwrap();
        let seen = blobs.list().unwrap();
        assert_eq!((held.size, seen.len(), seen[0].digest), (5, 1, digest));
        assert_eq!(blobs.remove_unheld(&digest).unwrap(), None);
        drop(held);
        fs::write(blobs.path(&digest), "lay3r").unwrap();
        assert!(blobs.hold_verified(&digest, &mut || true).unwrap().is_none());
        assert!(blobs.list().unwrap().is_empty());
        drop(blobs.put(&digest, b"layer").unwrap());
        assert!(blobs.hold_verified(&digest, &mut || true).unwrap().is_some());
        assert!(blobs.remove_unheld(&digest).unwrap().is_some());
    }

    /// A remover must not take the file that has just replaced the old one.
    #[test]
    fn a_blob_that_is_put_while_its_forerunner_is_removed_stays() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (blobs, digest) = (blobs(dir.path()), Digest::of(b"manifest"));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        blobs.remove_unheld(&digest).unwrap();
                    }
                });
            }
            let mut lost = 0;
            for _ in 0..400 {
                let held = blobs.put(&digest, b"manifest").unwrap();
                lost += u32::from(!blobs.path(&digest).exists());
                drop(held);
            }
            over.store(true, Ordering::Relaxed);
            assert_eq!(lost, 0);
        });
    }
}
