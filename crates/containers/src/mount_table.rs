//! The mounts of the calling process's namespace, as the kernel lists them (proc_pid_mountinfo(5)).

use crate::rootfs::read_capped;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Most bytes of the list that are read.
const MAX_LIST: u64 = 4 << 20;

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountEntry {
    pub(crate) point: PathBuf,
    /// The type of the file system.
    pub(crate) kind: String,
    /// The options of the file system.
    pub(crate) options: String,
}

/// All of them, in the order in which they were mounted.
pub(crate) fn read() -> io::Result<Vec<MountEntry>> {
    let bytes = File::open("/proc/self/mountinfo").and_then(|file| read_capped(file, MAX_LIST))?;
    Ok(parse(&String::from_utf8_lossy(&bytes)))
}

/// Reads the kernel's list. Lines of another form are left out.
pub(crate) fn parse(list: &str) -> Vec<MountEntry> {
    let entry = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4).map(unescape)?;
        let mut after = after.split(' ').map(str::to_owned);
        Some(MountEntry { point, kind: after.next()?, options: after.nth(1)? })
    };
    list.lines().filter_map(entry).collect()
}

/// Decodes a path, in which blanks and other special characters are octal numbers.
fn unescape(field: &str) -> PathBuf {
    let blanks = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let text = blanks.iter().fold(field.to_owned(), |text, (code, meaning)| text.replace(code, meaning));
    Path::new(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_point_a_type_and_options_and_nonsense_is_left_out() {
        let list = "35 23 0:29 / /mnt/a\\040b rw shared:3 - cgroup cgroup rw,memory\nnonsense\n1 2 3 4 - x\n";
        let entry = MountEntry {
            point: "/mnt/a b".into(),
            kind: "cgroup".to_owned(),
            options: "rw,memory".to_owned(),
        };
        assert_eq!(parse(list), [entry]);
        assert!(read().unwrap().iter().any(|entry| entry.kind == "proc"));
    }
}
