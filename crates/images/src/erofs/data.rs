//! Writes file data into the image: whole blocks go straight to the output, or through lz4 in chunks; the rest of an uncompressed file
//! (its tail) waits in a scratch file until the inodes are written. Memory use does not grow with the data, except for eight bytes for
//! each compressed chunk.

use super::compress::{Packer, raw_blocks};
use super::extents::{Extents, Past};
use super::file::{Blocks, FileData, Piece, PieceForm};
use super::format::{BLOCK, BLOCK_LEN, CHUNK_LEN};
use super::output::{Output, Zero, zero_by_writing};
use super::sum::Sum;
use super::{ErofsError, RootfsCompression};
use std::io::{Read, Seek, SeekFrom, Write};
use tempfile::SpooledTempFile;

#[derive(Debug)]
pub struct FileSlot {
    size: u64,
    written: u64,
    form: Form,
    sum: Sum,
}

/// The state of a file being written.
#[derive(Debug)]
enum Form {
    Row(Row),
    /// Bytes of an incomplete chunk, and the pieces written so far.
    Chunks {
        inode_len: usize,
        chunk: Vec<u8>,
        pieces: Vec<Piece>,
    },
}

#[derive(Debug, Clone, Copy)]
struct Row {
    block: u32,
    tail: Option<u64>,
    past: Past,
}

fn blocks_of(size: u64, tail: Option<u64>) -> u32 {
    let blocks = if tail.is_some() { size / BLOCK } else { size.div_ceil(BLOCK) };
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// The data part of an image being written. Files are written one after another.
#[derive(Debug)]
pub struct DataArea<W> {
    output: Output<W>,
    extents: Extents,
    /// `None`: files are not compressed.
    packer: Option<Packer>,
    tails: SpooledTempFile,
    tails_end: u64,
    /// Bytes of all files in the image.
    content: u64,
    limit: u64,
}

impl<W: Write + Seek> DataArea<W> {
    /// An image of at most `limit` bytes, with at most as many bytes of files, written to `out` from its start. Tails wait in `tails`;
    /// `zero` clears gaps.
    pub fn new(
        out: W,
        limit: u64,
        compression: RootfsCompression,
        tails: SpooledTempFile,
        zero: Zero<W>,
    ) -> Self {
        let blocks = u32::try_from(limit / BLOCK).unwrap_or(u32::MAX);
        let packer = match compression {
            RootfsCompression::None => None,
            RootfsCompression::Lz4 => Some(Packer::new()),
        };
        Self {
            output: Output::new(out, zero),
            extents: Extents::new(blocks),
            packer,
            tails,
            tails_end: 0,
            content: 0,
            limit,
        }
    }

    /// Like `new`, with tails in memory.
    pub fn in_memory(out: W, limit: u64, compression: RootfsCompression) -> Self {
        Self::new(out, limit, compression, SpooledTempFile::new(usize::MAX), zero_by_writing)
    }

    /// Largest size of the whole image, in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The error of an image that exceeds its limit.
    pub(super) fn too_large(&self) -> ErofsError {
        ErofsError::TooLarge { limit: self.limit }
    }

    /// Starts a file of `size` bytes whose inode and attributes take `inode_len` bytes.
    pub fn begin(&mut self, size: u64, inode_len: usize) -> Result<FileSlot, ErofsError> {
        self.begin_sparse(size, 0, inode_len)
    }

    /// Starts a file with `holes` bytes that will be skipped. A file that is mostly holes is not compressed, because compression would
    /// cost time and blocks that holes do not.
    pub fn begin_sparse(&mut self, size: u64, holes: u64, inode_len: usize) -> Result<FileSlot, ErofsError> {
        let content = self.content.checked_add(size).filter(|content| *content <= self.limit);
        self.content = content.ok_or_else(|| self.too_large())?;
        // A single block cannot become fewer.
        let form = if self.packer.is_some() && size > BLOCK && holes <= size / 2 {
            let capacity = usize::try_from(size).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
            Form::Chunks { inode_len, chunk: Vec::with_capacity(capacity), pieces: Vec::new() }
        } else {
            Form::Row(self.row(size, inode_len)?)
        };
        Ok(FileSlot { size, written: 0, form, sum: Sum::default() })
    }

    fn row(&mut self, size: u64, inode_len: usize) -> Result<Row, ErofsError> {
        let tail_len = size % BLOCK;
        // A tail must share a block with its inode.
        let inline = tail_len != 0 && inode_len as u64 + tail_len <= BLOCK;
        let tail = inline.then_some(self.tails_end);
        if inline {
            self.tails_end += tail_len;
            if self.tails_end > self.limit {
                return Err(self.too_large());
            }
        }
        let (block, past) = self.extents.take(blocks_of(size, tail)).ok_or_else(|| self.too_large())?;
        Ok(Row { block, tail, past })
    }

    /// The next bytes of the file.
    pub fn write(&mut self, slot: &mut FileSlot, bytes: &[u8]) -> Result<(), ErofsError> {
        let length = bytes.len() as u64;
        if slot.size - slot.written < length {
            return Err(ErofsError::Length { announced: slot.size, written: slot.written + length });
        }
        slot.sum.add(slot.written, bytes);
        match &mut slot.form {
            Form::Row(row) => self.write_row(*row, slot.size, slot.written, bytes)?,
            Form::Chunks { chunk, pieces, .. } => self.write_chunks(chunk, pieces, bytes)?,
        }
        slot.written += length;
        Ok(())
    }

    /// Writes bytes of consecutive blocks at an offset of the file.
    fn write_row(&mut self, row: Row, size: u64, at: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        let in_blocks = u64::from(blocks_of(size, row.tail)) * BLOCK;
        let to_blocks = in_blocks.saturating_sub(at).min(bytes.len() as u64);
        // `to_blocks` is at most the length of a slice.
        let (blocks, tail) = bytes.split_at(usize::try_from(to_blocks).unwrap_or(bytes.len()));
        if !blocks.is_empty() {
            self.output.put(u64::from(row.block) * BLOCK + at, blocks)?;
        }
        if !tail.is_empty() {
            self.tails.write_all(tail).map_err(ErofsError::io("write the scratch file"))?;
        }
        Ok(())
    }

    fn write_chunks(
        &mut self,
        chunk: &mut Vec<u8>,
        pieces: &mut Vec<Piece>,
        mut bytes: &[u8],
    ) -> Result<(), ErofsError> {
        while !bytes.is_empty() {
            if chunk.is_empty()
                && let Some((whole, rest)) = bytes.split_at_checked(CHUNK_LEN)
            {
                self.write_piece(pieces, whole)?;
                bytes = rest;
                continue;
            }
            let (now, rest) = bytes.split_at(bytes.len().min(CHUNK_LEN - chunk.len()));
            chunk.extend_from_slice(now);
            bytes = rest;
            if chunk.len() == CHUNK_LEN {
                self.write_piece(pieces, chunk)?;
                chunk.clear();
            }
        }
        Ok(())
    }

    fn write_piece(&mut self, pieces: &mut Vec<Piece>, chunk: &[u8]) -> Result<(), ErofsError> {
        if self.write_packed(pieces, chunk)? {
            return Ok(());
        }
        let (block, past) = self.extents.take_behind(pieces, chunk.len()).ok_or_else(|| self.too_large())?;
        let offset = u64::from(block) * BLOCK;
        self.output.put(offset, chunk)?;
        let rest = chunk.len().next_multiple_of(BLOCK_LEN) - chunk.len();
        if rest > 0 && past == Past::Reused {
            self.output.put(offset + chunk.len() as u64, &[0; BLOCK_LEN][..rest])?;
        }
        pieces.push(Piece { block, blocks: raw_blocks(chunk.len()), form: PieceForm::Raw });
        Ok(())
    }

    /// Writes a chunk compressed. False: that would save no block, and nothing was written.
    fn write_packed(&mut self, pieces: &mut Vec<Piece>, chunk: &[u8]) -> Result<bool, ErofsError> {
        let Some(packed) = self.packer.as_mut().and_then(|packer| packer.pack(chunk)) else {
            return Ok(false);
        };
        let taken = self.extents.take_behind(pieces, packed.len());
        // Equals `too_large`, which cannot be called while the packer lends its bytes.
        let (block, _) = taken.ok_or(ErofsError::TooLarge { limit: self.limit })?;
        self.output.put(u64::from(block) * BLOCK, packed)?;
        pieces.push(Piece { block, blocks: raw_blocks(packed.len()), form: PieceForm::Lz4 });
        Ok(true)
    }

    /// Skips `length` bytes that are zeros (a hole of a sparse file). In an uncompressed file this writes nothing where the output can
    /// have holes, since a few bytes of archive may stand for a hole of gigabytes.
    pub fn skip(&mut self, slot: &mut FileSlot, length: u64) -> Result<(), ErofsError> {
        if slot.size - slot.written < length {
            let written = slot.written.saturating_add(length);
            return Err(ErofsError::Length { announced: slot.size, written });
        }
        let mut skipped = 0;
        if let Form::Row(row) = &slot.form {
            let in_blocks = (u64::from(blocks_of(slot.size, row.tail)) * BLOCK).min(slot.size);
            skipped = in_blocks.saturating_sub(slot.written).min(length);
            if skipped > 0 && row.past == Past::Reused {
                self.output.clear(u64::from(row.block) * BLOCK + slot.written, skipped)?;
            }
            slot.written += skipped;
        }
        // The rest is in the tail or in chunks.
        let mut left = length - skipped;
        let zeros = [0; BLOCK_LEN];
        while left > 0 {
            let now = left.min(BLOCK);
            self.write(slot, &zeros[..usize::try_from(now).unwrap_or(BLOCK_LEN)])?;
            left -= now;
        }
        Ok(())
    }

    /// Ends the file, which must have exactly the announced size.
    pub fn end(&mut self, slot: FileSlot) -> Result<FileData, ErofsError> {
        let FileSlot { size, written, form, sum } = slot;
        if written != size {
            return Err(ErofsError::Length { announced: size, written });
        }
        let place = match form {
            Form::Row(row) => self.end_row(row, size)?,
            Form::Chunks { inode_len, chunk, pieces } => self.end_chunks(size, inode_len, &chunk, pieces)?,
        };
        Ok(FileData { size, place, sum })
    }

    fn end_row(&mut self, row: Row, size: u64) -> Result<Blocks, ErofsError> {
        let rest = size % BLOCK;
        if row.tail.is_none() && rest != 0 && row.past == Past::Reused {
            let zeros = vec![0; usize::try_from(BLOCK - rest).unwrap_or(0)];
            self.output.put(u64::from(row.block) * BLOCK + size, &zeros)?;
        }
        Ok(Blocks::Row { block: row.block, tail: row.tail })
    }

    /// A file without any compressed chunk is better stored as an uncompressed file.
    fn end_chunks(
        &mut self,
        size: u64,
        inode_len: usize,
        chunk: &[u8],
        mut pieces: Vec<Piece>,
    ) -> Result<Blocks, ErofsError> {
        if pieces.is_empty() {
            if !self.write_packed(&mut pieces, chunk)? {
                let row = self.row(size, inode_len)?;
                self.write_row(row, size, 0, chunk)?;
                return self.end_row(row, size);
            }
        } else if !chunk.is_empty() {
            self.write_piece(&mut pieces, chunk)?;
        }
        let raw = pieces.iter().all(|piece| piece.form == PieceForm::Raw);
        let in_a_row = pieces.windows(2).all(|pair| matches!(pair, [a, b] if a.end() == b.block));
        Ok(match pieces.first() {
            Some(first) if raw && in_a_row => Blocks::Row { block: first.block, tail: None },
            _ => Blocks::Pieces(pieces.into()),
        })
    }

    /// Releases a file that is not in the image any more, so that its blocks can be reused.
    pub fn release(&mut self, file: &FileData) {
        self.content -= file.size;
        match &file.place {
            Blocks::Row { block, tail } => self.extents.give(*block, blocks_of(file.size, *tail)),
            Blocks::Pieces(pieces) => {
                for piece in pieces {
                    self.extents.give(piece.block, piece.blocks.into());
                }
            }
        }
    }

    /// First block behind all data.
    pub(super) fn end_block(&self) -> u32 {
        self.extents.end()
    }

    /// Writes bytes at an offset of the output.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        self.output.put(offset, bytes)
    }

    /// Clears blocks that hold data of replaced files, up to the block where other data will be written.
    pub(super) fn clear_gaps(&mut self) -> Result<(), ErofsError> {
        let end = self.extents.end();
        let behind = self.extents.highest().saturating_sub(end);
        for (start, blocks) in self.extents.gaps().chain((behind > 0).then_some((end, behind))) {
            self.output.clear(u64::from(start) * BLOCK, u64::from(blocks) * BLOCK)?;
        }
        Ok(())
    }

    /// Appends the tail of a file to `out`.
    pub(super) fn read_tail(&mut self, file: &FileData, out: &mut Vec<u8>) -> Result<(), ErofsError> {
        let Blocks::Row { tail: Some(offset), .. } = file.place else { return Ok(()) };
        let length = usize::try_from(file.size % BLOCK).unwrap_or(0);
        let start = out.len();
        out.resize(start + length, 0);
        self.tails
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.tails.read_exact(&mut out[start..]))
            .map_err(ErofsError::io("read the scratch file"))
    }

    /// Writes all gathered bytes.
    pub(super) fn complete(&mut self) -> Result<(), ErofsError> {
        self.output.complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn a_file_with_other_than_its_announced_bytes_is_an_error() {
        let mut area = DataArea::in_memory(Cursor::new(Vec::new()), 1 << 20, RootfsCompression::None);
        let mut slot = area.begin(3, 64).unwrap();
        assert!(matches!(area.write(&mut slot, b"four"), Err(ErofsError::Length { .. })));
        area.write(&mut slot, b"ab").unwrap();
        assert!(matches!(area.end(slot), Err(ErofsError::Length { announced: 3, written: 2 })));
    }

    #[test]
    fn a_file_over_the_limit_is_an_error_before_anything_is_written() {
        let mut area = DataArea::in_memory(Cursor::new(Vec::new()), 1 << 20, RootfsCompression::None);
        assert!(matches!(area.begin(u64::MAX, 64), Err(ErofsError::TooLarge { .. })));
        assert!(
            matches!(area.begin(1 << 20, 64), Err(ErofsError::TooLarge { .. })),
            "no room for the superblock"
        );
    }

    #[test]
    fn reused_blocks_hold_nothing_of_the_past() {
        let mut area = DataArea::in_memory(Cursor::new(Vec::new()), 1 << 20, RootfsCompression::None);
        let mut old = area.begin(8192, 64).unwrap();
        area.write(&mut old, &[0xff; 8192]).unwrap();
        let old = area.end(old).unwrap();
        let mut keep = area.begin(4096, 64).unwrap();
        area.write(&mut keep, &[1; 4096]).unwrap();
        area.end(keep).unwrap();
        area.release(&old);
        // An inode so long that the tail cannot be inline.
        let mut new = area.begin(4100, 4095).unwrap();
        area.skip(&mut new, 4096).unwrap();
        area.write(&mut new, b"abcd").unwrap();
        let new = area.end(new).unwrap();
        assert_eq!(new.place, Blocks::Row { block: 1, tail: None });
        area.complete().unwrap();
        let bytes = area.output.into_inner().into_inner();
        assert!(bytes[4096..8192].iter().all(|byte| *byte == 0));
        assert_eq!(&bytes[8192..8196], b"abcd");
        assert!(bytes[8196..12288].iter().all(|byte| *byte == 0));
    }
}
