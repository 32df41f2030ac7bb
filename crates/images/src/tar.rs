//! Reads tar streams: ustar, PAX and GNU headers, long names, extended attributes and sparse files.
//!
//! Owns the format and its limits: no header makes it hold more than [`MAX_EXTENDED`] bytes, and every number is checked. It accepts what
//! Go's archive/tar accepts, which umoci, containerd, Docker and podman use. Must not know layers.

mod header;
mod pax;
mod sparse;

use super::tree::Timestamp;
use header::Block;
use std::io::{self, BufRead, Read};

/// Most bytes of all extended headers of one entry (PAX records and GNU long names).
pub const MAX_EXTENDED: u64 = 1 << 20;
/// Most extended attributes of one entry.
pub const MAX_XATTRS: usize = 256;
/// Bytes of a header and of the unit of data.
pub(crate) const BLOCK: usize = 512;

/// What is wrong with a tar stream.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream could not be read.
    #[error("cannot read the archive")]
    Io(#[source] io::Error),
    /// It ends within an entry.
    #[error("the archive is truncated")]
    Truncated,
    /// A header's checksum is wrong: not a tar archive, or damaged.
    #[error("a header of the archive has a wrong checksum (not a tar archive, or damaged)")]
    Checksum,
    /// A field of a header cannot be read.
    #[error("a header of the archive has a wrong {field}")]
    Field { field: &'static str },
    /// An owner that no file can have.
    #[error("an entry of the archive has the {field} {id}, which no file can have")]
    Owner { field: &'static str, id: i64 },
    /// Extended headers are too large.
    #[error("the extended headers of an entry are larger than {MAX_EXTENDED} bytes")]
    ExtendedTooLarge,
    /// Too many extended attributes.
    #[error("an entry has more than {MAX_XATTRS} extended attributes")]
    TooManyXattrs,
    /// A PAX record that does not follow its form.
    #[error("an extended header of the archive has a malformed record")]
    PaxRecord,
    /// An extended header without the entry it belongs to.
    #[error("the archive ends with an extended header")]
    Dangling,
    /// A sparse file's map is inconsistent.
    #[error("the map of a sparse file is wrong")]
    SparseMap,
    /// The entry's type does not exist in file systems.
    #[error("the archive has an entry of the unknown type {typeflag:?}")]
    Type { typeflag: char },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// Regular file; its data follows. `None`: all of it; `Some`: only these parts, and the rest is holes.
    File(Option<Vec<Segment>>),
    Directory,
    /// Symbolic link to [`Entry::link`].
    Symlink,
    /// Another name of [`Entry::link`].
    Hardlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// A part of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// From the start of the file, in bytes.
    pub offset: u64,
    pub length: u64,
}

/// The header of one entry with extended headers applied. Only its form is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    /// Link target as written.
    pub link: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid, sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Major and minor device number.
    pub device: (u32, u32),
    /// Extended attributes by full name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    /// Unread stored data of the current entry, and the padding behind it.
    left: u64,
    padding: u64,
    /// Number of bytes read so far.
    position: u64,
}

/// Input that can skip bytes faster than by reading them.
pub trait Skip: BufRead {
    /// Skips `length` bytes; an early end is an error of kind `UnexpectedEof`.
    fn skip(&mut self, mut length: u64) -> io::Result<()> {
        while length > 0 {
            let have = self.fill_buf()?.len();
            if have == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let now = usize::try_from(length).unwrap_or(usize::MAX).min(have);
            self.consume(now);
            length -= now as u64;
        }
        Ok(())
    }
}

impl Skip for &[u8] {}

impl<R: Skip> TarReader<R> {
    /// Starts at the input's current position.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, position: 0 }
    }

    /// The position in the stream of the current entry's data (before any was read).
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The input behind the archive's end.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry, skipping unread data of the current one; `None` at the end.
    #[allow(clippy::should_implement_trait, reason = "an iterator could not lend the data that follows")]
    pub fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = pax::Extended::default();
        let mut dangling = false;
        let mut extended_left = MAX_EXTENDED;
        loop {
            let Some(block) = self.header()? else {
                return if dangling { Err(TarError::Dangling) } else { Ok(None) };
            };
            let size = block.size()?;
            match block.typeflag() {
                b'x' => {
                    extended.read(&self.extended(size, &mut extended_left)?)?;
                    dangling = true;
                }
                // Global records (usually a comment) are ignored, as in Docker and containerd.
                b'g' => drop(self.extended(size, &mut extended_left)?),
                b'L' => {
                    extended.long_name =
                        Some(header::until_nul(&self.extended(size, &mut extended_left)?).to_vec());
                    dangling = true;
                }
                b'K' => {
                    extended.long_link =
                        Some(header::until_nul(&self.extended(size, &mut extended_left)?).to_vec());
                    dangling = true;
                }
                _ => return self.entry(&block, size, extended).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &Block, size: u64, extended: pax::Extended) -> Result<Entry, TarError> {
        let path = extended.path(block);
        let stored = extended.size.unwrap_or(size);
        let kind = match block.typeflag() {
            // Before POSIX, a name that ends in a slash marked a directory.
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | b'7' | 0 | b'S' => EntryKind::File(None),
            b'1' => EntryKind::Hardlink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarError::Type { typeflag: other.into() }),
        };
        // Only files have data; the size of other types may be meaningless.
        self.left = if matches!(kind, EntryKind::File(_)) { stored } else { 0 };
        self.padding = self.left.next_multiple_of(BLOCK as u64) - self.left;
        let (kind, size) = match kind {
            EntryKind::File(_) => {
                let (map, size) = self.sparse(block, &extended)?;
                (EntryKind::File(map), size)
            }
            kind => (kind, 0),
        };
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => block.device()?,
            _ => (0, 0),
        };
        Ok(Entry {
            path,
            link: extended.link(block),
            kind,
            mode: block.mode()?,
            uid: extended.uid.map_or_else(|| block.uid(), Ok)?,
            gid: extended.gid.map_or_else(|| block.gid(), Ok)?,
            mtime: extended.mtime.map_or_else(|| block.mtime(), Ok)?,
            size,
            device,
            xattrs: extended.xattrs,
        })
    }

    /// Determines the map of a sparse file, and the size of every file.
    fn sparse(
        &mut self,
        block: &Block,
        extended: &pax::Extended,
    ) -> Result<(Option<Vec<Segment>>, u64), TarError> {
        let (map, size) = if block.typeflag() == b'S' {
            let mut map = block.sparse_map()?;
            let mut more = block.sparse_extended();
            while more {
                more = sparse::read_gnu(&self.block()?.ok_or(TarError::Truncated)?, &mut map)?;
            }
            (map, block.sparse_size()?)
        } else if let Some(size) = extended.sparse_size {
            let map = match &extended.sparse_map {
                Some(map) => map.clone(),
                None => sparse::read_pax_1(self)?,
            };
            (map, size)
        } else {
            return Ok((None, self.left));
        };
        sparse::check(&map, size, self.left)?;
        Ok((Some(map), size))
    }

    /// The next header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Block>, TarError> {
        let (left, padding) = (std::mem::take(&mut self.left), std::mem::take(&mut self.padding));
        self.input.skip(left).map_err(truncated)?;
        match self.input.skip(padding) {
            // Layers of `umoci insert` end directly behind their last byte.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            done => done.map_err(truncated)?,
        }
        self.position += left + padding;
        let Some(block) = self.block()? else { return Ok(None) };
        if block.is_zero() {
            // Two blocks of zeros mark the end; one suffices when nothing follows.
            return match self.block()? {
                Some(second) if !second.is_zero() => Err(TarError::Checksum),
                _ => Ok(None),
            };
        }
        block.check_sum()?;
        Ok(Some(block))
    }

    /// The next 512 bytes; `None` when the stream ends here.
    fn block(&mut self) -> Result<Option<Block>, TarError> {
        let mut bytes = [0; BLOCK];
        if self.input.fill_buf().map_err(TarError::Io)?.is_empty() {
            return Ok(None);
        }
        self.input.read_exact(&mut bytes).map_err(truncated)?;
        self.position += BLOCK as u64;
        Ok(Some(Block::new(bytes)))
    }

    fn extended(&mut self, size: u64, allowed: &mut u64) -> Result<Vec<u8>, TarError> {
        *allowed = allowed.checked_sub(size).ok_or(TarError::ExtendedTooLarge)?;
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(size).read_to_end(&mut bytes).map_err(truncated)?;
        if (read as u64) < size {
            return Err(TarError::Truncated);
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.input.skip(padding).map_err(truncated)?;
        self.position += size + padding;
        Ok(bytes)
    }

    /// A block of the current entry's data.
    fn data_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        self.left = self.left.checked_sub(BLOCK as u64).ok_or(TarError::SparseMap)?;
        Ok(*self.block()?.ok_or(TarError::Truncated)?.bytes())
    }

    /// The next part of the current entry's stored data without copying; empty at its end. Consume it with [`TarReader::consume`].
    pub fn data(&mut self) -> Result<&[u8], TarError> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let have = self.input.fill_buf().map_err(TarError::Io)?;
        if have.is_empty() {
            return Err(TarError::Truncated);
        }
        Ok(&have[..have.len().min(left)])
    }

    /// Consumes bytes that [`TarReader::data`] returned.
    pub fn consume(&mut self, length: usize) {
        let length = length.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.input.consume(length);
        self.left -= length as u64;
        self.position += length as u64;
    }
}

/// Whether an archive may begin with these bytes: a header with its checksum, or its end.
pub(crate) fn is_header(start: &[u8]) -> bool {
    let block = start.get(..BLOCK).and_then(|block| block.try_into().ok()).map(Block::new);
    block.is_some_and(|block| block.is_zero() || block.check_sum().is_ok())
}

fn truncated(error: io::Error) -> TarError {
    if error.kind() == io::ErrorKind::UnexpectedEof { TarError::Truncated } else { TarError::Io(error) }
}

#[cfg(test)]
mod tests;
