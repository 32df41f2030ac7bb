//! Which control group hierarchies a system has mounted, and where.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// Most bytes of `/proc/self/mountinfo` that are read.
const MAX_MOUNTINFO: u64 = 4 << 20;
/// Controllers that a pod does not need: groups of `perf_event`, `net_cls` and so on limit nothing of a container.
const WANTED: [&str; 9] =
    ["blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "pids"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    /// cgroup v2: one tree, mounted here.
    Unified(PathBuf),
    /// cgroup v1: a tree for each controller or for several controllers together.
    Legacy(Vec<Controller>),
}

/// One tree of cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Controller {
    pub(crate) names: Vec<String>,
    pub(crate) root: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
    #[error("no control group hierarchy is mounted (neither cgroup2 nor a memory controller of cgroup v1)")]
    None,
    #[error("cannot make the control group {0}")]
    Make(String, #[source] io::Error),
}

impl Hierarchies {
    /// A system where this process has no control groups: all groups are empty and limit nothing.
    pub(crate) const NONE: Self = Self::Legacy(Vec::new());

    /// Where each tree is mounted.
    pub(crate) fn roots(&self) -> Vec<&Path> {
        match self {
            Self::Unified(root) => vec![root],
            Self::Legacy(controllers) => controllers.iter().map(|one| one.root.as_path()).collect(),
        }
    }

    /// The hierarchies of the calling process's mount namespace.
    pub(crate) fn detect() -> Result<Self, CgroupError> {
        let bytes = File::open("/proc/self/mountinfo")
            .and_then(|file| crate::rootfs::read_capped(file, MAX_MOUNTINFO))
            .map_err(CgroupError::Mounts)?;
        Self::of_mounts(&String::from_utf8_lossy(&bytes)).ok_or(CgroupError::None)
    }

    /// Reads proc_pid_mountinfo(5). A memory controller in a separate tree means a legacy or hybrid system.
    fn of_mounts(mountinfo: &str) -> Option<Self> {
        let mut unified = None;
        let mut legacy: Vec<Controller> = Vec::new();
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(root) = before.split(' ').nth(4).map(unescape) else { continue };
            let mut after = after.split(' ');
            match (after.next(), after.nth(1)) {
                (Some("cgroup2"), _) => unified = unified.or(Some(root)),
                (Some("cgroup"), Some(options)) => {
                    let names: Vec<String> =
                        options.split(',').filter(|name| WANTED.contains(name)).map(str::to_owned).collect();
                    if !names.is_empty() && !legacy.iter().any(|known| known.names == names) {
                        legacy.push(Controller { names, root });
                    }
                }
                _ => {}
            }
        }
        let has_memory = legacy.iter().any(|tree| tree.names.iter().any(|name| name == "memory"));
        match unified {
            _ if has_memory => Some(Self::Legacy(legacy)),
            Some(root) => Some(Self::Unified(root)),
            None => None,
        }
    }
}

/// Decodes a path of mountinfo, in which blanks and other special characters are octal numbers.
fn unescape(field: &str) -> PathBuf {
    let blanks = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let text = blanks.iter().fold(field.to_owned(), |text, (code, meaning)| text.replace(code, meaning));
    Path::new(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "24 23 0:21 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const HYBRID: &str = "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n\
        31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        35 23 0:29 / /mnt/a\\040b rw - cgroup cgroup rw,memory\n";

    #[test]
    fn each_arrangement_is_recognized() {
        assert_eq!(Hierarchies::of_mounts(V2), Some(Hierarchies::Unified("/sys/fs/cgroup".into())));
        let tree = |names: &[&str], root: &str| Controller {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            root: root.into(),
        };
        let legacy = vec![
            tree(&["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct"),
            tree(&["memory"], "/sys/fs/cgroup/memory"),
        ];
        assert_eq!(Hierarchies::of_mounts(HYBRID), Some(Hierarchies::Legacy(legacy)));
        assert_eq!(Hierarchies::of_mounts("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"), None);
        assert_eq!(unescape("/mnt/a\\040b"), Path::new("/mnt/a b"));
    }
}
