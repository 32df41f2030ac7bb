//! Control of a sandbox of namespaces: it is paused by freezing its control group, because a signal to one process stops only that one. Without a
//! group every process of the pod gets the signal.

use super::super::control::SandboxControl;
use crate::os;
use crate::store::sandbox::{ProcessRef, Role};
use crate::store::text::ignore;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[derive(Debug)]
pub(super) struct ByFreezer {
    processes: Vec<ProcessRef>,
    /// The file that freezes the pod's group, and what to write to it to freeze and to thaw.
    freezer: Option<(PathBuf, [&'static str; 2])>,
    /// The processes of the pod that this value has stopped, by their numbers and start times.
    stopped: Mutex<Vec<(i32, u64)>>,
}

/// Looks at all processes for those that were forked meanwhile.
const ROUNDS: u32 = 64;

impl ByFreezer {
    /// `dirs` are the directories of the pod's group.
    pub(super) fn new(processes: Vec<ProcessRef>, dirs: &[PathBuf]) -> Self {
        let unified = dirs.iter().map(|dir| (dir.join("cgroup.freeze"), ["1", "0"]));
        let legacy = dirs.iter().map(|dir| (dir.join("freezer.state"), ["FROZEN", "THAWED"]));
        let freezer = legacy.chain(unified).find(|(file, _)| file.exists());
        Self { processes, freezer, stopped: Mutex::default() }
    }

    fn children(&self) -> impl Iterator<Item = &ProcessRef> {
        self.processes.iter().filter(|process| process.role != Role::Supervisor)
    }

    fn write(&self, index: usize) {
        if let Some((file, words)) = &self.freezer {
            ignore(fs::write(file, words[index]), "the pod has just ended");
        }
    }

    /// Stops every process of the pod, and remembers it.
    fn stop_all(&self) {
        let first = self.processes.iter().find(|process| process.role == Role::Supervisor);
        let Some(first) = first.filter(|first| os::start_time(first.pid) == Some(first.start_time)) else {
            return;
        };
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROUNDS {
            let running = running_below(first.pid);
            if running.is_empty() {
                return;
            }
            for pid in running {
                if let Some(started) = os::start_time(pid)
                    && kill(Pid::from_raw(pid), Signal::SIGSTOP).is_ok()
                    && !stopped.contains(&(pid, started))
                {
                    stopped.push((pid, started));
                }
            }
        }
    }

    /// Continues what was stopped. Processes that the pod itself has stopped stay stopped.
    fn continue_all(&self) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        for (pid, started) in stopped.drain(..).rev() {
            if os::start_time(pid) == Some(started) {
                ignore(kill(Pid::from_raw(pid), Signal::SIGCONT), "it has just ended");
            }
        }
    }
}

impl SandboxControl for ByFreezer {
    fn processes(&self) -> &[ProcessRef] {
        &self.processes
    }

    fn kill(&self) {
        self.processes.iter().for_each(ProcessRef::kill);
        // A frozen process dies once it is thawed. The supervisor may have been killed while it had frozen a container.
        if let Some((file, words)) = &self.freezer
            && let (Some(dir), Some(name)) = (file.parent(), file.file_name())
        {
            write_all(dir, name, words[1]);
        }
    }

    fn pause(&self) {
        self.write(0);
        if self.freezer.is_none() {
            self.stop_all();
        }
        // The monitor is told of its children only, and not that they are frozen.
        self.children().for_each(ProcessRef::stop);
    }

    fn resume(&self) {
        self.children().for_each(ProcessRef::go_on);
        self.write(1);
        self.continue_all();
    }
}

/// Writes a word to a file of a group and of all groups in it.
fn write_all(dir: &Path, name: &OsStr, word: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            write_all(&entry.path(), name, word);
        }
    }
    ignore(fs::write(dir.join(name), word), "the group has just been removed");
}

/// The processes of a tree, its root included, that neither are stopped nor have ended.
fn running_below(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let mut states: HashMap<i32, char> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(text) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // proc_pid_stat(5): the name, in parentheses, may hold anything.
        let Some((_, rest)) = text.rsplit_once(')') else { continue };
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next().and_then(|field| field.chars().next());
        let parent = fields.next().and_then(|field| field.parse().ok());
        if let (Some(state), Some(parent)) = (state, parent) {
            states.insert(pid, state);
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut found, mut pending) = (Vec::new(), vec![root]);
    while let Some(pid) = pending.pop() {
        pending.extend(children.remove(&pid).unwrap_or_default());
        if states.get(&pid).is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X')) {
            found.push(pid);
        }
    }
    found
}
