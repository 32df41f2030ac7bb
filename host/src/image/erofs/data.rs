//! File data on its way into the image: whole blocks go straight to the output, the rest of a file (its tail) waits in
//! a scratch file until the inodes are written. Memory use does not grow with the data.

use super::ErofsError;
use super::extents::{Extents, Past};
use super::format::{BLOCK, BLOCK_LEN};
use std::io::{self, Read, Seek, SeekFrom, Write};
use tempfile::SpooledTempFile;

/// Bytes gathered before they are written.
const BUFFER_LEN: usize = 1 << 20;

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileData {
    /// Bytes of the file.
    pub size: u64,
    /// First data block; meaningless when there is none.
    pub(super) block: u32,
    /// Offset of the tail in the scratch file, for files whose tail goes behind the inode.
    pub(super) tail: Option<u64>,
}

impl FileData {
    fn blocks(&self) -> u32 {
        blocks_of(self.size, self.tail.is_some())
    }
}

fn blocks_of(size: u64, inline: bool) -> u32 {
    let blocks = if inline { size / BLOCK } else { size.div_ceil(BLOCK) };
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// A file that is being written.
#[derive(Debug)]
pub struct FileSlot {
    data: FileData,
    written: u64,
    past: Past,
}

/// Sets a range of the output to zeros: (output, offset, length).
pub(super) type Zero<W> = fn(&mut W, u64, u64) -> io::Result<()>;

/// The data part of an image that is being written.
#[derive(Debug)]
pub struct DataArea<W> {
    out: W,
    /// Where `out` is.
    at: u64,
    buffer: Vec<u8>,
    buffer_at: u64,
    extents: Extents,
    tails: SpooledTempFile,
    tails_end: u64,
    limit: u64,
    zero: Zero<W>,
}

impl<W: Write + Seek> DataArea<W> {
    /// An image of at most `limit` bytes, written to `out` from its start. Tails wait in `tails`; `zero` clears gaps.
    pub fn new(out: W, limit: u64, tails: SpooledTempFile, zero: Zero<W>) -> Self {
        let blocks = u32::try_from(limit / BLOCK).unwrap_or(u32::MAX);
        Self {
            out,
            // Not a real position, so that the first write seeks.
            at: u64::MAX,
            buffer: Vec::with_capacity(BUFFER_LEN),
            buffer_at: 0,
            extents: Extents::new(blocks),
            tails,
            tails_end: 0,
            limit,
            zero,
        }
    }

    /// The same with tails in memory.
    pub fn in_memory(out: W, limit: u64) -> Self {
        Self::new(out, limit, SpooledTempFile::new(usize::MAX), zero_by_writing)
    }

    /// Largest size of the whole image, in bytes.
    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The error of an image that grew over its limit.
    pub(super) fn too_large(&self) -> ErofsError {
        ErofsError::TooLarge { limit: self.limit }
    }

    /// Starts a file of `size` bytes whose inode and attributes take `inode_len` bytes.
    pub fn begin(&mut self, size: u64, inode_len: usize) -> Result<FileSlot, ErofsError> {
        if size > self.limit {
            return Err(self.too_large());
        }
        let tail_len = size % BLOCK;
        // A tail must be in one block with its inode.
        let inline = tail_len != 0 && inode_len as u64 + tail_len <= BLOCK;
        let tail = inline.then_some(self.tails_end);
        if inline {
            self.tails_end += tail_len;
            if self.tails_end > self.limit {
                return Err(self.too_large());
            }
        }
        let (block, past) = self.extents.take(blocks_of(size, inline)).ok_or_else(|| self.too_large())?;
        Ok(FileSlot { data: FileData { size, block, tail }, written: 0, past })
    }

    /// The next bytes of the file.
    pub fn write(&mut self, slot: &mut FileSlot, bytes: &[u8]) -> Result<(), ErofsError> {
        let length = bytes.len() as u64;
        if slot.data.size - slot.written < length {
            return Err(ErofsError::Length { announced: slot.data.size, written: slot.written + length });
        }
        let in_blocks = u64::from(slot.data.blocks()) * BLOCK;
        let to_blocks = in_blocks.saturating_sub(slot.written).min(length);
        // `to_blocks` is at most the length of a slice.
        let (blocks, tail) = bytes.split_at(usize::try_from(to_blocks).unwrap_or(bytes.len()));
        if !blocks.is_empty() {
            self.put(u64::from(slot.data.block) * BLOCK + slot.written, blocks)?;
        }
        if !tail.is_empty() {
            self.tails.write_all(tail).map_err(ErofsError::io("write the scratch file"))?;
        }
        slot.written += length;
        Ok(())
    }

    /// The next `length` bytes of the file are zeros (a hole of a sparse file). Costs no writing where the output can
    /// have holes: a few bytes of archive may stand for a hole of gigabytes.
    pub fn skip(&mut self, slot: &mut FileSlot, length: u64) -> Result<(), ErofsError> {
        let in_blocks = (u64::from(slot.data.blocks()) * BLOCK).min(slot.data.size);
        let skipped = in_blocks.saturating_sub(slot.written).min(length);
        if skipped > 0 && slot.past == Past::Reused {
            self.flush()?;
            let offset = u64::from(slot.data.block) * BLOCK + slot.written;
            (self.zero)(&mut self.out, offset, skipped)
                .map_err(ErofsError::io("clear blocks of the file system image"))?;
            self.at = u64::MAX;
        }
        slot.written += skipped;
        // What is left is in the tail.
        let mut left = length - skipped;
        let zeros = [0; BLOCK_LEN];
        while left > 0 {
            let chunk = left.min(BLOCK);
            self.write(slot, &zeros[..usize::try_from(chunk).unwrap_or(BLOCK_LEN)])?;
            left -= chunk;
        }
        Ok(())
    }

    /// Ends the file: exactly the announced bytes must have come.
    #[allow(clippy::needless_pass_by_value, reason = "an ended file cannot be written any more")]
    pub fn end(&mut self, slot: FileSlot) -> Result<FileData, ErofsError> {
        if slot.written != slot.data.size {
            return Err(ErofsError::Length { announced: slot.data.size, written: slot.written });
        }
        let rest = slot.data.size % BLOCK;
        if slot.data.tail.is_none() && rest != 0 && slot.past == Past::Reused {
            let zeros = vec![0; usize::try_from(BLOCK - rest).unwrap_or(0)];
            self.put(u64::from(slot.data.block) * BLOCK + slot.data.size, &zeros)?;
        }
        Ok(slot.data)
    }

    /// The file is not in the image any more: its blocks can be used again.
    pub fn release(&mut self, file: &FileData) {
        self.extents.give(file.block, file.blocks());
    }

    /// First block behind all data.
    pub(super) fn end_block(&self) -> u32 {
        self.extents.end()
    }

    /// Writes bytes at an offset of the output, gathering neighbours.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        if offset != self.buffer_at + self.buffer.len() as u64 || self.buffer.len() + bytes.len() > BUFFER_LEN
        {
            self.flush()?;
            self.buffer_at = offset;
        }
        if bytes.len() >= BUFFER_LEN {
            self.write_out(offset, bytes)?;
            self.buffer_at = offset + bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ErofsError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.write_out(self.buffer_at, &buffer);
        self.buffer_at += buffer.len() as u64;
        buffer.clear();
        self.buffer = buffer;
        result
    }

    fn write_out(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ErofsError> {
        if self.at != offset {
            self.out
                .seek(SeekFrom::Start(offset))
                .map_err(ErofsError::io("seek in the file system image"))?;
        }
        self.out.write_all(bytes).map_err(ErofsError::io("write the file system image"))?;
        self.at = offset + bytes.len() as u64;
        Ok(())
    }

    /// Clears blocks that hold data of replaced files, up to the block where other things will be written.
    pub(super) fn clear_gaps(&mut self) -> Result<(), ErofsError> {
        self.flush()?;
        let end = self.extents.end();
        let behind = self.extents.highest().saturating_sub(end);
        let gaps: Vec<_> = self.extents.gaps().chain((behind > 0).then_some((end, behind))).collect();
        for (start, blocks) in gaps {
            (self.zero)(&mut self.out, u64::from(start) * BLOCK, u64::from(blocks) * BLOCK)
                .map_err(ErofsError::io("clear unused blocks of the file system image"))?;
        }
        self.at = u64::MAX;
        Ok(())
    }

    /// Appends the tail of a file to `out`.
    pub(super) fn read_tail(&mut self, file: &FileData, out: &mut Vec<u8>) -> Result<(), ErofsError> {
        let Some(offset) = file.tail else { return Ok(()) };
        let length = usize::try_from(file.size % BLOCK).unwrap_or(0);
        let start = out.len();
        out.resize(start + length, 0);
        self.tails
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.tails.read_exact(&mut out[start..]))
            .map_err(ErofsError::io("read the scratch file"))
    }

    /// Writes everything that was gathered. Returns where the image ends in the output.
    pub(super) fn complete(&mut self) -> Result<(), ErofsError> {
        self.flush()?;
        self.out.flush().map_err(ErofsError::io("write the file system image"))
    }
}

/// Zeros for any output: by writing them.
pub fn zero_by_writing<W: Write + Seek>(out: &mut W, offset: u64, length: u64) -> io::Result<()> {
    out.seek(SeekFrom::Start(offset))?;
    let copied = io::copy(&mut io::repeat(0).take(length), out)?;
    debug_assert_eq!(copied, length);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn a_file_with_other_than_its_announced_bytes_is_an_error() {
        let mut area = DataArea::in_memory(Cursor::new(Vec::new()), 1 << 20);
        let mut slot = area.begin(3, 64).unwrap();
        assert!(matches!(area.write(&mut slot, b"four"), Err(ErofsError::Length { .. })));
        area.write(&mut slot, b"ab").unwrap();
        assert!(matches!(area.end(slot), Err(ErofsError::Length { announced: 3, written: 2 })));
    }

    #[test]
    fn a_file_over_the_limit_is_an_error_before_anything_is_written() {
        let mut area = DataArea::in_memory(Cursor::new(Vec::new()), 1 << 20);
        assert!(matches!(area.begin(u64::MAX, 64), Err(ErofsError::TooLarge { .. })));
        assert!(
            matches!(area.begin(1 << 20, 64), Err(ErofsError::TooLarge { .. })),
            "no room for the superblock"
        );
    }

    #[test]
    fn reused_blocks_hold_nothing_of_the_past() {
        let mut area = DataArea::in_memory(Cursor::new(Vec::new()), 1 << 20);
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
        assert_eq!(new.block, old.block);
        area.complete().unwrap();
        let bytes = area.out.into_inner();
        assert!(bytes[4096..8192].iter().all(|byte| *byte == 0));
        assert_eq!(&bytes[8192..8196], b"abcd");
        assert!(bytes[8196..12288].iter().all(|byte| *byte == 0));
    }
}
