//! The cgroup v2 tree: `/pod/<container>` and, inside, one group per exec. Owns: every write to it that
//! libcontainer does not make. Must not know: plans, processes.

use crate::sync;
use magikvm_proto::id::ContainerName;
use nix::poll::{PollFd, PollFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

const ROOT: &str = "/sys/fs/cgroup";
const POD: &str = "/sys/fs/cgroup/pod";

/// A cgroup, by its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroup(PathBuf);

/// `/pod/<container>`, as an OCI `cgroupsPath`.
pub(crate) fn oci_path(name: &ContainerName) -> String {
    format!("/pod/{name}")
}

/// Lets every controller be used in the pod's tree.
pub(crate) fn enable_controllers() -> io::Result<()> {
    let available = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"))?;
    let all: Vec<String> = available.split_whitespace().map(|controller| format!("+{controller}")).collect();
    fs::create_dir(POD)?;
    for group in [ROOT, POD] {
        fs::write(Path::new(group).join("cgroup.subtree_control"), all.join(" "))?;
    }
    Ok(())
}

impl Cgroup {
    /// The group of a container.
    pub(crate) fn container(name: &ContainerName) -> Self {
        Self(Path::new(POD).join(name.as_str()))
    }

    /// The group of one exec in it. No controller is enabled below a container's group, so its limits and accounts
    /// cover this one too.
    pub(crate) fn exec(name: &ContainerName, id: u64) -> Self {
        Self(Path::new(POD).join(name.as_str()).join(format!("exec-{id}")))
    }

    /// The group's directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it anew, for a container: whatever is left of an earlier run goes. When memory runs out all of the
    /// container dies, not a random part of it (as the kubelet sets up containers on cgroup v2).
    pub(crate) fn make_for_container(&self, deadline: Instant) -> io::Result<()> {
        if self.0.exists() {
            self.kill();
            self.wait_empty(deadline);
            self.remove();
        }
        fs::create_dir(&self.0)?;
        fs::write(self.0.join("memory.oom.group"), "1")
    }

    /// Makes it and moves the calling process into it.
    pub(crate) fn make_and_enter(&self) -> io::Result<()> {
        fs::create_dir(&self.0)?;
        fs::write(self.0.join("cgroup.procs"), "0")
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) {
        let Ok(mut file) = OpenOptions::new().write(true).open(self.0.join("cgroup.kill")) else { return };
        file.write_all(b"1").ok();
    }

    /// Waits until no live process is in it; whether that came true.
    pub(crate) fn wait_empty(&self, deadline: Instant) -> bool {
        let path = self.0.join("cgroup.events");
        loop {
            // The kernel flags the file with POLLPRI when it changes after a read, so it is opened before it is
            // read.
            let Ok(file) = File::open(&path) else { return true };
            let Ok(text) = read(&file) else { return true };
            if flat_value(&text, "populated") != Some(1) {
                return true;
            }
            let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
            if Instant::now() >= deadline || sync::poll_until(&mut polled, Some(deadline)).is_err() {
                return false;
            }
        }
    }

    /// Removes it and the groups of execs in it, as far as they are empty.
    pub(crate) fn remove(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_dir(entry.path()).ok();
            }
        }
        fs::remove_dir(&self.0).ok();
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.text("memory.events").and_then(|text| flat_value(&text, "oom_kill")).unwrap_or(0)
    }

    /// The number in one of its files; `None` when it says `max` or there is none.
    pub(crate) fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }

    /// One value of a file of `key value` lines.
    pub(crate) fn value(&self, file: &str, key: &str) -> Option<u64> {
        flat_value(&self.text(file)?, key)
    }

    fn text(&self, file: &str) -> Option<String> {
        read(&File::open(self.0.join(file)).ok()?).ok()
    }
}

/// Bytes of a cgroup file that are looked at.
const MAX_FILE: u64 = 64 << 10;

fn read(file: &File) -> io::Result<String> {
    let bytes = crate::rootfs::read_capped(file.try_clone()?, MAX_FILE)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let text = "low 0\noom_kill_x 9\noom_kill 3\n";
        assert_eq!(flat_value(text, "oom_kill"), Some(3));
        assert_eq!(flat_value(text, "oom"), None);
        assert_eq!(flat_value("populated 1\nfrozen 0\n", "populated"), Some(1));
    }
}
