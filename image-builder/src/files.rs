//! File operations whose errors name the path, with a cap on every file that is read whole.

use magikvm_proto::guest_image::{GuestFile, Sha256Hex};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file operation that failed, and its path.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The attempted action, as a verb: "read", "create directory"…
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file is longer than allowed for its kind.
    #[error("{} is longer than the limit of {max} bytes", path.display())]
    TooLong {
        path: PathBuf,
        /// Most bytes allowed.
        max: u64,
    },
}

impl FileError {
    /// For `map_err`: adds the action and path to an I/O error.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether the path does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a whole file of at most `max` bytes.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(FileError::at("open", path))?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(FileError::at("read", path))?;
    if bytes.len() as u64 > max {
        return Err(FileError::TooLong { path: path.to_owned(), max });
    }
    Ok(bytes)
}

/// Writes a new file (or overwrites an old one), sets its mode regardless of the umask, and syncs it.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(path).map_err(FileError::at("create", path))?;
    file.write_all(bytes).map_err(FileError::at("write", path))?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .map_err(FileError::at("set the mode of", path))?;
    file.sync_all().map_err(FileError::at("sync", path))
}

/// Makes changes to the names in a directory survive a crash.
pub fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(FileError::at("sync", path))
}

/// Digest and length of some bytes.
pub fn part_of(bytes: &[u8]) -> GuestFile {
    GuestFile { sha256: sha256(bytes), size: bytes.len() as u64 }
}

/// Digest of some bytes.
pub fn sha256(bytes: &[u8]) -> Sha256Hex {
    Sha256Hex::from_bytes(Sha256::digest(bytes).into())
}

/// Digest of a file of any length.
pub fn sha256_file(path: &Path) -> Result<Sha256Hex, FileError> {
    let mut file = File::open(path).map_err(FileError::at("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(FileError::at("read", path))? {
            0 => return Ok(Sha256Hex::from_bytes(hasher.finalize().into())),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_the_cap_is_refused_and_one_at_the_cap_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write(&path, b"12345", 0o644).unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(FileError::TooLong { max: 4, .. })));
        assert!(read(&dir.path().join("none"), 4).unwrap_err().is_not_found());
    }

    #[test]
    fn digests_of_bytes_and_of_a_file_agree_with_the_standard() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        write(&path, b"abc", 0o600).unwrap();
        assert_eq!(sha256(b"abc").as_str(), abc);
        assert_eq!(sha256_file(&path).unwrap().as_str(), abc);
    }
}
