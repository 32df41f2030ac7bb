//! The bytes of EROFS: superblock, extended inodes, directory blocks and inline extended attributes.
//! Source: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux. Everything is little endian.

use super::super::digest::Digest;
use super::super::tree::{Attributes, Device, Xattr};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// The same as a length in memory.
pub const BLOCK_LEN: usize = 4096;
/// Where the superblock is in block 0.
pub const SUPER_OFFSET: usize = 1024;
/// Bytes of an extended inode.
pub const INODE_LEN: usize = 64;
/// Inodes are addressed in units of this many bytes.
pub const SLOT: u64 = 32;
/// Bytes of a directory entry without its name.
pub const DIRENT_LEN: usize = 12;

const MAGIC: u32 = 0xE0F5_E1E2;
const COMPAT_SB_CHKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
const XATTR_HEADER_LEN: usize = 12;

/// How an inode's data is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// All of it in blocks.
    Plain,
    /// Whole blocks first, the rest right behind the inode.
    Inline,
}

/// The types of files, with their numbers in directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Character device.
    Char = 3,
    /// Block device.
    Block = 4,
    /// Named pipe.
    Fifo = 5,
    /// Symbolic link.
    Symlink = 7,
}

impl FileType {
    fn mode_bits(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::Char => 0o020_000,
            Self::Directory => 0o040_000,
            Self::Block => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// What the superblock says.
#[derive(Debug, Clone, Copy)]
pub struct Super {
    /// Blocks of the whole image.
    pub blocks: u32,
    /// Block where inode numbers count from.
    pub meta_block: u32,
    /// The root's inode number.
    pub root_nid: u16,
    /// Number of inodes.
    pub inodes: u64,
    /// Identifies the image.
    pub uuid: [u8; 16],
}

/// Block 0 with the superblock in it and its checksum.
pub fn super_block(sb: &Super) -> [u8; BLOCK_LEN] {
    let mut block = [0; BLOCK_LEN];
    {
        let mut put = |offset: usize, bytes: &[u8]| {
            let start = SUPER_OFFSET + offset;
            block[start..start + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &MAGIC.to_le_bytes());
        put(8, &(COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        put(12, &[12]); // block size as a power of two
        put(14, &sb.root_nid.to_le_bytes());
        put(16, &sb.inodes.to_le_bytes());
        put(36, &sb.blocks.to_le_bytes());
        put(40, &sb.meta_block.to_le_bytes());
        put(48, &sb.uuid);
    }
    let checksum = crc32c(&block[SUPER_OFFSET..]);
    block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    block
}

/// CRC-32C as the kernel's `crc32c(~0, …)`: without the final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

/// A UUID (version 8, RFC 9562: made from content) out of a digest.
pub fn uuid(digest: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// One inode's own fields.
#[derive(Debug, Clone, Copy)]
pub struct Inode {
    /// Type.
    pub file_type: FileType,
    /// Plain or with a tail behind it.
    pub layout: Layout,
    /// Bytes of data.
    pub size: u64,
    /// First data block, or the encoded device number.
    pub block_or_device: u32,
    /// A number for 32-bit `stat`.
    pub ino: u32,
    /// Names of this inode.
    pub nlink: u32,
}

/// Appends an extended inode and its inline extended attributes.
pub fn put_inode(out: &mut Vec<u8>, inode: &Inode, attributes: &Attributes) {
    let layout: u16 = match inode.layout {
        Layout::Plain => 0,
        Layout::Inline => 2,
    };
    let xattr_len = xattrs_len(&attributes.xattrs);
    // The counter is one for the header and one for each four bytes behind it; Attributes keeps it in range.
    let counter = xattr_len.checked_sub(XATTR_HEADER_LEN).map_or(0, |rest| rest / 4 + 1);
    let counter = u16::try_from(counter).unwrap_or(u16::MAX);
    out.extend((layout << 1 | 1).to_le_bytes());
    out.extend(counter.to_le_bytes());
    out.extend((inode.file_type.mode_bits() | attributes.mode & 0o7777).to_le_bytes());
    out.extend([0; 2]);
    out.extend(inode.size.to_le_bytes());
    out.extend(inode.block_or_device.to_le_bytes());
    out.extend(inode.ino.to_le_bytes());
    out.extend(attributes.uid.to_le_bytes());
    out.extend(attributes.gid.to_le_bytes());
    out.extend(attributes.mtime.seconds.to_le_bytes());
    out.extend(attributes.mtime.nanoseconds.to_le_bytes());
    out.extend(inode.nlink.to_le_bytes());
    out.extend([0; 16]);
    put_xattrs(out, &attributes.xattrs);
}

/// Bytes of an inode with these attributes, without its tail.
pub fn inode_len(xattrs: &[Xattr]) -> usize {
    INODE_LEN + xattrs_len(xattrs)
}

fn xattrs_len(xattrs: &[Xattr]) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    XATTR_HEADER_LEN + xattrs.iter().map(|xattr| xattr_len(xattr).next_multiple_of(4)).sum::<usize>()
}

fn xattr_len(xattr: &Xattr) -> usize {
    4 + xattr.suffix().len() + xattr.value().len()
}

fn put_xattrs(out: &mut Vec<u8>, xattrs: &[Xattr]) {
    if xattrs.is_empty() {
        return;
    }
    out.extend([0; XATTR_HEADER_LEN]);
    for xattr in xattrs {
        // Both lengths are checked when a Xattr is made.
        out.push(u8::try_from(xattr.suffix().len()).unwrap_or(u8::MAX));
        out.push(xattr.prefix_index());
        out.extend(u16::try_from(xattr.value().len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(xattr.suffix());
        out.extend(xattr.value());
        let len = xattr_len(xattr);
        out.extend(std::iter::repeat_n(0, len.next_multiple_of(4) - len));
    }
}

/// A device number as the kernel's `new_encode_dev` writes it.
pub fn encode_device(device: Device) -> u32 {
    device.minor() & 0xff | device.major() << 8 | (device.minor() & !0xff) << 12
}

/// One name of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Dirent<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Inode number.
    pub nid: u64,
    /// Type.
    pub file_type: FileType,
}

/// How many of `names`, in order, fit in one directory block, and the bytes they take. At least one fits.
pub fn block_fill<'a>(names: impl Iterator<Item = &'a [u8]>) -> (usize, usize) {
    let (mut count, mut used) = (0, 0);
    for name in names {
        let need = DIRENT_LEN + name.len();
        if used + need > BLOCK_LEN {
            break;
        }
        count += 1;
        used += need;
    }
    (count, used)
}

/// Appends one directory block with these entries, which [`block_fill`] said fit. Not padded.
pub fn put_dir_block(out: &mut Vec<u8>, entries: &[Dirent<'_>]) {
    let mut name_offset = DIRENT_LEN * entries.len();
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        // Below 4096 because the block was filled by block_fill.
        out.extend(u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
        out.extend([entry.file_type as u8, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        out.extend(entry.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc32c_is_the_castagnoli_one() {
        // The check value of CRC-32C ("123456789") is 0xE3069283 after the final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn devices_are_encoded_as_the_kernel_does() {
        assert_eq!(encode_device(Device::new(1, 3).unwrap()), 0x103);
        assert_eq!(encode_device(Device::new(0xabc, 0x12345).unwrap()), 0x45 | 0xabc << 8 | 0x123 << 20);
    }

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let uuid = uuid(&Digest::of(b"x"));
        assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2));
    }

    proptest! {
        #[test]
        fn an_inode_is_as_long_as_said(xattrs in proptest::collection::vec(("[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..300)), 0..5)) {
            let mut attributes = Attributes::plain(0o644);
            for (name, value) in xattrs {
                attributes.add_xattr(format!("user.{name}").as_bytes(), &value).unwrap();
            }
            let mut bytes = Vec::new();
            let inode = Inode { file_type: FileType::Regular, layout: Layout::Plain, size: 0, block_or_device: 0, ino: 1, nlink: 1 };
            put_inode(&mut bytes, &inode, &attributes);
            prop_assert_eq!(bytes.len(), inode_len(&attributes.xattrs));
        }

        #[test]
        fn a_filled_block_never_overflows(names in proptest::collection::vec(proptest::collection::vec(1u8.., 1..=255), 1..400)) {
            let (count, used) = block_fill(names.iter().map(Vec::as_slice));
            prop_assert!(count >= 1 && used <= BLOCK_LEN);
            let entries: Vec<_> = names[..count].iter().map(|name| Dirent { name, nid: 1, file_type: FileType::Regular }).collect();
            let mut out = Vec::new();
            put_dir_block(&mut out, &entries);
            prop_assert_eq!(out.len(), used);
        }
    }
}
