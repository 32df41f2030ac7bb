//! The removal of a pod.

use super::interface::{Force, MONITOR_SLACK, PodError, PodRuntimeInterface};
use crate::runtime;
use crate::store::lock::{self, LockState};
use crate::store::record::{Found, Stage};
use crate::store::undo::{Step, Undo};
use magikvm_proto::budget::HOST_SHUTDOWN_WAIT_MS;
use magikvm_proto::id::PodId;
use std::time::{Duration, Instant};

impl PodRuntimeInterface {
    /// Removes a pod with its record and logs. Deletion is rollback: it removes whatever the undo journal lists, no matter how far the
    /// writer of the journal got.
    pub fn delete_pod(&self, id: &PodId, force: Force) -> Result<(), PodError> {
        let mut found = self.find(id)?;
        if found.is_empty() {
            // A run that is making the directory at this moment is waited for.
            let turn = lock::wait(&self.layout().reservations());
            found = self.find(id)?;
            drop(turn);
        }
        if found.lock == LockState::Held {
            let ended = found.state.as_ref().is_some_and(|state| state.stage == Stage::Ended);
            match (force, ended) {
                (Force::No, false) if found.is_starting() => return Err(PodError::Starting(id.clone())),
                (Force::No, false) if found.all_have_ended() => match self.await_end(id)? {
                    Some(ended) => found = ended,
                    None => return Ok(()),
                },
                (Force::No, false) => return Err(PodError::Running(id.clone())),
                (Force::No, true) => {}
                (Force::Yes, _) => self.end_by_force(&found),
            }
        }
        self.take_away(&found, id)
    }

    /// Waits for the monitor of a pod whose containers have all ended, which has only to see the end of the sandbox. `None` when it has removed the
    /// pod.
    fn await_end(&self, id: &PodId) -> Result<Option<Found>, PodError> {
        let deadline = Instant::now() + Duration::from_millis(HOST_SHUTDOWN_WAIT_MS) + MONITOR_SLACK;
        loop {
            let found = match self.find(id) {
                Err(PodError::NotFound { .. }) => return Ok(None),
                found => found?,
            };
            let ended = found.state.as_ref().is_some_and(|state| state.stage == Stage::Ended);
            if ended || found.lock == LockState::Free {
                return Ok(Some(found));
            }
            // One of the same name may have been run meanwhile.
            if !found.all_have_ended() || Instant::now() > deadline {
                return Err(PodError::Running(id.clone()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends a live monitor and its pod: first by a request, then by SIGKILL (the sandbox dies with the monitor).
    fn end_by_force(&self, found: &Found) {
        if self.ask_stop(found, 0).is_err()
            && let Some(state) = &found.state
        {
            state.processes.iter().for_each(crate::store::sandbox::ProcessRef::kill);
        }
    }

    fn take_away(&self, found: &Found, id: &PodId) -> Result<(), PodError> {
        let Some(lock) = self.take_lock(&found.dir, id)? else { return Ok(()) };
        let mut undo = Undo::recover(&found.dir, &self.layout().removable());
        // The journal may be damaged, or cut off.
        self.known_effects(found).into_iter().for_each(|step| undo.assume(step));
        undo.delete().map_err(|source| PodError::Undo { pod: id.clone(), source })?;
        drop(lock);
        Ok(())
    }

    /// The effects of a pod that follow from its name, record and state, in the order in which they are made.
    fn known_effects(&self, found: &Found) -> Vec<Step> {
        let mut steps = Vec::new();
        // A link that leads elsewhere is not ours.
        let logs = std::fs::read_link(found.dir.log()).ok();
        let all_logs = self.layout().all_logs();
        let logs =
            logs.filter(|logs| logs.parent() == Some(all_logs.as_path()) && logs.file_name().is_some());
        steps.extend(logs.map(|path| Step::RemoveDir { path }));
        if let Some(record) = &found.record
            && uuid::Uuid::parse_str(&record.uid).is_ok()
        {
            steps.push(Step::RemoveDir { path: self.layout().logs(&record.uid) });
            steps.push(Step::RemoveDir { path: self.layout().scratch(&record.uid) });
        }
        steps.push(runtime::group_step(&found.dir));
        let processes = found.state.iter().flat_map(|state| &state.processes);
        steps.extend(processes.map(crate::store::sandbox::ProcessRef::undo_step));
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::step::{Machine, StartWaits};
    use crate::store::layout::{Layout, PodDir, Surroundings};
    use magikvm_proto::lifecycle::Role;
    use magikvm_proto::state::{ContainerState, Terminated};
    use magikvm_proto::wire::ExitStatus;
    use std::fs;

    fn write(dir: &PodDir, stage: Stage, over: bool) {
        let waits = StartWaits { first_boot_ms: 1, ready_ms: 1 };
        let names = [("web".parse().unwrap(), Role::Main)];
        let mut state = Machine::new(names, waits, 0).state;
        state.stage = stage;
        if over {
            let run = Terminated::ended(ExitStatus::exited(0), Some(1), 2);
            state.containers[0].state = ContainerState::Terminated(run);
        }
        // As the monitor does, so that nobody reads half of it.
        let new = dir.path().join("new");
        fs::write(&new, serde_json::to_vec(&state).unwrap()).unwrap();
        fs::rename(new, dir.state_json()).unwrap();
    }

    #[test]
    fn a_pod_whose_containers_have_ended_is_removed_when_its_monitor_has_ended() {
        let base = tempfile::tempdir().unwrap();
        let surroundings = Surroundings { root: Some(base.path().to_owned()), ..Surroundings::default() };
        let pods = PodRuntimeInterface::new(Layout::new(&surroundings).unwrap());
        let id: PodId = "default/web".parse().unwrap();
        let dir = pods.layout().pod(&id);
        fs::create_dir_all(dir.path()).unwrap();
        let monitor = lock::acquire(&dir.lock()).unwrap().unwrap();
        for (stage, over) in [(Stage::Running, false), (Stage::Stopping, false)] {
            write(&dir, stage, over);
            let refused = pods.delete_pod(&id, Force::No);
            assert!(matches!(refused, Err(PodError::Running(_))), "{refused:?}");
        }
        write(&dir, Stage::Starting, true);
        assert!(matches!(pods.delete_pod(&id, Force::No), Err(PodError::Starting(_))));
        write(&dir, Stage::Running, true);
        let ends = std::thread::spawn({
            let dir = dir.clone();
            move || {
                std::thread::sleep(Duration::from_millis(100));
                write(&dir, Stage::Ended, true);
                drop(monitor);
            }
        });
        pods.delete_pod(&id, Force::No).unwrap();
        ends.join().unwrap();
        assert!(!dir.path().exists());
    }
}
