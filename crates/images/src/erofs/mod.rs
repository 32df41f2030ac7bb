//! EROFS: writes read-only file system images that Linux 5.15 and newer mount.
//!
//! Owns the bytes of the format (`format`), the file data while it streams in (`data`, `compress`, `extents`, `output`), the conversion of
//! a finished [`Tree`] into inodes and directories (`layout`), and a reader that trusts no image ([`read`]). Must not know tar, OCI or
//! where images are kept.
//!
//! An image consists of blocks of 4096 bytes: the superblock, the data of files in the order they arrived, blocks of big directories, and
//! all inodes with their extended attributes, small directories, symlink targets and file tails inline. The same tree and the same order
//! of files give the same bytes: neither a clock nor a random number is used.

#[cfg(any(test, fuzzing))]
pub(super) mod compare;
mod compress;
mod data;
mod extents;
pub(super) mod file;
pub mod format;
mod layout;
mod output;
pub mod read;
mod sum;

pub use data::{DataArea, FileSlot};
pub use file::FileData;
pub use layout::finish;
pub use output::zero_by_writing;

use super::digest::{Digest, Hasher};
use super::tree::{Attributes, Content, Directory, EntryPath, Tree, TreeError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Seek, Write};

/// Why an EROFS image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The image would be larger than its limit.
    #[error(
        "the file system would be larger than {limit} bytes ({})",
        magikvm_proto::raised::remedy("rootfs-mib")
    )]
    TooLarge { limit: u64 },
    /// A path or file that the format cannot hold.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Two files have the same path.
    #[error("{path:?} is already a directory or another file")]
    Conflict { path: String },
    /// A file's data differs from its announced size.
    #[error("a file announced with {announced} bytes got {written}")]
    Length { announced: u64, written: u64 },
    /// The output or the scratch file failed.
    #[error("cannot {action}")]
    Io {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The compression of an image's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootfsCompression {
    /// None: a VM maps them fastest, and any kernel with EROFS reads them.
    #[default]
    None,
    /// With lz4, in chunks of 64 KiB, where that saves blocks. Linux 5.15 with `CONFIG_EROFS_FS_ZIP` reads them.
    Lz4,
}

/// The name is not a [`RootfsCompression`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not a compression of root file systems (use \"none\" or \"lz4\")")]
pub struct UnknownCompression {
    pub found: String,
}

impl std::fmt::Display for RootfsCompression {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
        })
    }
}

impl std::str::FromStr for RootfsCompression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Self, UnknownCompression> {
        [Self::None, Self::Lz4]
            .into_iter()
            .find(|compression| compression.to_string() == name)
            .ok_or_else(|| UnknownCompression { found: super::digest::shorten(name) })
    }
}

impl ErofsError {
    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// Largest image [`write_small`] makes, in bytes: a pod's plan, container configurations, configMaps and secrets.
pub const MAX_SMALL: u64 = 64 << 20;

/// An entry of a small image.
#[derive(Debug, Clone)]
pub enum SmallFile {
    /// A regular file of root.
    File { mode: u16, gid: u32, content: Vec<u8> },
    /// A directory of root with mode 0755, for one that may stay empty.
    Directory,
}

/// Writes an EROFS image of a few files held in memory: directories 0755, files 0644, all owned by root, mtime 0. Missing directories are
/// created; the last of two files with one path counts. Returns the image's size in bytes, a multiple of 4096. The same files in any order
/// give the same bytes.
pub fn write_small(
    files: impl IntoIterator<Item = (String, Vec<u8>)>,
    out: &mut (impl Write + Seek),
) -> Result<u64, ErofsError> {
    let plain = |(path, content)| (path, SmallFile::File { mode: 0o644, gid: 0, content });
    write_small_tree(files.into_iter().map(plain), out)
}

/// Like [`write_small`], with permissions, groups and empty directories.
pub fn write_small_tree(
    files: impl IntoIterator<Item = (String, SmallFile)>,
    out: &mut (impl Write + Seek),
) -> Result<u64, ErofsError> {
    let files: BTreeMap<String, SmallFile> = files.into_iter().collect();
    let mut tree = Tree::new();
    let mut hash = Hasher::default();
    let mut data = DataArea::in_memory(out, MAX_SMALL, RootfsCompression::None);
    for (path, file) in &files {
        let (attributes, bytes) = match file {
            SmallFile::File { mode, gid, content } => {
                (Attributes { gid: *gid, ..Attributes::plain(*mode) }, Some(content))
            }
            SmallFile::Directory => (Attributes::plain(0o755), None),
        };
        let content = bytes.map(Vec::as_slice).unwrap_or_default();
        for part in [path.as_bytes(), &attributes.mode.to_le_bytes(), &attributes.gid.to_le_bytes(), content]
        {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let place = tree.locate(&EntryPath::parse(path.as_bytes())?)?;
        if tree.get(&place).is_some() {
            return Err(ErofsError::Conflict { path: path.clone() });
        }
        // A directory precedes its content.
        let content = match bytes {
            Some(bytes) => {
                let mut slot = data.begin(bytes.len() as u64, format::inode_len(&attributes.xattrs))?;
                data.write(&mut slot, bytes)?;
                Content::File(data.end(slot)?)
            }
            None => Content::Directory(Directory::default()),
        };
        tree.insert(&place, attributes, content)?;
    }
    let digest: Digest = hash.finish();
    finish(&mut data, &tree, format::uuid(&digest))
}

#[cfg(test)]
mod tests;
