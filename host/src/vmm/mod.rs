//! Virtual machine monitors behind one trait. Knows memory, processors, a kernel, disks and a console, but neither pods nor images.

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
pub mod lasting;
pub mod nic;
#[cfg_attr(target_os = "macos", path = "hvf.rs")]
pub mod probe;
pub mod qemu;
pub mod qmp;
pub mod report;
pub mod scratch;
mod share;
mod tsc;

use crate::agent::Connector;
use crate::jail::{Cgroup, Requirement, StartError};
use crate::process::{Process, ProcessError};
use crate::store::atomic::FileError;
use crate::store::layout::Layout;
use crate::store::lock::Lock;
use crate::volume::tree::Shared;
use magikvm_proto::guest_image::Arch;
use report::Reports;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout};
use std::sync::Arc;

/// The program that runs the VM (`--vmm`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum VmmKind {
    /// libkrun, within this program.
    Krun,
    /// QEMU: its machine type `microvm` on x86_64, `virt` on aarch64.
    Qemu,
    /// A process without a VM that speaks the wire. Only in builds for magikvm's tests.
    #[cfg(all(feature = "testing", target_os = "linux"))]
    Fake,
}

/// libkrun cannot run with `--accel tcg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("--vmm krun needs hardware virtualization and does not support --accel tcg")]
pub struct KrunEmulatesNothing;

impl VmmKind {
    /// The user's choice, or else libkrun where it can run the VM, and QEMU where it cannot.
    pub fn choose(asked: Option<Self>, accel: Accel) -> Result<Self, KrunEmulatesNothing> {
        match (asked, accel) {
            (Some(Self::Krun), Accel::Tcg) => Err(KrunEmulatesNothing),
            (Some(kind), _) => Ok(kind),
            (None, Accel::Tcg) => Ok(Self::Qemu),
            (None, Accel::Kvm) => Ok(if krun::IS_COMPILED_IN { Self::Krun } else { Self::Qemu }),
        }
    }
}

/// The kernel that a guest boots (`--kernel`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// The guest image's kernel.
    #[default]
    #[value(name = "guest")]
    GuestImage,
    /// The kernel of the system's libkrunfw.
    Libkrunfw,
}

/// Directories of drivers for files that outlive a VM.
#[derive(Debug, Clone)]
pub struct Places {
    /// Measurements of the host that hold until its next boot.
    pub verdicts: PathBuf,
    /// Unpacked kernels.
    pub kernels: PathBuf,
    /// Formatted file systems for scratch disks.
    pub templates: PathBuf,
    /// Seccomp profiles for containers; the first directory that has one counts.
    pub seccomp: Vec<PathBuf>,
}

impl Places {
    /// The directories of a layout.
    pub fn of(layout: &Layout) -> Self {
        Self {
            verdicts: layout.verdicts(),
            kernels: layout.kernels(),
            templates: layout.templates(),
            seccomp: layout.seccomp(),
        }
    }
}

/// The way in which the guest's instructions are executed (`--accel`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// Hardware virtualization: through /dev/kvm, or on macOS (`hvf`) the Hypervisor framework.
    #[default]
    #[cfg_attr(target_os = "macos", value(name = "hvf", alias = "kvm"))]
    Kvm,
    /// QEMU's software emulation. It works anywhere, is slow, and is not a security boundary.
    Tcg,
}

/// The configuration of one VM.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// A name for people, shown in lists of processes.
    pub name: String,
    /// Unique among all VMs (the pod's UID).
    pub id: String,
    /// Guest memory, in MiB.
    pub memory_mib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// An uncompressed kernel: an ELF file on x86_64, a raw `Image` on aarch64.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Name of the composite disk's descriptor in the VM's directory.
    pub disk: String,
    pub accel: Accel,
    /// Name of a writable disk in the VM's directory.
    pub scratch: Option<String>,
    /// Names of the links to disks that outlive the VM, in the VM's directory.
    pub lasting: Vec<String>,
    /// The directories that the host shares with the VM.
    pub shared: Option<Arc<Shared>>,
    /// The connection to a network, if there is one.
    pub nic: Option<nic::Nic>,
    /// A lock that the processes keep which reach the directories and disks that outlive the VM.
    pub held: Option<Arc<Lock>>,
    /// Whether the guest can make VMs itself.
    pub nested: crate::nested::Nested,
    pub jail: JailOptions,
}

/// The options of the jails of all processes of a VM.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct JailOptions {
    /// What happens if the host does not offer a layer.
    pub requirement: Requirement,
    /// The VM's control group, or why there is none.
    pub cgroup: Result<Cgroup, String>,
}

/// A running VM. Dropping it kills and reaps its processes.
#[derive(Debug)]
pub struct VmChild {
    /// All processes of the VM. When one ends, the VM has ended.
    pub processes: Vec<Process>,
    pub connector: Connector,
    pub console: ChildStdout,
    /// The VMM's messages.
    pub diagnostics: ChildStderr,
    /// The process's reports about its end, if the process is this program.
    pub reports: Option<Reports>,
    /// Tells when the VM stands still because the host's disk is full, if the VMM stops it then.
    pub disk: Option<qmp::DiskWatch>,
}

/// The reason why a driver cannot run VMs on this host, and a remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    pub reason: String,
    /// A whole sentence that completes "Hint: ".
    pub remedy: String,
}

#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A program is missing or cannot be executed.
    #[error("cannot start {program}")]
    Start {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Jail(#[from] StartError),
    /// A helper ended or stayed silent instead of serving.
    #[error("{program} did not begin to serve: {detail}")]
    Helper { program: String, detail: String },
    #[error("there is no kernel from libkrunfw")]
    Firmware(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Version as the program reports it.
    pub version: String,
}

pub trait Vmm: Debug + Send + Sync {
    /// Checks that VMs with this accelerator can run on this host.
    fn probe(&self, accel: Accel) -> Result<Capabilities, Unavailable>;
    /// Starts a VM whose files are in `dir`.
    fn spawn(&self, config: &VmConfig, dir: &Path) -> Result<VmChild, VmmError>;
}

/// Additional kernel parameters for magikvm's tests (`MAGIKVM_KERNEL_PARAMETERS`, only in builds with the feature `testing`).
#[cfg(feature = "testing")]
fn more_parameters() -> String {
    std::env::var("MAGIKVM_KERNEL_PARAMETERS").map_or_else(|_| String::new(), |more| format!(" {more}"))
}

#[cfg(not(feature = "testing"))]
fn more_parameters() -> String {
    String::new()
}

/// Options of a driver that do not depend on a VM.
#[derive(Debug, Clone)]
pub struct DriverOptions {
    pub guest: Arch,
    pub kernel: KernelChoice,
    pub places: Places,
}

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
