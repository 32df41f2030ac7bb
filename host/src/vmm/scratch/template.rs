//! Formatted file systems that are kept to be copied. Nearly all of a new file system is zeros, so that a template is short: it holds the other
//! blocks, their places and a checksum. Templates may be removed at any time; damaged ones are made again.

use super::BLOCK;
use crate::store::atomic::{self, FileError, Staged};
use rustix::fs::SeekFrom;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const MAGIC: [u8; 8] = *b"MVMEXT4\x01";
/// Place and length of a piece in blocks.
const PIECE: usize = 8 + 4;
/// Longest template. A file system of 10 GiB takes 168 KiB, one of 1 TiB some MiB.
const MAX_LEN: usize = 32 << 20;
/// Templates in one directory.
const MAX_TEMPLATES: usize = 16;
const SUFFIX: &str = "ext4";

/// The blocks of a new file system that are not zeros.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template {
    /// Size of the file system in blocks.
    pub(super) blocks: u64,
    /// First block and content of each run of blocks, in ascending order.
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Template {
    /// Reads the file system of this size at this place of a sparse file; `None` if too much of it is not zeros.
    pub(super) fn capture(file: &File, at: u64, blocks: u64) -> io::Result<Option<Self>> {
        let block = usize::try_from(BLOCK).unwrap_or(usize::MAX);
        let (end, mut next, mut len) = (at + blocks * BLOCK, at, 0);
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        while let Some((from, to)) = data(file, next, end)? {
            // From block to block, because holes need not be aligned to blocks of the file system.
            let from = at + (from - at) / BLOCK * BLOCK;
            let to = (at + (to - at).next_multiple_of(BLOCK)).min(end);
            for place in (from..to).step_by(block) {
                let mut bytes = vec![0; block];
                file.read_exact_at(&mut bytes, place)?;
                if bytes.iter().all(|&byte| byte == 0) {
                    continue;
                }
                len += bytes.len();
                let number = (place - at) / BLOCK;
                match pieces.last_mut() {
                    Some((first, all)) if *first + count(all) == number => all.append(&mut bytes),
                    _ => pieces.push((number, bytes)),
                }
            }
            next = to;
            if len > MAX_LEN / 2 {
                return Ok(None);
            }
        }
        Ok(Some(Self { blocks, pieces }))
    }

    /// Writes the file system at this place of a file that has only zeros there.
    pub(super) fn apply(&self, file: &File, at: u64) -> io::Result<()> {
        self.pieces.iter().try_for_each(|(first, bytes)| file.write_all_at(bytes, at + first * BLOCK))
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut rest = self.blocks.to_le_bytes().to_vec();
        rest.extend(u32::try_from(self.pieces.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (first, bytes) in &self.pieces {
            rest.extend(first.to_le_bytes());
            rest.extend(u32::try_from(count(bytes)).unwrap_or(u32::MAX).to_le_bytes());
        }
        self.pieces.iter().for_each(|(_, bytes)| rest.extend(bytes));
        [&MAGIC[..], &crc32fast::hash(&rest).to_le_bytes(), &rest].concat()
    }

    /// `None` if it is damaged.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (sum, rest) = rest.split_first_chunk::<4>()?;
        if magic != MAGIC || u32::from_le_bytes(*sum) != crc32fast::hash(rest) {
            return None;
        }
        let (blocks, rest) = rest.split_first_chunk::<8>()?;
        let (many, rest) = rest.split_first_chunk::<4>()?;
        let blocks = u64::from_le_bytes(*blocks);
        let many = usize::try_from(u32::from_le_bytes(*many)).ok()?;
        let (table, mut content) = rest.split_at_checked(many.checked_mul(PIECE)?)?;
        let mut pieces = Vec::with_capacity(many);
        for entry in table.chunks_exact(PIECE) {
            let (first, len) = entry.split_first_chunk::<8>()?;
            let (first, len) = (u64::from_le_bytes(*first), u32::from_le_bytes(len.try_into().ok()?));
            if first.checked_add(u64::from(len))? > blocks {
                return None;
            }
            let bytes = usize::try_from(u64::from(len) * BLOCK).ok()?;
            let (piece, after) = content.split_at_checked(bytes)?;
            pieces.push((first, piece.to_vec()));
            content = after;
        }
        content.is_empty().then_some(Self { blocks, pieces })
    }
}

/// Whole blocks in these bytes.
fn count(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX) / BLOCK
}

/// The next range with data that begins before `end`.
fn data(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) if start < end => start.max(from),
        // There is no data up to the file's end.
        Ok(_) | Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, hole.min(end))))
}

/// The directory of templates.
#[derive(Debug, Clone, Copy)]
pub(super) struct Templates<'a>(pub(super) &'a Path);

impl Templates<'_> {
    /// The name of the file system that these arguments make.
    pub(super) fn name(self, arguments: &str) -> PathBuf {
        let digest = Sha256::digest(arguments);
        let mut name = String::with_capacity(40);
        for byte in &digest[..16] {
            // Writing to a String cannot fail.
            write!(name, "{byte:02x}").unwrap_or_default();
        }
        self.0.join(name).with_extension(SUFFIX)
    }

    /// A template, if it is there and whole.
    pub(super) fn read(self, path: &Path) -> Option<Template> {
        let mut bytes = Vec::new();
        let max = u64::try_from(MAX_LEN).unwrap_or(u64::MAX);
        // Only regular files are opened: a FIFO would have to be waited for.
        fs::symlink_metadata(path).ok().filter(|found| found.is_file() && found.len() <= max)?;
        File::open(path).and_then(|file| file.take(max).read_to_end(&mut bytes)).ok()?;
        Template::from_bytes(&bytes)
    }

    /// Keeps a template and removes the oldest ones beyond the limit.
    pub(super) fn keep(self, path: &Path, template: &Template) -> Result<(), FileError> {
        let bytes = template.to_bytes();
        if bytes.len() > MAX_LEN {
            return Ok(());
        }
        atomic::create_dir_all(self.0, 0o700)?;
        let mut staged = Staged::new(path)?;
        staged.file().write_all(&bytes).map_err(FileError::at("write", path))?;
        staged.commit(0o600)?;
        atomic::sweep(self.0)?;
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(self.0).map_err(FileError::at("list", self.0))? {
            let entry = entry.map_err(FileError::at("list", self.0))?;
            let path = entry.path();
            if path.extension().is_some_and(|suffix| suffix == SUFFIX)
                && let Ok(when) = entry.metadata().and_then(|found| found.modified())
            {
                all.push((when, path));
            }
        }
        all.sort_unstable();
        let excess = all.len().saturating_sub(MAX_TEMPLATES);
        all.iter().take(excess).try_for_each(|(_, path)| atomic::remove(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template() -> Template {
        let piece = |first: u64, blocks: usize| (first, vec![7; blocks * 4096]);
        Template { blocks: 100, pieces: vec![piece(0, 2), piece(50, 1), piece(99, 1)] }
    }

    #[test]
    fn what_is_captured_and_kept_is_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = 3 * BLOCK;
        let file = |name: &str| {
            let path = dir.path().join(name);
            File::options().read(true).write(true).create_new(true).open(path).unwrap()
        };
        let (from, to) = (file("from"), file("to"));
        from.set_len(at + 200 * BLOCK).unwrap();
        template().apply(&from, at).unwrap();
        // What is beyond the file system does not belong to it.
        from.write_all_at(b"other", at + 100 * BLOCK).unwrap();
        let captured = Template::capture(&from, at, 100).unwrap().unwrap();
        assert_eq!(captured, template());
        let templates = Templates(&dir.path().join("templates"));
        let path = templates.name("-q");
        assert_eq!(templates.read(&path), None);
        templates.keep(&path, &captured).unwrap();
        assert_ne!(templates.name("-q 1"), path);
        templates.read(&path).unwrap().apply(&to, 0).unwrap();
        to.set_len(100 * BLOCK).unwrap();
        assert_eq!(Template::capture(&to, 0, 100).unwrap().unwrap(), template());
    }

    #[test]
    fn old_templates_make_room_for_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates(dir.path());
        for n in 0..MAX_TEMPLATES + 3 {
            let path = templates.name(&n.to_string());
            templates.keep(&path, &template()).unwrap();
            assert!(templates.read(&path).is_some());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), MAX_TEMPLATES);
    }

    proptest! {
        #[test]
        fn damage_is_seen(at in 0usize..4 * 4096, bit in 0u32..8, cut in 0usize..20_000) {
            let whole = template().to_bytes();
            prop_assert_eq!(Template::from_bytes(&whole), Some(template()));
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            prop_assert_eq!(Template::from_bytes(&flipped), None);
            let shorter = &whole[..cut.min(whole.len() - 1)];
            prop_assert_eq!(Template::from_bytes(shorter), None);
        }
    }
}
