//! The composite disk: one read-only GPT disk made of many files without copying any. A VMDK descriptor (createType
//! "twoGbMaxExtentFlat") names, in order, a small head (protective MBR and GPT), each file as a partition, and the tail (backup GPT).

use crate::store::atomic::FileError;
use magikvm_proto::path::POD_DISK_GUID;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const SECTOR: u64 = 512;
/// Partitions start at the usual 1 MiB.
const HEAD_SECTORS: u64 = 2048;
/// Backup entries (at most 32) and header (1), padded to a multiple of 4 KiB.
pub(super) const TAIL_SECTORS: u64 = 40;
const MAX_ENTRIES: usize = 128;
const ENTRY_SIZE: usize = 128;
/// Entries in a sector. The table has no more than the partitions need: the kernel reads all of it at the start of each VM, one block after the
/// other, and the usual table of 128 entries has four blocks, twice.
const SECTOR_ENTRIES: usize = 4;
/// "Linux filesystem data", in the mixed byte order of GPT.
const TYPE_LINUX: [u8; 16] =
    [0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4];

/// Name of the descriptor in the VM's directory.
pub const DESCRIPTOR: &str = "disk.vmdk";

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// More partitions than a GPT holds.
    #[error("{0} partitions, a disk holds at most {MAX_ENTRIES}")]
    TooMany(usize),
    /// A file is empty or does not consist of whole blocks.
    #[error("{} has {size} bytes, which is not a positive multiple of 4096", path.display())]
    Size { path: PathBuf, size: u64 },
    #[error(transparent)]
    File(#[from] FileError),
}

/// One file that becomes a partition.
#[derive(Debug, Clone)]
pub struct Part {
    pub path: PathBuf,
    /// Size in bytes, a multiple of 4096.
    pub size: u64,
}

/// Makes the disk in `dir`: partition 1 is `parts[0]`, and so on. The descriptor names only links within `dir`, so that no path has to be
/// quoted in it.
pub fn compose(dir: &Path, parts: &[Part]) -> Result<(), DiskError> {
    if parts.len() > MAX_ENTRIES {
        return Err(DiskError::TooMany(parts.len()));
    }
    let mut descriptor = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentFlat\"\n\
         # Extents: head, one per partition, tail\n",
    );
    let mut extent = |sectors: u64, name: &str| {
        // Writing to a String can't fail.
        writeln!(descriptor, "RW {sectors} FLAT \"{name}\" 0").unwrap_or_default();
    };
    extent(HEAD_SECTORS, "head");
    let mut ranges = Vec::with_capacity(parts.len());
    let mut next = HEAD_SECTORS;
    for (index, part) in parts.iter().enumerate() {
        if part.size == 0 || !part.size.is_multiple_of(4096) {
            return Err(DiskError::Size { path: part.path.clone(), size: part.size });
        }
        let sectors = part.size / SECTOR;
        let name = format!("part{}", index + 1);
        let link = dir.join(&name);
        symlink(&part.path, &link).map_err(FileError::at("link", &link))?;
        extent(sectors, &name);
        ranges.push((next, next + sectors - 1));
        next += sectors;
    }
    extent(TAIL_SECTORS, "tail");
    let (head, tail) = tables(POD_DISK_GUID, &ranges, next + TAIL_SECTORS);
    for (name, bytes) in [("head", &head), ("tail", &tail), (DESCRIPTOR, &descriptor.into_bytes())] {
        write_sparse(&dir.join(name), bytes)?;
    }
    Ok(())
}

/// Writes a file with a hole in place of the zeros at its end, because the head of a disk is nearly all zeros and lies in memory.
fn write_sparse(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let write = || {
        let mut file = fs::File::create(path)?;
        file.write_all(&bytes[..used])?;
        file.set_len(length)
    };
    write().map_err(FileError::at("write", path))
}

/// Head and tail of a GPT disk of `total` sectors with this GUID and these partitions (first and last sector each).
pub(super) fn tables(disk: [u8; 16], ranges: &[(u64, u64)], total: u64) -> (Vec<u8>, Vec<u8>) {
    let mut entries = vec![0u8; ranges.len().max(1).next_multiple_of(SECTOR_ENTRIES) * ENTRY_SIZE];
    for (index, (first, last)) in ranges.iter().enumerate() {
        let entry = &mut entries[index * ENTRY_SIZE..][..ENTRY_SIZE];
        entry[..16].copy_from_slice(&TYPE_LINUX);
        entry[16..32].copy_from_slice(&guid(index + 1));
        entry[32..40].copy_from_slice(&first.to_le_bytes());
        entry[40..48].copy_from_slice(&last.to_le_bytes());
    }
    let entry_sectors = u64::try_from(entries.len()).unwrap_or(u64::MAX) / SECTOR;
    let last = total - 1;
    let mut head = vec![0u8; bytes(HEAD_SECTORS)];
    head[446..462].copy_from_slice(&protective_entry(total));
    head[510..512].copy_from_slice(&[0x55, 0xAA]);
    head[512..604].copy_from_slice(&header(disk, (1, last), 2, total, &entries));
    head[1024..1024 + entries.len()].copy_from_slice(&entries);

    let mut tail = vec![0u8; bytes(TAIL_SECTORS)];
    let header_at = bytes(TAIL_SECTORS - 1);
    tail[header_at..header_at + 92].copy_from_slice(&header(
        disk,
        (last, 1),
        last - entry_sectors,
        total,
        &entries,
    ));
    tail[header_at - entries.len()..header_at].copy_from_slice(&entries);
    (head, tail)
}

fn bytes(sectors: u64) -> usize {
    usize::try_from(sectors * SECTOR).unwrap_or(usize::MAX)
}

/// Fixed GUIDs: partition N has number N, and number 0 is that of the pod's disks. Nothing ever sees the disks of several pods together.
fn guid(number: usize) -> [u8; 16] {
    let mut guid = POD_DISK_GUID;
    guid[12] = u8::try_from(number & 0xff).unwrap_or(0);
    guid
}

/// The only entry of the protective MBR: type 0xEE over the whole disk (UEFI 2.10, 5.2.3).
fn protective_entry(total: u64) -> [u8; 16] {
    let sectors = u32::try_from(total - 1).unwrap_or(u32::MAX).to_le_bytes();
    let mut entry = [0u8; 16];
    entry[..12].copy_from_slice(&[0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
    entry[12..].copy_from_slice(&sectors);
    entry
}

/// A GPT header (UEFI 2.10, 5.3.2).
fn header(
    disk: [u8; 16],
    (mine, other): (u64, u64),
    entries_at: u64,
    total: u64,
    entries: &[u8],
) -> [u8; 92] {
    let count = u32::try_from(entries.len() / ENTRY_SIZE).unwrap_or(u32::MAX);
    let mut header = [0u8; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[8..16].copy_from_slice(&[0, 0, 1, 0, 92, 0, 0, 0]);
    header[24..32].copy_from_slice(&mine.to_le_bytes());
    header[32..40].copy_from_slice(&other.to_le_bytes());
    header[40..48].copy_from_slice(&34u64.to_le_bytes());
    header[48..56].copy_from_slice(&(total - 34).to_le_bytes());
    header[56..72].copy_from_slice(&disk);
    header[72..80].copy_from_slice(&entries_at.to_le_bytes());
    header[80..84].copy_from_slice(&count.to_le_bytes());
    header[84..88].copy_from_slice(&128u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc32fast::hash(entries).to_le_bytes());
    let crc = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partitioning_tool_reads_the_disk_as_it_was_meant() {
        let dir = tempfile::tempdir().unwrap();
        let parts: Vec<Part> = [8192u64, 4096, 1 << 20]
            .iter()
            .enumerate()
            .map(|(index, &size)| {
                let path = dir.path().join(format!("image-{index}"));
                fs::write(&path, vec![u8::try_from(index).unwrap(); usize::try_from(size).unwrap()]).unwrap();
                Part { path, size }
            })
            .collect();
        compose(dir.path(), &parts).unwrap();
        let mut disk = fs::read(dir.path().join("head")).unwrap();
        for index in 1..=3 {
            disk.extend(fs::read(dir.path().join(format!("part{index}"))).unwrap());
        }
        disk.extend(fs::read(dir.path().join("tail")).unwrap());
        let whole = dir.path().join("whole");
        fs::write(&whole, &disk).unwrap();
        let said = std::process::Command::new("sfdisk")
            .arg("--verify")
            .arg(&whole)
            .output()
            .expect("sfdisk (util-linux, fdisk)");
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let dump = std::process::Command::new("sfdisk").arg("--json").arg(&whole).output().unwrap();
        let dump: serde_json::Value = serde_json::from_slice(&dump.stdout).unwrap();
        let table = &dump["partitiontable"];
        assert_eq!(table["label"], "gpt");
        let found: Vec<(u64, u64)> = table["partitions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| (p["start"].as_u64().unwrap(), p["size"].as_u64().unwrap()))
            .collect();
        assert_eq!(found, [(2048, 16), (2064, 8), (2072, 2048)]);
    }

    #[test]
    fn files_that_are_no_whole_blocks_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 1, 4097] {
            let part = Part { path: "/x".into(), size };
            assert!(matches!(compose(dir.path(), &[part]), Err(DiskError::Size { .. })));
        }
        let part = Part { path: "/x".into(), size: 4096 };
        assert!(matches!(compose(dir.path(), &vec![part; 129]), Err(DiskError::TooMany(129))));
    }
}
