//! Disks that outlive their VMs: one sparse file each, with a GPT and one partition with an ext4 file system and its journal. The host makes the
//! file system and never looks into it again, because guests have written to it: the guest's kernel replays its journal and enlarges it. The
//! partition table is written anew before each start, so that the guest finds the disk by a GUID that no earlier guest can have chosen.

use super::disk;
use super::scratch::{self, ALIGNMENT, BLOCK, SECTOR, ScratchError};
use crate::store::atomic::{self, FileError};
use crate::store::regular::{self, Access};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// Most bytes that a disk can be asked to hold.
const MAX_BYTES: u64 = 4 << 40;
/// Options of `mkfs.ext4`. Tables of inodes and the journal are zeros in a new sparse file already.
const OPTIONS: [&str; 11] = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-i", "8192", "-E"];
const EXTENDED: &str = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
/// The magic number of ext4, in the superblock at byte 1024.
const MAGIC_AT: u64 = 1024 + 0x38;
const MAGIC: [u8; 2] = 0xEF53_u16.to_le_bytes();
/// Blocks for directories and the tables of small file systems.
const SMALL_CHANGE: u64 = 256;
/// Blocks of a group, and the smallest number in the last group with which it is used.
const GROUP: u64 = 32_768;
const LEAST_GROUP: u64 = 2048;

/// MiB of the journal of a disk for this many bytes, which may be half of a file system and at least 4.
fn journal_mib(bytes: u64) -> u64 {
    if bytes < 64 << 20 { 4 } else { 16 }
}

/// Blocks of a file system that has room for this many bytes of data. Tables of inodes take a 32nd, and what enlarging needs takes up to a 300th.
fn blocks(bytes: u64) -> u64 {
    let journal = (journal_mib(bytes) << 20) / BLOCK;
    let data = bytes.div_ceil(BLOCK) + journal + SMALL_CHANGE;
    // The kernel keeps a fiftieth, at most 4096 blocks (`ext4_calculate_overhead`).
    let blocks = ((data + (data / 48).min(4096)) / 26 * 27 + 27).max(2 * journal + 64);
    let last = blocks % GROUP;
    if blocks > GROUP && last < LEAST_GROUP { blocks + LEAST_GROUP - last } else { blocks }
}

/// Bytes of the whole disk around a partition of this size.
fn disk_bytes(partition: u64) -> u64 {
    ALIGNMENT + partition.next_multiple_of(ALIGNMENT) + disk::TAIL_SECTORS * SECTOR
}

/// The fewest bytes for which a disk of this size is made, so that whoever asked for it may ask for as much again; `None` if the file cannot be such a disk. Of its file system only the magic number is looked at.
pub fn capacity(file: &File) -> Option<u64> {
    let size = file.metadata().ok()?.len();
    let partition = size.checked_sub(ALIGNMENT + disk::TAIL_SECTORS * SECTOR)?;
    let mut magic = [0; 2];
    file.read_exact_at(&mut magic, ALIGNMENT + MAGIC_AT).ok()?;
    let (mut least, mut most) = (1 << 20, MAX_BYTES);
    if magic != MAGIC || !fits(least, partition) {
        return None;
    }
    while least + BLOCK < most {
        let middle = least.midpoint(most);
        if fits(middle, partition) { least = middle } else { most = middle }
    }
    // Many amounts have a partition of the same size.
    let made = partition_bytes(least);
    let (mut below, mut enough) = (0, least);
    while below + BLOCK < enough {
        let middle = below.midpoint(enough);
        if partition_bytes(middle) < made { below = middle } else { enough = middle }
    }
    Some(enough.max(1 << 20))
}

/// Bytes of the partition of a disk for this many bytes of data.
fn partition_bytes(bytes: u64) -> u64 {
    (blocks(bytes) * BLOCK).next_multiple_of(ALIGNMENT)
}

fn fits(bytes: u64, partition: u64) -> bool {
    partition_bytes(bytes) <= partition
}

/// Makes the disk if there is none, enlarges it if it is smaller than asked for, and writes its partition table. Nobody else may use it. `path` is
/// alone in its directory.
pub fn prepare(path: &Path, guid: [u8; 16], bytes: u64) -> Result<(), ScratchError> {
    let wanted = disk_bytes(blocks(bytes) * BLOCK);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return make(path, guid, bytes),
        _ => {}
    }
    let file = regular::open(path, Access::Lock)?;
    let edit = || {
        let now = file.metadata()?.len();
        let size = now.max(wanted);
        if now < size {
            // What was at the end becomes part of the file system, whose new blocks are zeros.
            file.set_len(now.saturating_sub(disk::TAIL_SECTORS * SECTOR))?;
            file.set_len(size)?;
        }
        write_tables(&file, guid, size)?;
        // An earlier user of a VM owned it.
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::fchown(&file, Some(0), Some(0))?;
        }
        file.sync_all()
    };
    Ok(edit().map_err(FileError::at("write", path))?)
}

fn make(path: &Path, guid: [u8; 16], bytes: u64) -> Result<(), ScratchError> {
    let program = scratch::program().ok_or(ScratchError::NoProgram)?;
    let new = path.with_extension("new");
    let failed = |error| FileError::at("write", &new)(error);
    // Of an earlier attempt that was cut off.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error).into()),
        _ => {}
    }
    let file = File::options().read(true).write(true).create_new(true).open(&new).map_err(failed)?;
    let blocks = blocks(bytes);
    file.set_permissions(fs::Permissions::from_mode(0o600))
        .and_then(|()| file.set_len(disk_bytes(blocks * BLOCK)))
        .map_err(failed)?;
    let extended = format!("offset={ALIGNMENT},{EXTENDED}");
    let journal = format!("size={}", journal_mib(bytes));
    let options = [&OPTIONS[..], &[&extended, "-J", &journal]].concat();
    scratch::mkfs(&program, &options, &new, blocks)?;
    write_tables(&file, guid, disk_bytes(blocks * BLOCK)).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    Ok(atomic::sync_parent(path)?)
}

/// One partition, from the first MiB to the tail.
fn write_tables(file: &File, guid: [u8; 16], size: u64) -> io::Result<()> {
    let tail_at = size - disk::TAIL_SECTORS * SECTOR;
    let (head, tail) = disk::tables(guid, &[(ALIGNMENT / SECTOR, tail_at / SECTOR - 1)], size / SECTOR);
    // The rest of the head is zeros, which nobody reads.
    file.write_all_at(head.get(..34 * 512).unwrap_or(&head), 0)?;
    file.write_all_at(&tail, tail_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    const GUID: [u8; 16] = *b"0123456789abcdef";

    fn whole(path: &Path) {
        let check = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(format!("{}?offset={ALIGNMENT}", path.display()))
            .output()
            .expect("e2fsck (e2fsprogs)");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    }

    #[test]
    fn a_disk_has_room_for_what_was_asked_for_and_little_more() {
        let dir = tempfile::tempdir().unwrap();
        for bytes in [1 << 20, 8 << 20, 100 << 20, 1 << 30, 3 << 30, (5 << 30) + 12_345, 100 << 30] {
            let path = dir.path().join("image");
            prepare(&path, GUID, bytes).unwrap();
            let file = File::open(&path).unwrap();
            let total = blocks(bytes);
            let free = scratch::free_blocks(&file, ALIGNMENT).unwrap() - (total / 50).min(4096);
            let wanted = bytes.div_ceil(BLOCK);
            let most = wanted + wanted / 40 + LEAST_GROUP + 2 * SMALL_CHANGE;
            assert!((wanted..=most).contains(&free), "{bytes}: {free} blocks, {wanted} wanted");
            assert!(file.metadata().unwrap().blocks() * SECTOR < 16 << 20, "it is sparse");
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
            whole(&path);
            let capacity = capacity(&file).unwrap();
            assert!(
                (bytes - bytes / 40).saturating_sub(9 << 20) <= capacity && capacity <= bytes,
                "{bytes}: {capacity}"
            );
            // A copy of it does not grow, and whoever asked for it may ask again.
            let size = file.metadata().unwrap().len();
            prepare(&path, GUID, capacity).unwrap();
            assert_eq!(file.metadata().unwrap().len(), size);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_disk_grows_and_never_shrinks_and_has_the_guid_that_the_host_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(path.with_extension("new"), "cut off").unwrap();
        prepare(&path, GUID, 64 << 20).unwrap();
        let size = || fs::metadata(&path).unwrap().len();
        let small = size();
        let file = File::options().write(true).open(&path).unwrap();
        // What a guest can do to its disk.
        file.write_all_at(&[0xff; 4096], 0).unwrap();
        prepare(&path, GUID, 1 << 20).unwrap();
        assert_eq!(size(), small);
        prepare(&path, GUID, 256 << 20).unwrap();
        assert!(size() > small + (192 << 20));
        let mut guid = [0; 16];
        File::open(&path).unwrap().read_exact_at(&mut guid, magikvm_proto::path::DISK_GUID_AT).unwrap();
        assert_eq!(guid, GUID);
        let said = Command::new("sfdisk").arg("--verify").arg(&path).output().expect("sfdisk (fdisk)");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        whole(&path);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(prepare(&link, GUID, 1 << 20).is_err());
    }
}
