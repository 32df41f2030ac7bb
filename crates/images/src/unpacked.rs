//! Root file systems as directories, unpacked once and kept beside the EROFS files, for hosts that cannot mount EROFS.
//!
//! On disk: `dirs/<key>-<owners>/rootfs`. The outer directory is private, and its lock shows its use: users hold it shared, the process
//! that creates or removes it exclusively. An incomplete one is called `.tmp-…`.

use super::cancel::Cancel;
use super::directory::{DirectoryError, Owners, UnpackedSummary, clear_unpacked, unpack};
use super::error::ImageError;
use super::index::Index;
use super::lock::{self, BuildLock};
use super::store::{Image, ImageStore};
use super::{Digest, Progress};
use magikvm_platform::atomic::{FileError, open_if_there};
use magikvm_platform::{helper, os};
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const STAGED: &str = ".tmp-";
const ROOTFS: &str = "rootfs";

/// A root file system's directory, which is not removed while this value lives. Writing into it damages it for all other users.
#[derive(Debug)]
pub struct RootfsDirectory {
    pub path: PathBuf,
    /// What could not be unpacked; `None` when the directory already existed.
    pub summary: Option<UnpackedSummary>,
    /// A shared lock of the outer directory.
    _lock: File,
}

impl Owners {
    fn suffix(self) -> &'static str {
        match self {
            Self::AsInImage => "root",
            Self::Mine => "mine",
        }
    }
}

impl ImageStore {
    /// The directory form of an image's root file system, created by the first call.
    pub fn directory(
        &self,
        image: &Image,
        owners: Owners,
        cancel: &Cancel,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<RootfsDirectory, ImageError> {
        let unpack = |content: &Path| unpack_into(image, content, owners, cancel);
        self.directory_made_by(image, owners.suffix(), (cancel, progress), &unpack)
    }

    /// Likewise, unpacked by others: `unpack` fills an empty directory from the image's EROFS file. `owners` is a name for whom the files belong
    /// to, of small letters and digits.
    pub fn directory_made_by(
        &self,
        image: &Image,
        owners: &str,
        (cancel, progress): (&Cancel, &(dyn Fn(Progress) + Sync)),
        unpack: &dyn Fn(&Path) -> Result<UnpackedSummary, ImageError>,
    ) -> Result<RootfsDirectory, ImageError> {
        let path = self.dir("dirs").join(format!("{}-{owners}", image.rootfs.key.hex()));
        if let Some(there) = hold(&path)? {
            return Ok(there);
        }
        let stopped = |source| ImageError::Stopped { source_name: image.id.to_string(), source };
        let lock_path = self.dir("locks").join(format!("dir-{}.lock", image.rootfs.key.hex()));
        let _lock =
            BuildLock::wait(lock_path, &mut || progress(Progress::Waiting), cancel)?.map_err(stopped)?;
        if let Some(there) = hold(&path)? {
            return Ok(there);
        }
        let (staged, lock) = staged_in(&self.dir("dirs"))?;
        let content = staged.path().join(ROOTFS);
        fs::create_dir(&content).map_err(FileError::at("create directory", &content))?;
        let made = unpack(&content).and_then(|summary| {
            // Data that is not yet on disk must not have a name there.
            os::sync_file_system(&lock).map_err(FileError::at("sync", &content))?;
            fs::rename(staged.path(), &path).map_err(FileError::at("rename", &path))?;
            Ok(summary)
        });
        match made {
            Ok(summary) => {
                // Its path has changed.
                drop(staged.keep());
                Ok(RootfsDirectory { path: path.join(ROOTFS), summary: Some(summary), _lock: lock })
            }
            Err(error) => {
                clear(&content)?;
                Err(error)
            }
        }
    }

    /// The complete directories of a root file system, of whatever owners.
    fn directories_of(&self, key: &Digest) -> Result<Vec<PathBuf>, ImageError> {
        let dir = self.dir("dirs");
        let prefix = format!("{}-", key.hex());
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(FileError::at("list", &dir))? {
            let entry = entry.map_err(FileError::at("list", &dir))?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// Whether a process uses a directory of this root file system.
    pub(super) fn directory_in_use(&self, key: &Digest) -> Result<bool, ImageError> {
        for path in self.directories_of(key)? {
            if let Some(dir) = open_if_there(&path)?
                && !lock_alone(&dir, key)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the unused directories of a root file system. Returns the bytes freed.
    pub(super) fn remove_directories(&self, key: &Digest) -> Result<u64, ImageError> {
        let mut freed = 0;
        for path in self.directories_of(key)? {
            freed += remove_unused(&path)?;
        }
        Ok(freed)
    }

    /// Bytes on disk of the unused directories of a root file system.
    pub(super) fn directories_size(&self, key: &Digest) -> Result<u64, ImageError> {
        let mut bytes = 0;
        for path in self.directories_of(key)? {
            bytes += if is_used(&path)? { 0 } else { tree_size(&path) };
        }
        Ok(bytes)
    }

    /// All directories, incomplete ones too: bytes on disk, whether a process uses it, and whether the index knows its root file system.
    pub(super) fn directories(&self, index: &Index) -> Result<Vec<SeenDirectory>, ImageError> {
        let mut found = Vec::new();
        for (path, is_known) in self.directory_entries(index)? {
            let is_used = is_used(&path)?;
            found.push(SeenDirectory { bytes: tree_size(&path), is_used, is_known });
        }
        Ok(found)
    }

    fn directory_entries(&self, index: &Index) -> Result<Vec<(PathBuf, bool)>, ImageError> {
        let dir = self.dir("dirs");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(FileError::at("list", &dir))? {
            let entry = entry.map_err(FileError::at("list", &dir))?;
            let name = entry.file_name();
            let key =
                name.to_str().and_then(|name| name.split_once('-')).map(|(key, _)| Digest::from_hex(key));
            let is_known = matches!(key, Some(Ok(key)) if index.rootfs(&key).is_some());
            found.push((entry.path(), is_known));
        }
        Ok(found)
    }

    /// Removes unused directories that are incomplete or unknown to the index. Returns the bytes freed. The caller holds the index lock.
    pub(super) fn sweep_directories(&self, index: &Index) -> Result<u64, ImageError> {
        let mut freed = 0;
        for (path, is_known) in self.directory_entries(index)? {
            if !is_known {
                freed += remove_unused(&path)?;
            }
        }
        Ok(freed)
    }
}

/// An unpacked directory as found.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeenDirectory {
    /// Bytes on disk.
    pub(super) bytes: u64,
    pub(super) is_used: bool,
    /// Whether the index knows its root file system.
    pub(super) is_known: bool,
}

/// Creates a directory that no sweep removes.
fn staged_in(dir: &Path) -> Result<(TempDir, File), FileError> {
    loop {
        let staged = new_in(dir)?;
        // A sweep may have taken it for a leftover between its creation and the lock; then try again.
        let Some(lock) = open_if_there(staged.path())? else { continue };
        // A shared lock suffices, since a sweep needs an exclusive one.
        lock.lock_shared().map_err(FileError::at("lock", staged.path()))?;
        if lock::is_at(&lock, staged.path()) {
            return Ok((staged, lock));
        }
    }
}

fn new_in(dir: &Path) -> Result<TempDir, FileError> {
    let made = tempfile::Builder::new().prefix(STAGED).tempdir_in(dir);
    made.map_err(FileError::at("create a directory in", dir))
}

fn unpack_into(
    image: &Image,
    content: &Path,
    owners: Owners,
    cancel: &Cancel,
) -> Result<UnpackedSummary, ImageError> {
    let path = &image.rootfs.path;
    let file = File::open(path).map_err(FileError::at("open", path))?;
    unpack(&file, content, owners, cancel).map_err(|error| match error {
        DirectoryError::Stopped(source) => ImageError::Stopped { source_name: image.id.to_string(), source },
        source => ImageError::Directory { path: content.to_owned(), source },
    })
}

/// Holds an existing directory.
fn hold(path: &Path) -> Result<Option<RootfsDirectory>, ImageError> {
    let Some(lock) = open_if_there(path)? else { return Ok(None) };
    match lock.try_lock_shared() {
        // A remover renames it first, and a new one may have taken its place.
        Ok(()) if lock::is_at(&lock, path) => {
            Ok(Some(RootfsDirectory { path: path.join(ROOTFS), summary: None, _lock: lock }))
        }
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(FileError::at("lock", path)(error).into()),
    }
}

fn lock_alone(dir: &File, key: &Digest) -> Result<bool, ImageError> {
    match dir.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => {
            Err(FileError::at("lock", Path::new(&key.to_string()))(error).into())
        }
    }
}

/// Whether a process uses a directory.
fn is_used(path: &Path) -> Result<bool, ImageError> {
    Ok(open_if_there(path)?.is_some_and(|dir| matches!(dir.try_lock(), Err(TryLockError::WouldBlock))))
}

/// Bytes on disk of a directory with everything in it, a file with several names counted once. What vanishes meanwhile takes no space, and
/// what cannot be listed is not counted.
fn tree_size(path: &Path) -> u64 {
    let (mut bytes, mut seen, mut pending) = (0, BTreeSet::new(), vec![path.to_owned()]);
    while let Some(path) = pending.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        bytes += metadata.blocks() * 512;
    }
    bytes
}

/// Removes a directory unless it is used. Returns the bytes freed.
fn remove_unused(path: &Path) -> Result<u64, ImageError> {
    let Some(lock) = open_if_there(path)? else { return Ok(0) };
    // It may have got its name and been released since it was opened.
    if lock.try_lock().is_err() || !lock::is_at(&lock, path) {
        return Ok(0);
    }
    let freed = tree_size(path);
    let is_staged =
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(STAGED.as_bytes()));
    let doomed = if is_staged {
        path.to_owned()
    } else {
        // Moves it over a new, empty directory, so that it vanishes for everybody else and its new name is free even if a killed process
        // left an incomplete removal behind.
        let new = new_in(path.parent().unwrap_or(path))?;
        fs::rename(path, new.path()).map_err(FileError::at("rename", path))?;
        new.keep()
    };
    clear(&doomed.join(ROOTFS))?;
    match fs::remove_dir_all(&doomed) {
        Err(refused) if helper::removes(&doomed, &refused) => {}
        removed => removed.map_err(FileError::at("remove", &doomed))?,
    }
    Ok(freed)
}

/// Empties an unpacked directory, which may not exist.
fn clear(content: &Path) -> Result<(), FileError> {
    match clear_unpacked(content) {
        Err(refused) if helper::removes(content, &refused) => Ok(()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::at("remove", content)(error)),
        _ => Ok(()),
    }
}
