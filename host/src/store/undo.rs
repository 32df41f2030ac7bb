//! Rollback is data. Each step is written to `undo.jsonl` and synced *before* its effect, and each step is idempotent. The same list
//! serves a failed run, the end of a pod, `rm`, and recovery after a crash: deleting is rolling back.

use super::atomic::FileError;
#[cfg(target_os = "linux")]
use super::cni::{Attachment, PluginError};
use super::layout::{PodDir, TRASH_PREFIX};
use super::regular::{self, Access};
use super::remove::remove_tree;
use super::text::ignore;
use crate::os::start_time;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a killed process may take to disappear.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// Longest journal that is read. A pod has a few dozen steps.
const MAX_JOURNAL: u64 = 1 << 20;

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
    /// Runs the plugins of a CNI network once more, and lets go of the pod's network namespace.
    #[cfg(target_os = "linux")]
    DetachNetwork(Box<Attachment>),
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
    /// A step that would remove what belongs to no pod.
    #[error("the undo journal lists {}, which is not a directory of a pod", .0.display())]
    Outside(PathBuf),
    /// A process that did not die.
    #[error("process {pid} ({name}) is still there {} s after SIGKILL", KILL_WAIT.as_secs())]
    StillAlive { pid: i32, name: String },
    /// A plugin that has not removed what it made for the pod.
    #[cfg(target_os = "linux")]
    #[error("cannot disconnect the pod from the network {network}")]
    Detach {
        network: String,
        #[source]
        source: Box<PluginError>,
    },
    /// A process that could not be signalled.
    #[error("cannot kill process {pid} ({name})")]
    Kill {
        pid: i32,
        name: String,
        #[source]
        source: Errno,
    },
}

/// A pod's undo journal. Its first entry is always the pod's own directory.
#[derive(Debug)]
pub struct Undo {
    path: PathBuf,
    /// `None`: the file cannot be used, and what is undone is not recorded.
    file: Option<File>,
    entries: Vec<Entry>,
    damage: Option<UndoError>,
    /// Of the pod's directory, so that a later one in its place is left alone.
    identity: Option<(u64, u64)>,
    dir: PodDir,
}

#[derive(Debug)]
struct Entry {
    n: u64,
    scope: Scope,
    step: Step,
    done: bool,
}

/// What a journal says.
struct Journal {
    entries: Vec<Entry>,
    /// Bytes of its whole lines.
    whole: u64,
    damage: Option<UndoError>,
}

impl Journal {
    /// Reads a journal, and changes nothing. One that does not exist is empty.
    fn read(path: &Path) -> Result<Self, FileError> {
        let bytes = match regular::read(path, MAX_JOURNAL) {
            Ok(bytes) => bytes,
            Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (mut entries, mut whole, mut damage) = (Vec::<Entry>::new(), 0u64, None);
        for (index, text) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
            if text.last() != Some(&b'\n') {
                break;
            }
            whole += u64::try_from(text.len()).unwrap_or(u64::MAX);
            match serde_json::from_slice(text) {
                Ok(Line::Planned { n, scope, step }) => entries.push(Entry { n, scope, step, done: false }),
                Ok(Line::Done { done }) => {
                    entries.iter_mut().filter(|entry| entry.n == done).for_each(|entry| entry.done = true)
                }
                Err(source) => {
                    damage.get_or_insert(UndoError::Journal {
                        path: path.to_owned(),
                        line: index + 1,
                        source,
                    });
                }
            }
        }
        Ok(Self { entries, whole, damage })
    }
}

/// The connections to networks of a pod that runs, whose monitor goes on writing its journal.
#[cfg(target_os = "linux")]
pub fn attachments(dir: &PodDir) -> Vec<Attachment> {
    let entries = Journal::read(&dir.undo()).map(|journal| journal.entries).unwrap_or_default();
    let live = entries.into_iter().filter(|entry| !entry.done);
    live.filter_map(|entry| match entry.step {
        Step::DetachNetwork(attachment) => Some(*attachment),
        _ => None,
    })
    .collect()
}

impl Undo {
    /// Creates the journal of a new pod, or opens one for adding.
    pub fn open(dir: &PodDir) -> Result<Self, UndoError> {
        let mut undo = Self::read(dir);
        undo.damage.take().map_or(Ok(undo), Err)
    }

    /// Reads a journal to undo what it lists, as far as it can be read: whatever is in its place must not keep the pod from being removed.
    /// Steps that would remove a directory outside of `roots` are not taken over.
    pub fn recover(dir: &PodDir, roots: &[PathBuf]) -> Self {
        let mut undo = Self::read(dir);
        let Self { entries, damage, .. } = &mut undo;
        entries.retain(|entry| match &entry.step {
            Step::RemoveDir { path } if !is_beneath(path, roots) => {
                damage.get_or_insert_with(|| UndoError::Outside(path.clone()));
                false
            }
            #[cfg(target_os = "linux")]
            Step::DetachNetwork(attachment) => {
                let outside = [&attachment.namespace, &attachment.result]
                    .into_iter()
                    .find(|path| !is_beneath(path, roots));
                if let Some(path) = outside {
                    damage.get_or_insert_with(|| UndoError::Outside(path.clone()));
                }
                outside.is_none()
            }
            _ => true,
        });
        let own = Step::RemoveDir { path: dir.path().to_owned() };
        if undo.entries.first().is_none_or(|first| first.step != own) {
            undo.entries.insert(0, Entry { n: 0, scope: Scope::Record, step: own, done: false });
        }
        undo
    }

    /// Why the journal does not list everything, if it does not.
    pub fn damage(&self) -> Option<&UndoError> {
        self.damage.as_ref()
    }

    /// Whether somebody else has removed the pod's directory.
    pub fn is_orphaned(&self) -> bool {
        self.identity != self.dir.identity().ok()
    }

    /// Adds a step that a damaged journal may lack. It is undone before the others, and not recorded.
    pub fn assume(&mut self, step: Step) {
        if !self.entries.iter().any(|entry| entry.step == step) {
            self.entries.push(Entry { n: 0, scope: Scope::Run, step, done: false });
        }
    }

    /// A last line that a crash cut off is dropped, since its effect had not begun.
    fn read(dir: &PodDir) -> Self {
        let path = dir.undo();
        let (identity, dir) = (dir.identity().ok(), dir.clone());
        let Journal { entries, whole, mut damage } = match Journal::read(&path) {
            Ok(journal) => journal,
            Err(error) => {
                return Self {
                    path,
                    file: None,
                    entries: Vec::new(),
                    damage: Some(error.into()),
                    identity,
                    dir,
                };
            }
        };
        let opened = regular::open(&path, Access::Append)
            .and_then(|file| file.set_len(whole).map(|()| file).map_err(FileError::at("truncate", &path)));
        let file = match opened {
            Ok(file) => Some(file),
            Err(error) => {
                damage.get_or_insert(error.into());
                None
            }
        };
        Self { path, file, entries, damage, identity, dir }
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
        let Some(file) = &mut self.file else { return Ok(()) };
        let whole = file.metadata().map_err(FileError::at("look at", &self.path))?.len();
        if let Err(error) = file.write_all(&text) {
            ignore(file.set_len(whole), "a line that is cut off is dropped if it is the last one");
            return Err(FileError::at("write", &self.path)(error).into());
        }
        file.sync_data().map_err(FileError::at("sync", &self.path))?;
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
            if holds_journal && self.is_orphaned() {
                continue;
            }
            match entry.step.carry_out() {
                Ok(()) if holds_journal => {}
                Ok(()) => {
                    self.entries[index].done = true;
                    let noted = self.append(&Line::Done { done: n });
                    // A full disk must not keep the rest from being undone.
                    ignore(noted, "to undo the step again does nothing");
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
                // A process leaves no group before it has left the one that freezes it.
                dirs.iter().for_each(|dir| kill_cgroup(dir));
                let removed: Vec<_> = dirs.iter().map(|dir| remove_cgroup(dir)).collect();
                removed.into_iter().collect::<Result<(), _>>().map_err(UndoError::File)
            }
            #[cfg(target_os = "linux")]
            Self::DetachNetwork(attachment) => attachment.detach().map_err(|source| UndoError::Detach {
                network: attachment.network.clone(),
                source: Box::new(source),
            }),
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
    remove_tree(&trash)
}

/// Whether a path is a place beneath one of these directories, and not one of them.
fn is_beneath(path: &Path, roots: &[PathBuf]) -> bool {
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    is_plain && roots.iter().any(|root| path.starts_with(root) && path != root)
}

/// Removes the leftovers of interrupted removals from the directory of all pods. What cannot be removed was named by its removal, and
/// hinders nobody.
pub fn sweep_trash(pods: &Path) {
    for entry in fs::read_dir(pods).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(TRASH_PREFIX) {
            ignore(remove_tree(&entry.path()), "it is in nobody's way");
        }
    }
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
        kill_cgroup(dir);
        std::thread::sleep(Duration::from_millis(2));
    }
    if let Some(parent) = dir.parent() {
        ignore(fs::remove_dir(parent), "others are in it");
    }
    Ok(())
}

/// Kills every process of a group and of those beneath it, and removes those that are empty. Frozen processes die once they are thawed.
fn kill_cgroup(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_cgroup(&entry.path());
            ignore(fs::remove_dir(entry.path()), "it is not empty yet");
        }
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Ok(pid @ 2..) = pid.parse() {
            ignore(kill(Pid::from_raw(pid), Signal::SIGKILL), "it has ended");
        }
    }
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if dir.join(file).exists() {
            ignore(fs::write(dir.join(file), word), "it has just been removed");
        }
    }
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

    #[test]
    fn a_damaged_journal_is_followed_as_far_as_it_goes() {
        let base = tempfile::tempdir().unwrap();
        let dir = pod_dir(base.path());
        let line = |path: &Path| {
            serde_json::to_string(&Line::Planned {
                n: 1,
                scope: Scope::Run,
                step: Step::RemoveDir { path: path.to_owned() },
            })
            .unwrap()
        };
        let [listed, foreign, assumed] = ["pods/a", "etc", "pods/b"].map(|name| base.path().join(name));
        for path in [&listed, &foreign, &assumed] {
            fs::create_dir_all(path).unwrap();
        }
        let climbing = base.path().join("pods/../etc");
        let text =
            [line(&listed), "garbage".to_owned(), line(&foreign), line(&climbing), String::new()].join("\n");
        fs::write(dir.undo(), text).unwrap();
        let roots = [base.path().join("pods"), dir.path().to_owned(), base.path().to_owned()];
        let mut undo = Undo::recover(&dir, &roots[..1]);
        assert!(matches!(undo.damage(), Some(UndoError::Journal { line: 2, .. })));
        undo.assume(Step::RemoveDir { path: assumed.clone() });
        undo.delete().unwrap();
        assert!(!dir.path().exists() && !listed.exists() && !assumed.exists());
        assert!(foreign.exists());
    }

    #[test]
    fn whatever_is_in_the_place_of_the_journal_can_be_removed() {
        use nix::sys::stat::Mode;
        let base = tempfile::tempdir().unwrap();
        let put: [&dyn Fn(&Path); 4] = [
            &|path| fs::create_dir(path).unwrap(),
            &|path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
            &|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
            &|path| File::create(path).unwrap().set_len(MAX_JOURNAL + 1).unwrap(),
        ];
        for put in put {
            let dir = pod_dir(base.path());
            put(&dir.undo());
            assert!(Undo::open(&dir).is_err());
            let undo = Undo::recover(&dir, &[]);
            assert!(undo.damage().is_some());
            undo.delete().unwrap();
            assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        }
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
