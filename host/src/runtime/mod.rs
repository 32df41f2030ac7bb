//! Runtime classes. They differ only in how a sandbox is prepared and started.

mod capabilities;
mod check;
#[cfg(target_os = "linux")]
pub mod containers;
mod control;
mod files;
pub mod microvm;
mod network;
pub mod oci;
pub mod seccomp;
pub mod seccomp_file;
mod volumes;

pub use check::lacking;
pub use control::SandboxControl;
pub use microvm::{VmOptions, group_step};

use crate::agent::Connector;
use crate::image::{Image, RootfsDirectory, Wanted};
use crate::manifest::fields::{ANNOTATION_NESTED, ANNOTATION_ROOT};
use crate::manifest::{PodPlan, ResolveError, RuntimeClass};
#[cfg(target_os = "linux")]
use crate::net::cni::CniError;
use crate::net::cni::Places;
use crate::net::settle::{NetError, Settled};
use crate::process::{Layers, Motion, Process};
use crate::store::atomic::FileError;
use crate::store::layout::{Layout, PodDir};
use crate::store::sandbox::{Blame, SandboxEnd, SandboxRecord};
use crate::store::thread::ThreadError;
use crate::store::undo::{Undo, UndoError};
use crate::vmm::console::ConsoleTail;
use crate::vmm::qmp::DiskWatch;
use crate::vmm::scratch::ScratchError;
use crate::vmm::{self, Unavailable, VmConfig, VmmError};
use crate::volume::VolumeError;
use crate::volume::claims::{ClaimError, ClaimUse};
use magikvm_proto::id::ContainerName;
use magikvm_proto::limits::MAX_LASTING_DISKS;
use std::fmt::Debug;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A pod that is ready to be started: all of its files exist.
#[derive(Debug)]
pub enum Prepared {
    /// A VM whose files are in a directory.
    MicroVm {
        config: Box<VmConfig>,
        /// The directory of its files.
        dir: PathBuf,
        network: Box<Settled>,
        warnings: Vec<String>,
        /// Volumes that the pod uses until it ends.
        claims: Vec<ClaimUse>,
    },
    /// Namespaces of the host.
    #[cfg(target_os = "linux")]
    Containers(Box<containers::PreparedContainers>),
}

impl Prepared {
    /// Warnings for the user before the pod runs.
    pub fn warnings(&self) -> &[String] {
        match self {
            Self::MicroVm { warnings, .. } => warnings,
            #[cfg(target_os = "linux")]
            Self::Containers(prepared) => &prepared.warnings,
        }
    }
}

/// A pod's runtime class, if this version has it. Only classes with a VM use all of `vm`, and only pods without one networks of `cni`.
pub fn of(
    class: RuntimeClass,
    vm: &VmOptions,
    cni: &Places,
    layout: &Layout,
) -> Result<Box<dyn PodRuntime>, ClassError> {
    match class {
        RuntimeClass::PodMicrovmContainers => {
            Ok(Box::new(microvm::MicroVm::new(vm.clone(), vmm::Places::of(layout))))
        }
        #[cfg(target_os = "linux")]
        RuntimeClass::PodContainers => {
            Ok(Box::new(containers::Containers::new(layout, vm.jail, cni.clone())))
        }
        #[cfg(not(target_os = "linux"))]
        RuntimeClass::PodContainers => {
            // Only namespaces of Linux join them.
            let _ = cni;
            Err(ClassError(class))
        }
        RuntimeClass::PodWasm => Err(ClassError(class)),
    }
}

/// The class is not in this version. It is never replaced by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("spec.runtimeClassName: {0} is not in this version of magikvm")]
pub struct ClassError(RuntimeClass);

impl ClassError {
    pub fn hint(self) -> String {
        format!("Use {}, or leave the field out.", RuntimeClass::PodMicrovmContainers)
    }
}

/// What sandboxes of all classes have.
#[derive(Debug)]
pub struct Running {
    control: Arc<dyn SandboxControl>,
    processes: Vec<Process>,
    connector: Connector,
    tail: ConsoleTail,
    network: SandboxNetwork,
    /// Volumes that are in use as long as this value exists.
    _claims: Vec<ClaimUse>,
    /// Unpacked images likewise.
    _directories: Vec<RootfsDirectory>,
}

impl Running {
    pub fn agent(&self) -> &Connector {
        &self.connector
    }

    /// A handle for threads that do not wait for the end.
    pub fn control(&self) -> Arc<dyn SandboxControl> {
        Arc::clone(&self.control)
    }

    /// The sandbox's addresses and the reports of its network filter. The reports can be taken once.
    pub fn network(&mut self) -> SandboxNetwork {
        std::mem::take(&mut self.network)
    }

    /// The console's last lines, filled while the sandbox runs.
    pub fn console(&self) -> ConsoleTail {
        self.tail.clone()
    }

    /// The isolation layers of each process, by the process's name.
    pub fn layers(&self) -> Vec<(String, Layers)> {
        let of = |process: &Process| Some((process.reference.name.clone(), process.layers.clone()?));
        self.processes.iter().filter_map(of).collect()
    }
}

/// A running pod's isolation.
pub trait Sandbox: Debug + Send {
    fn running(&mut self) -> &mut Running;
    /// Tells when the sandbox stands still because the host's disk is full, if it can. Can be taken once.
    fn disk(&mut self) -> Option<DiskWatch>;
    /// Waits for the sandbox's end, after which none of its processes is left. Calls `on_motion` when its processes are stopped or continued.
    fn wait(&mut self, on_motion: &mut dyn FnMut(Motion)) -> SandboxEnd;
}

#[derive(Debug, Default)]
pub struct SandboxNetwork {
    pub addresses: Vec<IpAddr>,
    pub host_address: Option<IpAddr>,
    pub reports: Option<File>,
    /// The last error messages of the network's processes.
    pub messages: ConsoleTail,
}

pub trait PodRuntime: Debug + Send + Sync {
    /// The platform that the containers' images must be for.
    fn platform(&self) -> Wanted;
    /// Checks that this host can run pods of the class, before anything is made.
    fn probe(&self) -> Result<(), Unavailable>;
    /// The sandbox's part of a pod's record.
    fn record(&self, plan: &PodPlan) -> SandboxRecord;
    /// Checks what can be checked of [`PodRuntime::prepare`] without making anything.
    fn check_plan(&self, pod: &PodToPrepare<'_>) -> Result<(), RuntimeError>;
    /// Makes all files of a pod. Journals the undoing of each file before it is made.
    fn prepare(&self, pod: &PodToPrepare<'_>, undo: &mut Undo) -> Result<Prepared, RuntimeError>;
    /// Starts the sandbox. The calling thread must live as long as the pod.
    fn start(&self, prepared: Prepared, undo: &mut Undo) -> Result<Box<dyn Sandbox>, RuntimeError>;
}

/// The input of [`PodRuntime::prepare`].
#[derive(Debug, Clone, Copy)]
pub struct PodToPrepare<'a> {
    pub plan: &'a PodPlan,
    pub uid: &'a str,
    /// One image per container, in their order, and then one for each volume that is an image.
    pub images: &'a [Image],
    pub dir: &'a PodDir,
    /// A directory, not made yet, for files that are too large for the other one.
    pub scratch: &'a Path,
    /// The directory of volumes that survive their pods.
    pub claims: &'a Path,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A container cannot run as its manifest and image demand.
    #[error("container {container} cannot run")]
    Resolve {
        container: ContainerName,
        #[source]
        source: ResolveError,
    },
    /// A profile of the host cannot be used.
    #[error(
        "container {container}: the profile of securityContext.seccompProfile.localhostProfile cannot be used"
    )]
    Profile {
        container: ContainerName,
        #[source]
        source: seccomp_file::ProfileError,
    },
    /// Its image has no programs to run.
    #[error("container {container} cannot run: its image is an artifact, not a container image")]
    Artifact { container: ContainerName },
    /// The guest would refuse the plan.
    #[error("the pod has no valid plan")]
    Plan(#[from] magikvm_proto::plan::PlanError),
    /// A plan or configuration exceeds the wire's cap.
    #[error("{what} has {size} bytes, at most {} are possible", magikvm_proto::limits::MAX_PLAN_SIZE)]
    TooLarge { what: String, size: usize },
    #[error("cannot write {what} as JSON")]
    Json {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    /// The guest image is missing or unusable.
    #[error("the guest image in {} cannot be used", dir.display())]
    Guest {
        dir: PathBuf,
        #[source]
        source: microvm::GuestError,
    },
    #[error("cannot make the pod's file system")]
    Erofs(#[from] crate::image::erofs::ErofsError),
    #[error("cannot make the pod's disk")]
    Disk(#[from] vmm::disk::DiskError),
    /// A file or directory of the host cannot be a volume.
    #[error("volume {name} cannot be provided")]
    Volume {
        name: String,
        #[source]
        source: VolumeError,
    },
    #[error("volume {name} cannot be provided")]
    Claim {
        name: String,
        #[source]
        source: Box<ClaimError>,
    },
    /// A disk that outlives the pod could not be made or enlarged.
    #[error("volume {name} cannot be provided")]
    Lasting {
        name: String,
        #[source]
        source: ScratchError,
    },
    /// The guest's kernel has no file system for such disks.
    #[error("volume {name} is a disk, and the kernel of the guest image has no ext4")]
    NoLasting { name: String },
    /// More disks than a VM has slots for.
    #[error("the pod has {found} volumes that are disks, a VM has slots for {MAX_LASTING_DISKS}")]
    TooManyDisks { found: usize },
    #[error("cannot make the pod's scratch disk")]
    Scratch(#[from] ScratchError),
    #[error(transparent)]
    Network(#[from] NetError),
    /// The pod asks for nested virtualization.
    #[error("metadata.annotations.{ANNOTATION_NESTED}: {reason}")]
    NoNested { reason: &'static str },
    #[error("cannot start the VM")]
    Vmm(#[from] VmmError),
    /// The sandbox of namespaces.
    #[cfg(target_os = "linux")]
    #[error("cannot start the pod's sandbox")]
    Containers(#[from] containers::ContainersError),
    /// A network of CNI.
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Cni(#[from] CniError),
    /// Prepared for another class.
    #[error("the pod was prepared for another runtime class")]
    OtherClass,
    #[error(transparent)]
    Thread(#[from] ThreadError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write the undo journal")]
    Undo(#[from] UndoError),
}

/// The other form of a claim.
const OR_DIRECTORY: &str = "make the claim a directory with `storageClassName: directory`.";

impl RuntimeError {
    /// What the user can do, as a whole sentence.
    pub fn hint(&self) -> Option<String> {
        let in_memory = format!(
            "keep the changes in memory with the annotation `{ANNOTATION_ROOT}: memory` (and emptyDir volumes with `medium: Memory`)."
        );
        match self {
            Self::Scratch(ScratchError::NoProgram) => {
                Some(format!("Install it with `apt-get install e2fsprogs`, or {in_memory}"))
            }
            Self::Scratch(ScratchError::NoRoom { .. }) => Some(format!(
                "Remove images with `magikvm image prune --all`, choose another directory with `--root DIR`, or {in_memory}"
            )),
            Self::Lasting { source: ScratchError::NoProgram, .. } => {
                Some(format!("Install it with `apt-get install e2fsprogs`, or {OR_DIRECTORY}"))
            }
            Self::Artifact { .. } => {
                Some("Mount an artifact as a volume, with `image: {reference: NAME}`.".to_owned())
            }
            Self::NoLasting { .. } => {
                Some(format!("Make a new guest image with `magikvm-image build`, or {OR_DIRECTORY}"))
            }
            Self::TooManyDisks { .. } => Some(format!("Use fewer claims in a pod, or {OR_DIRECTORY}")),
            Self::Volume { source: VolumeError::Outside { path, sub_path }, .. } => Some(format!(
                "Find where it leads with `realpath '{}'`, and let the hostPath of another volume name that place.",
                path.join(sub_path).display()
            )),
            Self::Claim { source, .. } if matches!(**source, ClaimError::Missing(_)) => Some(
                "List the volumes with `magikvm volume ls`, or add a PersistentVolumeClaim to the manifest as another document.".to_owned(),
            ),
            Self::Claim { source, .. } => source.hint(),
            #[cfg(target_os = "linux")]
            Self::Containers(error) => error.hint(),
            #[cfg(target_os = "linux")]
            Self::Cni(error) => error.hint(),
            _ => None,
        }
    }

    pub fn blame(&self) -> Blame {
        match self {
            Self::Resolve { .. }
            | Self::Profile { .. }
            | Self::Plan(_)
            | Self::TooLarge { .. }
            | Self::NoNested { .. }
            | Self::Artifact { .. }
            | Self::TooManyDisks { .. }
            | Self::Volume { .. }
            | Self::Network(
                NetError::Tsi | NetError::User | NetError::NoFilter | NetError::NoDatagrams { .. },
            ) => Blame::User,
            Self::Claim { source, .. } if !source.is_of_host() => Blame::User,
            Self::Json { .. } | Self::OtherClass => Blame::Internal,
            #[cfg(target_os = "linux")]
            Self::Containers(error) => error.blame(),
            #[cfg(target_os = "linux")]
            Self::Cni(error) if error.is_of_user() => Blame::User,
            #[cfg(target_os = "linux")]
            Self::Cni(_) => Blame::Environment,
            Self::Guest { .. }
            | Self::Claim { .. }
            | Self::Lasting { .. }
            | Self::NoLasting { .. }
            | Self::Erofs(_)
            | Self::Disk(_)
            | Self::Scratch(_)
            | Self::Network(_)
            | Self::Vmm(_)
            | Self::Thread(_)
            | Self::File(_)
            | Self::Undo(_) => Blame::Environment,
        }
    }
}
