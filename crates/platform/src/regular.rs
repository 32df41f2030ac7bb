//! Opens the files of a pod. Whoever could write to a pod's directory may have put anything in the place of a file, so nothing here
//! waits, follows a link or accepts anything but a regular file, and every read has a limit. All files of a pod are opened here.

use crate::atomic::FileError;
use nix::libc;
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, BufRead, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// What the caller does with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read a file that must exist.
    Read,
    /// Append to a file, which is created with mode 0600.
    Append,
    /// Read and write a file, which is created with mode 0600.
    Lock,
}

/// What stands in the place of a regular file. It is the source of an [`io::Error`] of kind `InvalidData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is {0}, not a regular file")]
pub struct NotRegular(&'static str);

/// A file that is longer than the caller reads. It is the source of an [`io::Error`] of kind `InvalidData`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is longer than {0} bytes")]
pub struct TooLong(u64);

/// Opens a regular file.
pub fn open(path: &Path, access: Access) -> Result<File, FileError> {
    open_regular(path, access).map_err(FileError::at("open", path))
}

fn open_regular(path: &Path, access: Access) -> io::Result<File> {
    // To open a device can have an effect, so that the type is checked before. It is checked again afterwards, for a file that has been
    // replaced in between.
    match fs::symlink_metadata(path) {
        Ok(there) => regular(there.file_type())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && access != Access::Read => {}
        Err(error) => return Err(error),
    }
    let mut options = OpenOptions::new();
    match access {
        Access::Read => options.read(true),
        Access::Append => options.append(true).create(true),
        Access::Lock => options.read(true).write(true).create(true).truncate(false),
    };
    let file = options
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)?;
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

fn regular(kind: FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, NotRegular(what)))
}

/// Reads a whole regular file of at most `max` bytes.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>, FileError> {
    let file = open(path, Access::Read)?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(FileError::at("read", path))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
        return Err(FileError::at("read", path)(io::Error::new(io::ErrorKind::InvalidData, TooLong(max))));
    }
    Ok(bytes)
}

/// Appends the rest of a line to `line`, up to its newline or the present end of the file. No more than `max` bytes are kept of a line; what
/// is beyond is read and dropped. Returns whether the newline was reached.
pub fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>, max: usize) -> io::Result<bool> {
    loop {
        let available = match reader.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|&byte| byte == b'\n');
        let taken = end.unwrap_or(available.len());
        line.extend_from_slice(&available[..taken.min(max.saturating_sub(line.len()))]);
        let is_over = available.is_empty();
        reader.consume(taken + usize::from(end.is_some()));
        if end.is_some() || is_over {
            return Ok(end.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use std::os::unix::net::UnixListener;

    #[test]
    fn nothing_but_a_regular_file_is_opened_and_nothing_waits() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("directory")).unwrap();
        mkfifo(&at("FIFO"), Mode::S_IRWXU).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("file"), "text").unwrap();
        std::os::unix::fs::symlink(at("file"), at("symbolic link")).unwrap();
        for name in ["directory", "FIFO", "socket", "symbolic link"] {
            for access in [Access::Read, Access::Append, Access::Lock] {
                let error = open(&at(name), access).unwrap_err();
                assert!(error.to_string().contains(name), "{error}");
                assert_eq!(error.source.kind(), io::ErrorKind::InvalidData);
                assert_eq!(error.source.to_string(), format!("it is a {name}, not a regular file"));
            }
        }
        let error = open(Path::new("/dev/zero"), Access::Read).unwrap_err();
        assert_eq!(error.source.to_string(), "it is a device, not a regular file");
        assert_eq!(open(&at("none"), Access::Read).unwrap_err().source.kind(), io::ErrorKind::NotFound);
        open(&at("new"), Access::Append).unwrap();
        assert_eq!(fs::read(at("file")).unwrap(), b"text");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        assert_eq!(read(&path, 3).unwrap_err().source.to_string(), "it is longer than 3 bytes");
    }

    #[test]
    fn a_line_is_kept_up_to_its_limit_and_read_to_its_end() {
        let mut text = &b"first\nmuch longer\nhalf"[..];
        let mut line = Vec::new();
        for (expected, ended) in [("first", true), ("much lo", true), ("half", false), ("half", false)] {
            assert_eq!(read_line(&mut text, &mut line, 7).unwrap(), ended);
            assert_eq!(line, expected.as_bytes());
            if ended {
                line.clear();
            }
        }
    }
}
