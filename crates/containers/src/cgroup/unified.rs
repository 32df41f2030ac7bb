//! A control group of cgroup v2 (Linux's Documentation/admin-guide/cgroup-v2.rst).

use super::amounts::{Amounts, if_there};
use super::{CPU_PERIOD_US, Usage, flat_value, huge_pages, number, read, set, text};
use magikvm_supervisor::sync;
use nix::poll::{PollFd, PollFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A group, named by its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group(pub(crate) PathBuf);

/// Makes a pod's group, with every controller usable in it.
pub(super) fn make_pod(root: &Path, pod: &str) -> io::Result<()> {
    make_leaf(root, pod)?;
    enable_controllers(&root.join(pod))
}

/// Makes a group that holds processes, so that no controller can be enabled for groups in it.
pub(super) fn make_leaf(root: &Path, path: &str) -> io::Result<()> {
    let mut group = root.to_owned();
    for name in Path::new(path) {
        match enable_controllers(&group) {
            // The group belongs to somebody who has delegated one beneath it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            enabled => enabled?,
        }
        group.push(name);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn enable_controllers(group: &Path) -> io::Result<()> {
    let available = fs::read_to_string(group.join("cgroup.controllers"))?;
    let all: Vec<String> = available.split_whitespace().map(|controller| format!("+{controller}")).collect();
    set(group.join("cgroup.subtree_control"), all.join(" "))
}

impl Group {
    pub(super) fn limit(&self, quota_us: Option<u64>, memory_bytes: Option<u64>) -> io::Result<()> {
        if let Some(quota) = quota_us {
            set(self.0.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?;
        }
        match memory_bytes {
            Some(bytes) => set(self.0.join("memory.max"), bytes.to_string()),
            None => Ok(()),
        }
    }

    pub(super) fn apply(&self, amounts: &Amounts) -> io::Result<()> {
        let write = |file: &str, value: String| {
            set(self.0.join(file), &value).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot write {value} to {file}: {error}"))
            })
        };
        if let Some(bytes) = amounts.swap_bytes() {
            // Without accounting of swap there is no such file.
            if_there(write("memory.swap.max", bytes.to_string()))?;
        }
        if let Some(bytes) = amounts.memory_bytes {
            write("memory.max", bytes.to_string())?;
        }
        if let Some(weight) = amounts.cpu_weight() {
            // Nobody asked for this and the number of processes, and the host says where they are not limited.
            if_there(write("cpu.weight", weight.to_string()))?;
        }
        if let Some((quota, period)) = amounts.cpu_quota {
            write("cpu.max", format!("{quota} {period}"))?;
        }
        amounts.pids.map_or(Ok(()), |pids| if_there(write("pids.max", pids.to_string())))?;
        huge_pages::limit(&self.0, amounts.huge_pages)
    }

    pub(super) fn make_for_container(&self) -> io::Result<()> {
        fs::create_dir(&self.0)?;
        if_there(set(self.0.join("memory.oom.group"), "1"))
    }

    /// No controller is enabled below a container's group, so the container's limits and accounts cover this group too.
    pub(super) fn make(&self) -> io::Result<()> {
        fs::create_dir(&self.0)
    }

    pub(super) fn kill(&self) {
        let Ok(mut file) = OpenOptions::new().write(true).open(self.0.join("cgroup.kill")) else { return };
        file.write_all(b"1").ok();
    }

    pub(super) fn wait_empty(&self, deadline: Instant) -> bool {
        let path = self.0.join("cgroup.events");
        loop {
            // The kernel flags the file with POLLPRI when it changes after a read, so it is opened before it is
            // read.
            let Ok(file) = File::open(&path) else { return true };
            let Ok(text) = file.try_clone().and_then(read) else { return true };
            if flat_value(&text, "populated") != Some(1) {
                return true;
            }
            let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            if Instant::now() >= deadline || sync::poll_until(&mut polled, Some(deadline)).is_err() {
                return false;
            }
        }
    }

    pub(super) fn oom_kills(&self) -> u64 {
        text(&self.0.join("memory.events")).and_then(|text| flat_value(&text, "oom_kill")).unwrap_or(0)
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let number = |file: &str| number(&self.0.join(file));
        Some(Usage {
            cpu_usec: flat_value(&text(&self.0.join("cpu.stat"))?, "usage_usec")?,
            memory_bytes: number("memory.current").unwrap_or(0),
            memory_peak_bytes: number("memory.peak").unwrap_or(0),
            memory_limit_bytes: number("memory.max"),
            pids: number("pids.current").unwrap_or(0),
        })
    }
}
