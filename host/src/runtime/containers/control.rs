//! Control of a sandbox of namespaces: it is paused by freezing its control group, because a signal to one process stops only that one.

use super::super::control::SandboxControl;
use crate::store::sandbox::{ProcessRef, Role};
use crate::store::text::ignore;
use std::fs;
use std::path::PathBuf;

#[derive(Debug)]
pub(super) struct ByFreezer {
    processes: Vec<ProcessRef>,
    /// The file that freezes the pod's group, and what to write to it to freeze and to thaw.
    freezer: Option<(PathBuf, [&'static str; 2])>,
}

impl ByFreezer {
    /// `dirs` are the directories of the pod's group.
    pub(super) fn new(processes: Vec<ProcessRef>, dirs: &[PathBuf]) -> Self {
        let unified = dirs.iter().map(|dir| (dir.join("cgroup.freeze"), ["1", "0"]));
        let legacy = dirs.iter().map(|dir| (dir.join("freezer.state"), ["FROZEN", "THAWED"]));
        let freezer = legacy.chain(unified).find(|(file, _)| file.exists());
        Self { processes, freezer }
    }

    fn children(&self) -> impl Iterator<Item = &ProcessRef> {
        self.processes.iter().filter(|process| process.role != Role::Supervisor)
    }

    fn write(&self, index: usize) {
        if let Some((file, words)) = &self.freezer {
            ignore(fs::write(file, words[index]), "the pod has just ended");
        }
    }
}

impl SandboxControl for ByFreezer {
    fn processes(&self) -> &[ProcessRef] {
        &self.processes
    }

    fn kill(&self) {
        self.processes.iter().for_each(ProcessRef::kill);
        // A frozen process dies once it is thawed.
        self.write(1);
    }

    fn pause(&self) {
        self.write(0);
        // The monitor is told of its children only, and not that they are frozen.
        self.children().for_each(ProcessRef::stop);
    }

    fn resume(&self) {
        self.children().for_each(ProcessRef::go_on);
        self.write(1);
    }
}
