//! Runtime classes: what differs between them is how a sandbox is prepared and started, and nothing else.

mod control;
pub mod microvm;
mod network;
pub mod oci;
pub mod seccomp;
mod volumes;

pub use control::SandboxControl;
pub use microvm::VmOptions;

use crate::agent::Connector;
use crate::image::{Image, Platform};
use crate::manifest::{PodPlan, ResolveError, RuntimeClass};
use crate::net::settle::{NetError, Settled};
use crate::process::{Layers, Motion};
use crate::store::atomic::FileError;
use crate::store::layout::{Layout, PodDir};
use crate::store::sandbox::{Blame, SandboxEnd, SandboxRecord};
use crate::store::undo::{Undo, UndoError};
use crate::vmm::console::ConsoleTail;
use crate::vmm::{Places, Unavailable, VmConfig, VmmError};
use magikvm_proto::id::ContainerName;
use std::fmt::Debug;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A pod that is ready to be started: all its files are made.
#[derive(Debug)]
pub enum Prepared {
    /// A VM whose files are in a directory.
    MicroVm {
        config: VmConfig,
        /// The directory of its files.
        dir: PathBuf,
        /// The pod's network on this host.
        network: Box<Settled>,
    },
}

impl Prepared {
    /// What the user should know of the pod before it runs.
    pub fn warnings(&self) -> Vec<String> {
        let Self::MicroVm { network, .. } = self;
        network.warning.iter().cloned().collect()
    }
}

/// A pod's runtime class, if this version has it. `vm` counts for classes with a VM only.
pub fn of(class: RuntimeClass, vm: &VmOptions, layout: &Layout) -> Result<Box<dyn PodRuntime>, ClassError> {
    match class {
        RuntimeClass::PodMicrovmContainers => {
            Ok(Box::new(microvm::MicroVm::new(vm.clone(), Places::of(layout))))
        }
        RuntimeClass::PodContainers | RuntimeClass::PodWasm => Err(ClassError(class)),
    }
}

/// A class that this version does not have. It is never replaced by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("spec.runtimeClassName: {0} is not in this version of magikvm")]
pub struct ClassError(RuntimeClass);

impl ClassError {
    /// What the user can do about it.
    pub fn hint(self) -> String {
        format!("use {} or leave the field out", RuntimeClass::PodMicrovmContainers)
    }
}

/// The isolation around a running pod.
pub trait Sandbox: Debug + Send {
    /// How to reach its agent.
    fn agent(&self) -> &Connector;
    /// A handle for whoever does not wait for its end.
    fn control(&self) -> Arc<dyn SandboxControl>;
    /// Its addresses, and what the filter of its network has to tell; that can be had once.
    fn network(&mut self) -> SandboxNetwork;
    /// Its console, filled while it runs.
    fn console(&self) -> ConsoleTail;
    /// The isolation layers around each of its processes, by the process's name.
    fn layers(&self) -> Vec<(String, Layers)>;
    /// Waits for its end; then no process of it is left. Meanwhile tells `on_motion` when its processes are stopped or go on.
    fn wait(&mut self, on_motion: &mut dyn FnMut(Motion)) -> SandboxEnd;
}

/// What is known of a sandbox's network.
#[derive(Debug, Default)]
pub struct SandboxNetwork {
    pub addresses: Vec<IpAddr>,
    pub host_address: Option<IpAddr>,
    /// Lines for [`crate::net::report::read`].
    pub reports: Option<File>,
}

pub trait PodRuntime: Debug + Send + Sync {
    /// What the images of its containers must be for.
    fn platform(&self) -> Platform;
    /// Whether it can run pods here; asked before anything is made.
    fn probe(&self) -> Result<(), Unavailable>;
    /// What a pod's record says of its sandbox.
    fn record(&self, plan: &PodPlan) -> SandboxRecord;
    /// Makes all files of a pod. Plans the undoing of each before it is made.
    fn prepare(&self, pod: &PodToPrepare<'_>, undo: &mut Undo) -> Result<Prepared, RuntimeError>;
    /// Starts the sandbox. Call it on a thread that lives as long as the pod shall.
    fn start(&self, prepared: Prepared, undo: &mut Undo) -> Result<Box<dyn Sandbox>, RuntimeError>;
}

/// What [`PodRuntime::prepare`] works from.
#[derive(Debug, Clone, Copy)]
pub struct PodToPrepare<'a> {
    pub plan: &'a PodPlan,
    pub uid: &'a str,
    /// One image per container, in their order.
    pub images: &'a [Image],
    /// Where to make the files.
    pub dir: &'a PodDir,
    /// A directory, not made yet, for what is too large for that one.
    pub scratch: &'a Path,
}

/// Why a pod could not be prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A container that can't run as its manifest and image say.
    #[error("container {container} cannot run")]
    Resolve {
        container: ContainerName,
        #[source]
        source: ResolveError,
    },
    /// A plan that the guest would refuse.
    #[error("the pod makes no valid plan")]
    Plan(#[from] magikvm_proto::plan::PlanError),
    /// A plan or configuration over the wire's cap.
    #[error("{what} has {size} bytes, at most {} are possible", magikvm_proto::limits::MAX_PLAN_SIZE)]
    TooLarge {
        what: String,
        /// Its size in bytes.
        size: usize,
    },
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
    /// The pod's own file system.
    #[error("cannot make the pod's file system")]
    Erofs(#[from] crate::image::erofs::ErofsError),
    #[error("cannot make the pod's disk")]
    Disk(#[from] crate::vmm::disk::DiskError),
    /// Something of this machine that can't be a volume.
    #[error("volume {name} cannot be had")]
    Volume {
        name: String,
        #[source]
        source: crate::volume::VolumeError,
    },
    #[error("cannot make the pod's scratch disk")]
    Scratch(#[from] crate::vmm::scratch::ScratchError),
    #[error(transparent)]
    Network(#[from] NetError),
    #[error("cannot start the VM")]
    Vmm(#[from] VmmError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot write the undo journal")]
    Undo(#[from] UndoError),
}

impl RuntimeError {
    pub fn blame(&self) -> Blame {
        match self {
            Self::Resolve { .. }
            | Self::Plan(_)
            | Self::TooLarge { .. }
            | Self::Volume { .. }
            | Self::Network(
                NetError::Tsi | NetError::User | NetError::NoFilter | NetError::NoDatagrams { .. },
            ) => Blame::User,
            Self::Json { .. } => Blame::Internal,
            Self::Guest { .. }
            | Self::Erofs(_)
            | Self::Disk(_)
            | Self::Scratch(_)
            | Self::Network(_)
            | Self::Vmm(_)
            | Self::File(_)
            | Self::Undo(_) => Blame::Environment,
        }
    }
}
