//! The uses of a claim: one file for each in `users`, with the pod's name, under a name that no other use has. It is locked as long as the use
//! lasts. The processes that reach the claim have the locked file open too, so that a use whose monitor was killed lasts until they have ended.

use super::{ClaimError, ClaimRecord, MAX_RECORD, Origin};
use crate::store::atomic::{self, FileError};
use crate::store::layout::dir_name;
use crate::store::lock::{self, Lock, LockState};
use crate::store::regular;
use crate::store::text::ignore;
use magikvm_proto::id::PodId;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A pod's use of a claim, which ends when this value and all copies of its lock are gone.
#[derive(Debug)]
pub struct ClaimUse {
    pub record: ClaimRecord,
    /// The directory, or the file of the disk.
    pub path: PathBuf,
    pub origin: Origin,
    pub(super) entry: UseEntry,
}

impl ClaimUse {
    /// The lock of this use and of those that were begun beside it. Whoever reaches the claim has to keep it.
    pub fn lock(&self) -> Arc<Lock> {
        Arc::clone(&self.entry.lock)
    }
}

/// The file of a use.
#[derive(Debug)]
pub(super) struct UseEntry {
    file: PathBuf,
    lock: Arc<Lock>,
}

impl Drop for UseEntry {
    fn drop(&mut self) {
        // The processes that have reached the claim have ended before, and the name is that of this use alone.
        ignore(atomic::remove(&self.file), "a file that nobody has locked says nothing");
    }
}

impl UseEntry {
    /// Begins a use. The caller has the claims' turn. A use beside another one of the same pod shares its lock.
    pub(super) fn begin(claim: &Path, user: &PodId, beside: Option<&ClaimUse>) -> Result<Self, ClaimError> {
        let dir = claim.join("users");
        sweep(&dir);
        let file = dir.join(format!("{}.{}", dir_name(user), uuid::Uuid::new_v4()));
        if let Some(other) = beside {
            fs::hard_link(&other.entry.file, &file).map_err(FileError::at("link", &file))?;
            return Ok(Self { file, lock: other.lock() });
        }
        atomic::write(&file, user.to_string().as_bytes(), 0o600)?;
        let lock = lock::acquire(&file)?;
        let lock = lock.ok_or_else(|| FileError::at("lock", &file)(std::io::ErrorKind::WouldBlock.into()))?;
        Ok(Self { file, lock: Arc::new(lock) })
    }
}

/// The files of uses that last.
fn lasting(claim: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(claim.join("users")).into_iter().flatten().filter_map(Result::ok);
    let held = |path: &PathBuf| lock::state(path).is_ok_and(|state| state == LockState::Held);
    entries.map(|entry| entry.path()).filter(held).collect()
}

/// The pods that use a claim.
pub(super) fn users(claim: &Path) -> Vec<PodId> {
    let name = |path: PathBuf| String::from_utf8(regular::read(&path, MAX_RECORD).ok()?).ok()?.parse().ok();
    let mut users: Vec<PodId> = lasting(claim).into_iter().filter_map(name).collect();
    users.sort();
    users.dedup();
    users
}

/// Waits until one of the uses of a claim has ended, or until the deadline.
pub(super) fn wait_for_end(claim: &Path, deadline: Instant) {
    if let Some(file) = lasting(claim).first() {
        let left = deadline.saturating_duration_since(Instant::now());
        ignore(lock::wait_for(file, left), "its file is gone, and with it the use");
    }
}

/// Removes the files of uses whose processes have died. The caller has the claims' turn, so that no use is being begun.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let path = entry.path();
        if lock::state(&path).is_ok_and(|state| state == LockState::Free) {
            ignore(atomic::remove(&path), "it says nothing");
        }
    }
}
