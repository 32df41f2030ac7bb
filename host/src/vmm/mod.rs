//! Virtual machine monitors behind one trait. Knows memory, processors, a kernel, a disk and a console; knows no pod and no image.

pub mod console;
pub mod disk;
pub mod end;
#[cfg(all(feature = "testing", target_os = "linux"))]
pub mod fake;
#[cfg(all(feature = "testing", target_os = "linux"))]
pub mod file_trial;
pub mod jails;
pub mod krun;
#[cfg(target_os = "linux")]
pub mod kvm;
pub mod nic;
#[cfg_attr(target_os = "macos", path = "hvf.rs")]
pub mod probe;
pub mod qemu;
pub mod report;
pub mod scratch;
mod share;
mod tsc;

use crate::agent::Connector;
use crate::jail::{Cgroup, Requirement, StartError};
use crate::process::{Process, ProcessError};
use crate::store::atomic::FileError;
use crate::store::layout::Layout;
use crate::volume::tree::Shared;
use magikvm_proto::guest_image::Arch;
use report::Reports;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout};
use std::sync::Arc;

/// Which program runs the machine (`--vmm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum VmmKind {
    /// libkrun, within this program.
    Krun,
    /// QEMU: its machine `microvm` on x86_64, `virt` on aarch64.
    Qemu,
    /// No machine at all: a process that speaks the wire. Only in builds made for magikvm's own tests.
    #[cfg(all(feature = "testing", target_os = "linux"))]
    Fake,
}

/// libkrun can't do what was asked of it on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("--vmm krun runs on hardware virtualization only, it has no --accel tcg")]
pub struct KrunEmulatesNothing;

impl VmmKind {
    /// The one to take when the user has asked for this one, or for none: libkrun, and QEMU for what libkrun is not for.
    pub fn choose(asked: Option<Self>, accel: Accel) -> Result<Self, KrunEmulatesNothing> {
        match (asked, accel) {
            (Some(Self::Krun), Accel::Tcg) => Err(KrunEmulatesNothing),
            (Some(kind), _) => Ok(kind),
            (None, Accel::Tcg) => Ok(Self::Qemu),
            (None, Accel::Kvm) => Ok(if krun::IS_COMPILED_IN { Self::Krun } else { Self::Qemu }),
        }
    }
}

/// Which kernel a guest boots (`--kernel`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// The guest image's.
    #[default]
    #[value(name = "guest")]
    GuestImage,
    /// That of the system's libkrunfw.
    Libkrunfw,
}

/// Where drivers keep what outlives a machine.
#[derive(Debug, Clone)]
pub struct Places {
    /// What was found out about this host since its boot.
    pub verdicts: PathBuf,
    /// Kernels that were unpacked.
    pub kernels: PathBuf,
}

impl Places {
    /// Those of a state root.
    pub fn of(layout: &Layout) -> Self {
        Self { verdicts: layout.verdicts(), kernels: layout.kernels() }
    }
}

/// What executes the guest's instructions (`--accel`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor: through /dev/kvm, or on macOS (`hvf`) the Hypervisor framework.
    #[default]
    #[cfg_attr(target_os = "macos", value(name = "hvf", alias = "kvm"))]
    Kvm,
    /// QEMU's software emulation. Works anywhere, is slow, and is not a security boundary.
    Tcg,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// For people, in lists of processes.
    pub name: String,
    /// Unlike that of any other machine (the pod's UID).
    pub id: String,
    /// Guest memory, in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Not compressed: an ELF file on x86_64, a raw `Image` on aarch64.
    pub kernel: PathBuf,
    /// The guest's init.
    pub initramfs: PathBuf,
    /// Name of the stitched disk's descriptor within the machine's directory.
    pub disk: String,
    /// What executes it.
    pub accel: Accel,
    /// Name of a disk that can be written to, within the machine's directory.
    pub scratch: Option<String>,
    /// What this machine shares with it.
    pub shared: Option<Arc<Shared>>,
    /// Its way to a network, if it has one.
    pub nic: Option<nic::Nic>,
    /// The walls around its processes.
    pub jail: JailOptions,
}

/// What all processes of a machine have of their jails.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct JailOptions {
    /// What a layer that can't be had means.
    pub requirement: Requirement,
    /// The machine's control group, or why there is none.
    pub cgroup: Result<Cgroup, String>,
}

/// A started machine. Dropped, its processes are killed and reaped.
#[derive(Debug)]
pub struct VmChild {
    /// All processes of the machine; when the first ends, the machine has ended.
    pub processes: Vec<Process>,
    /// How to reach the agent in it.
    pub connector: Connector,
    /// What the guest prints on its console.
    pub console: ChildStdout,
    /// What the VMM itself has to say.
    pub diagnostics: ChildStderr,
    /// What its process says of its end, if it is one of ours.
    pub reports: Option<Reports>,
}

/// Why a driver can't run machines here, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// What was found.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
}

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A program that is not there or can't be executed.
    #[error("cannot start {program}")]
    Start {
        /// Which program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A process of the VM.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A process of the VM that was to be in a jail.
    #[error(transparent)]
    Jail(#[from] StartError),
    /// A helper that ended or stayed silent instead of serving.
    #[error("{program} did not begin to serve: {detail}")]
    Helper {
        /// Which program.
        program: String,
        /// What was seen of it.
        detail: String,
    },
    /// The kernel of libkrunfw.
    #[error("there is no kernel from libkrunfw")]
    Firmware(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file of the machine.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a driver can do here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Version as the program states it.
    pub version: String,
}

/// A driver.
pub trait Vmm: Debug + Send + Sync {
    /// Whether machines with this accelerator can run here.
    fn probe(&self, accel: Accel) -> Result<Capabilities, Unavailable>;
    /// Starts a machine whose files are in `dir`.
    fn spawn(&self, config: &VmConfig, dir: &Path) -> Result<VmChild, VmmError>;
}

/// Further kernel parameters, for magikvm's own tests (`MAGIKVM_KERNEL_PARAMETERS`, in builds with the feature `testing` only).
#[cfg(feature = "testing")]
fn more_parameters() -> String {
    std::env::var("MAGIKVM_KERNEL_PARAMETERS").map_or_else(|_| String::new(), |more| format!(" {more}"))
}

#[cfg(not(feature = "testing"))]
fn more_parameters() -> String {
    String::new()
}

/// What a driver has to know before it knows a machine.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    /// The architecture of its guests.
    pub guest: Arch,
    /// Which kernel they boot.
    pub kernel: KernelChoice,
    /// Where it keeps what outlives a machine.
    pub places: Places,
}

/// The driver of a kind.
pub fn driver(kind: VmmKind, options: DriverOptions) -> Box<dyn Vmm> {
    match kind {
        VmmKind::Krun => Box::new(krun::Krun::new(options)),
        VmmKind::Qemu => Box::new(qemu::Qemu::from_environment(options)),
        #[cfg(all(feature = "testing", target_os = "linux"))]
        VmmKind::Fake => Box::new(fake::Fake),
    }
}

/// Finds a program in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| {
        nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok() && candidate.is_file()
    })
}
