//! The users of pods: each has a range of the host's ids of its own, so that no file or process of one pod belongs to a user of another one. A range
//! is taken by making a symbolic link with its number, which leads to the pod's directory.

use super::super::RuntimeError;
use super::ContainersError;
use crate::jail;
use crate::store::atomic::{self, FileError};
use crate::store::undo::{Scope, Step, Undo};
use nix::errno::Errno;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Whether the pod that took a range is gone, and its processes too.
fn is_left_over(taken: &Path, number: u32) -> bool {
    let is_gone =
        |pod: &Path| fs::symlink_metadata(pod).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    fs::read_link(taken).is_ok_and(|pod| is_gone(&pod)) && !has_processes(FIRST + number * COUNT)
}

/// Whether a process has one of the user ids of the range that begins here. One that cannot be looked at counts.
fn has_processes(first: u32) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else { return true };
    let is_one = |status: &str| {
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let mut users = users.split_ascii_whitespace().filter_map(|id| id.parse::<u32>().ok());
        users.any(|id| (first..first + COUNT).contains(&id))
    };
    processes.flatten().any(|process| {
        let is_process =
            process.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        is_process
            && match fs::read_to_string(process.path().join("status")) {
                Ok(status) => is_one(&status),
                // It has ended meanwhile.
                Err(error) => {
                    error.kind() != io::ErrorKind::NotFound
                        && error.raw_os_error() != Some(Errno::ESRCH as i32)
                }
            }
    })
}

/// Ids of a pod.
const COUNT: u32 = 1 << 16;
/// The first id of all: above those that systems give to users, containers of systemd, subordinate ids and the jails of VMs, below 2^31.
const FIRST: u32 = 0x7100_0000;
/// Pods with users of their own at the same time.
const RANGES: u32 = 2048;

/// 65536 ids from this one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PodIds(u32);

impl PodIds {
    /// Takes a range that no other pod has, for the pod of this directory. It is free again when nothing of the pod is left, since a process of it
    /// could still have its ids; also if the state directory was removed without its pods.
    pub(super) fn reserve(dir: &Path, pod: &Path, undo: &mut Undo) -> Result<Self, RuntimeError> {
        atomic::create_dir_all(dir, 0o700)?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| FileError::at("use", &path)(error)
        };
        // Until this returns nobody else takes what was found to be free.
        let turn = File::open(dir).map_err(failed(dir))?;
        turn.lock().map_err(failed(dir))?;
        for number in 0..RANGES {
            let taken = dir.join(number.to_string());
            match fs::symlink_metadata(&taken) {
                Ok(_) if !is_left_over(&taken, number) => continue,
                Ok(_) => fs::remove_file(&taken).map_err(failed(&taken))?,
                Err(_) => {}
            }
            let step = Step::RemoveDir { path: taken.clone() };
            match symlink(pod, &taken) {
                Ok(()) => {
                    if let Err(error) = undo.plan(Scope::Record, step.clone()) {
                        // Nobody would free it.
                        step.carry_out().ok();
                        return Err(error.into());
                    }
                    return Ok(Self(FIRST + number * COUNT));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FileError::at("make", &taken)(error).into()),
            }
        }
        Err(ContainersError::NoIds.into())
    }

    /// The first range, for namespaces without files and without processes that run a program.
    pub(super) fn of_trial() -> Self {
        Self(FIRST)
    }

    /// The host's id of the pod's root.
    pub(super) fn root(self) -> u32 {
        self.0
    }

    /// Maps the ids of a process that has just made a user namespace.
    pub(super) fn map(self, pid: i32) -> Result<(), String> {
        jail::map_range(pid, self.0, COUNT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_left_over_without_its_pod_and_without_processes() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, taken) = (dir.path().join("pod"), dir.path().join("7"));
        fs::create_dir(&pod).unwrap();
        symlink(&pod, &taken).unwrap();
        assert!(!is_left_over(&taken, 7));
        fs::remove_dir(&pod).unwrap();
        assert!(is_left_over(&taken, 7));
        // Something else in its place says nothing.
        fs::remove_file(&taken).unwrap();
        fs::create_dir(&taken).unwrap();
        assert!(!is_left_over(&taken, 7));
    }

    #[test]
    fn processes_are_found_by_their_users() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(has_processes(own));
        assert!(!has_processes(FIRST + (RANGES - 1) * COUNT));
    }
}
