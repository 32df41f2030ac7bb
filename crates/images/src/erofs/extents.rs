//! Tracks the used blocks of the data area: blocks of files that a later layer replaced are reused. Must know only numbers.

use super::compress::raw_blocks;
use super::file::Piece;
use std::collections::{BTreeMap, BTreeSet};

/// Whether allocated blocks may hold old bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Past {
    /// Never written, so they read as zeros.
    Fresh,
    /// Used before, so every byte must be written.
    Reused,
}

/// The allocator. Block 0 belongs to the superblock and is never allocated.
#[derive(Debug)]
pub(super) struct Extents {
    by_start: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
    end: u32,
    highest: u32,
    limit: u32,
}

impl Extents {
    /// Manages blocks 1 to `limit` (exclusive).
    pub(super) fn new(limit: u32) -> Self {
        Self { by_start: BTreeMap::new(), by_length: BTreeSet::new(), end: 1, highest: 1, limit }
    }

    /// First block behind all used blocks.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// One past the highest block ever allocated.
    pub(super) fn highest(&self) -> u32 {
        self.highest
    }

    /// `length` consecutive blocks: the smallest sufficient gap, or else new ones at the end. `None`: the limit is reached.
    pub(super) fn take(&mut self, length: u32) -> Option<(u32, Past)> {
        if length == 0 {
            return Some((0, Past::Fresh));
        }
        if let Some(&(found, start)) = self.by_length.range((length, 0)..).next() {
            self.forget(start, found);
            if found > length {
                self.note(start + length, found - length);
            }
            return Some((start, Past::Reused));
        }
        self.take_at_end(length)
    }

    fn take_at_end(&mut self, length: u32) -> Option<(u32, Past)> {
        let start = self.end;
        let end = start.checked_add(length).filter(|end| *end <= self.limit)?;
        let past = if start >= self.highest { Past::Fresh } else { Past::Reused };
        self.end = end;
        self.highest = self.highest.max(end);
        Some((start, past))
    }

    /// Blocks for this many bytes, directly behind the file's existing pieces if those are free.
    pub(super) fn take_behind(&mut self, pieces: &[Piece], length: usize) -> Option<(u32, Past)> {
        let blocks = u32::from(raw_blocks(length));
        match pieces.last() {
            Some(last) => self.take_at(last.end(), blocks),
            None => self.take(blocks),
        }
    }

    /// The blocks at `wanted` if they are free, or else any.
    fn take_at(&mut self, wanted: u32, length: u32) -> Option<(u32, Past)> {
        match self.by_start.get(&wanted) {
            Some(&found) if found >= length && length > 0 => {
                self.forget(wanted, found);
                if found > length {
                    self.note(wanted + length, found - length);
                }
                Some((wanted, Past::Reused))
            }
            None if wanted == self.end => self.take_at_end(length),
            _ => self.take(length),
        }
    }

    pub(super) fn give(&mut self, start: u32, length: u32) {
        if length == 0 {
            return;
        }
        let (mut start, mut length) = (start, length);
        if let Some((&before, &len)) = self.by_start.range(..start).next_back()
            && before + len == start
        {
            self.forget(before, len);
            (start, length) = (before, length + len);
        }
        if let Some(&len) = self.by_start.get(&(start + length)) {
            self.forget(start + length, len);
            length += len;
        }
        if start + length == self.end {
            self.end = start;
        } else {
            self.note(start, length);
        }
    }

    /// The gaps: (first block, blocks), in order.
    pub(super) fn gaps(&self) -> impl Iterator<Item = (u32, u32)> {
        self.by_start.iter().map(|(start, length)| (*start, *length))
    }

    fn note(&mut self, start: u32, length: u32) {
        self.by_start.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn forget(&mut self, start: u32, length: u32) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_holds_and_freed_blocks_come_back() {
        let mut extents = Extents::new(10);
        assert_eq!(extents.take(4), Some((1, Past::Fresh)));
        assert_eq!(extents.take(5), Some((5, Past::Fresh)));
        assert_eq!(extents.take(1), None);
        extents.give(1, 4);
        assert_eq!(extents.take(2), Some((1, Past::Reused)));
        extents.give(5, 5);
        assert_eq!(extents.end(), 3);
        assert_eq!(extents.take(7), Some((3, Past::Reused)));
    }

    #[test]
    fn what_is_asked_for_is_given_if_it_is_free() {
        let mut extents = Extents::new(20);
        for block in 1..10 {
            assert_eq!(extents.take(1), Some((block, Past::Fresh)));
        }
        extents.give(2, 1);
        extents.give(5, 3);
        assert_eq!(extents.take_at(5, 1), Some((5, Past::Reused)), "not the smaller gap");
        assert_eq!(extents.take_at(6, 3), Some((10, Past::Fresh)), "the gap is too small");
        assert_eq!(extents.take_at(13, 2), Some((13, Past::Fresh)), "not the gap that would do");
        assert_eq!(extents.take_at(9, 1), Some((2, Past::Reused)), "it is in use");
        assert_eq!(extents.take_at(15, 6), None);
    }

    proptest! {
        #[test]
        fn no_block_is_given_out_twice(steps in proptest::collection::vec((any::<bool>(), 1u32..20, any::<bool>()), 1..200)) {
            let mut extents = Extents::new(600);
            let mut held: Vec<(u32, u32)> = Vec::new();
            let mut written = std::collections::HashSet::new();
            for (give, n, near) in steps {
                if give && !held.is_empty() {
                    let (start, length) = held.swap_remove(n as usize % held.len());
                    extents.give(start, length);
                } else if let Some((start, past)) = match held.last().filter(|_| near) {
                    Some((start, length)) => extents.take_at(start + length, n),
                    None => extents.take(n),
                } {
                    for block in start..start + n {
                        prop_assert!(held.iter().all(|(s, l)| block < *s || block >= s + l));
                        prop_assert!(past == Past::Reused || !written.contains(&block));
                        written.insert(block);
                    }
                    prop_assert!(start >= 1 && start + n <= 600);
                    held.push((start, n));
                }
                let used: u32 = held.iter().map(|(_, l)| l).sum();
                let free: u32 = extents.gaps().map(|(_, l)| l).sum();
                prop_assert_eq!(used + free + 1, extents.end());
            }
        }
    }
}
