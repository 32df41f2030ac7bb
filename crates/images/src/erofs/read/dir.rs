//! Directory blocks.

use super::super::super::tree::MAX_NAME_LEN;
use super::super::format::{BLOCK, BLOCK_LEN, DIRENT_LEN, FileType};
use super::{Inode, InodeKind, ReadAt, ReadError, Reader, u16_at, u64_at};

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) name: Box<[u8]>,
    pub(super) nid: u32,
    pub(super) file_type: u8,
}

impl Name {
    /// The type beside the name must be the inode's.
    pub(super) fn agrees(&self, inode: &Inode) -> bool {
        let expected = match inode.kind {
            InodeKind::Directory => FileType::Directory,
            InodeKind::Regular => FileType::Regular,
            InodeKind::Symlink => FileType::Symlink,
            InodeKind::CharDevice(_) => FileType::Char,
            InodeKind::BlockDevice(_) => FileType::Block,
            InodeKind::Fifo => FileType::Fifo,
        };
        self.file_type == expected as u8
    }
}

impl<S: ReadAt> Reader<S> {
    /// The names of a directory's block, including `.` and `..`; `None` behind its last block.
    pub(super) fn names(&self, inode: &Inode, block: u64) -> Result<Option<Vec<Name>>, ReadError> {
        let start = block * BLOCK;
        if start >= inode.size {
            return Ok(None);
        }
        let length = usize::try_from(inode.size - start).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
        let mut bytes = vec![0; length];
        self.read_flat(inode, start, &mut bytes)?;
        parse(&bytes).map(Some).ok_or_else(|| inode.damaged("a block of the directory is malformed"))
    }
}

/// All names of one block: at least one, each 1 to 255 bytes, without slash and NUL.
fn parse(bytes: &[u8]) -> Option<Vec<Name>> {
    // The first name directly follows the last entry.
    let entries_len = usize::from(u16_at(bytes, 8));
    if entries_len == 0 || !entries_len.is_multiple_of(DIRENT_LEN) || entries_len >= bytes.len() {
        return None;
    }
    let entries: Vec<_> = bytes[..entries_len].chunks_exact(DIRENT_LEN).collect();
    let mut names = Vec::with_capacity(entries.len());
    for (number, entry) in entries.iter().enumerate() {
        let start = usize::from(u16_at(entry, 8));
        let name = match entries.get(number + 1) {
            Some(next) => bytes.get(start..usize::from(u16_at(next, 8)))?,
            // The last name of a partly filled block ends with a NUL.
            None => bytes.get(start..)?.split(|byte| *byte == 0).next()?,
        };
        let bad = |byte: &u8| matches!(*byte, 0 | b'/');
        if name.is_empty() || name.len() > MAX_NAME_LEN || name.iter().any(bad) {
            return None;
        }
        let nid = u32::try_from(u64_at(entry, 0)).ok()?;
        names.push(Name { name: name.into(), nid, file_type: entry[10] });
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::super::super::format::{Dirent, put_dir_block};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(names in proptest::collection::btree_set(proptest::collection::vec(prop_oneof![1u8..b'/', b'0'..], 1..20), 1..60), padding in 0usize..3) {
            let entries: Vec<_> = (7u32..).zip(&names).map(|(nid, name)| Dirent { name, nid: nid.into(), file_type: FileType::Fifo }).collect();
            let mut bytes = Vec::new();
            put_dir_block(&mut bytes, &entries);
            bytes.resize(bytes.len() + padding, 0);
            let expected: Vec<_> = (7u32..).zip(&names).map(|(nid, name)| Name { name: name.as_slice().into(), nid, file_type: 5 }).collect();
            prop_assert_eq!(parse(&bytes), Some(expected));
        }

        #[test]
        fn anything_is_names_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..100), first in 0u8..5) {
            let mut bytes = bytes;
            if bytes.len() > 9 {
                (bytes[8], bytes[9]) = (first * 12, 0);
            }
            for name in parse(&bytes).unwrap_or_default() {
                prop_assert!(!name.name.is_empty() && !name.name.contains(&b'/') && !name.name.contains(&0));
            }
        }
    }
}
