//! Which control group hierarchies a system has mounted, and where.

use crate::mount_table::{self, MountEntry};
use std::io;
use std::path::{Path, PathBuf};

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
        Self::of_mounts(mount_table::read().map_err(CgroupError::Mounts)?).ok_or(CgroupError::None)
    }

    /// A memory controller in a separate tree means a legacy or hybrid system.
    fn of_mounts(mounts: Vec<MountEntry>) -> Option<Self> {
        let mut unified = None;
        let mut legacy: Vec<Controller> = Vec::new();
        for MountEntry { point, kind, options } in mounts {
            match kind.as_str() {
                "cgroup2" => unified = unified.or(Some(point)),
                "cgroup" => {
                    let names: Vec<String> =
                        options.split(',').filter(|name| WANTED.contains(name)).map(str::to_owned).collect();
                    if !names.is_empty() && !legacy.iter().any(|known| known.names == names) {
                        legacy.push(Controller { names, root: point });
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
        let of = |list: &str| Hierarchies::of_mounts(mount_table::parse(list));
        assert_eq!(of(V2), Some(Hierarchies::Unified("/sys/fs/cgroup".into())));
        let tree = |names: &[&str], root: &str| Controller {
            names: names.iter().map(|&name| name.to_owned()).collect(),
            root: root.into(),
        };
        let legacy = vec![
            tree(&["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct"),
            tree(&["memory"], "/sys/fs/cgroup/memory"),
        ];
        assert_eq!(of(HYBRID), Some(Hierarchies::Legacy(legacy)));
        assert_eq!(of("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"), None);
    }
}
