//! EROFS: writes read-only file system images that Linux 5.15 and newer mount.
//!
//! Owns the bytes of the format (`format`), where file data goes while it streams in (`data`, `extents`) and how a
//! finished [`Tree`] becomes inodes and directories (`layout`). Must not know tar, OCI or where images are kept.
//!
//! An image is, in blocks of 4096 bytes: the superblock, the data of files in the order they came, blocks of big
//! directories, and all inodes with their extended attributes, small directories, symlink targets and file tails inline.
//! The same tree and the same order of files give the same bytes: no clock and no random number goes in.

mod data;
mod extents;
pub mod format;
mod layout;

pub use data::{DataArea, FileData, FileSlot, zero_by_writing};
pub use layout::finish;

use super::digest::{Digest, Hasher};
use super::tree::{Attributes, Content, EntryPath, Tree, TreeError};
use std::collections::BTreeMap;
use std::io::{self, Seek, Write};

/// Why an EROFS image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The image would be larger than its limit.
    #[error("the file system would be larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A path or file that cannot be in the image.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Two files want the same place.
    #[error("{path:?} is already a directory or another file")]
    Conflict {
        /// The second one.
        path: String,
    },
    /// A file got another number of bytes than announced.
    #[error("a file announced with {announced} bytes got {written}")]
    Length {
        /// Bytes announced.
        announced: u64,
        /// Bytes given.
        written: u64,
    },
    /// The output or the scratch file failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ErofsError {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// Largest image [`write_small`] makes, in bytes: a pod's plan, container configurations, configMaps and secrets.
pub const MAX_SMALL: u64 = 64 << 20;

/// Writes an EROFS image of a few files held in memory: directories 0755, files 0644, all owned by root, mtime 0.
/// Missing directories are made; of two files with one path the last one counts. Returns the image's size in bytes,
/// a multiple of 4096. The same files in any order give the same bytes.
pub fn write_small(
    files: impl IntoIterator<Item = (String, Vec<u8>)>,
    out: &mut (impl Write + Seek),
) -> Result<u64, ErofsError> {
    let files: BTreeMap<String, Vec<u8>> = files.into_iter().collect();
    let mut tree = Tree::new();
    let mut content = Hasher::default();
    let mut data = DataArea::in_memory(out, MAX_SMALL);
    for (path, bytes) in &files {
        for part in [path.as_bytes(), bytes] {
            content.update(&(part.len() as u64).to_le_bytes());
            content.update(part);
        }
        let place = tree.locate(&EntryPath::parse(path.as_bytes())?)?;
        if tree.get(&place).is_some() {
            return Err(ErofsError::Conflict { path: path.clone() });
        }
        let attributes = Attributes::plain(0o644);
        let mut slot = data.begin(bytes.len() as u64, format::inode_len(&attributes.xattrs))?;
        data.write(&mut slot, bytes)?;
        let file = data.end(slot)?;
        tree.insert(&place, attributes, Content::File(file))?;
    }
    let digest: Digest = content.finish();
    finish(&mut data, &tree, format::uuid(&digest))
}

#[cfg(test)]
mod tests;
