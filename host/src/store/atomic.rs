//! The only writer of files in the product: a file is either the old one or the whole new one, also after a crash.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A file operation that failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried, as a verb: "write", "create directory"…
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: adds the action and path to an I/O error.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// A new file that does not exist under its name until [`Staged::commit`]. Dropped without it, nothing is left.
#[derive(Debug)]
pub struct Staged {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Starts a new file beside `path`, on the same file system. Its mode (0600 masked) is set at commit.
    pub fn new(path: &Path) -> Result<Self, FileError> {
        let parent = path.parent().unwrap_or(Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".tmp-")
            .tempfile_in(parent)
            .map_err(FileError::at("create a temporary file in", parent))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// The open file, for reading and writing.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Where the file is until it is committed.
    pub fn temporary_path(&self) -> &Path {
        self.file.path()
    }

    /// Gives the file its mode, syncs it, renames it over its name and syncs the directory.
    pub fn commit(self, mode: u32) -> Result<(), FileError> {
        let path = self.path;
        let file = self.file.as_file();
        file.set_permissions(Permissions::from_mode(mode))
            .map_err(FileError::at("set the mode of", &path))?;
        file.sync_all().map_err(FileError::at("sync", &path))?;
        self.file.persist(&path).map_err(|error| FileError::at("rename", &path)(error.error))?;
        sync_parent(&path)
    }
}

/// Makes a rename, creation or removal in the directory of `path` survive a crash.
pub fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(FileError::at("sync", parent))
}

/// Replaces the file at `path` by `bytes`, atomically and durably.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut staged = Staged::new(path)?;
    staged.file().write_all(bytes).map_err(FileError::at("write", path))?;
    staged.commit(mode)
}

/// Makes a directory and its parents, the new ones with this mode. An existing one is left as it is.
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
    fn an_error_names_the_path() {
        let error = write(Path::new("/nonexistent-dir/file"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-dir"), "{error}");
    }
}
