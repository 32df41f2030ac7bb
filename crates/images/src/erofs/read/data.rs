//! Data of files: consecutive, or in pieces found through an index.

use super::super::compress;
use super::super::format::{
    ADVISE_BIG, BLOCK, BLOCK_LEN, CHUNK_BLOCKS, CHUNK_LEN, INDEX_BLOCKS, INDEX_HEAD, INDEX_LEN, INDEX_PLAIN,
    INDEX_REST, Layout, MAP_HEADER_LEN,
};
use super::{Inode, InodeKind, ReadAt, ReadError, Reader, u16_at, u32_at};

/// Bytes of consecutive data read at once.
const READ_LEN: u64 = 256 << 10;
/// Index entries read at once.
const WINDOW: u64 = 512;

/// One entry of the index, for one block of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// An uncompressed block.
    Plain(u32),
    /// The first of a compressed piece.
    Head(u32),
    /// Another block of it: the distance back, and the distance to the next piece.
    Rest(u16, u16),
    /// The file ends within this block, and the compressed piece before it reaches this far into it.
    End(u16),
}

/// The entries of an index in order.
struct Entries<'a, S> {
    image: &'a Reader<S>,
    inode: &'a Inode,
    at: u64,
    left: u64,
    window: Vec<u8>,
    next: usize,
}

impl<S: ReadAt> Entries<'_, S> {
    /// The next entry without consuming it; `None` at the end.
    fn peek(&mut self) -> Result<Option<Entry>, ReadError> {
        if self.next == self.window.len() {
            let length = self.left.min(WINDOW) * INDEX_LEN;
            // At most a window.
            self.window.resize(usize::try_from(length).unwrap_or(0), 0);
            self.image.source.read_exact_at(&mut self.window, self.at)?;
            self.at += length;
            self.left -= length / INDEX_LEN;
            self.next = 0;
        }
        let Some(bytes) = self.window.get(self.next..).filter(|bytes| !bytes.is_empty()) else {
            return Ok(None);
        };
        let block = u32_at(bytes, 4);
        let entry = match (u16_at(bytes, 0), u16_at(bytes, 2)) {
            (INDEX_PLAIN, 0) => Entry::Plain(block),
            (INDEX_HEAD, 0) => Entry::Head(block),
            (INDEX_REST, _) => Entry::Rest(u16_at(bytes, 4), u16_at(bytes, 6)),
            (INDEX_PLAIN, end) if block == 0 => Entry::End(end),
            _ => return Err(self.inode.damaged("its index has an entry of an unknown form")),
        };
        Ok(Some(entry))
    }

    fn pass(&mut self) {
        self.next += 8;
    }
}

/// Receives the data of a file: (offset, bytes), in order.
pub type Sink<'a, E> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), E>;

/// Blocks in the image and their decompressed form.
struct Span {
    block: u32,
    blocks: u32,
    length: u64,
    packed: bool,
}

impl<S: ReadAt> Reader<S> {
    pub(super) fn check_packed(&self, inode: &Inode) -> Result<(), ReadError> {
        let index = inode.size.div_ceil(BLOCK).checked_mul(INDEX_LEN);
        let end = index.and_then(|index| index.checked_add(index_start(inode)));
        if inode.size == 0 || end.is_none_or(|end| end > self.size()) {
            return Err(inode.damaged("the index of its data is outside of the file"));
        }
        Ok(())
    }

    /// Passes the data of a regular file to `sink`.
    pub fn data<E: From<ReadError>>(&self, inode: &Inode, sink: Sink<'_, E>) -> Result<(), E> {
        if inode.kind != InodeKind::Regular {
            return Err(inode.damaged("it is not a regular file").into());
        }
        if inode.layout == Layout::Packed {
            return self.packed(inode, sink);
        }
        let mut buffer = vec![0; usize::try_from(inode.size.min(READ_LEN)).unwrap_or(0)];
        let mut at = 0;
        while at < inode.size {
            let now = (inode.size - at).min(READ_LEN);
            let part = &mut buffer[..usize::try_from(now).unwrap_or(0)];
            self.read_flat(inode, at, part)?;
            sink(at, part)?;
            at += now;
        }
        Ok(())
    }

    fn packed<E: From<ReadError>>(&self, inode: &Inode, sink: Sink<'_, E>) -> Result<(), E> {
        let mut entries = self.entries(inode)?;
        let (mut stored, mut out) = (vec![0; CHUNK_LEN], Vec::new());
        let mut at = 0;
        while at < inode.size {
            let span = entries.span(inode.size - at)?;
            self.check_blocks(inode, span.block, span.blocks)?;
            // At most a chunk, both.
            let (length, blocks) = (usize::try_from(span.length).unwrap_or(0), span.blocks as usize);
            let stored = &mut stored[..blocks * BLOCK_LEN];
            self.source.read_exact_at(stored, u64::from(span.block) * BLOCK).map_err(ReadError::Io)?;
            if span.packed {
                out.resize(length, 0);
                compress::unpack(stored, &mut out)
                    .ok_or_else(|| inode.damaged("its compressed data is damaged"))?;
                sink(at, &out)?;
            } else {
                sink(at, &stored[..length])?;
            }
            at += span.length;
        }
        if entries.peek()?.is_some() {
            return Err(inode.damaged("its index goes on behind its end").into());
        }
        Ok(())
    }

    fn entries<'a>(&'a self, inode: &'a Inode) -> Result<Entries<'a, S>, ReadError> {
        let start = index_start(inode);
        let mut header = [0; 8];
        self.source.read_exact_at(&mut header, start - MAP_HEADER_LEN)?;
        if u32_at(&header, 0) != 0 || u16_at(&header, 4) != ADVISE_BIG || u16_at(&header, 6) != 0 {
            return Err(inode.damaged("the form of its index is unknown"));
        }
        let left = inode.size.div_ceil(BLOCK);
        Ok(Entries { image: self, inode, at: start, left, window: Vec::new(), next: 0 })
    }
}

/// Where the index of packed data begins.
fn index_start(inode: &Inode) -> u64 {
    inode.end().next_multiple_of(8) + MAP_HEADER_LEN
}

impl<S: ReadAt> Entries<'_, S> {
    /// The next piece, or several consecutive uncompressed blocks; `left` bytes of the file remain.
    fn span(&mut self, left: u64) -> Result<Span, ReadError> {
        let first = self.peek()?.ok_or_else(|| self.inode.damaged("its index is too short"))?;
        self.pass();
        match first {
            Entry::Plain(block) => {
                let mut blocks = 1;
                while blocks < u32::from(CHUNK_BLOCKS)
                    && let Some(next) = block.checked_add(blocks)
                    && self.peek()? == Some(Entry::Plain(next))
                {
                    self.pass();
                    blocks += 1;
                }
                Ok(Span { block, blocks, length: left.min(u64::from(blocks) * BLOCK), packed: false })
            }
            Entry::Head(block) => self.packed_span(block, left),
            Entry::Rest(..) | Entry::End(_) => {
                Err(self.inode.damaged("a piece of its data has no beginning"))
            }
        }
    }

    fn packed_span(&mut self, block: u32, left: u64) -> Result<Span, ReadError> {
        let wrong = |inode: &Inode| inode.damaged("the index of a compressed piece is wrong");
        // Entries of the piece; each but the first tells the number of entries.
        let (mut count, mut blocks, mut said) = (1u16, 1, None);
        while let Some(Entry::Rest(back, ahead)) = self.peek()? {
            self.pass();
            if count == 1 {
                blocks = back & !INDEX_BLOCKS;
            }
            let back_is_right = if count == 1 { back & INDEX_BLOCKS != 0 } else { back == count };
            let whole = ahead.checked_add(count).filter(|whole| said.is_none_or(|said| said == *whole));
            if !back_is_right || whole.is_none() || count == CHUNK_BLOCKS {
                return Err(wrong(self.inode));
            }
            said = whole;
            count += 1;
        }
        let mut length = u64::from(count) * BLOCK;
        if let Some(Entry::End(rest)) = self.peek()? {
            self.pass();
            length += u64::from(rest);
            if length != left {
                return Err(wrong(self.inode));
            }
        }
        let saves = u64::from(blocks) < length.div_ceil(BLOCK) && blocks > 0;
        if said.is_some_and(|said| said != count) || length > left || length > CHUNK_LEN as u64 || !saves {
            return Err(wrong(self.inode));
        }
        Ok(Span { block, blocks: blocks.into(), length, packed: true })
    }
}
