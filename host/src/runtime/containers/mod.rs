//! `pod-containers`: the pod in namespaces of the host. The host writes the pod's files into a directory and starts `magikvm-containers`, which makes
//! the namespaces and becomes the pod's supervisor.

pub mod apparmor;
mod cgroup;
mod connect;
mod control;
pub mod errand;
mod ids;
mod kernel;
mod launch;
mod limits;
pub mod program;
mod talk;
pub mod trial;
mod users;
mod write;

use super::files::{self, PodFiles, ProfileSources};
use super::volumes;
use super::{PodRuntime, PodToPrepare, Prepared, Running, RuntimeError, Sandbox, check, network};
use crate::agent::{Connector, Handshake};
use crate::image::{Image, ImageError, ImageStore, RootfsDirectory, Wanted};
use crate::jail::{self, Cgroup, Requirement};
use crate::manifest::fields::ANNOTATION_NETWORK;
use crate::manifest::{ContainerSpec, PodPlan, plan};
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
use apparmor::{NoProfile, Support as AppArmorSupport};
use control::ByFreezer;
use launch::{Launched, ToLaunch};
use limits::Missing;
use magikvm_proto::plan::ProcessNamespace;
use magikvm_proto::sandbox::{
    FIRST_SOURCE_FD, ImageMount, ImagePlace, MAX_SOURCES, NetworkSpace, SandboxSettings, ScratchMount,
    ScratchPlace, SharedMount,
};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::{AccessFlags, access, geteuid};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use talk::Made;
use users::PodUsers;

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
    #[error("the sandbox said something that is not a message")]
    Nonsense(#[source] serde_json::Error),
    #[error("the sandbox said something out of turn")]
    OutOfTurn,
    #[error("the sandbox did not answer in time")]
    Silent,
    #[error("cannot map the pod's ids: {0}")]
    Ids(String),
    /// All ranges are in use.
    #[error("no range of ids is free for the pod")]
    NoIds,
    /// Users and groups that the host does not grant.
    #[error("{what} {id} does not exist in the pod: {why}")]
    NoSuchId { what: String, id: u32, why: String },
    /// An ordinary user cannot limit anything.
    #[error("{what} cannot be enforced: {why}")]
    Limit { what: String, why: String },
    /// Nobody has set them aside.
    #[error(
        "resources.limits.hugepages-{size}: the host has {there} huge pages of {size}, and the pod needs {needed}"
    )]
    HugePages { size: &'static str, there: u64, needed: u64 },
    /// Rules for devices need them.
    #[error("spec.hostUsers: true is not possible without a control group: {0}")]
    HostUsers(String),
    #[error(transparent)]
    AppArmor(Box<NoProfile>),
    /// What needs control groups.
    #[error("spec.shareProcessNamespace is not possible without a control group: {0}")]
    SharedProcesses(String),
    /// What an ordinary user cannot have.
    #[error("{field} is possible only for root in this version")]
    OnlyRoot { field: &'static str },
    #[error("the pod needs a network interface, and {TUN} cannot be used")]
    NoInterfaces(#[source] io::Error),
    #[error("cannot unpack an image for the pod's users")]
    Unpack(#[source] ImageError),
    #[error("the pod has {found} files and directories of the host, at most {MAX_SOURCES} are possible")]
    Sources { found: usize },
    /// A disk that the kernel of a VM may have written.
    #[error(
        "volume {name} is a disk, which the kernel of the host does not mount, because a VM may have written anything to it"
    )]
    Disk { name: String },
    #[error(
        "volume {volume} cannot be provided: at {} is a file system of the type {file_system}, whose files cannot have other owners in a pod with users of its own",
        path.display()
    )]
    Unmappable { volume: String, path: PathBuf, file_system: String },
}

impl ContainersError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    pub fn blame(&self) -> Blame {
        match self {
            Self::Sources { .. }
            | Self::Disk { .. }
            | Self::Unmappable { .. }
            | Self::SharedProcesses(_)
            | Self::HostUsers(_)
            | Self::AppArmor(_)
            | Self::OnlyRoot { .. }
            | Self::HugePages { .. }
            | Self::Limit { .. } => Blame::User,
            Self::Nonsense(_) | Self::OutOfTurn | Self::Silent => Blame::Internal,
            _ => Blame::Environment,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unavailable(unavailable) => Some(unavailable.remedy.clone()),
            Self::NoInterfaces(_) => Some(format!(
                "As root, run `modprobe tun && chmod 666 {TUN}`, or run the pod without a network, with the annotation `{ANNOTATION_NETWORK}: none`."
            )),
            Self::NoSuchId { .. } => Some(users::Source::remedy()),
            Self::AppArmor(error) => Some(error.why.remedy.clone()),
            Self::Limit { .. } => Some(limits::remedy(geteuid().is_root())),
            Self::HugePages { size, .. } => Some(limits::huge_pages_remedy(size)),
            Self::HostUsers(_) => Some("Leave it out: the pod then has users of its own.".to_owned()),
            Self::SharedProcesses(_) | Self::OnlyRoot { .. } => Some("Run the pod with `sudo`, or in a VM.".to_owned()),
            Self::Disk { .. } => Some(
                "Copy it into a claim that is a directory with `magikvm volume export` and `magikvm volume import`, or run the pod in a VM.".to_owned(),
            ),
            Self::Unmappable { volume, .. } => Some(format!(
                "Let the hostPath of volume {volume} name a directory without such file systems in it; `findmnt -R DIRECTORY` lists them."
            )),
            _ => None,
        }
    }
}

/// A pod whose files exist.
#[derive(Debug)]
pub struct PreparedContainers {
    pub(super) warnings: Vec<String>,
    id: String,
    users: PodUsers,
    /// Directory forms of images, which nobody removes as long as these values exist.
    directories: Vec<RootfsDirectory>,
    sandbox: Launch,
    /// The volumes that the files and directories of the host belong to.
    shared_names: Vec<String>,
    network: Settled,
    claims: Vec<ClaimUse>,
    /// The directories of the pod's group.
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
    images: PathBuf,
    users: users::Source,
    requirement: Requirement,
    cni: Places,
}

impl Containers {
    pub(super) fn new(layout: &Layout, requirement: Requirement, cni: Places) -> Self {
        let (profiles, templates) = (layout.seccomp(), layout.templates());
        let (ids, images) = (layout.ids(), layout.images());
        Self { profiles, templates, ids, images, users: users::Source::find(), requirement, cni }
    }

    fn is_root(&self) -> bool {
        matches!(self.users, users::Source::Root)
    }

    /// Checks what this host cannot do for the user that runs the pod. Returns what it only warns of, and what is not limited. `no_scope` says why the
    /// pod has no scope, if systemd should have made one.
    fn check_user(
        &self,
        pod: &PodToPrepare<'_>,
        no_scope: Option<&str>,
    ) -> Result<(Vec<String>, Missing), RuntimeError> {
        limits::check_huge_pages(pod.plan)?;
        if self.is_root() {
            let no_group = cgroup::place(pod.dir).err();
            let host_users = pod.plan.users == plan::PodUsers::Host;
            if let Some(why) = no_group.as_ref().filter(|_| host_users) {
                return Err(ContainersError::HostUsers(why.clone()).into());
            }
            if !host_users {
                users::probe_root().map_err(ContainersError::Unavailable)?;
            }
            check_processes(pod.plan, no_group.as_ref())?;
            let missing = Missing::of_root(no_group.as_deref());
            let mut warnings = missing.check(pod.plan)?;
            warnings.extend(missing.implied());
            warnings.extend(
                no_scope.map(|why| format!("the pod has its control group beside those of systemd: {why}")),
            );
            return Ok((warnings, missing));
        }
        let wanted = match &pod.plan.network.provider {
            _ if pod.plan.users == plan::PodUsers::Host => Some("spec.hostUsers: true"),
            Provider::Magikvm | Provider::Host => None,
            Provider::Cni(_) => Some(ANNOTATION_CNI_PATH),
        };
        if let Some(field) = wanted {
            return Err(ContainersError::OnlyRoot { field }.into());
        }
        self.users.check(pod.plan, &numeric_users(pod))?;
        if jail::scope::is_to_come() {
            // Only the pod's monitor will know.
            return Ok((Vec::new(), Missing::default()));
        }
        let no_group = match (cgroup::place(pod.dir), no_scope) {
            (Ok(_), _) => None,
            (Err(why), None) => Some(why),
            (Err(why), Some(no_scope)) => Some(format!("{why}; {no_scope}")),
        };
        check_processes(pod.plan, no_group.as_ref())?;
        let missing = Missing::of_user(no_group.as_deref());
        Ok((missing.check(pod.plan)?, missing))
    }

    /// Where the images are for the pod's users. Only root can mount the EROFS files, and only with a kernel that knows them.
    fn places(
        &self,
        pod: &PodToPrepare<'_>,
        files: &[files::ImageFile<'_>],
        users: &PodUsers,
    ) -> Result<(Vec<ImagePlace>, Vec<RootfsDirectory>), RuntimeError> {
        if matches!(users, PodUsers::Host | PodUsers::Range(_)) && kernel::has_erofs() {
            return Ok((
                files.iter().map(|file| ImagePlace::File(file.path.to_owned())).collect(),
                Vec::new(),
            ));
        }
        let store = ImageStore::open(&self.images).map_err(ContainersError::Unpack)?;
        let of = |file: &files::ImageFile<'_>| {
            let image = pod.images.iter().find(|image| image.rootfs.path == file.path);
            image.map(|image| users.directory(&store, image)).transpose()
        };
        let directories: Vec<RootfsDirectory> =
            files.iter().filter_map(|file| of(file).transpose()).collect::<Result<_, _>>()?;
        let places = directories.iter().map(|one| ImagePlace::Directory(one.path.clone())).collect();
        Ok((places, directories))
    }

    /// Makes the places for what containers write: a file system for each limit, and a directory for everything else.
    fn make_scratch(
        &self,
        pod: &PodToPrepare<'_>,
        rooms: &[Room],
        users: &PodUsers,
        undo: &mut Undo,
    ) -> Result<Vec<ScratchMount>, RuntimeError> {
        if rooms.is_empty() {
            return Ok(Vec::new());
        }
        undo.plan(Scope::Run, Step::RemoveDir { path: pod.scratch.to_owned() })?;
        atomic::create_dir_all(pod.scratch, 0o700)?;
        let make = |(room, partition): (&Room, u32)| {
            let path = pod.scratch.join(partition.to_string());
            let place = match (room, users.root()) {
                // Without root a limit is only accepted by a pod for which nothing has to enforce it.
                (Room::Shared, _) | (Room::Limited(_), None) => {
                    fs::create_dir(&path)
                        .and_then(|()| match users.root() {
                            Some(root) => chown(&path, Some(root), Some(root)),
                            None => Ok(()),
                        })
                        .map_err(FileError::at("make", &path))?;
                    ScratchPlace::Directory(path)
                }
                (Room::Limited(_), Some(_)) => {
                    scratch::make_one(&path, *room, &self.templates)?;
                    ScratchPlace::Disk(path)
                }
            };
            Ok(ScratchMount { partition, place })
        };
        rooms.iter().zip(1..).map(make).collect()
    }
}

/// Rejects processes that nothing could tell apart.
fn check_processes(plan: &PodPlan, no_group: Option<&String>) -> Result<(), ContainersError> {
    match (plan.process_namespace, no_group) {
        (ProcessNamespace::Pod, Some(why)) => Err(ContainersError::SharedProcesses(why.clone())),
        _ => Ok(()),
    }
}

/// The containers whose user is a number, in the manifest or the image.
fn numeric_users(pod: &PodToPrepare<'_>) -> Vec<(String, u32)> {
    let of = |(container, image): (&ContainerSpec, &Image)| {
        let named = image.config.user.split(':').next().unwrap_or_default().parse().ok();
        Some((container.name.to_string(), container.security.run_as_user.or(named)?))
    };
    pod.plan.containers.iter().zip(pod.images).filter_map(of).collect()
}

/// The annotation that names a network of CNI, with its place.
const ANNOTATION_CNI_PATH: &str = "metadata.annotations.magikvm.dev/cni";

fn space(network: &Settled) -> NetworkSpace {
    match (network.mode, &network.chain, &network.plan) {
        (Mode::Host, ..) => NetworkSpace::Host,
        (Mode::Cni, ..) => NetworkSpace::Given,
        (_, Some(_), Some(plan)) => NetworkSpace::Tap { mac: plan.mac },
        _ => NetworkSpace::Isolated,
    }
}

/// The device that makes network interfaces.
const TUN: &str = "/dev/net/tun";

/// Checks that this user can make the pod's interface.
fn check_interface(network: &Settled) -> Result<(), ContainersError> {
    match space(network) {
        NetworkSpace::Tap { .. } => access(TUN, AccessFlags::R_OK | AccessFlags::W_OK)
            .map_err(|errno| ContainersError::NoInterfaces(errno.into())),
        NetworkSpace::Isolated | NetworkSpace::Host | NetworkSpace::Given => Ok(()),
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
        program::find().map(drop)?;
        kernel::probe()?;
        if self.is_root() { cgroup::probe() } else { users::probe() }
    }

    fn record(&self, plan: &PodPlan) -> SandboxRecord {
        let users = match (self.is_root(), plan.users) {
            (true, plan::PodUsers::Host) => UsersRecord::Host,
            (true, plan::PodUsers::Own) => UsersRecord::Own,
            (false, _) => UsersRecord::Caller,
        };
        SandboxRecord::Containers(ContainersRecord { users })
    }

    fn check_plan(&self, pod: &PodToPrepare<'_>) -> Result<(), RuntimeError> {
        files::check_artifacts(pod)?;
        self.check_user(pod, None)?;
        apparmor::check(pod.plan, &AppArmorSupport::of_host())
            .map_err(|error| ContainersError::AppArmor(Box::new(error)))?;
        connect::check(pod.plan, &self.cni)?;
        let network = network::settle(pod.plan, WAYS)?;
        check_interface(&network)?;
        check::check(pod, &self.profiles, &network)
    }

    fn prepare(&self, pod: &PodToPrepare<'_>, undo: &mut Undo) -> Result<Prepared, RuntimeError> {
        let program = program::find().map_err(ContainersError::Unavailable)?;
        let dir = pod.dir.sandbox();
        undo.plan(Scope::Run, Step::RemoveDir { path: dir.clone() })?;
        atomic::create_dir_all(&dir, 0o700)?;
        files::check_artifacts(pod)?;
        // Before anything is made that belongs to a group.
        let no_scope = jail::scope::enter(&cgroup::name(pod.dir)).err();
        let (unlimited, missing) = self.check_user(pod, no_scope.as_deref())?;
        let limited = missing.without(pod.plan);
        let pod = &PodToPrepare { plan: &limited, ..*pod };
        let users = PodUsers::reserve(&self.users, pod.plan.users, &self.ids, pod.dir, undo)?;
        let (partitions, images) = files::partitions(pod);
        let of_volumes = partitions.get(pod.plan.containers.len()..).unwrap_or_default();
        let volumes = volumes::plan(pod, true, of_volumes)?;
        check_volumes(&volumes)?;
        let mut network = network::settle(pod.plan, WAYS)?;
        check_interface(&network)?;
        let (root, written) = (dir.join("root"), dir.join("files"));
        atomic::create_dir_all(&root, 0o700)?;
        let scratch = self.make_scratch(pod, &volumes.rooms, &users, undo)?;
        let place = cgroup::place(pod.dir).ok();
        if let Some(place) = &place {
            undo.plan(Scope::Run, Step::RemoveCgroup { dirs: place.dirs.clone() })?;
        }
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
        let (places, directories) = self.places(pod, &images, &users)?;
        let image = |(place, partition): (ImagePlace, u32)| ImageMount { partition, place };
        let settings = SandboxSettings {
            generation: magikvm_proto::GENERATION,
            root,
            files: written.clone(),
            users: users.told(),
            images: places.into_iter().zip(magikvm_proto::path::FIRST_IMAGE_PARTITION..).map(image).collect(),
            shared: shared.collect(),
            scratch,
            network: space(&network),
            cgroup: place.as_ref().map(|place| place.name.clone()),
            groups: Vec::new(),
        };
        let root_id = users.root().unwrap_or_else(|| geteuid().as_raw());
        let to_launch = ToLaunch { program, root: root_id, dir, settings, sources };
        let mut sandbox = match &pod.plan.network.provider {
            Provider::Magikvm | Provider::Host => Launch::Later(Box::new(to_launch)),
            Provider::Cni(name) => {
                let joins = connect::prepare(pod, name, &self.cni)?;
                let launched = to_launch.launch(undo)?;
                launched.talk.until_network(&users, &volumes.shared_names)?;
                network = joins.connect(launched.sandbox.reference.pid, undo)?;
                Launch::Waits(Box::new(launched))
            }
        };
        let app_armor = apparmor::prepare(pod.plan, &AppArmorSupport::of_host());
        let app_armor = app_armor.map_err(|error| ContainersError::AppArmor(Box::new(error)))?;
        let profiles = ProfileSources { seccomp: &self.profiles, app_armor: &app_armor.names };
        let PodFiles { files, mut warnings } =
            files::pod_files(pod, profiles, (&partitions, &volumes), &network)?;
        warnings.extend(app_armor.warning);
        warnings.extend(network.warning.clone());
        warnings.extend(volumes.warnings.iter().cloned());
        warnings.extend(unlimited);
        let groups = write::pod_files(&written, files, users.root())?;
        if let Launch::Later(to_launch) = &mut sandbox {
            to_launch.settings.groups = groups;
        }
        Ok(Prepared::Containers(Box::new(PreparedContainers {
            warnings,
            id: pod.uid.to_owned(),
            users,
            directories,
            sandbox,
            network,
            shared_names: volumes.shared_names,
            claims: volumes.claims,
            cgroup: place.map(|place| place.dirs).unwrap_or_default(),
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
        let Made { pid, tap } = talk.until_made(&prepared.users, &prepared.shared_names)?;
        let supervisor = ProcessRef::of_child(Role::Supervisor, "supervisor", pid);
        undo.plan(Scope::Run, supervisor.undo_step())?;
        if !prepared.cgroup.is_empty() {
            // Once more, so that it comes first: the supervisor freezes a container to kill it, and if it is killed meanwhile, it does not end
            // before that container is thawed.
            undo.plan(Scope::Run, Step::RemoveCgroup { dirs: prepared.cgroup.clone() })?;
        }
        let net = match tap {
            Some(tap) => {
                // The journal knows this group only where there is an interface.
                let group = cgroup::of_network(&prepared.network_cgroup);
                let jail =
                    network::Confinement { id: &prepared.id, requirement: self.requirement, cgroup: &group };
                network::start_for(&prepared.network, jail, PodSide::Interface(tap))?
            }
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
            _directories: prepared.directories,
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
