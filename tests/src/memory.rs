//! The memory of processes, and cgroups that limit it.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// Bytes of a line of `/proc` like `Pss:  12 kB`.
pub fn kib_line(line: &str) -> Result<u64, Box<dyn Error>> {
    let number = line.split_ascii_whitespace().nth(1).ok_or_else(|| format!("no number in {line:?}"))?;
    Ok(number.parse::<u64>()? * 1024)
}

/// Proportional set size of a process, in bytes.
pub fn pss(pid: i32) -> Result<u64, Box<dyn Error>> {
    rollup(pid, &["Pss:"])
}

/// Memory that only this process has, in bytes.
pub fn private(pid: i32) -> Result<u64, Box<dyn Error>> {
    rollup(pid, &["Private_Clean:", "Private_Dirty:"])
}

/// The sum of these fields of `/proc/PID/smaps_rollup`.
fn rollup(pid: i32, fields: &[&str]) -> Result<u64, Box<dyn Error>> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |field: &&str| {
        kib_line(rollup.lines().find(|line| line.starts_with(field)).ok_or_else(|| format!("no {field}"))?)
    };
    fields.iter().map(field).sum()
}

/// A cgroup with a limit, of either version. Dropping it removes the cgroup, whose processes must have ended.
#[derive(Debug)]
pub struct MemoryLimit {
    dir: PathBuf,
}

impl MemoryLimit {
    /// Moves a process into the cgroup. The limit applies to additional memory.
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
        // The processes are still being reaped.
        for _ in 0..200 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
