//! The checks of a guest's kernel, whether it was compiled here or given by the user.

use crate::elf::DebugInfo;
use crate::files::{self, FileError};
use crate::format::{self, FormatError};
use crate::ikconfig::{self, IkconfigError};
use crate::options::{self, Missing, Options};
use magikvm_proto::guest_image::Arch;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Most bytes of a given kernel, which may still carry its debug information.
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
        /// Why it is refused.
        source: FormatError,
    },
    /// Its configuration can't be read, so its features are unknown.
    #[error("cannot check the options of {}", path.display())]
    Config {
        path: PathBuf,
        #[source]
        source: IkconfigError,
    },
    /// It does not state its release.
    #[error("{} does not contain a \"Linux version\" banner", path.display())]
    NoRelease { path: PathBuf },
    /// It lacks options that every guest needs.
    #[error("{} lacks options that the guest needs:{}", path.display(), list(missing))]
    Lacks { path: PathBuf, missing: Vec<Missing> },
}

fn list(missing: &[Missing]) -> String {
    missing.iter().map(|missing| format!("\n  {missing}")).collect()
}

/// A kernel that a guest can run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub bytes: Vec<u8>,
    /// Its release, as `uname -r` prints it.
    pub version: String,
    /// Its features, by the names in [`options::features`].
    pub features: BTreeSet<String>,
    /// Whether it must be stripped before use.
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
