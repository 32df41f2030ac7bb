//! The scratch disk: one sparse file with a GPT, and an ext4 file system without a journal in each partition. It lives as long as its pod, so
//! that nothing of it must survive a crash. `mkfs.ext4` makes each file system in a few milliseconds.

use super::disk;
use super::find_program;
use crate::store::atomic::FileError;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
/// Partitions begin at multiples of this many bytes.
const ALIGNMENT: u64 = 1 << 20;
/// Size of a file system without a limit, unless the host's disk has less.
pub const SHARED_SIZE: u64 = 10 << 30;
/// Smallest size of such a file system.
const MIN_SHARED_SIZE: u64 = 64 << 20;
/// Attempts to find a size with room for exactly the limit. Two are enough.
const TRIES: u32 = 5;
/// Excess blocks that are accepted.
const SLACK: u64 = 16;
/// The usual directories of `mkfs.ext4`, which an ordinary user's `PATH` may lack.
const PROGRAM: &str = "mkfs.ext4";
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The capacity of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Shared,
    Limited(u64),
}

/// The reasons why a scratch disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// `mkfs.ext4` is missing.
    #[error("emptyDir volumes on disk need {PROGRAM}, which is not installed (apt-get install e2fsprogs)")]
    NoProgram,
    #[error("cannot start {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{PROGRAM} made no file system in {}: {said}", path.display())]
    Made { path: PathBuf, said: String },
    /// The host's disk has no room.
    #[error("{} has only {free} bytes free, emptyDir volumes on disk need {MIN_SHARED_SIZE}", path.display())]
    NoRoom { path: PathBuf, free: u64 },
    #[error(transparent)]
    File(#[from] FileError),
}

/// Finds `mkfs.ext4`.
pub fn program() -> Option<PathBuf> {
    find_program(PROGRAM)
        .or_else(|| SYSTEM_DIRS.iter().map(|dir| Path::new(dir).join(PROGRAM)).find(|path| path.is_file()))
}

/// Makes a disk with these file systems in a new file, from partition 1 on.
pub fn make(path: &Path, rooms: &[Room]) -> Result<(), ScratchError> {
    let program = program().ok_or(ScratchError::NoProgram)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(FileError::at("create", path))?;
    let mut ranges = Vec::with_capacity(rooms.len());
    let mut next = ALIGNMENT;
    for room in rooms {
        let size = make_file_system(&program, path, &file, next, *room)?;
        ranges.push((next / SECTOR, (next + size) / SECTOR - 1));
        next += size.next_multiple_of(ALIGNMENT);
    }
    let (head, tail) = disk::tables(&ranges, next / SECTOR + disk::TAIL_SECTORS);
    let write = || {
        file.set_len(next + disk::TAIL_SECTORS * SECTOR)?;
        // The rest of the head is zeros, which the sparse file has already.
        file.write_all_at(head.get(..34 * 512).unwrap_or(&head), 0)?;
        file.write_all_at(&tail, next)
    };
    Ok(write().map_err(FileError::at("write", path))?)
}

fn make_file_system(
    program: &Path,
    path: &Path,
    file: &File,
    at: u64,
    room: Room,
) -> Result<u64, ScratchError> {
    let limit = match room {
        Room::Limited(bytes) => bytes.div_ceil(BLOCK),
        Room::Shared => {
            let blocks = shared_size(path)? / BLOCK;
            run(program, path, file, at, blocks)?;
            return Ok(blocks * BLOCK);
        }
    };
    let mut blocks = limit + limit / 32 + 64;
    for _ in 0..TRIES {
        run(program, path, file, at, blocks)?;
        let free = free_blocks(file, at).map_err(FileError::at("read", path))?;
        // Blocks for the volume's directory, and those that the kernel reserves (`ext4_calculate_overhead`: a fiftieth, at most 4096 blocks).
        let wanted = limit + 1 + (blocks / 50).min(4096);
        if (wanted..=wanted + SLACK).contains(&free) {
            break;
        }
        blocks = (blocks + wanted).saturating_sub(free) + 2;
    }
    Ok(blocks * BLOCK)
}

/// Free bytes on the file's disk, at most the usual size.
fn shared_size(path: &Path) -> Result<u64, ScratchError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let room = rustix::fs::statvfs(dir).map_err(|errno| FileError::at("measure", dir)(errno.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free < MIN_SHARED_SIZE {
        return Err(ScratchError::NoRoom { path: dir.to_owned(), free });
    }
    Ok(SHARED_SIZE.min(free) / BLOCK * BLOCK)
}

fn run(program: &Path, path: &Path, file: &File, at: u64, blocks: u64) -> Result<(), ScratchError> {
    // Data of an earlier attempt would be read.
    file.set_len(at)
        .and_then(|()| file.set_len(at + blocks * BLOCK))
        .map_err(FileError::at("extend", path))?;
    let extended = format!("offset={at},lazy_itable_init=1,nodiscard,root_owner=0:0");
    let ended = Command::new(program)
        .env_clear()
        .env("LC_ALL", "C")
        .args(["-q", "-F", "-b", "4096", "-m", "0", "-i", "16384"])
        .args(["-O", "^has_journal,^resize_inode", "-E", &extended])
        .arg(path)
        .arg(format!("{}k", blocks * (BLOCK / 1024)))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ScratchError::Start { program: program.to_owned(), source })?;
    if ended.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&ended.stderr).trim().chars().take(500).collect();
    Err(ScratchError::Made { path: path.to_owned(), said })
}

/// Free blocks according to the superblock (at byte 1024): `s_free_blocks_count_lo` and `_hi`.
fn free_blocks(file: &File, at: u64) -> io::Result<u64> {
    let word = |offset: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at + 1024 + offset)?;
        Ok::<_, io::Error>(u64::from(u32::from_le_bytes(bytes)))
    };
    Ok(word(0x158)? << 32 | word(0xC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_have_room_for_their_limits_and_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let limits = [1 << 20, 5 << 20, 100 << 20, 3 << 30];
        let rooms: Vec<Room> = limits.map(Room::Limited).into_iter().chain([Room::Shared]).collect();
        make(&path, &rooms).unwrap();
        let said = Command::new("sfdisk").arg("--json").arg(&path).output().expect("sfdisk (fdisk)");
        let table: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        let partitions = table["partitiontable"]["partitions"].as_array().unwrap().clone();
        assert_eq!(partitions.len(), rooms.len());
        let file = File::open(&path).unwrap();
        for (partition, limit) in partitions.iter().zip(limits) {
            let at = partition["start"].as_u64().unwrap() * SECTOR;
            let size = partition["size"].as_u64().unwrap() * SECTOR;
            let kept = 1 + (size / BLOCK / 50).min(4096);
            let free = free_blocks(&file, at).unwrap() - kept;
            let wanted = limit / BLOCK;
            assert!((wanted..=wanted + SLACK).contains(&free), "{limit}: {free} blocks");
        }
        let check = Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(format!("{}?offset={ALIGNMENT}", path.display()))
            .output()
            .expect("e2fsck (e2fsprogs)");
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        use std::os::unix::fs::MetadataExt;
        assert!(file.metadata().unwrap().blocks() * SECTOR < 4 << 20, "it is sparse");
    }
}
