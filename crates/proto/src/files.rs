//! Files and directories as a stream, for `cp`: what one end has read, the other end writes.
//!
//! The stream is one tree: its root is a file or a directory, and every other item has the name of one place in the directory around it, so
//! that no name can lead anywhere else. Numbers are big-endian.
//!
//! | item | content |
//! |---|---|
//! | `d` | name, mode, time: a directory, whose items follow up to `u` |
//! | `f` | name, mode, time, size: a file, whose pieces follow: a length of four bytes and the bytes; length 0 ends it, `ffffffff` breaks it off |
//! | `l` | name, target: a symbolic link |
//! | `u` | the end of a directory |
//! | `p` | message: something that was left out |
//! | `e` | the end |
//!
//! Names, targets and messages have a length of two bytes before them. A mode is four bytes, of which the permissions count; a time eight,
//! in seconds since 1970.
//!
//! Owns: the format ([`ItemReader`], [`ItemWriter`]). Must not know: how items are read from a file system or written to it.

use crate::text::cut;
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

/// Bytes of a name.
pub const MAX_NAME: usize = 255;
/// Bytes of a link's target.
pub const MAX_TARGET: usize = 4096;
/// Bytes of a message.
pub const MAX_PROBLEM: usize = 1024;
/// Bytes of a piece of a file.
pub const MAX_PIECE: usize = 64 << 10;
/// Directories within directories.
pub const MAX_DEPTH: usize = 100;
/// Bytes of a path of a [`FileTask`].
pub const MAX_PATH: usize = 4096;
/// A length that says that the rest of a file could not be read.
const BROKEN: u32 = u32::MAX;
/// The permissions of a mode.
pub const PERMISSIONS: u32 = 0o777;

/// What an exec does instead of running a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileTask {
    /// Writes the file or directory at this path to its standard output as a stream.
    Read { path: String },
    /// Makes the file or directory that its standard input has as a stream.
    Write {
        /// If it is a directory, the root of the stream is made in it; otherwise it is the root's new name.
        path: String,
        /// The content of the root belongs into the directory at the path.
        contents: bool,
    },
}

impl FileTask {
    /// The path within the container.
    pub fn path(&self) -> &str {
        match self {
            Self::Read { path } | Self::Write { path, .. } => path,
        }
    }
}

/// One item of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Directory(Entry),
    /// [`ItemReader::piece`] gives its content.
    File {
        entry: Entry,
        size: u64,
    },
    Link {
        name: Vec<u8>,
        target: Vec<u8>,
    },
    /// The directory around ends.
    Up,
    Problem(String),
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Not empty, no `.` and `..`, without slashes.
    pub name: Vec<u8>,
    /// The permissions only.
    pub mode: u32,
    /// Seconds since 1970.
    pub modified: i64,
}

/// Why a stream ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("the connection has ended in the middle of the copy")]
    Io(#[source] io::Error),
    /// Nothing but a hostile or broken peer sends this.
    #[error("the other end has sent {0}")]
    Violation(&'static str),
    #[error("cannot read {path}")]
    Unreadable {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Unwritable {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{0} is neither a file nor a directory")]
    Kind(String),
    /// Messages about what could not be copied, a line each; the rest is copied.
    #[error("{0}")]
    Partial(String),
}

/// Whether a name means one place in the directory around it.
fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Reads the items of a stream. It checks names, lengths and the depth.
#[derive(Debug)]
pub struct ItemReader<R> {
    from: R,
    depth: usize,
}

impl<R: Read> ItemReader<R> {
    pub fn new(from: R) -> Self {
        Self { from, depth: 0 }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FilesError> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes).map_err(FilesError::Io)?;
        Ok(bytes)
    }

    fn text(&mut self, max: usize) -> Result<Vec<u8>, FilesError> {
        let length = usize::from(u16::from_be_bytes(self.bytes()?));
        if length > max {
            return Err(FilesError::Violation("a text that is too long"));
        }
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes).map_err(FilesError::Io)?;
        Ok(bytes)
    }

    fn name(&mut self) -> Result<Vec<u8>, FilesError> {
        let name = self.text(MAX_NAME)?;
        if is_name(&name) { Ok(name) } else { Err(FilesError::Violation("a name that leads elsewhere")) }
    }

    fn entry(&mut self) -> Result<Entry, FilesError> {
        Ok(Entry {
            name: self.name()?,
            mode: u32::from_be_bytes(self.bytes()?) & PERMISSIONS,
            modified: i64::from_be_bytes(self.bytes()?),
        })
    }

    /// The next item. The pieces of a file have to be read before.
    pub fn item(&mut self) -> Result<Item, FilesError> {
        let [kind] = self.bytes()?;
        Ok(match kind {
            b'd' => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(FilesError::Violation("directories that are nested too deeply"));
                }
                Item::Directory(self.entry()?)
            }
            b'f' => Item::File { entry: self.entry()?, size: u64::from_be_bytes(self.bytes()?) },
            b'l' => Item::Link { name: self.name()?, target: self.text(MAX_TARGET)? },
            b'u' => {
                self.depth =
                    self.depth.checked_sub(1).ok_or(FilesError::Violation("the end of no directory"))?;
                Item::Up
            }
            b'p' => Item::Problem(String::from_utf8_lossy(&self.text(MAX_PROBLEM)?).into_owned()),
            b'e' if self.depth > 0 => return Err(FilesError::Violation("an end within a directory")),
            b'e' => Item::End,
            _ => return Err(FilesError::Violation("an unknown item")),
        })
    }

    /// The next piece of a file, at most [`MAX_PIECE`] bytes, into `buffer`. `Ok(false)` at its end; an error of the kind
    /// [`FilesError::Unreadable`] if the other end could not read on, after which the stream goes on.
    pub fn piece(&mut self, buffer: &mut Vec<u8>) -> Result<bool, FilesError> {
        buffer.clear();
        let length = u32::from_be_bytes(self.bytes()?);
        if length == BROKEN {
            let source = io::Error::from(ErrorKind::UnexpectedEof);
            return Err(FilesError::Unreadable { path: "the rest of a file".to_owned(), source });
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_PIECE {
            return Err(FilesError::Violation("a piece that is too long"));
        }
        buffer.resize(length, 0);
        self.from.read_exact(buffer).map_err(FilesError::Io)?;
        Ok(length > 0)
    }
}

/// Writes the items of a stream.
#[derive(Debug)]
pub struct ItemWriter<W> {
    to: W,
}

impl<W: Write> ItemWriter<W> {
    pub fn new(to: W) -> Self {
        Self { to }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        self.to.write_all(bytes).map_err(FilesError::Io)
    }

    fn text(&mut self, text: &[u8]) -> Result<(), FilesError> {
        let length =
            u16::try_from(text.len()).map_err(|_| FilesError::Violation("a text that is too long"))?;
        self.put(&length.to_be_bytes())?;
        self.put(text)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), FilesError> {
        self.text(&entry.name)?;
        self.put(&(entry.mode & PERMISSIONS).to_be_bytes())?;
        self.put(&entry.modified.to_be_bytes())
    }

    pub fn item(&mut self, item: &Item) -> Result<(), FilesError> {
        match item {
            Item::Directory(entry) => {
                self.put(b"d")?;
                self.entry(entry)
            }
            Item::File { entry, size } => {
                self.put(b"f")?;
                self.entry(entry)?;
                self.put(&size.to_be_bytes())
            }
            Item::Link { name, target } => {
                self.put(b"l")?;
                self.text(name)?;
                self.text(target)
            }
            Item::Up => self.put(b"u"),
            Item::Problem(message) => {
                self.put(b"p")?;
                self.text(cut(message, MAX_PROBLEM).as_bytes())
            }
            Item::End => {
                self.put(b"e")?;
                self.to.flush().map_err(FilesError::Io)
            }
        }
    }

    /// A piece of a file; an empty one ends it.
    pub fn piece(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        let length =
            u32::try_from(bytes.len()).map_err(|_| FilesError::Violation("a piece that is too long"))?;
        self.put(&length.to_be_bytes())?;
        self.put(bytes)
    }

    /// The rest of a file cannot be read.
    pub fn broken(&mut self) -> Result<(), FilesError> {
        self.put(&BROKEN.to_be_bytes())
    }
}

/// The name of what is at the end of a path, for the root of a stream.
pub fn root_name(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("root"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str) -> Entry {
        Entry { name: name.into(), mode: 0o640, modified: 1_700_000_000 }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let items = [
            Item::Directory(entry("dir")),
            Item::Link { name: b"link".to_vec(), target: b"../x".to_vec() },
            Item::Problem("a: left out".to_owned()),
            Item::Up,
            Item::End,
        ];
        let mut writer = ItemWriter::new(Vec::new());
        writer.item(&Item::File { entry: entry("file"), size: 3 }).unwrap();
        writer.piece(b"abc").unwrap();
        writer.piece(b"").unwrap();
        items.iter().for_each(|item| writer.item(item).unwrap());
        let mut reader = ItemReader::new(writer.to.as_slice());
        assert_eq!(reader.item().unwrap(), Item::File { entry: entry("file"), size: 3 });
        let mut piece = Vec::new();
        assert!(reader.piece(&mut piece).unwrap() && piece == b"abc");
        assert!(!reader.piece(&mut piece).unwrap());
        for item in &items {
            assert_eq!(reader.item().unwrap(), *item);
        }
    }

    #[test]
    fn no_name_leads_elsewhere_and_no_length_is_believed() {
        for name in ["", ".", "..", "a/b", "/etc", "a\0b", "../../x"] {
            let mut writer = ItemWriter::new(Vec::new());
            writer.item(&Item::Directory(entry(name))).unwrap();
            let read = ItemReader::new(writer.to.as_slice()).item();
            assert!(matches!(read, Err(FilesError::Violation(_))), "{name:?}");
        }
        for bytes in [&b"d\xff\xff"[..], b"u", b"x", b"p\x04\x01"] {
            assert!(matches!(ItemReader::new(bytes).item(), Err(FilesError::Violation(_))), "{bytes:?}");
        }
        let mut deep = Vec::new();
        for _ in 0..=MAX_DEPTH {
            deep.extend(b"d\0\x01a\0\0\0\0\0\0\0\0\0\0\0\0");
        }
        let mut reader = ItemReader::new(deep.as_slice());
        assert!((0..MAX_DEPTH).all(|_| reader.item().is_ok()) && reader.item().is_err());
        assert!(matches!(
            ItemReader::new(&[0, 1, 0, 1][..]).piece(&mut Vec::new()),
            Err(FilesError::Violation(_))
        ));
        assert!(matches!(
            ItemReader::new(&[255; 4][..]).piece(&mut Vec::new()),
            Err(FilesError::Unreadable { .. })
        ));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = ItemReader::new(bytes.as_slice());
            while let Ok(item) = reader.item() {
                if let Item::File { .. } = item {
                    let mut piece = Vec::new();
                    while let Ok(true) = reader.piece(&mut piece) {}
                }
            }
        }
    }
}
