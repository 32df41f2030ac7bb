//! The positions of a file's data in an image. Must not know how the data got there, nor trees and inodes.

use super::sum::Sum;

/// The positions of a file's data.
#[derive(Debug, PartialEq, Eq)]
pub struct FileData {
    pub size: u64,
    pub(super) place: Blocks,
    pub(super) sum: Sum,
}

/// The blocks of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Blocks {
    /// Consecutive blocks.
    Row {
        /// The first block; meaningless when there is none.
        block: u32,
        /// Offset of the tail in the scratch file, for files whose tail follows the inode.
        tail: Option<u64>,
    },
    /// Pieces: chunks of `format::CHUNK_LEN` bytes, the last one shorter.
    Pieces(Box<[Piece]>),
}

/// The form of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PieceForm {
    /// Uncompressed; zeros fill its last block.
    Raw,
    /// Compressed in fewer blocks; leading zeros fill its first block.
    Lz4,
}

/// The position of a piece of a file: a chunk, or the rest at the file's end.
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
