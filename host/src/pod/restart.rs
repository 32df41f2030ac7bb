//! Runs a pod again. The pod that has ended is put aside under another name until the new one runs, so that nothing is lost if that fails.
//!
//! Put aside, the directory `default_web` of the pods is called `.restart-default_web`, and whoever restarts the pod holds its lock. If that
//! program dies, the next one that looks at the pods gives the old pod its name back, or removes it if the new one runs.

use super::interface::{PodError, PodRuntimeInterface};
use super::run::RunRequest;
use crate::store::atomic::{self, FileError};
use crate::store::layout::{Layout, PodDir, RESTART_PREFIX};
use crate::store::lock::{self, Lock};
use crate::store::record::{self, Found, Stage};
use crate::store::text::ignore;
use crate::store::undo::Step;
use magikvm_proto::id::PodId;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Keeps the request of a run beside its record. Logins of registries are stored nowhere.
pub(super) fn keep(request: &RunRequest, dir: &PodDir) -> Result<(), record::RecordError> {
    let mut kept = request.clone();
    kept.plan.pull_secrets.clear();
    record::write_json(&dir.request_json(), &kept)
}

/// A pod that has ended, under another name.
#[derive(Debug)]
pub struct Aside {
    id: PodId,
    /// Where it was.
    place: PathBuf,
    aside: PathBuf,
    logs: PathBuf,
    scratch: PathBuf,
    _lock: Lock,
}

impl Aside {
    /// Gives the pod its name back, unless there is a new one.
    pub fn restore(self) -> Result<(), PodError> {
        give_back(&self.aside, &self.place)?;
        Ok(())
    }

    /// Removes the pod, since the new one runs.
    pub fn discard(self) -> Result<(), PodError> {
        for path in [&self.logs, &self.scratch, &self.aside] {
            let step = Step::RemoveDir { path: path.clone() };
            step.carry_out().map_err(|source| PodError::Undo { pod: self.id.clone(), source })?;
        }
        Ok(())
    }
}

/// Renames a pod's directory, with the link that leads from its logs to it.
fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    fs::rename(from, to).map_err(FileError::at("rename", from))?;
    if let Ok(logs) = fs::read_link(PodDir::at(to.to_owned()).log()) {
        let (link, new) = (logs.join("pod"), logs.join(".pod"));
        let relinked = symlink(to, &new).and_then(|()| fs::rename(&new, &link));
        relinked.map_err(FileError::at("make the link", &link))?;
    }
    atomic::sync_parent(to)
}

fn give_back(aside: &Path, place: &Path) -> Result<(), FileError> {
    if place.symlink_metadata().is_ok() {
        return Ok(());
    }
    rename(aside, place)
}

/// Finishes what a restart has left that was killed.
pub(super) fn recover(layout: &Layout) {
    let pods = layout.pods();
    for entry in fs::read_dir(&pods).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(RESTART_PREFIX)) else { continue };
        let (aside, place) = (entry.path(), pods.join(name));
        // Whoever restarts the pod holds this lock, and names are given one at a time.
        let Ok(Some(_lock)) = lock::acquire(&PodDir::at(aside.clone()).lock()) else { continue };
        let Ok(_turn) = lock::wait(&layout.reservations()) else { continue };
        match Found::read(PodDir::at(place.clone())) {
            Ok(None) => ignore(give_back(&aside, &place), "the next program tries again"),
            Ok(Some(new)) if new.record.is_some() && !new.is_starting() => {
                let old = Found::read(PodDir::at(aside.clone())).ok().flatten().and_then(|old| old.record);
                let uid = old.map(|record| record.uid).filter(|uid| uuid::Uuid::parse_str(uid).is_ok());
                let files = uid.into_iter().flat_map(|uid| [layout.logs(&uid), layout.scratch(&uid)]);
                for path in files.chain([aside]) {
                    ignore((Step::RemoveDir { path }).carry_out(), "the next program tries again");
                }
            }
            _ => {}
        }
    }
}

impl PodRuntimeInterface {
    /// What a pod was run with.
    pub fn run_request(&self, found: &Found) -> Result<RunRequest, PodError> {
        Ok(record::read_json(&found.dir.request_json())?)
    }

    /// Puts a pod that has ended aside. `None` if it is gone, because it was to be removed at its end.
    pub fn put_aside(&self, id: &PodId) -> Result<Option<Aside>, PodError> {
        let found = match self.find(id) {
            Err(PodError::NotFound { .. }) => return Ok(None),
            found => found?,
        };
        let Some(lock) = self.take_lock(&found.dir, id)? else { return Ok(None) };
        // Its monitor may have died before it undid the run.
        let ended = |found: &Found| found.state.as_ref().is_some_and(|state| state.stage == Stage::Ended);
        let found = Found::read(found.dir)?.filter(ended).ok_or_else(|| PodError::Lost(id.clone()))?;
        let Some(record) = found.record.filter(|record| uuid::Uuid::parse_str(&record.uid).is_ok()) else {
            return Err(PodError::Lost(id.clone()));
        };
        let place = found.dir.path().to_owned();
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let aside = place.with_file_name(format!("{RESTART_PREFIX}{name}"));
        let _turn = lock::wait(&self.layout().reservations())?;
        rename(&place, &aside)?;
        let (logs, scratch) = (self.layout().logs(&record.uid), self.layout().scratch(&record.uid));
        Ok(Some(Aside { id: id.clone(), place, aside, logs, scratch, _lock: lock }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layout::Surroundings;

    fn layout(base: &Path) -> Layout {
        Layout::new(&Surroundings { root: Some(base.to_owned()), ..Surroundings::default() }).unwrap()
    }

    #[test]
    fn a_pod_that_was_put_aside_comes_back_when_nobody_restarts_it() {
        let base = tempfile::tempdir().unwrap();
        let layout = layout(base.path());
        let (place, aside) = (layout.pods().join("default_web"), layout.pods().join(".restart-default_web"));
        let logs = layout.logs("1");
        fs::create_dir_all(&place).unwrap();
        fs::create_dir_all(&logs).unwrap();
        symlink(&logs, PodDir::at(place.clone()).log()).unwrap();
        symlink(&place, logs.join("pod")).unwrap();
        rename(&place, &aside).unwrap();
        assert_eq!(fs::read_link(logs.join("pod")).unwrap(), aside, "its logs are not swept");
        let held = lock::acquire(&PodDir::at(aside.clone()).lock()).unwrap();
        recover(&layout);
        assert!(aside.exists() && !place.exists(), "somebody restarts it");
        drop(held);
        recover(&layout);
        assert!(!aside.exists() && place.exists());
        assert_eq!(fs::read_link(logs.join("pod")).unwrap(), place);
    }
}
