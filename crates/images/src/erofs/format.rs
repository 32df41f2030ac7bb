//! The bytes of EROFS: superblock, extended inodes, directory blocks and inline extended attributes.
//! Source: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux. Everything is little endian.

use super::super::digest::Digest;
use super::super::tree::{Attributes, Device, Xattr};
use super::RootfsCompression;
use super::file::{Piece, PieceForm};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// The same as a length in memory.
pub const BLOCK_LEN: usize = 4096;
/// Blocks of a file that are compressed together. More blocks compress better, but all of them must be decompressed for any byte.
pub(super) const CHUNK_BLOCKS: u16 = 16;
/// The same in bytes.
pub(super) const CHUNK_LEN: usize = CHUNK_BLOCKS as usize * BLOCK_LEN;
/// Offset of the superblock in block 0.
pub const SUPER_OFFSET: usize = 1024;
/// Bytes of an extended inode.
pub const INODE_LEN: usize = 64;
/// Inodes are addressed in units of this many bytes.
pub const SLOT: u64 = 32;
/// Bytes of a directory entry without its name.
pub const DIRENT_LEN: usize = 12;

pub(super) const MAGIC: u32 = 0xE0F5_E1E2;
pub(super) const COMPAT_SB_CHKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
/// ZERO_PADDING (lz4 data ends where its last block ends), and COMPR_CFGS with BIG_PCLUSTER, which share a bit.
pub(super) const INCOMPAT_LZ4: u32 = 1 | 2;
/// The set of algorithms that contains only lz4.
pub(super) const ALGORITHM_LZ4: u16 = 1;
pub(super) const XATTR_HEADER_LEN: usize = 12;
const SUPER_LEN: usize = 128;

/// `h_advise`: compressed pieces may have more than one block (BIG_PCLUSTER_1).
pub(super) const ADVISE_BIG: u16 = 2;
/// Bytes between an inode with its attributes (rounded up to 8) and the index of its compressed data.
pub(super) const MAP_HEADER_LEN: u64 = 16;
/// Bytes of the index for each block of data.
pub(super) const INDEX_LEN: u64 = 8;
/// Types of index entries: an uncompressed block, the first of a compressed piece, another one of a compressed piece.
pub(super) const INDEX_PLAIN: u16 = 0;
pub(super) const INDEX_HEAD: u16 = 1;
pub(super) const INDEX_REST: u16 = 2;
/// Set in the second entry of a compressed piece: the number of its blocks follows instead of the distance to the first.
pub(super) const INDEX_BLOCKS: u16 = 1 << 11;

/// The layout of an inode's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// All data in blocks.
    Plain,
    /// Whole blocks first, and the rest directly behind the inode.
    Inline,
    /// Pieces, compressed or not, found through an index behind the inode.
    Packed,
}

impl Layout {
    /// The version (extended) and layout bits of an inode.
    pub(super) fn bits(self) -> u16 {
        let layout = match self {
            Self::Plain => 0,
            Self::Packed => 1,
            Self::Inline => 2,
        };
        layout << 1 | 1
    }
}

/// The types of files, with their numbers in directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    Regular = 1,
    Directory = 2,
    Char = 3,
    Block = 4,
    Fifo = 5,
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

#[derive(Debug, Clone, Copy)]
pub struct Super {
    /// Blocks of the whole image.
    pub blocks: u32,
    /// Block from which inode numbers count.
    pub meta_block: u32,
    pub root_nid: u16,
    pub inodes: u64,
    pub uuid: [u8; 16],
    /// Features that a reader needs.
    pub compression: RootfsCompression,
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
        if sb.compression == RootfsCompression::Lz4 {
            put(80, &INCOMPAT_LZ4.to_le_bytes());
            put(84, &ALGORITHM_LZ4.to_le_bytes());
            // The configuration of lz4 behind the superblock: its length, the longest distance of a match (0: any),
            // and the most blocks of a piece.
            put(SUPER_LEN, &14u16.to_le_bytes());
            put(SUPER_LEN + 4, &CHUNK_BLOCKS.to_le_bytes());
        }
    }
    put_checksum(&mut block);
    block
}

/// Sets the checksum of block 0.
pub(in super::super) fn put_checksum(block: &mut [u8; BLOCK_LEN]) {
    let checksum = checksum(block);
    block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// The checksum of block 0, whatever its checksum field holds.
pub(super) fn checksum(block: &[u8; BLOCK_LEN]) -> u32 {
    let (before, behind) = block[SUPER_OFFSET..].split_at(4);
    [before, &[0; 4], &behind[4..]].iter().fold(!0, |crc, part| crc32c(crc, part))
}

/// CRC-32C as the kernel's `crc32c(crc, …)`: without the final inversion.
fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    })
}

/// A UUID (version 8, RFC 9562: derived from content) of a digest.
pub fn uuid(digest: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest.bytes()[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The fields of one inode.
#[derive(Debug, Clone, Copy)]
pub struct Inode {
    pub file_type: FileType,
    /// Plain or with a tail behind it.
    pub layout: Layout,
    /// Bytes of data.
    pub size: u64,
    /// First data block, the number of blocks of packed data, or the encoded device number.
    pub block_or_device: u32,
    /// A number for 32-bit `stat`.
    pub ino: u32,
    /// Number of names of this inode.
    pub nlink: u32,
}

/// Appends an extended inode and its inline extended attributes.
pub fn put_inode(out: &mut Vec<u8>, inode: &Inode, attributes: &Attributes) {
    let xattr_len = xattrs_len(&attributes.xattrs);
    // The counter is one for the header plus one for each four bytes behind it; Attributes keeps it in range.
    let counter = xattr_len.checked_sub(XATTR_HEADER_LEN).map_or(0, |rest| rest / 4 + 1);
    let counter = u16::try_from(counter).unwrap_or(u16::MAX);
    out.extend(inode.layout.bits().to_le_bytes());
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
        // Xattr's constructor checks both lengths.
        out.push(u8::try_from(xattr.suffix().len()).unwrap_or(u8::MAX));
        out.push(xattr.prefix_index());
        out.extend(u16::try_from(xattr.value().len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(xattr.suffix());
        out.extend(xattr.value());
        let len = xattr_len(xattr);
        out.extend(std::iter::repeat_n(0, len.next_multiple_of(4) - len));
    }
}

/// Bytes that packed data of `size` bytes takes behind an inode of `head` bytes: its index and the padding before it.
pub(super) fn index_len(head: u64, size: u64) -> u64 {
    head.next_multiple_of(8) - head + MAP_HEADER_LEN + INDEX_LEN * size.div_ceil(BLOCK)
}

/// Appends the index of packed data behind its inode, whose end is at a multiple of 4.
pub(super) fn put_index(out: &mut Vec<u8>, head: u64, size: u64, pieces: &[Piece]) {
    out.extend(std::iter::repeat_n(0, usize::from(!head.is_multiple_of(8)) * 4));
    // No fragments and no inline data; lz4 for both kinds of heads; entries stand for blocks of 4096 bytes.
    out.extend([0; 4]);
    out.extend(ADVISE_BIG.to_le_bytes());
    out.extend([0; 10]);
    let mut left = size;
    for piece in pieces {
        let length = left.min(CHUNK_LEN as u64);
        left -= length;
        match piece.form {
            PieceForm::Raw => {
                for block in 0..u32::from(piece.blocks) {
                    put_entry(out, INDEX_PLAIN, 0, (piece.block + block).to_le_bytes());
                }
            }
            PieceForm::Lz4 => put_packed_piece(out, piece, length),
        }
    }
}

fn put_packed_piece(out: &mut Vec<u8>, piece: &Piece, length: u64) {
    // A piece has at most CHUNK_BLOCKS blocks.
    let whole = u16::try_from(length / BLOCK).unwrap_or(u16::MAX);
    put_entry(out, INDEX_HEAD, 0, piece.block.to_le_bytes());
    for number in 1..whole {
        let back = if number == 1 { INDEX_BLOCKS | u16::from(piece.blocks) } else { number };
        let [[a, b], [c, d]] = [back.to_le_bytes(), (whole - number).to_le_bytes()];
        put_entry(out, INDEX_REST, 0, [a, b, c, d]);
    }
    // The file ends within a block: an empty piece begins there.
    if let Some(rest) = u16::try_from(length % BLOCK).ok().filter(|rest| *rest > 0) {
        put_entry(out, INDEX_PLAIN, rest, [0; 4]);
    }
}

fn put_entry(out: &mut Vec<u8>, kind: u16, offset: u16, what: [u8; 4]) {
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out.extend(what);
}

/// A device number as the kernel's `new_encode_dev` writes it.
pub fn encode_device(device: Device) -> u32 {
    device.minor() & 0xff | device.major() << 8 | (device.minor() & !0xff) << 12
}

/// One name of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Dirent<'a> {
    pub name: &'a [u8],
    pub nid: u64,
    pub file_type: FileType,
}

/// How many of `names`, in order, fit in one directory block, and their bytes. At least one fits.
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

/// Appends one directory block with these entries, which fit according to [`block_fill`]. Not padded.
pub fn put_dir_block(out: &mut Vec<u8>, entries: &[Dirent<'_>]) {
    let mut name_offset = DIRENT_LEN * entries.len();
    for entry in entries {
        out.extend(entry.nid.to_le_bytes());
        // Below 4096 because block_fill filled the block.
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
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283);
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
