//! Maps of sparse files: old GNU (in headers), PAX 0.0 and 0.1 (in records) and PAX 1.0 (before the data).

use super::header::{Block, number};
use super::pax::decimal;
use super::{BLOCK, Segment, Skip, TarError, TarReader};

/// Most segments of one file. Each costs memory; honest maps have a few.
const MAX_SEGMENTS: usize = 65_536;

/// Another block of an old GNU map. True: one more follows.
pub(super) fn read_gnu(block: &Block, map: &mut Vec<Segment>) -> Result<bool, TarError> {
    read_pairs(&block.bytes()[..504], map)?;
    Ok(block.bytes()[504] != 0)
}

/// Pairs of 12-byte numbers up to the first empty one.
pub(super) fn read_pairs(bytes: &[u8], map: &mut Vec<Segment>) -> Result<(), TarError> {
    for pair in bytes.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let field = |range| number(&pair[range]).and_then(|number| u64::try_from(number).ok());
        match (field(0..12), field(12..24)) {
            (Some(offset), Some(length)) => push(map, Segment { offset, length })?,
            _ => return Err(TarError::SparseMap),
        }
    }
    Ok(())
}

/// `offset,length,offset,length…`
pub(super) fn read_list(value: &[u8]) -> Result<Vec<Segment>, TarError> {
    let mut map = Vec::new();
    if value.is_empty() {
        return Ok(map);
    }
    let mut numbers = value.split(|byte| *byte == b',').map(|text| decimal(text).ok_or(TarError::SparseMap));
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(TarError::SparseMap)??;
        push(&mut map, Segment { offset: offset?, length })?;
    }
    Ok(map)
}

/// Lines of decimal numbers in the first blocks of the data: a count, then offsets and lengths.
pub(super) fn read_pax_1<R: Skip>(reader: &mut TarReader<R>) -> Result<Vec<Segment>, TarError> {
    let mut lines = Lines { block: [0; BLOCK], at: BLOCK };
    let count = lines.next(reader)?;
    if count > MAX_SEGMENTS as u64 {
        return Err(TarError::SparseMap);
    }
    let mut map = Vec::new();
    for _ in 0..count {
        let offset = lines.next(reader)?;
        let length = lines.next(reader)?;
        push(&mut map, Segment { offset, length })?;
    }
    Ok(map)
}

struct Lines {
    block: [u8; BLOCK],
    at: usize,
}

impl Lines {
    fn next<R: Skip>(&mut self, reader: &mut TarReader<R>) -> Result<u64, TarError> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                self.block = reader.data_block()?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return decimal(&digits).ok_or(TarError::SparseMap),
                _ if digits.len() < 20 => digits.push(byte),
                _ => return Err(TarError::SparseMap),
            }
        }
    }
}

fn push(map: &mut Vec<Segment>, segment: Segment) -> Result<(), TarError> {
    if map.len() == MAX_SEGMENTS {
        return Err(TarError::SparseMap);
    }
    map.push(segment);
    Ok(())
}

/// Segments must be in order, inside the file, and as long together as the stored data.
pub(super) fn check(map: &[Segment], size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0;
    let mut sum = 0u64;
    for segment in map {
        let segment_end = segment.offset.checked_add(segment.length).ok_or(TarError::SparseMap)?;
        if segment.offset < end || segment_end > size {
            return Err(TarError::SparseMap);
        }
        end = segment_end;
        sum += segment.length;
    }
    if sum == stored { Ok(()) } else { Err(TarError::SparseMap) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_that_contradict_themselves_are_refused() {
        let map = |pairs: &[(u64, u64)]| {
            pairs
                .iter()
                .map(|(offset, length)| Segment { offset: *offset, length: *length })
                .collect::<Vec<_>>()
        };
        assert!(check(&map(&[(0, 10), (20, 5), (30, 0)]), 30, 15).is_ok());
        assert!(check(&map(&[(0, 10), (5, 10)]), 30, 20).is_err(), "overlap");
        assert!(check(&map(&[(0, 31)]), 30, 31).is_err(), "beyond the end");
        assert!(check(&map(&[(u64::MAX, 2)]), 30, 2).is_err(), "overflow");
        assert!(check(&map(&[(0, 10)]), 30, 11).is_err(), "another sum");
    }

    #[test]
    fn lists_have_pairs() {
        assert_eq!(read_list(b"0,1,5,2").unwrap().len(), 2);
        assert!(read_list(b"0,1,5").is_err() && read_list(b"0,x").is_err() && read_list(b",").is_err());
        assert!(read_list(b"").unwrap().is_empty());
    }
}
