//! Control groups of a pod: one for each container and, inside it, one for each exec. Owns: every write to them that libcontainer does not make.
//! Must not know: plans, what processes are for.
//!
//! Three arrangements exist. On a *unified* system (cgroup v2) all controllers are in one tree. On a *legacy* system (v1) each controller has
//! a separate tree. A *hybrid* system is a legacy one with an additional unified tree that lacks the controllers that matter here; it is
//! treated as legacy.

mod amounts;
mod hierarchies;
mod huge_pages;
mod legacy;
mod unified;

pub(crate) use amounts::Amounts;
pub use hierarchies::CgroupError;
pub(crate) use hierarchies::Hierarchies;

use magikvm_proto::id::ContainerName;
use magikvm_proto::security::{HugePages, PodLimits};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

/// Length of the period of a CPU limit, in microseconds (the kubelet's).
const CPU_PERIOD_US: u64 = 100_000;
/// Smallest quota that the kernel takes, and one that no system exceeds, in microseconds.
const MIN_CPU_QUOTA_US: u64 = 1000;
const MAX_CPU_QUOTA_US: u64 = 1 << 40;
/// Most bytes of a control group's file that are read.
const MAX_FILE: u64 = 64 << 10;

/// The control groups of one pod.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    hierarchies: Hierarchies,
    /// The pod's group, relative to the root of each hierarchy.
    pod: String,
}

impl Tree {
    /// Uses the group with this `cgroupsPath` of the OCI specification as the pod's group.
    pub(crate) fn new(hierarchies: Hierarchies, pod: &str) -> Self {
        Self { hierarchies, pod: pod.trim_start_matches('/').to_owned() }
    }

    /// Whether there are groups at all. Without them only namespaces hold the processes of a container together.
    pub(crate) fn is_there(&self) -> bool {
        self.hierarchies != Hierarchies::NONE
    }

    /// Makes the pod's group and enables every controller in it.
    pub(crate) fn make(&self) -> io::Result<()> {
        match &self.hierarchies {
            Hierarchies::Unified(root) => unified::make_pod(root, &self.pod),
            Hierarchies::Legacy(controllers) => {
                controllers.iter().try_for_each(|controller| legacy::make(&controller.root.join(&self.pod)))
            }
        }
    }

    /// Makes the group for processes that are in none of its groups.
    pub(crate) fn make_leaf(&self) -> io::Result<()> {
        match &self.hierarchies {
            Hierarchies::Unified(root) => unified::make_leaf(root, &self.pod),
            Hierarchies::Legacy(_) => self.make(),
        }
    }

    /// Limits what all containers of the pod may use together.
    pub(crate) fn limit(&self, limits: &PodLimits) -> io::Result<()> {
        let quota = limits.cpu_millis.map(|millis| {
            (millis.saturating_mul(CPU_PERIOD_US) / 1000).clamp(MIN_CPU_QUOTA_US, MAX_CPU_QUOTA_US)
        });
        match self.itself() {
            Cgroup::Unified(group) => group.limit(quota, limits.memory_bytes),
            Cgroup::Legacy(group) => group.limit(quota, limits.memory_bytes),
        }?;
        // Without the controller nothing forbids them either, and the host has told so.
        self.dirs().iter().try_for_each(|dir| huge_pages::limit(dir, limits.huge_pages))
    }

    /// Lets nothing in the pod's group use the host's huge pages until the limits of its plan are known.
    pub(crate) fn forbid_huge_pages(&self) -> io::Result<()> {
        self.dirs().iter().try_for_each(|dir| huge_pages::limit(dir, HugePages::default()))
    }

    /// The pod's group.
    pub(crate) fn itself(&self) -> Cgroup {
        self.group(&[])
    }

    /// The directories of the pod's group, one in each hierarchy.
    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        match self.itself() {
            Cgroup::Unified(group) => vec![group.0],
            Cgroup::Legacy(group) => group.0.into_iter().map(|(_, dir)| dir).collect(),
        }
    }

    /// The groups of a container in the hierarchies of cgroup v1, which are none without groups; `None` with version 2.
    pub(crate) fn views(&self, name: &ContainerName) -> Option<Vec<View>> {
        let (Hierarchies::Legacy(controllers), Cgroup::Legacy(group)) =
            (&self.hierarchies, self.container(name))
        else {
            return None;
        };
        let view = |(one, (_, dir)): (&hierarchies::Controller, (_, PathBuf))| View {
            name: one.root.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            controllers: one.names.clone(),
            dir,
        };
        Some(controllers.iter().zip(group.0).map(view).collect())
    }

    /// The group of a container.
    pub(crate) fn container(&self, name: &ContainerName) -> Cgroup {
        self.group(&[name.as_str()])
    }

    /// The group of one exec in a container. The container's limits and accounts cover it too.
    pub(crate) fn exec(&self, name: &ContainerName, id: u64) -> Cgroup {
        self.group(&[name.as_str(), &format!("exec-{id}")])
    }

    fn group(&self, below: &[&str]) -> Cgroup {
        let within = |root: &PathBuf| below.iter().fold(root.join(&self.pod), |path, name| path.join(name));
        match &self.hierarchies {
            Hierarchies::Unified(root) => Cgroup::Unified(unified::Group(within(root))),
            Hierarchies::Legacy(controllers) => Cgroup::Legacy(legacy::Group(
                controllers.iter().map(|one| (one.names.clone(), within(&one.root))).collect(),
            )),
        }
    }
}

/// A group in one hierarchy of cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    /// The name of the hierarchy's mount point.
    pub(crate) name: String,
    pub(crate) controllers: Vec<String>,
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cgroup {
    Unified(unified::Group),
    Legacy(legacy::Group),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_usec: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_peak_bytes: u64,
    pub(crate) memory_limit_bytes: Option<u64>,
    pub(crate) pids: u64,
}

impl Cgroup {
    /// Makes the group anew for a container and removes what an earlier run left. When memory runs out the whole container dies where the
    /// kernel supports that (cgroup v2), as the kubelet sets containers up.
    pub(crate) fn make_for_container(&self, deadline: Instant) -> io::Result<()> {
        if self.exists() {
            self.kill();
            self.wait_empty(deadline);
            self.remove();
        }
        match self {
            Self::Unified(group) => group.make_for_container(),
            Self::Legacy(group) => group.make(),
        }
    }

    /// Limits what the processes of the group may use.
    pub(crate) fn apply(&self, amounts: &Amounts) -> io::Result<()> {
        match self {
            Self::Unified(group) => group.apply(amounts),
            Self::Legacy(group) => group.apply(amounts),
        }
    }

    /// Makes the group of an exec, empty.
    pub(crate) fn make_for_exec(&self) -> io::Result<Entry> {
        let open = |dir: &PathBuf, file| OpenOptions::new().write(true).open(dir.join(file));
        match self {
            Self::Unified(group) => {
                group.make()?;
                let above = group.0.parent().unwrap_or(&group.0).to_owned();
                let attended =
                    Attended { procs: open(&above, "cgroup.procs")?, kill: open(&group.0, "cgroup.kill")? };
                let procs = vec![open(&group.0, "cgroup.procs")?];
                Ok(Entry { procs, attended: Some(attended) })
            }
            Self::Legacy(group) => {
                group.make()?;
                let procs = group.0.iter().map(|(_, dir)| open(dir, "cgroup.procs"));
                Ok(Entry { procs: procs.collect::<io::Result<_>>()?, attended: None })
            }
        }
    }

    fn exists(&self) -> bool {
        match self {
            Self::Unified(group) => group.0.exists(),
            Self::Legacy(group) => group.exists(),
        }
    }

    /// Kills every process in the group and below it.
    pub(crate) fn kill(&self) {
        match self {
            Self::Unified(group) => group.kill(),
            Self::Legacy(group) => group.kill(),
        }
    }

    /// Waits until no live process is in the group or below it. Returns whether that happened before the deadline.
    pub(crate) fn wait_empty(&self, deadline: Instant) -> bool {
        match self {
            Self::Unified(group) => group.wait_empty(deadline),
            Self::Legacy(group) => group.wait_empty(deadline),
        }
    }

    /// Removes the group and the groups in it, as far as they are empty.
    pub(crate) fn remove(&self) {
        match self {
            Self::Unified(group) => remove_tree(&group.0),
            Self::Legacy(group) => group.0.iter().for_each(|(_, dir)| remove_tree(dir)),
        }
    }

    /// How many of its processes the kernel's OOM killer has killed.
    pub(crate) fn oom_kills(&self) -> u64 {
        match self {
            Self::Unified(group) => group.oom_kills(),
            Self::Legacy(group) => group.oom_kills(),
        }
    }

    /// The group's resource use; `None` when it does not exist.
    pub(crate) fn usage(&self) -> Option<Usage> {
        match self {
            Self::Unified(group) => group.usage(),
            Self::Legacy(group) => group.usage(),
        }
    }
}

/// Open files of a group, for a process that cannot see them any more.
#[derive(Debug)]
pub(crate) struct Entry {
    procs: Vec<File>,
    attended: Option<Attended>,
}

/// What an attendant of the group's processes needs.
#[derive(Debug)]
pub(crate) struct Attended {
    /// Of the container's group.
    procs: File,
    /// Kills every process in the group when `1` is written to it.
    pub(crate) kill: File,
}

impl Attended {
    /// Moves the calling process into the container's group, where its limits and device rules hold, beside the group of the exec.
    pub(crate) fn enter_beside(&self) -> io::Result<()> {
        (&self.procs).write_all(b"0")
    }
}

impl Entry {
    /// Moves the calling process into the group. A fork in the group fails when the container has as many processes as it may have; this
    /// does not.
    pub(crate) fn enter(&self) -> io::Result<()> {
        self.procs.iter().try_for_each(|mut procs| procs.write_all(b"0"))
    }

    /// Nothing on systems that cannot kill a group at once.
    pub(crate) fn attended(&self) -> Option<&Attended> {
        self.attended.as_ref()
    }
}

/// Removes a group and those below it. Only directories can be removed, so files are ignored.
fn remove_tree(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    std::fs::remove_dir(dir).ok();
}

fn read(file: File) -> io::Result<String> {
    let bytes = crate::rootfs::read_capped(file, MAX_FILE)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes to a file of a group. One that does not exist is not made, which the kernel would refuse as if a right were missing.
fn set(path: impl AsRef<std::path::Path>, value: impl AsRef<[u8]>) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_ref())
}

fn text(path: &std::path::Path) -> Option<String> {
    read(File::open(path).ok()?).ok()
}

/// The number in a file; `None` when it says `max` or the file does not exist.
fn number(path: &std::path::Path) -> Option<u64> {
    text(path)?.trim().parse().ok()
}

/// One value of a text of `key value` lines.
fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests;
