//! The scratch disk: one sparse file with a GPT, and an ext4 file system without a journal in each partition. It lives as long as its pod, so
//! that nothing of it must survive a crash. `mkfs.ext4` makes a file system once; later ones are copies of its few blocks ([`template`]).

mod template;

use super::disk;
use super::find_program;
use crate::store::atomic::FileError;
use crate::store::text::ignore;
use magikvm_proto::path::POD_DISK_GUID;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use template::{Template, Templates};

pub(super) const SECTOR: u64 = 512;
pub(super) const BLOCK: u64 = 4096;
/// Partitions begin at multiples of this many bytes.
pub(super) const ALIGNMENT: u64 = 1 << 20;
/// Size of a file system without a limit, unless the host's disk has less.
pub const SHARED_SIZE: u64 = 10 << 30;
/// The host's disk must have room for this many bytes.
pub const MIN_FREE: u64 = 64 << 20;
/// Attempts to find a size with room for exactly the limit. Two to five are enough.
const TRIES: u32 = 10;
/// Excess blocks that are accepted.
const SLACK: u64 = 16;
/// Options of `mkfs.ext4`. Nothing needs a journal or grows. Tables of inodes are zeros already.
const OPTIONS: [&str; 7] = ["-q", "-F", "-b", "4096", "-m", "0", "-O"];
const FEATURES: &str = "^has_journal,^resize_inode";
const EXTENDED: &str = "lazy_itable_init=1,nodiscard,root_owner=0:0";
/// Bytes per inode, for file systems of 1 GiB and more and for smaller ones, which have relatively more files.
const BYTES_PER_INODE: [&str; 2] = ["16384", "4096"];
const SMALL: u64 = (1 << 30) / BLOCK;
/// The usual directories of `mkfs.ext4`, which an ordinary user's `PATH` may lack.
const PROGRAM: &str = "mkfs.ext4";
const SYSTEM_DIRS: [&str; 4] =
    ["/usr/sbin", "/sbin", "/opt/homebrew/opt/e2fsprogs/sbin", "/usr/local/opt/e2fsprogs/sbin"];

/// The capacity of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// [`SHARED_SIZE`], or what the host's disk has.
    Shared,
    /// This many bytes of data.
    Limited(u64),
}

/// The reasons why a scratch disk cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// `mkfs.ext4` is missing.
    #[error(
        "{PROGRAM} is not installed, which formats the disk for the changes to root file systems and for emptyDir volumes"
    )]
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
    #[error("{} has only {} MiB free, and the disk for the changes to root file systems and for emptyDir volumes needs {} MiB", path.display(), free >> 20, MIN_FREE >> 20)]
    NoRoom { path: PathBuf, free: u64 },
    #[error(transparent)]
    File(#[from] FileError),
}

/// Finds `mkfs.ext4`.
pub fn program() -> Option<PathBuf> {
    find_program(PROGRAM)
        .or_else(|| SYSTEM_DIRS.iter().map(|dir| Path::new(dir).join(PROGRAM)).find(|path| path.is_file()))
}

/// Makes a disk with these file systems in a new file, from partition 1 on. `templates` is a directory for what later calls can copy.
pub fn make(path: &Path, rooms: &[Room], templates: &Path) -> Result<(), ScratchError> {
    let (file, free) = create(path)?;
    let disk = Disk { path, file: &file, templates: Templates(templates) };
    let mut ranges = Vec::with_capacity(rooms.len());
    let mut next = ALIGNMENT;
    for room in rooms {
        let size = disk.add(next, Size::of(*room, free))?;
        ranges.push((next / SECTOR, (next + size) / SECTOR - 1));
        next += size.next_multiple_of(ALIGNMENT);
    }
    let (head, tail) = disk::tables(POD_DISK_GUID, &ranges, next / SECTOR + disk::TAIL_SECTORS);
    let write = || {
        file.set_len(next + disk::TAIL_SECTORS * SECTOR)?;
        // The rest of the head is zeros, which the sparse file has already.
        file.write_all_at(head.get(..34 * 512).unwrap_or(&head), 0)?;
        file.write_all_at(&tail, next)
    };
    Ok(write().map_err(FileError::at("write", path))?)
}

/// Makes a file that is one file system, without a partition table.
pub fn make_one(path: &Path, room: Room, templates: &Path) -> Result<(), ScratchError> {
    let (file, free) = create(path)?;
    let disk = Disk { path, file: &file, templates: Templates(templates) };
    disk.add(0, Size::of(room, free)).map(drop)
}

/// Makes the file of a disk, and says how many bytes are free for it.
fn create(path: &Path) -> Result<(File, u64), ScratchError> {
    let free = free_bytes(path.parent().unwrap_or(Path::new("/")))?;
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    Ok((file.map_err(FileError::at("create", path))?, free))
}

/// Free bytes of the disk that a directory is on.
fn free_bytes(dir: &Path) -> Result<u64, ScratchError> {
    let room = rustix::fs::statvfs(dir).map_err(|errno| FileError::at("measure", dir)(errno.into()))?;
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    if free < MIN_FREE { Err(ScratchError::NoRoom { path: dir.to_owned(), free }) } else { Ok(free) }
}

/// The size of a file system, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// All of it.
    Whole(u64),
    /// What data may take.
    Data(u64),
}

impl Size {
    fn of(room: Room, free: u64) -> Self {
        match room {
            Room::Limited(bytes) => Self::Data(bytes.div_ceil(BLOCK)),
            // In few steps, because each size has a template.
            Room::Shared => {
                let step = if free < 1 << 30 { MIN_FREE } else { 1 << 30 };
                Self::Whole(SHARED_SIZE.min(free / step * step) / BLOCK)
            }
        }
    }
}

/// A disk that is being made.
struct Disk<'a> {
    path: &'a Path,
    file: &'a File,
    templates: Templates<'a>,
}

impl Disk<'_> {
    /// Puts a file system at this place, and returns its size in bytes.
    fn add(&self, at: u64, size: Size) -> Result<u64, ScratchError> {
        let template =
            self.templates.name(&format!("{OPTIONS:?} {FEATURES} {EXTENDED} {BYTES_PER_INODE:?} {size:?}"));
        if let Some(found) = self.templates.read(&template) {
            let bytes = found.blocks * BLOCK;
            self.file
                .set_len(at + bytes)
                .and_then(|()| found.apply(self.file, at))
                .map_err(FileError::at("write", self.path))?;
            return Ok(bytes);
        }
        let blocks = self.format(at, size)?;
        let captured = Template::capture(self.file, at, blocks).map_err(FileError::at("read", self.path))?;
        let kept = captured.map_or(Ok(()), |captured| self.templates.keep(&template, &captured));
        ignore(kept, "the next pod formats its disk again, which takes a few milliseconds");
        Ok(blocks * BLOCK)
    }

    /// Makes a file system and returns its blocks.
    fn format(&self, at: u64, size: Size) -> Result<u64, ScratchError> {
        let program = program().ok_or(ScratchError::NoProgram)?;
        let (Size::Data(limit) | Size::Whole(limit)) = size;
        let per_inode = BYTES_PER_INODE[usize::from(limit < SMALL)];
        if let Size::Whole(blocks) = size {
            return self.run(&program, at, blocks, per_inode).map(|()| blocks);
        }
        let mut blocks = limit + limit / 32 + 64;
        for _ in 0..TRIES {
            self.run(&program, at, blocks, per_inode)?;
            let free = free_blocks(self.file, at).map_err(FileError::at("read", self.path))?;
            // Blocks for the volume's directory, and those that the kernel reserves (`ext4_calculate_overhead`: a fiftieth, at most 4096 blocks).
            let wanted = limit + 1 + (blocks / 50).min(4096);
            if (wanted..=wanted + SLACK).contains(&free) {
                break;
            }
            blocks = (blocks + wanted).saturating_sub(free) + 2;
        }
        Ok(blocks)
    }

    fn run(&self, program: &Path, at: u64, blocks: u64, per_inode: &str) -> Result<(), ScratchError> {
        // Data of an earlier attempt would be read.
        self.file
            .set_len(at)
            .and_then(|()| self.file.set_len(at + blocks * BLOCK))
            .map_err(FileError::at("extend", self.path))?;
        let extended = format!("offset={at},{EXTENDED}");
        let options = [&OPTIONS[..], &[FEATURES, "-i", per_inode, "-E", &extended]].concat();
        mkfs(program, &options, self.path, blocks)
    }
}

/// Runs `mkfs.ext4`.
pub(super) fn mkfs(program: &Path, options: &[&str], path: &Path, blocks: u64) -> Result<(), ScratchError> {
    let ended = Command::new(program)
        .env_clear()
        .env("LC_ALL", "C")
        .args(options)
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
pub(super) fn free_blocks(file: &File, at: u64) -> io::Result<u64> {
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
        let templates = dir.path().join("templates");
        make(&path, &rooms, &templates).unwrap();
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

        // The second disk is a copy, byte for byte.
        let copy = dir.path().join("copy");
        make(&copy, &rooms, &templates).unwrap();
        let (one, two) = (captured(&path), captured(&copy));
        assert!(one == two, "the copy differs");
        // A damaged template is made again.
        for entry in std::fs::read_dir(&templates).unwrap() {
            std::fs::write(entry.unwrap().path(), "damaged").unwrap();
        }
        let again = dir.path().join("again");
        make(&again, &rooms[..1], &templates).unwrap();
        assert!(free_blocks(&File::open(&again).unwrap(), ALIGNMENT).unwrap() > 256);
    }

    fn captured(path: &Path) -> Template {
        let file = File::open(path).unwrap();
        Template::capture(&file, 0, file.metadata().unwrap().len() / BLOCK).unwrap().unwrap()
    }

    #[test]
    fn a_host_with_little_room_gives_what_it_has_in_few_sizes() {
        let size = |free: u64| Size::of(Room::Shared, free);
        assert_eq!(size(u64::MAX), Size::Whole(SHARED_SIZE / BLOCK));
        assert_eq!(size((5 << 30) + 12_345), Size::Whole((5 << 30) / BLOCK));
        assert_eq!(size((200 << 20) + 1), Size::Whole((192 << 20) / BLOCK));
        assert_eq!(size(MIN_FREE), Size::Whole(MIN_FREE / BLOCK));
        assert_eq!(Size::of(Room::Limited(4097), MIN_FREE), Size::Data(2));
    }
}
