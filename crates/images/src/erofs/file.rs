//! Where the bytes of a file are in an image. Knows nothing of how they got there, nor of trees and inodes.

use super::sum::Sum;

/// Where a file's bytes are.
#[derive(Debug, PartialEq, Eq)]
pub struct FileData {
    /// Bytes of the file.
    pub size: u64,
    pub(super) place: Blocks,
    pub(super) sum: Sum,
}

/// Which blocks a file has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Blocks {
    /// Blocks in a row.
    Row {
        /// The first one; meaningless when there is none.
        block: u32,
        /// Offset of the tail in the scratch file, for files whose tail goes behind the inode.
        tail: Option<u64>,
    },
    /// Pieces: chunks of `format::CHUNK_LEN` bytes, the last one shorter.
    Pieces(Box<[Piece]>),
}

/// How a piece is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceForm {
    /// As it is; zeros fill its last block.
    Raw,
    /// Compressed, in fewer blocks; zeros before it fill its first block.
    Lz4,
}

/// Where a piece of a file is: a chunk, or what is left at the file's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) block: u32,
    pub(super) blocks: u8,
    pub(super) form: PieceForm,
}

impl Piece {
    pub(super) fn end(&self) -> u32 {
        self.block + u32::from(self.blocks)
    }
}
