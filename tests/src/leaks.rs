//! The leak oracle: everything of a state directory that the system could still hold, before and after. What exists afterwards and did not
//! exist before has leaked.

use crate::processes;
use crate::wait::time_factor;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time for the last processes of an answered request to end.
const SETTLE: Duration = Duration::from_secs(20);
/// Stays by design: the directory of pods, and the lock that orders their reservations.
const FURNITURE: [&str; 4] = ["pods", "pods/.reserve", ".", "virtualization.json"];

/// What the system holds of one state directory. Each item is a line of text that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings(BTreeSet<String>);

impl Holdings {
    pub fn of(root: &Path, temporary: &Path) -> Self {
        let mut held = BTreeSet::new();
        let needle = root.to_string_lossy().into_owned();
        for process in processes::of_directory(root) {
            held.insert(format!("process {} ({})", process.pid, process.command));
            held.extend(listening_ports(process.pid));
        }
        for mount in lines("/proc/self/mountinfo").iter().filter(|line| line.contains(&needle)) {
            held.insert(format!("mount {mount}"));
        }
        for device in fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok) {
            let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if file.contains(&needle) {
                held.insert(format!("loop device {} of {}", device.file_name().display(), file.trim()));
            }
        }
        for socket in lines("/proc/net/unix").iter().filter(|line| line.contains(&needle)) {
            held.insert(format!(
                "socket {}",
                socket.split_ascii_whitespace().next_back().unwrap_or_default()
            ));
        }
        cgroups(Path::new("/sys/fs/cgroup"), &cgroup_suffix(root), &mut held);
        let run = root.join("run");
        files(&run, &run, &mut held);
        let scratch = root.join("data/scratch");
        files(&scratch, &scratch, &mut held);
        let logs = root.join("data/logs");
        files(&logs, &logs, &mut held);
        files(temporary, temporary, &mut held);
        Self(held)
    }

    /// The items that exist now and did not exist before.
    pub fn since<'a>(&'a self, earlier: &'a Self) -> Vec<&'a str> {
        self.0.difference(&earlier.0).map(String::as_str).collect()
    }

    pub fn all(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }
}

/// Fails the test with the names of leaks unless the system returns to what it held of `root` before.
#[track_caller]
pub fn assert_as_before(root: &Path, temporary: &Path, before: &Holdings) {
    let deadline = Instant::now() + SETTLE * time_factor();
    loop {
        let now = Holdings::of(root, temporary);
        if now == *before {
            return;
        }
        if Instant::now() > deadline {
            let (leaked, lost) = (now.since(before).join("\n  "), before.since(&now).join("\n  "));
            panic!("not as before.\nleaked:\n  {leaked}\nvanished:\n  {lost}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn files(base: &Path, dir: &Path, held: &mut BTreeSet<String>) {
    let name = dir.strip_prefix(base).unwrap_or(dir).to_string_lossy().into_owned();
    if !name.is_empty() && !FURNITURE.contains(&name.as_str()) {
        held.insert(format!("file {}", dir.display()));
    }
    if dir.is_dir() && !dir.is_symlink() {
        for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            files(base, &entry.path(), held);
        }
    }
}

/// Suffix of the control groups of all pods of a state directory.
fn cgroup_suffix(root: &Path) -> String {
    let digest = Sha256::digest(root.join("run/pods").as_os_str().as_encoded_bytes());
    format!(".{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}

/// Control groups of pods, in every hierarchy.
fn cgroups(dir: &Path, suffix: &str, held: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().ends_with(suffix) {
                held.insert(format!("cgroup {}", entry.path().display()));
            }
            cgroups(&entry.path(), suffix, held);
        }
    }
}

/// Removes the control groups of a state directory's pods when they are empty. False: a group still has processes.
pub(crate) fn remove_cgroups(root: &Path) -> bool {
    let mut held = BTreeSet::new();
    cgroups(Path::new("/sys/fs/cgroup"), &cgroup_suffix(root), &mut held);
    held.iter().all(|group| {
        let dir = Path::new(group.trim_start_matches("cgroup "));
        let removed = fs::remove_dir(dir).is_ok();
        // The common parent, which goes with the last group.
        if let Some(parent) = dir.parent() {
            fs::remove_dir(parent).ok();
        }
        removed
    })
}

/// TCP and UDP sockets a process listens on.
fn listening_ports(pid: i32) -> Vec<String> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().filter_map(Result::ok);
    let inodes: BTreeSet<String> = fds
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        for line in lines(&format!("/proc/{pid}/net/{table}")) {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let listens = table.starts_with("udp") || fields.get(3) == Some(&"0A");
            if listens && fields.get(9).is_some_and(|inode| inodes.contains(*inode)) {
                ports.push(format!("port {table} {} of process {pid}", fields[1]));
            }
        }
    }
    ports
}
