//! Virtual machine monitors behind one trait. Knows memory, processors, a kernel, a disk and a console; knows no pod and no image.

pub mod console;
pub mod disk;
#[cfg(feature = "testing")]
pub mod fake;
pub mod kvm;
pub mod process;
pub mod qemu;
mod tsc;

use crate::agent::Connector;
use crate::store::atomic::FileError;
use magikvm_proto::guest_image::Arch;
use process::Process;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout};

/// Which program runs the machine (`--vmm`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum VmmKind {
    /// QEMU: its machine `microvm` on x86_64, `virt` on aarch64.
    #[default]
    Qemu,
    /// No machine at all: a process that speaks the wire. Only in builds made for magikvm's own tests.
    #[cfg(feature = "testing")]
    Fake,
}

/// What executes the guest's instructions (`--accel`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor, through /dev/kvm.
    #[default]
    Kvm,
    /// QEMU's software emulation. Works anywhere, is slow, and is not a security boundary.
    Tcg,
}

/// One machine.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
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
    /// A helper that ended or stayed silent instead of serving.
    #[error("{program} did not begin to serve: {detail}")]
    Helper {
        /// Which program.
        program: String,
        /// What was seen of it.
        detail: String,
    },
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

/// The driver of a kind, for guests of an architecture.
pub fn driver(kind: VmmKind, guest: Arch) -> Box<dyn Vmm> {
    match kind {
        VmmKind::Qemu => Box::new(qemu::Qemu::from_environment(guest)),
        #[cfg(feature = "testing")]
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
