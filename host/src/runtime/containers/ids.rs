//! The users of pods: each has a range of the host's ids of its own, so that no file or process of one pod belongs to a user of another one. A range
//! is taken by making a directory with its number.

use super::super::RuntimeError;
use super::ContainersError;
use crate::jail;
use crate::store::atomic::{self, FileError};
use crate::store::undo::{Scope, Step, Undo};
use std::fs;
use std::io;
use std::path::Path;

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
    /// Takes a range that no other pod has. It is free again when nothing of the pod is left, since a process of it could still have its ids.
    pub(super) fn reserve(dir: &Path, undo: &mut Undo) -> Result<Self, RuntimeError> {
        atomic::create_dir_all(dir, 0o700)?;
        for number in 0..RANGES {
            let taken = dir.join(number.to_string());
            if taken.exists() {
                continue;
            }
            let step = Step::RemoveDir { path: taken.clone() };
            match fs::create_dir(&taken) {
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
