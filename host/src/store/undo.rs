//! Rollback is data. Each step is written to `undo.jsonl` and synced *before* its effect, and each step is idempotent. The same list
//! serves a failed run, the end of a pod, `rm`, and recovery after a crash: deleting is rolling back.

use super::atomic::{FileError, open_append};
use super::layout::{PodDir, TRASH_PREFIX};
use super::text::ignore;
use crate::os::start_time;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a killed process may take to disappear.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// How to undo one effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "undo", rename_all = "snake_case")]
pub enum Step {
    /// Removes a directory and its content without following links.
    RemoveDir { path: PathBuf },
    /// Kills a process if it is still the one that was started.
    KillProcess {
        pid: i32,
        /// The value of [`start_time`]: tells the process from a later one with the same number.
        start_time: u64,
        name: String,
    },
    /// Kills the remaining processes of a control group and removes the group, and its parent if that is then empty.
    RemoveCgroup {
        /// The directories of the group, one for each hierarchy.
        dirs: Vec<PathBuf>,
    },
}

/// How long an effect lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Until the pod has ended.
    Run,
    /// Until the pod is removed (its record and logs).
    Record,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Done { done: u64 },
    Planned { n: u64, scope: Scope, step: Step },
}

/// Why a step could not be undone.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The journal could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line of the journal that this program did not write.
    #[error("{}:{line}: not a step of an undo journal", path.display())]
    Journal {
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        #[source]
        source: serde_json::Error,
    },
    /// A process that did not die.
    #[error("process {pid} ({name}) is still there {} s after SIGKILL", KILL_WAIT.as_secs())]
    StillAlive { pid: i32, name: String },
    /// A process that could not be signalled.
    #[error("cannot kill process {pid} ({name})")]
    Kill {
        pid: i32,
        name: String,
        #[source]
        source: Errno,
    },
}

/// A pod's undo journal, open for adding. Its first entry is always the pod's own directory.
#[derive(Debug)]
pub struct Undo {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    n: u64,
    scope: Scope,
    step: Step,
    done: bool,
}

impl Undo {
    /// Opens the journal of a pod and reads it, or creates a new one. A last line that a crash cut off is dropped, since its effect had
    /// not begun.
    pub fn open(dir: &PodDir) -> Result<Self, UndoError> {
        let path = dir.undo();
        let mut entries: Vec<Entry> = Vec::new();
        let existing = match File::open(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(FileError::at("open", &path)(error).into()),
        };
        let mut whole = 0;
        if let Some(file) = existing {
            let mut reader = BufReader::new(file);
            let mut text = Vec::new();
            for number in 1.. {
                text.clear();
                let read = reader.read_until(b'\n', &mut text).map_err(FileError::at("read", &path))?;
                if text.last() != Some(&b'\n') {
                    break;
                }
                whole += u64::try_from(read).unwrap_or(u64::MAX);
                let line = serde_json::from_slice(&text).map_err(|source| UndoError::Journal {
                    path: path.clone(),
                    line: number,
                    source,
                })?;
                match line {
                    Line::Planned { n, scope, step } => entries.push(Entry { n, scope, step, done: false }),
                    Line::Done { done } => {
                        entries.iter_mut().filter(|e| e.n == done).for_each(|e| e.done = true)
                    }
                }
            }
        }
        let file = open_append(&path)?;
        file.set_len(whole).map_err(FileError::at("truncate", &path))?;
        Ok(Self { path, file, entries })
    }

    /// Records how to undo what the caller is about to do. The effect may begin once this has returned.
    pub fn plan(&mut self, scope: Scope, step: Step) -> Result<(), UndoError> {
        let n = self.entries.last().map_or(1, |last| last.n + 1);
        let line = Line::Planned { n, scope, step };
        self.append(&line)?;
        if let Line::Planned { n, scope, step } = line {
            self.entries.push(Entry { n, scope, step, done: false });
        }
        Ok(())
    }

    fn append(&mut self, line: &Line) -> Result<(), UndoError> {
        let mut text = serde_json::to_vec(line).map_err(|source| UndoError::Journal {
            path: self.path.clone(),
            line: 0,
            source,
        })?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(FileError::at("write", &self.path))?;
        self.file.sync_data().map_err(FileError::at("sync", &self.path))?;
        Ok(())
    }

    /// Undoes everything whose scope is the run, newest first. Continues after a failure and returns the first one.
    pub fn end_run(&mut self) -> Result<(), UndoError> {
        self.roll_back(Some(Scope::Run))
    }

    /// Undoes everything; the pod's directory with this journal goes last.
    pub fn delete(mut self) -> Result<(), UndoError> {
        self.roll_back(None)
    }

    fn roll_back(&mut self, scope: Option<Scope>) -> Result<(), UndoError> {
        let mut first_failure = None;
        for index in (0..self.entries.len()).rev() {
            let entry = &self.entries[index];
            if entry.done || scope.is_some_and(|scope| scope != entry.scope) {
                continue;
            }
            // The record stays as long as anything that needs it is left.
            if entry.scope == Scope::Record && first_failure.is_some() {
                break;
            }
            let (n, holds_journal) =
                (entry.n, matches!(&entry.step, Step::RemoveDir { path } if self.path.starts_with(path)));
            match entry.step.carry_out() {
                Ok(()) if holds_journal => {}
                Ok(()) => {
                    self.entries[index].done = true;
                    self.append(&Line::Done { done: n })?;
                }
                Err(error) => first_failure = first_failure.or(Some(error)),
            }
        }
        first_failure.map_or(Ok(()), Err)
    }
}

impl Step {
    /// Undoes the effect. Succeeds when there is nothing (any more) to undo.
    pub fn carry_out(&self) -> Result<(), UndoError> {
        match self {
            Self::RemoveDir { path } => remove_dir(path).map_err(UndoError::File),
            Self::KillProcess { pid, start_time, name } => kill_process(*pid, *start_time, name),
            Self::RemoveCgroup { dirs } => {
                dirs.iter().try_for_each(|dir| remove_cgroup(dir)).map_err(UndoError::File)
            }
        }
    }
}

/// Renames a directory before removing it, so that nobody ever sees half of it under its name.
fn remove_dir(path: &Path) -> Result<(), FileError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let trash = path.with_file_name(format!("{TRASH_PREFIX}{name}-{}", std::process::id()));
    match fs::rename(path, &trash) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::at("remove", path)(error)),
    }
    fs::remove_dir_all(&trash).map_err(FileError::at("remove", &trash))
}

/// Removes the leftovers of interrupted removals from the directory of all pods.
pub fn sweep_trash(pods: &Path) -> Result<(), FileError> {
    let entries = match fs::read_dir(pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::at("list", pods)(error)),
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(TRASH_PREFIX) {
            match fs::remove_dir_all(entry.path()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FileError::at("remove", &entry.path())(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn kill_process(pid: i32, started: u64, name: &str) -> Result<(), UndoError> {
    let deadline = Instant::now() + KILL_WAIT;
    while start_time(pid) == Some(started) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(source) => return Err(UndoError::Kill { pid, name: name.to_owned(), source }),
        }
        if Instant::now() > deadline {
            return Err(UndoError::StillAlive { pid, name: name.to_owned() });
        }
        // The end of a process that is not our child can only be polled.
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A control group can be removed only when it is empty, and killed processes take time to disappear.
fn remove_cgroup(dir: &Path) -> Result<(), FileError> {
    let deadline = Instant::now() + KILL_WAIT;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => break,
            // The group was never made, or this user cannot even look at its place.
            Err(_) if fs::symlink_metadata(dir).is_err() => break,
            Err(error) if Instant::now() > deadline => return Err(FileError::at("remove", dir)(error)),
            Err(_) => {}
        }
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Ok(pid @ 2..) = pid.parse() {
                ignore(kill(Pid::from_raw(pid), Signal::SIGKILL), "it has ended");
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    if let Some(parent) = dir.parent() {
        ignore(fs::remove_dir(parent), "others are in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod_dir(base: &Path) -> PodDir {
        let dir = PodDir::at(base.join("default_web"));
        fs::create_dir(dir.path()).unwrap();
        dir
    }

    #[test]
    fn the_end_of_a_run_keeps_the_record_and_delete_takes_it_all() {
        let base = tempfile::tempdir().unwrap();
        let dir = pod_dir(base.path());
        let mut undo = Undo::open(&dir).unwrap();
        undo.plan(Scope::Record, Step::RemoveDir { path: dir.path().to_owned() }).unwrap();
        undo.plan(Scope::Run, Step::RemoveDir { path: dir.vm() }).unwrap();
        fs::create_dir(dir.vm()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        undo.plan(Scope::Run, Step::KillProcess { pid, start_time: started, name: "sleep".into() }).unwrap();
        undo.end_run().unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!dir.vm().exists() && dir.undo().exists());
        // A later process finds the same journal; undoing it again is not an error.
        let mut again = Undo::open(&dir).unwrap();
        again.end_run().unwrap();
        again.delete().unwrap();
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_that_only_has_the_number_is_left_alone() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let started = start_time(pid).unwrap();
        Step::KillProcess { pid, start_time: started + 1, name: "me".into() }.carry_out().unwrap();
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_forgotten_and_garbage_is_an_error() {
        let base = tempfile::tempdir().unwrap();
        let dir = pod_dir(base.path());
        fs::write(dir.undo(), b"{\"n\":1,\"scope\":\"run\",\"step\":{\"undo\":\"remove_dir\",\"path\":\"/nonexistent/x\"}}\n{\"n\":2,\"sc").unwrap();
        let mut undo = Undo::open(&dir).unwrap();
        assert_eq!(undo.entries.len(), 1);
        undo.end_run().unwrap();
        assert_eq!(Undo::open(&dir).unwrap().entries.len(), 1);
        fs::write(dir.undo(), b"what\n").unwrap();
        assert!(matches!(Undo::open(&dir), Err(UndoError::Journal { line: 1, .. })));
    }

    proptest! {
        /// Deleting leaves nothing, however far a run got and wherever each rollback was cut off.
        #[test]
        fn delete_leaves_nothing_wherever_the_run_stopped(count in 0usize..8, made in 0usize..8, cut in 0usize..300) {
            let base = tempfile::tempdir().unwrap();
            let dir = pod_dir(base.path());
            let mut undo = Undo::open(&dir).unwrap();
            undo.plan(Scope::Record, Step::RemoveDir { path: dir.path().to_owned() }).unwrap();
            for index in 0..count {
                let path = base.path().join(format!("made-{index}"));
                undo.plan(Scope::Run, Step::RemoveDir { path: path.clone() }).unwrap();
                if index < made {
                    fs::create_dir(&path).unwrap();
                    fs::write(path.join("f"), b"x").unwrap();
                }
            }
            undo.end_run().unwrap();
            // The crash: some bytes of the "done" lines never reached the disk.
            let text = fs::read(dir.undo()).unwrap();
            let planned: usize = text.split_inclusive(|&b| b == b'\n').take(count + 1).map(<[u8]>::len).sum();
            fs::write(dir.undo(), &text[..text.len().saturating_sub(cut).max(planned)]).unwrap();
            Undo::open(&dir).unwrap().delete().unwrap();
            prop_assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        }
    }
}
