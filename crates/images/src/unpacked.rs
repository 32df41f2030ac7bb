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
use magikvm_platform::os;
use std::fs::{self, File, TryLockError};
use std::io;
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
        let path = self.directory_path(&image.rootfs.key, owners);
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
        let made = unpack_into(image, &content, owners, cancel).and_then(|summary| {
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

    fn directory_path(&self, key: &Digest, owners: Owners) -> PathBuf {
        self.dir("dirs").join(format!("{}-{}", key.hex(), owners.suffix()))
    }

    /// Whether a process uses a directory of this root file system.
    pub(super) fn directory_in_use(&self, key: &Digest) -> Result<bool, ImageError> {
        for owners in [Owners::AsInImage, Owners::Mine] {
            if let Some(dir) = open_if_there(&self.directory_path(key, owners))?
                && !lock_alone(&dir, key)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the unused directories of a root file system.
    pub(super) fn remove_directories(&self, key: &Digest) -> Result<(), ImageError> {
        for owners in [Owners::AsInImage, Owners::Mine] {
            remove_unused(&self.directory_path(key, owners))?;
        }
        Ok(())
    }

    /// Removes unused directories that are incomplete or unknown to the index. The caller holds the index lock.
    pub(super) fn sweep_directories(&self, index: &Index) -> Result<(), ImageError> {
        let dir = self.dir("dirs");
        for entry in fs::read_dir(&dir).map_err(FileError::at("list", &dir))? {
            let entry = entry.map_err(FileError::at("list", &dir))?;
            let name = entry.file_name();
            let key =
                name.to_str().and_then(|name| name.split_once('-')).map(|(key, _)| Digest::from_hex(key));
            let known = matches!(key, Some(Ok(key)) if index.rootfs(&key).is_some());
            if !known {
                remove_unused(&entry.path())?;
            }
        }
        Ok(())
    }
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

/// Removes a directory unless it is used.
fn remove_unused(path: &Path) -> Result<(), ImageError> {
    let Some(lock) = open_if_there(path)? else { return Ok(()) };
    // It may have got its name and been released since it was opened.
    if lock.try_lock().is_err() || !lock::is_at(&lock, path) {
        return Ok(());
    }
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
    fs::remove_dir_all(&doomed).map_err(FileError::at("remove", &doomed))?;
    Ok(())
}

/// Empties an unpacked directory, which may not exist.
fn clear(content: &Path) -> Result<(), FileError> {
    match clear_unpacked(content) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::at("remove", content)(error)),
        _ => Ok(()),
    }
}
