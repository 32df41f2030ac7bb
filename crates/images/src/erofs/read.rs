//! Reads back what the writer writes and trusts none of it: the file may be damaged or forged.
//!
//! Owns the checks of the format: every offset, count and length is checked before use, memory use does not grow with the image, and no
//! image makes it loop for ever. Other EROFS images (other block sizes, compact inodes, shared attributes, other chunk formats) are
//! refused. `walk` traverses the tree, `data` reads file data.

mod data;
mod dir;
mod walk;

pub use data::Sink;
pub use walk::{Summary, Visitor, check, walk};

use super::super::tree::{Device, MAX_TARGET_LEN, Timestamp};
use super::format::{self, BLOCK, BLOCK_LEN, INODE_LEN, Layout, SLOT, SUPER_OFFSET};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read the file system image")]
    Io(#[from] io::Error),
    #[error("it is not an EROFS file system image")]
    NotErofs,
    #[error("the superblock of the file system image is damaged (its checksum is wrong)")]
    Checksum,
    /// This reader does not know this kind of EROFS.
    #[error("the file system image has an unknown {what}")]
    Unsupported { what: &'static str },
    /// The superblock contradicts the file or itself.
    #[error("the superblock of the file system image is wrong: {problem}")]
    Super { problem: &'static str },
    /// An inode, or the data that belongs to it.
    #[error("the file system image is damaged: inode {nid}: {problem}")]
    Inode { nid: u32, problem: &'static str },
    /// Parts of the image are shared so often that reading all of it would not end.
    #[error("the file system image holds too many {what}")]
    TooMuch { what: &'static str },
}

/// A sized input that can be read at any position.
pub trait ReadAt {
    /// Its size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills the buffer from an offset.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).ok().and_then(|start| self.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InodeKind {
    Directory,
    Regular,
    Symlink,
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// An inode. Names with the same inode number are the same file.
#[derive(Debug, Clone, Copy)]
pub struct Inode {
    pub nid: u32,
    pub kind: InodeKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Time of the last change.
    pub mtime: Timestamp,
    /// Size of the data in bytes.
    pub size: u64,
    /// Number of names; for directories two plus one for each subdirectory.
    pub nlink: u32,
    layout: Layout,
    /// First data block, for plain and inline data.
    block: u32,
    /// Offset and length of its extended attributes in the image.
    xattrs_at: u64,
    xattrs_len: u32,
}

impl Inode {
    fn damaged(&self, problem: &'static str) -> ReadError {
        ReadError::Inode { nid: self.nid, problem }
    }

    /// The end of the inode with its attributes in the image.
    fn end(&self) -> u64 {
        self.xattrs_at + u64::from(self.xattrs_len)
    }
}

/// An extended attribute: its full name and its value.
pub type NamedXattr = (Vec<u8>, Vec<u8>);

#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    blocks: u32,
    meta_start: u64,
    root: u32,
    inodes: u64,
    uuid: [u8; 16],
}

impl<S: ReadAt> Reader<S> {
    pub fn open(source: S) -> Result<Self, ReadError> {
        let size = source.size()?;
        if size < BLOCK {
            return Err(ReadError::NotErofs);
        }
        let mut block = [0; BLOCK_LEN];
        source.read_exact_at(&mut block, 0)?;
        let sb = &block[SUPER_OFFSET..];
        if u32_at(sb, 0) != format::MAGIC {
            return Err(ReadError::NotErofs);
        }
        let unsupported = |what| Err(ReadError::Unsupported { what });
        // The incompatible features come first, since they may change the rest of the format.
        if !matches!(u32_at(sb, 80), 0 | format::INCOMPAT_LZ4) {
            return unsupported("feature");
        }
        if sb[12] != 12 || sb[13] != 0 {
            return unsupported("block or superblock size");
        }
        if u32_at(sb, 8) & format::COMPAT_SB_CHKSUM == 0 || format::checksum(&block) != u32_at(sb, 4) {
            return Err(ReadError::Checksum);
        }
        if u32_at(sb, 80) == format::INCOMPAT_LZ4 && u16_at(sb, 84) != format::ALGORITHM_LZ4 {
            return unsupported("compression");
        }
        let (blocks, meta_block) = (u32_at(sb, 36), u32_at(sb, 40));
        if u64::from(blocks) * BLOCK != size {
            return Err(ReadError::Super { problem: "the file has another size" });
        }
        if meta_block >= blocks {
            return Err(ReadError::Super { problem: "its inodes are outside of the file" });
        }
        Ok(Self {
            source,
            blocks,
            meta_start: u64::from(meta_block) * BLOCK,
            root: u16_at(sb, 14).into(),
            inodes: u64_at(sb, 16),
            uuid: array_at(sb, 48),
        })
    }

    /// The inode number of the root.
    pub fn root(&self) -> u32 {
        self.root
    }

    /// The number of inodes according to the superblock.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// The identity of the image. The writer derives it from a digest of the image's content.
    pub fn uuid(&self) -> &[u8; 16] {
        &self.uuid
    }

    fn size(&self) -> u64 {
        u64::from(self.blocks) * BLOCK
    }

    /// An inode by its number.
    pub fn inode(&self, nid: u32) -> Result<Inode, ReadError> {
        let damaged = |problem| ReadError::Inode { nid, problem };
        let at = self.meta_start + u64::from(nid) * SLOT;
        if at + INODE_LEN as u64 > self.size() {
            return Err(damaged("it is outside of the file"));
        }
        let mut bytes = [0; INODE_LEN];
        self.source.read_exact_at(&mut bytes, at)?;
        let layout = match u16_at(&bytes, 0) {
            1 => Layout::Plain,
            3 => Layout::Packed,
            5 => Layout::Inline,
            _ => return Err(damaged("its form is unknown")),
        };
        let mode = u16_at(&bytes, 4);
        let block_or_device = u32_at(&bytes, 16);
        let xattrs_len = match u16_at(&bytes, 2) {
            0 => 0,
            // The header counts as one.
            count => 12 + 4 * (u32::from(count) - 1),
        };
        let mtime = Timestamp::new(i64_at(&bytes, 32), u32_at(&bytes, 40))
            .map_err(|_| damaged("its time is impossible"))?;
        let inode = Inode {
            nid,
            kind: kind(mode, block_or_device).ok_or_else(|| damaged("its type is unknown"))?,
            mode: mode & 0o7777,
            uid: u32_at(&bytes, 24),
            gid: u32_at(&bytes, 28),
            mtime,
            size: u64_at(&bytes, 8),
            nlink: u32_at(&bytes, 44),
            layout,
            block: block_or_device,
            xattrs_at: at + INODE_LEN as u64,
            xattrs_len,
        };
        self.check_inode(&inode)?;
        Ok(inode)
    }

    /// Checks that all data of the inode lies within the image.
    fn check_inode(&self, inode: &Inode) -> Result<(), ReadError> {
        if inode.end() > self.size() {
            return Err(inode.damaged("its extended attributes are outside of the file"));
        }
        match inode.kind {
            InodeKind::CharDevice(_) | InodeKind::BlockDevice(_) | InodeKind::Fifo => {
                return if inode.size == 0 { Ok(()) } else { Err(inode.damaged("it has data")) };
            }
            InodeKind::Symlink if inode.size == 0 || inode.size > MAX_TARGET_LEN as u64 => {
                return Err(inode.damaged("the length of its target is impossible"));
            }
            InodeKind::Symlink | InodeKind::Directory if inode.layout == Layout::Packed => {
                return Err(inode.damaged("it is compressed but not a file"));
            }
            _ => {}
        }
        let tail = inode.size % BLOCK;
        let whole = match inode.layout {
            Layout::Plain => inode.size.div_ceil(BLOCK),
            Layout::Inline if inode.end() % BLOCK + tail > BLOCK || inode.end() + tail > self.size() => {
                return Err(inode.damaged("its data does not end in its block"));
            }
            Layout::Inline => inode.size / BLOCK,
            Layout::Packed => return self.check_packed(inode),
        };
        let fits = u64::from(inode.block).checked_add(whole).is_some_and(|end| end <= self.blocks.into());
        if whole > 0 && (inode.block == 0 || !fits) {
            return Err(inode.damaged("its data is outside of the file"));
        }
        Ok(())
    }

    /// Checks that a run of data blocks lies behind the superblock and within the image.
    fn check_blocks(&self, inode: &Inode, block: u32, blocks: u32) -> Result<(), ReadError> {
        match block.checked_add(blocks) {
            Some(end) if block > 0 && end <= self.blocks => Ok(()),
            _ => Err(inode.damaged("its data is outside of the file")),
        }
    }

    /// The target of a symbolic link.
    pub fn target(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        if inode.kind != InodeKind::Symlink {
            return Err(inode.damaged("it is not a symbolic link"));
        }
        // check_inode has capped the length.
        let mut target = vec![0; usize::try_from(inode.size).unwrap_or(0)];
        self.read_flat(inode, 0, &mut target)?;
        if target.contains(&0) {
            return Err(inode.damaged("its target contains NUL"));
        }
        Ok(target)
    }

    /// The extended attributes: full names and values, in the image's order.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<NamedXattr>, ReadError> {
        let mut found = Vec::new();
        if inode.xattrs_len == 0 {
            return Ok(found);
        }
        // The count has 16 bits, so this is at most a quarter of a megabyte.
        let mut bytes = vec![0; inode.xattrs_len as usize];
        self.source.read_exact_at(&mut bytes, inode.xattrs_at)?;
        let short = || inode.damaged("an extended attribute is cut off");
        let (header, mut rest) = bytes.split_at_checked(format::XATTR_HEADER_LEN).ok_or_else(short)?;
        if header[4] != 0 {
            return Err(ReadError::Unsupported { what: "kind of extended attributes" });
        }
        while !rest.is_empty() {
            let (head, behind) = rest.split_at_checked(4).ok_or_else(short)?;
            let (name_len, value_len) = (usize::from(head[0]), usize::from(u16_at(head, 2)));
            let (suffix, behind) = behind.split_at_checked(name_len).ok_or_else(short)?;
            let (value, _) = behind.split_at_checked(value_len).ok_or_else(short)?;
            let prefix = crate::tree::xattr_prefix(head[1])
                .ok_or_else(|| inode.damaged("an extended attribute's namespace is unknown"))?;
            let name = [prefix, suffix].concat();
            if name.contains(&0) {
                return Err(inode.damaged("an extended attribute's name contains NUL"));
            }
            found.push((name, value.to_vec()));
            rest = rest.get((4 + name_len + value_len).next_multiple_of(4)..).ok_or_else(short)?;
        }
        Ok(found)
    }

    /// Reads bytes of a plain or inline inode's data. The caller has checked the range against the size.
    fn read_flat(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let whole = match inode.layout {
            Layout::Inline => inode.size / BLOCK * BLOCK,
            _ => inode.size,
        };
        let in_blocks = whole.saturating_sub(offset).min(buffer.len() as u64);
        // At most the length of a slice.
        let (blocks, tail) = buffer.split_at_mut(usize::try_from(in_blocks).unwrap_or(0));
        if !blocks.is_empty() {
            self.source.read_exact_at(blocks, u64::from(inode.block) * BLOCK + offset)?;
        }
        if !tail.is_empty() {
            self.source.read_exact_at(tail, inode.end() + (offset + in_blocks - whole))?;
        }
        Ok(())
    }
}

fn kind(mode: u16, device: u32) -> Option<InodeKind> {
    // As the kernel's new_decode_dev; both parts are in range by their masks.
    let device = || Device::new((device & 0xfff00) >> 8, device & 0xff | (device >> 12) & 0xfff00).ok();
    Some(match mode & 0o170_000 {
        0o040_000 => InodeKind::Directory,
        0o100_000 => InodeKind::Regular,
        0o120_000 => InodeKind::Symlink,
        0o020_000 => InodeKind::CharDevice(device()?),
        0o060_000 => InodeKind::BlockDevice(device()?),
        0o010_000 => InodeKind::Fifo,
        _ => return None,
    })
}

/// Callers pass offsets within arrays or slices of known length; zero where there is nothing.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests;
