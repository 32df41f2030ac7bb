//! The jails of a VM's processes: the files of each process, and the user that all of them share.

use super::{JailOptions, VmConfig, VmmError};
use crate::jail::{
    self, Access, Descriptor, HostNetwork, Identity, Inside, JailMount, JailSpec, Limits, MountSource,
    Procfs, Requirement, Submounts, SyscallFilter,
};
use crate::process::Layers;
use crate::store::atomic::FileError;
use crate::store::lock::Lock;
use crate::store::sandbox::Role;
use crate::store::text::ignore;
use crate::store::undo;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// The descriptor of a lock that a process only keeps.
pub(super) const HELD_FD: i32 = 12;
/// More threads than any VMM has.
const MAX_PIDS: u64 = 512;
/// A connection of the agent takes one or two.
const MAX_OPEN_FILES: u64 = 4096;
/// Time for a process that does nothing.
const TRIAL_WAIT: Duration = Duration::from_secs(10);

/// A VM that is about to be started.
#[derive(Debug)]
pub(super) struct Site<'a> {
    dir: &'a Path,
    /// Files that are read outside of the VM's directory.
    reads: Vec<PathBuf>,
    /// Its writable disks: the scratch disk, and those that outlive the VM.
    disks: Vec<PathBuf>,
    identity: Identity,
    options: &'a JailOptions,
    held: Option<&'a Lock>,
}

impl<'a> Site<'a> {
    /// Collects the VM's files: the kernel, the initramfs, and the images of its disk. Gives the VM's directory to the VM's user.
    pub(super) fn new(config: &'a VmConfig, kernel: &Path, dir: &'a Path) -> Result<Self, VmmError> {
        let mut reads = vec![kernel.to_owned(), config.initramfs.clone()];
        reads.extend(linked(dir).map_err(FileError::at("list", dir))?);
        let links = config.scratch.iter().chain(&config.lasting).map(|name| dir.join(name));
        let read_link = |link: PathBuf| fs::read_link(&link).map_err(FileError::at("read", &link));
        let disks = links.map(read_link).collect::<Result<Vec<_>, _>>()?;
        reads.retain(|path| !disks.contains(path));
        let identity = jail::identity(&config.id, &reads);
        // Each disk is alone in its directory.
        for dir in disks.iter().filter_map(|disk| disk.parent()).chain([dir]) {
            jail::give(dir, &identity).map_err(FileError::at("give away", dir))?;
        }
        Ok(Self { dir, reads, disks, identity, options: &config.jail, held: config.held.as_deref() })
    }

    /// The directory of the first writable disk.
    pub(super) fn disk_dir(&self) -> Option<&Path> {
        self.disks.first().and_then(|disk| disk.parent())
    }

    /// The jail of a process that has the VM's directory and nothing else. Callers add what their process needs.
    pub(super) fn jail(&self, inside: Inside, filter: SyscallFilter, access: Access) -> JailSpec {
        JailSpec {
            inside,
            mounts: vec![mount(self.dir, access)],
            devices: Vec::new(),
            procfs: Procfs::Absent,
            working_dir: self.dir.to_owned(),
            network: HostNetwork::None,
            identity: self.identity.clone(),
            filter,
            limits: Limits { pids: MAX_PIDS, open_files: MAX_OPEN_FILES },
            cgroup: self.options.cgroup.clone(),
            descriptors: Vec::new(),
            requirement: self.options.requirement,
        }
    }

    /// Lets a process keep the lock of what outlives the VM until it has ended.
    pub(super) fn hold(&self, spec: &mut JailSpec) {
        let held = self.held.map(|lock| Descriptor { here: lock.as_fd().as_raw_fd(), there: HELD_FD });
        spec.descriptors.extend(held);
    }

    /// The files that the VM reads, and its writable disks.
    pub(super) fn files(&self) -> impl Iterator<Item = JailMount> {
        let disks = self.disks.iter().map(|path| mount(path, Access::ReadWrite));
        self.reads.iter().map(|path| mount(path, Access::ReadOnly)).chain(disks)
    }
}

/// Mounts a file at the path that it has outside.
pub(super) fn mount(path: &Path, access: Access) -> JailMount {
    JailMount {
        source: MountSource::Path(path.to_owned()),
        target: path.to_owned(),
        access,
        submounts: Submounts::Without,
    }
}

/// Targets of the links in a VM's directory that are outside of it.
fn linked(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            let to = fs::read_link(entry.path())?;
            if !to.starts_with(dir) {
                found.push(to);
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The hidden verb of a process that only checks whether a jail works.
pub const TRIAL_VERB: &str = "__trial";
const TRIAL_MEMORY_BYTES: u64 = 64 << 20;

/// Puts a process that does nothing into a jail like those of VMs. Returns the isolation layers that it had.
pub fn trial() -> Result<Layers, VmmError> {
    let begin = |source| VmmError::Start { program: PathBuf::from(TRIAL_VERB), source };
    let dir = tempfile::tempdir().map_err(begin)?;
    let identity = jail::identity(TRIAL_VERB, &[]);
    jail::give(dir.path(), &identity).map_err(FileError::at("give away", dir.path()))?;
    let cgroup = jail::place_cgroup(&format!("trial.{}", std::process::id()));
    let made = cgroup
        .clone()
        .and_then(|cgroup| jail::make_cgroup(&cgroup, TRIAL_MEMORY_BYTES, MAX_PIDS).map(|()| cgroup));
    let options = JailOptions { requirement: Requirement::Warn, cgroup: made };
    let site = Site {
        dir: dir.path(),
        reads: Vec::new(),
        disks: Vec::new(),
        identity,
        options: &options,
        held: None,
    };
    let spec = site.jail(Inside::Verb(TRIAL_VERB.to_owned()), SyscallFilter::Krun, Access::ReadWrite);
    let tried = jail::command().map_err(begin).and_then(|mut command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = jail::spawn_jailed(Role::Trial, "trial", &mut command, &spec, &[])?;
        let ended = process.wait_or_kill(TRIAL_WAIT);
        match ended {
            Some(status) if status.success() => Ok(process.layers.take().unwrap_or_default()),
            ended => Err(VmmError::Helper {
                program: TRIAL_VERB.to_owned(),
                detail: match process.violation() {
                    Some(violation) => format!("filter: it called {}", violation.call),
                    None => ended.map_or_else(|| "it is gone".to_owned(), |status| status.to_string()),
                },
            }),
        }
    });
    if let Ok(cgroup) = cgroup {
        let gone = undo::Step::RemoveCgroup { dirs: cgroup.dirs }.carry_out();
        ignore(gone, "it is empty, and the next trial has another name");
    }
    tried
}
