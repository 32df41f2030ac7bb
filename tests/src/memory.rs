//! How much memory processes have, and cgroups that allow them no more.

use std::fs;
use std::path::{Path, PathBuf};

/// Proportional set size of a process, in KiB.
pub fn pss_kib(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process is there");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a line with Pss");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A cgroup of its own with a limit, of either version. Removed when dropped, which needs its processes to have gone.
#[derive(Debug)]
pub struct MemoryLimit {
    dir: PathBuf,
}

impl MemoryLimit {
    /// Moves a process there, which then can have so much memory beyond what it has.
    pub fn on(pid: i32, name: &str, bytes: u64) -> Self {
        let (base, limit, swap) = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", "memory.max", "memory.swap.max")
        } else {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.swappiness")
        };
        let dir = Path::new(base).join(name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        fs::write(dir.join(limit), bytes.to_string()).expect("a limit");
        if dir.join(swap).exists() {
            fs::write(dir.join(swap), "0").expect("no swap");
        }
        fs::write(dir.join("cgroup.procs"), pid.to_string()).expect("a process in it");
        Self { dir }
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Its processes are being reaped.
        for _ in 0..200 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
