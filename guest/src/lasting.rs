//! Disks that outlive the pod: found by the GUID in their partition tables, which the host writes before each start, and not by their order.
//! The kernel replays the journal of a disk that was not unmounted; a disk that the host has enlarged gets a larger file system.

use crate::load::{DISK_POLL, DISK_WAIT, LoadError, mount_device};
use crate::{console, group, sys, trim};
use magikvm_containers::pod::{file_error, make_dir};
use magikvm_proto::path::{DISK_GUID_AT, LASTING_ROOT, POD_DISK_GUID};
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::site::Site;
use magikvm_proto::volume::VolumeSource;
use nix::mount::{MsFlags, mount};
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

/// Tables of inodes are zeros on a new disk, as on the scratch disk. A damaged file system is not written to any further.
const OPTIONS: &str = "noinit_itable,no_prefetch_block_bitmaps,errors=remount-ro";
/// Permissions of the root of a new volume: containers often have a user of their own.
const ROOT_MODE: u32 = 0o777;
/// The superblock (Documentation/filesystems/ext4/super.rst): its place, its length, and fields in it.
const SUPERBLOCK: u64 = 1024;
const SUPERBLOCK_LEN: usize = 1024;
const BLOCKS_LOW: usize = 0x4;
const LOG_BLOCK_SIZE: usize = 0x18;
const BLOCKS_HIGH: usize = 0x150;

/// Where file systems are mounted that have to be left in order.
static MOUNTED: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// Mounts every disk that the plan names, once.
pub(crate) fn mount_all(site: &Site, plan: &GuestPlan) -> Result<(), LoadError> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for volume in &plan.volumes {
        let VolumeSource::Lasting { disk, regroup } = &volume.source else { continue };
        let target = site.lasting(disk);
        if roots.contains(&target) {
            continue;
        }
        let partition = format!("{}1", find(disk)?);
        make_dir(&target)?;
        mount_device(&partition, &target, "ext4", MsFlags::MS_NODEV, Some(OPTIONS))?;
        roots.push(target.clone());
        grow(Path::new(&partition), &target)
            .map_err(|source| LoadError::Grow { disk: disk.clone(), source })?;
        let root = target.join(LASTING_ROOT);
        make_root(&root).map_err(file_error(&root))?;
        if let Some(group) = volume.group {
            group::set(&root, group, *regroup).map_err(|errno| file_error(&root)(errno.into()))?;
        }
    }
    trim::start(roots.clone()).map_err(LoadError::Thread)?;
    // It is set once, because the pod is loaded once.
    MOUNTED.get_or_init(|| roots);
    Ok(())
}

/// Leaves the file systems without work for their journals. No container runs any more.
pub(crate) fn leave() {
    for target in MOUNTED.get().into_iter().flatten() {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(errno) = mount(None::<&str>, target, None::<&str>, flags, None::<&str>) {
            console::say(&format!("cannot leave {}: {errno}", target.display()));
        }
    }
}

/// Whether this is a disk of the pod alone.
pub(crate) fn is_of_pod(device: &str) -> bool {
    guid(Path::new(device)).is_ok_and(|found| found == POD_DISK_GUID)
}

fn guid(device: &Path) -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open(device)?.read_exact_at(&mut bytes, DISK_GUID_AT)?;
    Ok(bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

/// The device of the disk with this GUID, as soon as it appears.
fn find(disk: &str) -> Result<String, LoadError> {
    let deadline = Instant::now() + DISK_WAIT;
    loop {
        let mut devices = ('b'..='z').map(|letter| format!("/dev/vd{letter}"));
        let found = devices.find(|device| guid(Path::new(device)).is_ok_and(|id| hexadecimal(&id) == disk));
        match found {
            Some(device) => return Ok(device),
            None if Instant::now() >= deadline => return Err(LoadError::Lasting(disk.to_owned())),
            None => std::thread::sleep(DISK_POLL),
        }
    }
}

/// Makes the file system as large as its partition.
fn grow(partition: &Path, target: &Path) -> io::Result<()> {
    let mut device = File::open(partition)?;
    let mut superblock = [0; SUPERBLOCK_LEN];
    device.read_exact_at(&mut superblock, SUPERBLOCK)?;
    let size = device.seek(SeekFrom::End(0))?;
    match wanted(&superblock, size) {
        Some(blocks) => sys::resize(&File::open(target)?, blocks),
        None => Ok(()),
    }
}

/// The blocks that a file system should have in a partition of this size; `None` if it has them.
fn wanted(superblock: &[u8; SUPERBLOCK_LEN], partition: u64) -> Option<u64> {
    let word = |at: usize| {
        let bytes = superblock.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        u64::from(bytes.map_or(0, u32::from_le_bytes))
    };
    let size = 1024_u64.checked_shl(u32::try_from(word(LOG_BLOCK_SIZE)).ok()?)?;
    let blocks = partition.checked_div(size)?;
    (blocks > (word(BLOCKS_HIGH) << 32 | word(BLOCKS_LOW))).then_some(blocks)
}

fn make_root(root: &Path) -> io::Result<()> {
    match fs::symlink_metadata(root) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(root)?;
            fs::set_permissions(root, Permissions::from_mode(ROOT_MODE))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_grows_to_its_partition_and_never_shrinks() {
        let mut superblock = [0; SUPERBLOCK_LEN];
        superblock[BLOCKS_LOW..BLOCKS_LOW + 4].copy_from_slice(&1000_u32.to_le_bytes());
        superblock[LOG_BLOCK_SIZE] = 2;
        assert_eq!(wanted(&superblock, 1000 * 4096 + 4095), None);
        assert_eq!(wanted(&superblock, 999 * 4096), None);
        assert_eq!(wanted(&superblock, 1001 * 4096), Some(1001));
        superblock[BLOCKS_HIGH] = 1;
        assert_eq!(wanted(&superblock, 1001 * 4096), None);
        // A guest may have written anything.
        superblock[LOG_BLOCK_SIZE..LOG_BLOCK_SIZE + 4].copy_from_slice(&[0xff; 4]);
        assert_eq!(wanted(&superblock, u64::MAX), None);
    }

    #[test]
    fn a_new_root_is_for_everybody_and_a_link_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        make_root(&root).unwrap();
        make_root(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o7777, 0o777);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        assert!(make_root(&link).is_err());
    }
}
