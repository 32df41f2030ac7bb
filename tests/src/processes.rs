//! Information about processes from `/proc`.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

#[derive(Debug, Clone)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    /// Its command line, for people.
    pub command: String,
}

fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether a process is there and not a zombie.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// Whether a process is stopped (SIGSTOP).
pub fn is_stopped(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state == 'T')
}

/// Processor time that a process has used, in clock ticks (hundredths of a second).
pub fn processor_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    // The fields after the name: utime and stime are the 14th and 15th of all (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').expect("a name in parentheses").1;
    let number =
        |field: usize| fields.split_ascii_whitespace().nth(field).and_then(|text| text.parse::<u64>().ok());
    [11, 12].into_iter().filter_map(number).sum()
}

fn link_names(path: &str, needle: &str) -> bool {
    fs::read_link(path).is_ok_and(|target| target.to_string_lossy().contains(needle))
}

fn file_names(path: &str, needle: &str) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle.as_bytes()))
}

/// Whether a process refers to a directory by its command line, environment, working directory, program or an open file.
fn refers_to(pid: i32, dir: &str) -> bool {
    let below = |name: &str| format!("/proc/{pid}/{name}");
    file_names(&below("cmdline"), dir)
        || file_names(&below("environ"), dir)
        || link_names(&below("cwd"), dir)
        || fs::read_dir(below("fd")).is_ok_and(|fds| {
            fds.filter_map(Result::ok).any(|fd| link_names(&fd.path().to_string_lossy(), dir))
        })
}

/// All live processes that refer to a directory, and their descendants, without this test program.
pub fn of_directory(dir: &Path) -> Vec<Process> {
    let needle = dir.to_string_lossy();
    let me = i32::try_from(std::process::id()).unwrap();
    let mut all: HashMap<i32, Process> = HashMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Some((state, parent)) = stat(pid) else { continue };
        if pid == me || matches!(state, 'Z' | 'X') {
            continue;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
        all.insert(pid, Process { pid, parent, command });
    }
    let mut chosen: Vec<i32> = all.keys().copied().filter(|&pid| refers_to(pid, &needle)).collect();
    loop {
        let more: Vec<i32> = all
            .values()
            .filter(|process| chosen.contains(&process.parent) && !chosen.contains(&process.pid))
            .map(|process| process.pid)
            .collect();
        if more.is_empty() {
            break;
        }
        chosen.extend(more);
    }
    chosen.sort_unstable();
    chosen.into_iter().map(|pid| all[&pid].clone()).collect()
}

/// A memory figure of a process from `/proc/PID/status`, in KiB (`VmHWM` is the peak resident size).
#[track_caller]
pub fn memory_kib(pid: i32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .expect("a field of status");
    line.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
}

/// Mappings of this size or more hold no data of a VMM: they are its guest's memory (which the guest accounts for), or the translated code of
/// an emulator. Arenas of malloc are at most half of it.
const NOT_DATA_KIB: u64 = 128 << 10;

/// Memory that a process has written its own data to, in KiB: the resident part of its private, writable mappings in `/proc/PID/smaps`, without
/// the memory of a guest and translated code.
#[track_caller]
pub fn data_kib(pid: i32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process is there");
    data_of(&smaps)
}

fn data_of(smaps: &str) -> u64 {
    let kib = |value: &str| value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
    let (mut total, mut counts, mut size) = (0, false, 0);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Size", value)) => size = kib(value),
            Some(("Private_Dirty", value)) if counts && size < NOT_DATA_KIB => total += kib(value),
            _ => {
                // The first line of a mapping: addresses, permissions, offset, device, inode, path.
                let mut fields = line.split_ascii_whitespace();
                if fields.next().is_some_and(|range| range.contains('-')) {
                    counts = fields.next() == Some("rw-p");
                }
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_data_counts() {
        let mapping = |permissions: &str, size: u64, dirty: u64| {
            format!(
                "7f00-7f01 {permissions} 00000000 00:00 0 [heap]\nSize: {size} kB\nRss: 999 kB\nPrivate_Dirty: {dirty} kB\nVmFlags: rd\n"
            )
        };
        let text = [
            mapping("rw-p", 100, 7),
            mapping("r-xp", 100, 20),
            mapping("rwxp", 100, 40),
            mapping("rw-p", 1 << 20, 80),
            mapping("rw-s", 100, 160),
            mapping("rw-p", 200, 3),
        ];
        assert_eq!(data_of(&text.concat()), 10);
        assert!(data_kib(i32::try_from(std::process::id()).unwrap()) > 0);
    }
}
