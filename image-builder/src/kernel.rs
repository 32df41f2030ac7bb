//! What a file must be to serve as a guest's kernel, whether we compiled it or the user gave it.

use crate::elf::DebugInfo;
use crate::files::{self, FileError};
use crate::format::{self, FormatError};
use crate::ikconfig::{self, IkconfigError};
use crate::options::{self, Missing, Options};
use magikvm_proto::guest_image::Arch;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Bytes of a kernel as given, which may still carry its debug information.
const MAX_KERNEL_FILE: u64 = 1 << 30;

/// Why a file can't be a guest's kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not an uncompressed kernel for the architecture.
    #[error("{} {source}", path.display())]
    Format {
        path: PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// Its configuration can't be read, so nobody can tell what it can do.
    #[error("cannot check the options of {}", path.display())]
    Config {
        path: PathBuf,
        #[source]
        source: IkconfigError,
    },
    /// It does not say its release.
    #[error("{} does not contain a \"Linux version\" banner", path.display())]
    NoRelease { path: PathBuf },
    /// A guest can't run with it.
    #[error("{} lacks options that the guest needs:{}", path.display(), list(missing))]
    Lacks { path: PathBuf, missing: Vec<Missing> },
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(|missing| format!("\n  {missing}")).collect()
}

/// A kernel that the guest can run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub bytes: Vec<u8>,
    /// Its release, as `uname -r` says it.
    pub version: String,
    /// What it can do, by names of [`options::features`].
    pub features: BTreeSet<String>,
    /// Whether it is to be stripped before use.
    pub debug_info: DebugInfo,
}

impl Kernel {
    /// Reads and checks a kernel.
    pub fn read(path: &Path, arch: Arch) -> Result<Self, KernelError> {
        let bytes = files::read(path, MAX_KERNEL_FILE)?;
        let debug_info = format::check_kernel(&bytes, arch)
            .map_err(|source| KernelError::Format { path: path.to_owned(), source })?;
        let config = ikconfig::extract(&bytes)
            .map_err(|source| KernelError::Config { path: path.to_owned(), source })?;
        let features = options::features_of(&Options::parse(&config), arch)
            .map_err(|missing| KernelError::Lacks { path: path.to_owned(), missing })?;
        let version =
            ikconfig::release(&bytes).ok_or_else(|| KernelError::NoRelease { path: path.to_owned() })?;
        Ok(Self { bytes, version, features, debug_info })
    }
}
