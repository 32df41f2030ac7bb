//! The only writer of files in the product: a file is either the old one or the complete new one, even after a crash.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::SpooledTempFile;

/// A failed file operation and its path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// The attempted action as a verb: "write", "create directory"…
    pub action: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: adds the action and the path to an I/O error.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// Whether an operation failed because the disk, or the user's part of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Prefix of the names of incomplete files. [`sweep`] removes those whose writer is gone.
const PREFIX: &str = ".tmp-";

/// A new file that does not exist under its name until [`Staged::commit`]. It leaves nothing behind if it is dropped before. It is locked
/// while it is written, so that [`sweep`] leaves it alone.
#[derive(Debug)]
pub struct Staged {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Creates a file beside `path`, on the same file system. Its mode (0600 masked) is set at commit.
    pub fn new(path: &Path) -> Result<Self, FileError> {
        let parent = parent(path);
        loop {
            let file = tempfile::Builder::new()
                .prefix(PREFIX)
                .tempfile_in(parent)
                .map_err(FileError::at("create a temporary file in", parent))?;
            // A sweep may have taken the file for a leftover between its creation and the lock; then try again.
            let locked = file.as_file().try_lock().is_ok();
            let links = file.as_file().metadata().map_err(FileError::at("inspect", file.path()))?.nlink();
            if locked && links > 0 {
                return Ok(Self { file, path: path.to_owned() });
            }
        }
    }

    /// The open file, for reading and writing.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// The path of the file until it is committed.
    pub fn temporary_path(&self) -> &Path {
        self.file.path()
    }

    /// Sets the mode of the file, syncs it, renames it over its target and syncs the directory.
    pub fn commit(self, mode: u32) -> Result<(), FileError> {
        let path = self.path.clone();
        self.commit_as(&path, mode)
    }

    /// Like [`Staged::commit`], with another name in the same directory: for files that are named after their content.
    pub fn commit_as(self, path: &Path, mode: u32) -> Result<(), FileError> {
        let file = self.file.as_file();
        file.set_permissions(Permissions::from_mode(mode)).map_err(FileError::at("set the mode of", path))?;
        file.sync_all().map_err(FileError::at("sync", path))?;
        self.file.persist(path).map_err(|error| FileError::at("rename", path)(error.error))?;
        sync_parent(path)
    }
}

/// Scratch space without a name in a directory; it vanishes with the process. Up to `in_memory` bytes stay in memory.
pub fn scratch(dir: &Path, in_memory: usize) -> SpooledTempFile {
    tempfile::spooled_tempfile_in(in_memory, dir)
}

/// Removes the incomplete files of dead processes from a directory and returns their number. Files of live writers are locked and stay.
pub fn sweep(dir: &Path) -> Result<usize, FileError> {
    let mut removed = 0;
    for entry in fs::read_dir(dir).map_err(FileError::at("list", dir))? {
        let entry = entry.map_err(FileError::at("list", dir))?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        let path = entry.path();
        // Gone or busy in the meantime: not ours to remove.
        let Ok(file) = open_without_waiting(&path) else { continue };
        if file.try_lock().is_ok() {
            remove(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Opens a file or directory for reading. Something else in its place, such as a FIFO without a writer, does not hang the caller.
fn open_without_waiting(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY).open(path)
}

/// Opens a file or directory for reading, without waiting; `None` when it does not exist. What it is remains to be checked.
pub fn open_if_there(path: &Path) -> Result<Option<File>, FileError> {
    match open_without_waiting(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::at("open", path)(error)),
    }
}

/// Removes a file, which may be gone already.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::at("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The directory of a path. A bare file name is in the current directory.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename, creation or removal in the directory of `path` survive a crash.
pub fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = parent(path);
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(FileError::at("sync", parent))
}

/// Replaces the file at `path` by `bytes`, atomically and durably.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut staged = Staged::new(path)?;
    staged.file().write_all(bytes).map_err(FileError::at("write", path))?;
    staged.commit(mode)
}

/// Creates a directory and its parents with this mode. An existing directory is left unchanged.
pub fn create_dir_all(path: &Path, mode: u32) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(FileError::at("create directory", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write(&path, b"old", 0o600).unwrap();
        write(&path, b"new", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_staged_file_that_is_not_committed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut staged = Staged::new(&dir.path().join("big")).unwrap();
        staged.file().write_all(b"half").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_sweep_takes_what_is_left_over_and_nothing_that_is_being_written() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".tmp-dead"), "half").unwrap();
        fs::write(dir.path().join("whole"), "whole").unwrap();
        let mut living = Staged::new(&dir.path().join("living")).unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 1);
        living.file().write_all(b"done").unwrap();
        living.commit(0o600).unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 0);
        assert_eq!(fs::read(dir.path().join("living")).unwrap(), b"done");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_bare_name_is_in_the_current_directory() {
        let parents = ["file", "dir/file", "/file"].map(|path| parent(Path::new(path)).display().to_string());
        assert_eq!(parents, [".", "dir", "/"]);
    }

    #[test]
    fn an_error_names_the_path() {
        let error = write(Path::new("/nonexistent-dir/file"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-dir"), "{error}");
    }
}
