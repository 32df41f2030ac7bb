//! Compresses pieces of file data with lz4. Must not know files and images.

use super::format::{BLOCK, BLOCK_LEN, CHUNK_LEN};
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

/// Compresses chunks, one after another.
pub(super) struct Packer {
    table: CompressTable,
    /// A block that stays zero, and the space for compressed bytes.
    out: Vec<u8>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Packer")
    }
}

impl Packer {
    pub(super) fn new() -> Self {
        // Always the large table, since the choice changes the output.
        Self { table: CompressTable::large(), out: vec![0; BLOCK_LEN + get_maximum_output_size(CHUNK_LEN)] }
    }

    /// The compressed chunk in whole blocks with zeros in front; `None` when that saves no block.
    pub(super) fn pack(&mut self, chunk: &[u8]) -> Option<&[u8]> {
        let length = compress_into_with_table(chunk, &mut self.out[BLOCK_LEN..], &mut self.table).ok()?;
        let padded = length.next_multiple_of(BLOCK_LEN);
        let end = BLOCK_LEN + length;
        (padded / BLOCK_LEN < chunk.len().div_ceil(BLOCK_LEN)).then(|| &self.out[end - padded..end])
    }
}

/// Fills `out` from blocks of compressed data. `None`: they hold something else or another length.
pub(super) fn unpack(blocks: &[u8], out: &mut [u8]) -> Option<()> {
    // lz4 data begins with a literal and so never with a zero.
    let start = blocks.iter().take(BLOCK_LEN).position(|byte| *byte != 0)?;
    let unpacked = decompress_into(blocks.get(start..)?, out).ok()?;
    (unpacked == out.len()).then_some(())
}

/// Blocks that this many bytes take uncompressed.
pub(super) fn raw_blocks(length: usize) -> u8 {
    u8::try_from((length as u64).div_ceil(BLOCK)).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_saves_no_block_is_not_packed() {
        let mut packer = Packer::new();
        assert_eq!(packer.pack(&[7; 4096]), None, "one block cannot become fewer");
        assert_eq!(packer.pack(&[7; 4097]).map(<[u8]>::len), Some(4096));
        let noise: Vec<u8> =
            (0..2048u64).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()).collect();
        assert_eq!(packer.pack(&noise), None);
    }

    proptest! {
        #[test]
        fn chunks_come_back(seed in proptest::collection::vec(any::<u8>(), 1..2000), repeat in 1usize..40, cut in 0usize..4096) {
            let chunk: Vec<u8> = seed.repeat(repeat);
            let chunk = &chunk[..chunk.len().min(CHUNK_LEN - cut)];
            let mut packer = Packer::new();
            for _ in 0..2 {
                if let Some(packed) = packer.pack(chunk) {
                    let mut out = vec![0xff; chunk.len()];
                    prop_assert_eq!(packed.len() % BLOCK_LEN, 0);
                    prop_assert!(unpack(packed, &mut out).is_some());
                    prop_assert_eq!(out, chunk);
                }
            }
        }

        #[test]
        fn anything_is_unpacked_or_not(blocks in proptest::collection::vec(any::<u8>(), 0..300), length in 0usize..5000) {
            let mut out = vec![0; length];
            let _unpacked = unpack(&blocks, &mut out);
        }
    }
}
