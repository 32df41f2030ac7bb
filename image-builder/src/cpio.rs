//! Writes a newc cpio archive (Linux: Documentation/driver-api/early-userspace/buffer-format.rst). Equal content gives equal bytes.
//!
//! The host does not influence the archive: times and ids are 0, inode numbers are counted.

use std::collections::BTreeMap;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// Why an archive can't be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// The format has 32 bits for a length.
    #[error("/{path} is too long for a cpio archive ({len} bytes)")]
    TooLong {
        /// The path within the archive.
        path: String,
        /// Its length in bytes.
        len: usize,
    },
}

#[derive(Debug)]
enum FileKind {
    Directory,
    File(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
}

#[derive(Debug)]
struct Entry {
    permissions: u32,
    kind: FileKind,
}

/// The archive's content. Entries are written in the order of their paths, so a directory precedes its content.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Paths have no leading slash.
    pub fn directory(mut self, path: &str, permissions: u32) -> Self {
        self.entries.insert(path.to_owned(), Entry { permissions, kind: FileKind::Directory });
        self
    }

    /// Adds a regular file.
    pub fn file(mut self, path: &str, permissions: u32, content: Vec<u8>) -> Self {
        self.entries.insert(path.to_owned(), Entry { permissions, kind: FileKind::File(content) });
        self
    }

    /// Adds a character device.
    pub fn char_device(mut self, path: &str, permissions: u32, major: u32, minor: u32) -> Self {
        self.entries
            .insert(path.to_owned(), Entry { permissions, kind: FileKind::CharDevice { major, minor } });
        self
    }

    /// The archive's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CpioError> {
        let mut out = Vec::new();
        for (inode, (path, entry)) in (1_u32..).zip(&self.entries) {
            append(&mut out, inode, path, entry)?;
        }
        let trailer = Entry { permissions: 0, kind: FileKind::File(Vec::new()) };
        append_raw(&mut out, 0, "TRAILER!!!", 0, 1, (0, 0), &trailer)?;
        // cpio(1) reads in blocks of this length.
        out.resize(out.len().next_multiple_of(512), 0);
        Ok(out)
    }
}

fn append(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) -> Result<(), CpioError> {
    let (format, links, device) = match entry.kind {
        FileKind::Directory => (S_IFDIR, 2, (0, 0)),
        FileKind::File(_) => (S_IFREG, 1, (0, 0)),
        FileKind::CharDevice { major, minor } => (S_IFCHR, 1, (major, minor)),
    };
    append_raw(out, inode, path, format | entry.permissions, links, device, entry)
}

fn append_raw(
    out: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    entry: &Entry,
) -> Result<(), CpioError> {
    let content: &[u8] = if let FileKind::File(content) = &entry.kind { content } else { &[] };
    let length =
        |len: usize| u32::try_from(len).map_err(|_| CpioError::TooLong { path: path.to_owned(), len });
    let (uid, gid, mtime, check) = (0, 0, 0, 0);
    let of_file_system = (0, 0);
    let fields = [
        inode,
        mode,
        uid,
        gid,
        links,
        mtime,
        length(content.len())?,
        of_file_system.0,
        of_file_system.1,
        device.0,
        device.1,
        length(path.len() + 1)?,
        check,
    ];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08x}").bytes());
    }
    out.extend(path.bytes().chain([0]));
    pad(out);
    out.extend(content);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn example() -> Archive {
        Archive::new()
            .file("init", 0o755, b"12345".to_vec())
            .char_device("dev/console", 0o600, 5, 1)
            .directory("dev", 0o755)
    }

    fn cpio(arguments: &[&str], archive: &[u8]) -> (String, String) {
        let mut child = Command::new("cpio")
            .args(arguments)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests need the program cpio (Debian package cpio)");
        child.stdin.take().unwrap().write_all(archive).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    #[test]
    fn the_real_cpio_reads_it_sorted_with_modes_owners_devices_and_times() {
        let archive = example().to_bytes().unwrap();
        let (names, complaints) = cpio(&["-i", "-t"], &archive);
        assert_eq!(names, "dev\ndev/console\ninit\n");
        assert!(!complaints.contains("cpio:"), "{complaints}");
        let (listing, _) = cpio(&["-i", "-t", "-v", "-n"], &archive);
        let rows: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["drwxr-xr-x", "2", "0", "0", "0", "Jan", "1", "1970", "dev"]);
        assert_eq!(rows[1], ["crw-------", "1", "0", "0", "5,", "1", "Jan", "1", "1970", "dev/console"]);
        assert_eq!(rows[2], ["-rwxr-xr-x", "1", "0", "0", "5", "Jan", "1", "1970", "init"]);
    }

    #[test]
    fn content_comes_back_whole() {
        let archive = example().to_bytes().unwrap();
        let (content, _) = cpio(&["-i", "--to-stdout", "init"], &archive);
        assert_eq!(content, "12345");
    }

    #[test]
    fn the_order_of_adding_does_not_matter() {
        let other = Archive::new().directory("dev", 0o755).char_device("dev/console", 0o600, 5, 1).file(
            "init",
            0o755,
            b"12345".to_vec(),
        );
        assert_eq!(example().to_bytes(), other.to_bytes());
        assert_eq!(example().to_bytes().unwrap().len() % 512, 0);
    }
}
