//! `pod-containers`: the pod in namespaces of the host. The host writes the pod's files into a directory and starts `magikvm-containers`, which makes
//! the namespaces and becomes the pod's supervisor.

mod cgroup;
mod connect;
mod control;
mod ids;
mod launch;
mod program;
mod talk;

use super::files::{self, PodFiles};
use super::volumes;
use super::{PodRuntime, PodToPrepare, Prepared, Running, RuntimeError, Sandbox, check, network};
use crate::agent::{Connector, Handshake};
use crate::image::Wanted;
use crate::image::erofs::SmallFile;
use crate::jail::{Cgroup, Requirement};
use crate::manifest::PodPlan;
use crate::net::chain::PodSide;
use crate::net::cni::Places;
use crate::net::settle::{Settled, Ways};
use crate::net::{Mode, Provider};
use crate::process::{self, Ended, Motion, ProcessError};
use crate::store::atomic::{self, FileError};
use crate::store::layout::Layout;
use crate::store::sandbox::{
    Blame, ContainersRecord, ProcessRef, Role, SandboxEnd, SandboxFailure, SandboxRecord, UsersRecord,
};
use crate::store::undo::{Scope, Step, Undo};
use crate::vmm::Unavailable;
use crate::vmm::qmp::DiskWatch;
use crate::vmm::scratch::{self, Room};
use crate::volume::claims::ClaimUse;
use control::ByFreezer;
use ids::PodIds;
use launch::{Launched, ToLaunch};
use magikvm_proto::sandbox::{
    FIRST_SOURCE_FD, ImageMount, MAX_SOURCES, NetworkSpace, SandboxSettings, ScratchMount, ScratchPlace,
    SharedMount, Users,
};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use talk::Made;

/// The network devices that the pod can have.
const WAYS: Ways = Ways { nic: true, tsi: false, user: false };
/// Time for reading the rest of the sandbox's messages after its end.
const CONSOLE_END_WAIT: Duration = Duration::from_millis(500);

/// Why a pod has no sandbox of namespaces.
#[derive(Debug, thiserror::Error)]
pub enum ContainersError {
    #[error("{}", .0.reason)]
    Unavailable(Unavailable),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// A step that the sandbox could not do.
    #[error("the sandbox cannot {step}: {detail}")]
    Step { step: String, detail: String },
    /// It ended before it said anything.
    #[error("the sandbox has ended: {0}")]
    Ended(String),
    #[error("the sandbox said something out of turn")]
    OutOfTurn,
    #[error("the sandbox said something that is not a message")]
    Nonsense(#[source] serde_json::Error),
    #[error("the sandbox did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("cannot map the pod's ids: {0}")]
    Ids(String),
    /// All ranges are in use.
    #[error("no range of ids is free for the pod")]
    NoIds,
    #[error("the pod has {found} files and directories of the host, at most {MAX_SOURCES} are possible")]
    Sources { found: usize },
    /// A disk that the kernel of a VM may have written.
    #[error(
        "volume {name} is a disk, which the kernel of the host does not mount, because a VM may have written anything to it"
    )]
    Disk { name: String },
}

impl ContainersError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    pub fn blame(&self) -> Blame {
        match self {
            Self::Sources { .. } | Self::Disk { .. } => Blame::User,
            Self::Nonsense(_) | Self::OutOfTurn | Self::Silent(_) => Blame::Internal,
            _ => Blame::Environment,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unavailable(unavailable) => Some(unavailable.remedy.clone()),
            Self::Disk { .. } => Some(
                "Copy it into a claim that is a directory with `magikvm volume export` and `magikvm volume import`, or run the pod in a VM.".to_owned(),
            ),
            _ => None,
        }
    }
}

/// A pod whose files exist.
#[derive(Debug)]
pub struct PreparedContainers {
    pub(super) warnings: Vec<String>,
    id: String,
    ids: PodIds,
    sandbox: Launch,
    network: Settled,
    claims: Vec<ClaimUse>,
    cgroup: Vec<PathBuf>,
    /// The group of the network's processes, or why there is none.
    network_cgroup: Result<Cgroup, String>,
}

/// The process of a sandbox.
#[derive(Debug)]
enum Launch {
    Later(Box<ToLaunch>),
    /// It waits for the pod's files: what they say is known only now that the pod is connected to its network.
    Waits(Box<Launched>),
}

#[derive(Debug)]
pub(super) struct Containers {
    profiles: Vec<PathBuf>,
    templates: PathBuf,
    ids: PathBuf,
    requirement: Requirement,
    cni: Places,
}

impl Containers {
    pub(super) fn new(layout: &Layout, requirement: Requirement, cni: Places) -> Self {
        let (profiles, templates) = (layout.seccomp(), layout.templates());
        Self { profiles, templates, ids: layout.ids(), requirement, cni }
    }

    fn write_files(dir: &Path, files: Vec<(String, SmallFile)>, ids: PodIds) -> Result<(), RuntimeError> {
        let root = ids.root();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| RuntimeError::File(FileError::at("write", &path)(source))
        };
        let own = |path: &Path, gid: u32| chown(path, Some(root), Some(root.saturating_add(gid)));
        let make_dir = |path: &Path| {
            fs::create_dir(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
            own(path, 0)
        };
        make_dir(dir).map_err(failed(dir))?;
        for (path, file) in files {
            let mut so_far = dir.to_owned();
            let parts: Vec<&str> = path.split('/').collect();
            let dirs = match &file {
                SmallFile::Directory => parts.len(),
                SmallFile::File { .. } => parts.len() - 1,
            };
            for part in &parts[..dirs] {
                so_far.push(part);
                match make_dir(&so_far) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    made => made.map_err(failed(&so_far))?,
                }
            }
            if let SmallFile::File { mode, gid, content } = file {
                so_far.push(parts[dirs]);
                fs::write(&so_far, content)
                    .and_then(|()| own(&so_far, gid))
                    .and_then(|()| fs::set_permissions(&so_far, Permissions::from_mode(mode.into())))
                    .map_err(failed(&so_far))?;
            }
        }
        Ok(())
    }

    /// Makes the places for what containers write: a file system for each limit, and a directory for everything else.
    fn make_scratch(
        &self,
        pod: &PodToPrepare<'_>,
        rooms: &[Room],
        ids: PodIds,
        undo: &mut Undo,
    ) -> Result<Vec<ScratchMount>, RuntimeError> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        undo.plan(Scope::Run, Step::RemoveDir { path: pod.scratch.to_owned() })?;
        atomic::create_dir_all(pod.scratch, 0o700)?;
        let make = |(room, partition): (&Room, u32)| {
            let path = pod.scratch.join(partition.to_string());
            let place = match room {
                Room::Shared => {
                    fs::create_dir(&path)
                        .and_then(|()| chown(&path, Some(ids.root()), Some(ids.root())))
                        .map_err(FileError::at("make", &path))?;
                    ScratchPlace::Directory(path)
                }
                Room::Limited(_) => {
                    scratch::make_one(&path, *room, &self.templates)?;
                    ScratchPlace::Disk(path)
                }
            };
            Ok(ScratchMount { partition, place })
        };
        rooms.iter().zip(1..).map(make).collect()
    }
}

fn space(network: &Settled) -> NetworkSpace {
    match (network.mode, &network.chain, &network.plan) {
        (Mode::Host, ..) => NetworkSpace::Host,
        (Mode::Cni, ..) => NetworkSpace::Given,
        (_, Some(_), Some(plan)) => NetworkSpace::Tap { mac: plan.mac },
        _ => NetworkSpace::Isolated,
    }
}

/// Rejects what only a VM has.
fn check_volumes(volumes: &volumes::Volumes) -> Result<(), ContainersError> {
    let disks = volumes.disks();
    if let Some(used) = volumes.claims.iter().find(|used| disks.contains(&used.path.as_path())) {
        return Err(ContainersError::Disk { name: used.record.id.name.to_string() });
    }
    let found = volumes.shared.entries().len();
    if found > MAX_SOURCES { Err(ContainersError::Sources { found }) } else { Ok(()) }
}

impl PodRuntime for Containers {
    fn platform(&self) -> Wanted {
        Wanted::host()
    }

    fn probe(&self) -> Result<(), Unavailable> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Unavailable {
                reason: "only root can run pods in namespaces with this version".to_owned(),
                remedy: "Run it with `sudo`, or run the pod in a VM.".to_owned(),
            });
        }
        program::find().map(drop)?;
        cgroup::probe()
    }

    fn record(&self, _plan: &PodPlan) -> SandboxRecord {
        SandboxRecord::Containers(ContainersRecord { users: UsersRecord::Own })
    }

    fn check_plan(&self, pod: &PodToPrepare<'_>) -> Result<(), RuntimeError> {
        files::check_artifacts(pod)?;
        connect::check(pod.plan, &self.cni)?;
        check::check(pod, &self.profiles, &network::settle(pod.plan, WAYS)?)
    }

    fn prepare(&self, pod: &PodToPrepare<'_>, undo: &mut Undo) -> Result<Prepared, RuntimeError> {
        let program = program::find().map_err(ContainersError::Unavailable)?;
        let dir = pod.dir.sandbox();
        undo.plan(Scope::Run, Step::RemoveDir { path: dir.clone() })?;
        atomic::create_dir_all(&dir, 0o700)?;
        files::check_artifacts(pod)?;
        let ids = PodIds::reserve(&self.ids, undo)?;
        let (partitions, images) = files::partitions(pod);
        let of_volumes = partitions.get(pod.plan.containers.len()..).unwrap_or_default();
        let volumes = volumes::plan(pod, true, of_volumes)?;
        check_volumes(&volumes)?;
        let mut network = network::settle(pod.plan, WAYS)?;
        let (root, written) = (dir.join("root"), dir.join("files"));
        atomic::create_dir_all(&root, 0o700)?;
        let scratch = self.make_scratch(pod, &volumes.rooms, ids, undo)?;
        let place = cgroup::place(pod.dir);
        undo.plan(Scope::Run, Step::RemoveCgroup { dirs: place.dirs.clone() })?;
        let network_cgroup = cgroup::place_of_network(pod.dir);
        if let (Ok(group), NetworkSpace::Tap { .. }) = (&network_cgroup, space(&network)) {
            undo.plan(Scope::Run, Step::RemoveCgroup { dirs: group.dirs.clone() })?;
        }
        let entries = volumes.shared.entries();
        let sources: io::Result<Vec<OwnedFd>> = entries.iter().map(|(fd, _)| fd.try_clone()).collect();
        let sources = sources.map_err(ContainersError::io("keep the files of the host open"))?;
        let shared = entries.iter().zip(0..).map(|((_, access), entry)| SharedMount {
            entry,
            descriptor: FIRST_SOURCE_FD + i32::try_from(entry).unwrap_or(i32::MAX - FIRST_SOURCE_FD),
            access: *access,
        });
        let image = |(image, partition): (&files::ImageFile<'_>, u32)| ImageMount {
            partition,
            file: image.path.to_owned(),
        };
        let settings = SandboxSettings {
            generation: magikvm_proto::GENERATION,
            root,
            files: written.clone(),
            users: Users::Own { root: ids.root() },
            images: images.iter().zip(magikvm_proto::path::FIRST_IMAGE_PARTITION..).map(image).collect(),
            shared: shared.collect(),
            scratch,
            network: space(&network),
            cgroup: place.name,
        };
        let to_launch = ToLaunch { program, dir, settings, sources };
        let sandbox = match &pod.plan.network.provider {
            Provider::Magikvm | Provider::Host => Launch::Later(Box::new(to_launch)),
            Provider::Cni(name) => {
                let joins = connect::prepare(pod, name, &self.cni)?;
                let launched = to_launch.launch(undo)?;
                launched.talk.until_network(ids)?;
                network = joins.connect(launched.sandbox.reference.pid, undo)?;
                Launch::Waits(Box::new(launched))
            }
        };
        let PodFiles { files, mut warnings } =
            files::pod_files(pod, &self.profiles, (&partitions, &volumes), &network)?;
        warnings.extend(network.warning.clone());
        warnings.extend(volumes.warnings.iter().cloned());
        Self::write_files(&written, files, ids)?;
        Ok(Prepared::Containers(Box::new(PreparedContainers {
            warnings,
            id: pod.uid.to_owned(),
            ids,
            sandbox,
            network,
            claims: volumes.claims,
            cgroup: place.dirs,
            network_cgroup,
        })))
    }

    fn start(&self, prepared: Prepared, undo: &mut Undo) -> Result<Box<dyn Sandbox>, RuntimeError> {
        let Prepared::Containers(prepared) = prepared else { return Err(RuntimeError::OtherClass) };
        let launched = match prepared.sandbox {
            Launch::Later(to_launch) => to_launch.launch(undo)?,
            Launch::Waits(launched) => {
                launched.talk.connected()?;
                *launched
            }
        };
        let Launched { sandbox, talk, socket, tail } = launched;
        let Made { pid, tap } = talk.until_made(prepared.ids)?;
        let supervisor = ProcessRef::of_child(Role::Supervisor, "supervisor", pid);
        undo.plan(Scope::Run, supervisor.undo_step())?;
        let group = cgroup::of_network(&prepared.network_cgroup);
        let jail = network::Confinement { id: &prepared.id, requirement: self.requirement, cgroup: &group };
        let net = match tap {
            Some(tap) => network::start_for(&prepared.network, jail, PodSide::Interface(tap))?,
            None => network::none(&prepared.network),
        };
        for process in &net.processes {
            undo.plan(Scope::Run, process.reference.undo_step())?;
        }
        let mut processes = vec![sandbox];
        processes.extend(net.processes);
        let mut references: Vec<ProcessRef> =
            processes.iter().map(|process| process.reference.clone()).collect();
        references.insert(1, supervisor);
        Ok(Box::new(ContainersSandbox(Running {
            control: Arc::new(ByFreezer::new(references, &prepared.cgroup)),
            processes,
            connector: Connector { socket, handshake: Handshake::Direct },
            tail,
            network: net.seen,
            _claims: prepared.claims,
        })))
    }
}

#[derive(Debug)]
struct ContainersSandbox(Running);

impl Sandbox for ContainersSandbox {
    fn running(&mut self) -> &mut Running {
        &mut self.0
    }

    fn disk(&mut self) -> Option<DiskWatch> {
        None
    }

    fn wait(&mut self, on_motion: &mut dyn FnMut(Motion)) -> SandboxEnd {
        let Ended { role, name, status, violation } = process::wait_first(&mut self.0.processes, on_motion);
        // What is frozen does not end.
        self.0.control.kill();
        self.0.tail.wait_end(Instant::now() + CONSOLE_END_WAIT);
        let end = |failure, how: String| SandboxEnd { failure, how };
        if let Some(violation) = violation {
            return end(SandboxFailure::FilterViolated, format!("filter: {name} called {}", violation.call));
        }
        let how = match status {
            WaitStatus::Signaled(_, signal, _) => format!("{name} was killed by {signal}"),
            // The first process of the pod was killed.
            WaitStatus::Exited(_, code @ 129..=192) => {
                let signal = Signal::try_from(code - 128).map_or("a signal", Signal::as_str);
                format!("the pod's first process was killed by {signal}")
            }
            WaitStatus::Exited(_, code) => format!("{name} exited with {code}"),
            _ => format!("{name} is gone"),
        };
        match status {
            _ if role.is_of_network() => {
                end(SandboxFailure::NetworkFailed, format!("the pod's network ended: {how}"))
            }
            WaitStatus::Signaled(..) | WaitStatus::Exited(_, 129..=192) => {
                end(SandboxFailure::SandboxKilled, how)
            }
            _ => end(SandboxFailure::SandboxFailed, how),
        }
    }
}
