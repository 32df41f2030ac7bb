//! A control group of cgroup v1 (Linux's Documentation/admin-guide/cgroup-v1): the same directory in the tree of each controller.

use super::amounts::{Amounts, if_there};
use super::{CPU_PERIOD_US, Usage, flat_value, huge_pages, number, set, text};
use crate::sys;
use magikvm_supervisor::sync;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The kernel reports this or more when there is no limit (PAGE_COUNTER_MAX in bytes).
const NO_LIMIT: u64 = 1 << 62;
/// How often the kill is repeated on systems without a freezer, to catch processes forked meanwhile.
const ROUNDS: u32 = 64;

/// A group: the controllers of each tree and the group's directory there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group(pub(crate) Vec<(Vec<String>, PathBuf)>);

/// Makes a group and those above it in one tree.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    if let (false, Some(above)) = (dir.exists(), dir.parent()) {
        if !above.exists() {
            make(above)?;
        }
        match fs::create_dir(dir) {
            // Another pod may make the same parent at the same time.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    // A new group of cpuset has no processor and no memory, and can hold no process until both are set.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, above) = (dir.join(file), dir.parent().unwrap_or(dir).join(file));
        if text(&own).is_some_and(|value| value.trim().is_empty())
            && let Some(value) = text(&above)
        {
            set(own, value.trim())?;
        }
    }
    Ok(())
}

impl Group {
    fn dir(&self, controller: &str) -> Option<&PathBuf> {
        self.0.iter().find(|(names, _)| names.iter().any(|name| name == controller)).map(|(_, dir)| dir)
    }

    fn dirs(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().map(|(_, dir)| dir)
    }

    pub(super) fn limit(&self, quota_us: Option<u64>, memory_bytes: Option<u64>) -> io::Result<()> {
        let write = |controller: &str, file: &str, value: u64| match self.dir(controller) {
            Some(dir) => set(dir.join(file), value.to_string()),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the system has no {controller} controller"),
            )),
        };
        if let Some(quota) = quota_us {
            write("cpu", "cpu.cfs_period_us", CPU_PERIOD_US)?;
            write("cpu", "cpu.cfs_quota_us", quota)?;
        }
        match memory_bytes {
            Some(bytes) => write("memory", "memory.limit_in_bytes", bytes),
            None => Ok(()),
        }
    }

    pub(super) fn apply(&self, amounts: &Amounts) -> io::Result<()> {
        let write = |controller: &str, file: &str, value: u64| match self.dir(controller) {
            Some(dir) => set(dir.join(file), value.to_string()).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot write {value} to {file}: {error}"))
            }),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the system has no {controller} controller"),
            )),
        };
        // Nobody asked for these two, and the host says where they are missing.
        let write_if_there = |controller: &str, file: &str, value: u64| match self.dir(controller) {
            Some(_) => write(controller, file, value),
            None => Ok(()),
        };
        if let Some(bytes) = amounts.memory_bytes {
            write("memory", "memory.limit_in_bytes", bytes)?;
        }
        if let Some(bytes) = amounts.with_swap_bytes {
            // Without accounting of swap there is no such file.
            if_there(write("memory", "memory.memsw.limit_in_bytes", bytes))?;
        }
        if let Some(shares) = amounts.cpu_shares {
            write_if_there("cpu", "cpu.shares", shares)?;
        }
        if let Some((quota, period)) = amounts.cpu_quota {
            write("cpu", "cpu.cfs_period_us", period)?;
            write("cpu", "cpu.cfs_quota_us", quota)?;
        }
        amounts.pids.map_or(Ok(()), |pids| write_if_there("pids", "pids.max", pids))?;
        self.dir("hugetlb").map_or(Ok(()), |dir| huge_pages::limit(dir, amounts.huge_pages))
    }

    pub(super) fn exists(&self) -> bool {
        self.dirs().any(|dir| dir.exists())
    }

    pub(super) fn make(&self) -> io::Result<()> {
        self.dirs().try_for_each(|dir| make(dir))
    }

    /// Sets the rules of `devices`: nothing but what is allowed, later rules overriding earlier ones. Each is `(allow, rule)` in the
    /// syntax of `devices.allow`.
    pub(crate) fn restrict_devices(&self, rules: &[(bool, String)]) -> io::Result<()> {
        let dir = self.dir("devices").ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "the system has no devices controller")
        })?;
        set(dir.join("devices.deny"), "a")?;
        rules.iter().try_for_each(|(allowed, rule)| {
            set(dir.join(if *allowed { "devices.allow" } else { "devices.deny" }), rule)
        })
    }

    /// Every process in the group and below it.
    fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        self.dirs().for_each(|dir| collect(dir, &mut found));
        found
    }

    /// A frozen process does not fork, and dies of SIGKILL once it is thawed.
    pub(super) fn kill(&self) {
        let freezer = self.dir("freezer").map(|dir| dir.join("freezer.state"));
        if let Some(state) = &freezer {
            set(state, "FROZEN").ok();
        }
        let mut killed = BTreeSet::new();
        for _ in 0..ROUNDS {
            let found = self.processes();
            for pid in &found {
                kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
            }
            if found.is_subset(&killed) {
                break;
            }
            killed.extend(found);
        }
        if let Some(dir) = self.dir("freezer") {
            thaw(dir);
        }
    }

    /// The kernel does not report that a group became empty, but it reports the end of each process.
    pub(super) fn wait_empty(&self, deadline: Instant) -> bool {
        loop {
            let Some(first) = self.processes().into_iter().next() else { return true };
            if Instant::now() >= deadline {
                return false;
            }
            // The process may have ended since the list was read.
            let Ok(process) = sys::pidfd_open(first) else { continue };
            let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            if sync::poll_until(&mut polled, Some(deadline)).is_err() {
                return false;
            }
        }
    }

    pub(super) fn oom_kills(&self) -> u64 {
        let of = |dir: &PathBuf| flat_value(&text(&dir.join("memory.oom_control"))?, "oom_kill");
        self.dir("memory").and_then(of).unwrap_or(0)
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let value = |controller: &str, file: &str| number(&self.dir(controller)?.join(file));
        Some(Usage {
            cpu_usec: value("cpuacct", "cpuacct.usage")? / 1000,
            memory_bytes: value("memory", "memory.usage_in_bytes").unwrap_or(0),
            memory_peak_bytes: value("memory", "memory.max_usage_in_bytes").unwrap_or(0),
            memory_limit_bytes: value("memory", "memory.limit_in_bytes").filter(|&limit| limit < NO_LIMIT),
            pids: value("pids", "pids.current").unwrap_or(0),
        })
    }
}

/// Thaws a group and those that its processes may have made in it.
fn thaw(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            thaw(&entry.path());
        }
    }
    set(dir.join("freezer.state"), "THAWED").ok();
}

fn collect(dir: &Path, found: &mut BTreeSet<i32>) {
    if let Some(text) = text(&dir.join("cgroup.procs")) {
        // The kernel shows a process of another PID namespace as 0.
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|&pid| pid > 0));
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
}
