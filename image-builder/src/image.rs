//! A finished guest image: reads its manifest and checks its files against the manifest.

use crate::files::{self, FileError};
use crate::format::{self, FormatError};
use magikvm_proto::guest_image::{
    GuestFile, GuestManifest, GuestManifestError, INITRAMFS, KERNEL, MANIFEST, MAX_GUEST_MANIFEST_SIZE,
};
use std::path::{Path, PathBuf};

/// Why a directory is not a usable guest image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The manifest can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory has no manifest.
    #[error("{} is not a guest image: it has no {MANIFEST}", .0.display())]
    NotAnImage(PathBuf),
    /// The manifest is not usable.
    #[error("{} {source}", path.display())]
    Manifest {
        path: PathBuf,
        /// Why it is refused.
        source: GuestManifestError,
    },
    /// The files differ from those in the manifest.
    #[error("the guest image {} is damaged:{}", dir.display(), list(problems))]
    Damaged {
        dir: PathBuf,
        /// All problems found.
        problems: Vec<Problem>,
    },
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// A problem with one part.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It can't be read.
    #[error("cannot read {name}: {source}{}", cause(source))]
    Unreadable { name: String, source: FileError },
    /// Its length differs.
    #[error("{name} has {found} bytes, but the manifest says {stated}")]
    Size {
        name: String,
        /// Bytes found.
        found: u64,
        /// Bytes according to the manifest.
        stated: u64,
    },
    /// Its content differs.
    #[error("{name} does not match the manifest (its SHA-256 is {found})")]
    Content { name: String, found: String },
    /// The kernel is not a kernel.
    #[error("{KERNEL} {0}")]
    Kernel(FormatError),
    /// The initramfs is not an archive.
    #[error("{INITRAMFS} is not a newc cpio archive")]
    Initramfs,
}

fn cause(error: &FileError) -> String {
    std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// A guest image whose manifest was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    pub dir: PathBuf,
    pub manifest: GuestManifest,
}

impl GuestImage {
    /// Reads only the manifest; see [`GuestImage::verify`].
    pub fn open(dir: &Path) -> Result<Self, ImageError> {
        let path = dir.join(MANIFEST);
        let bytes = files::read(&path, MAX_GUEST_MANIFEST_SIZE as u64).map_err(|error| {
            if error.is_not_found() { ImageError::NotAnImage(dir.to_owned()) } else { error.into() }
        })?;
        let manifest =
            GuestManifest::parse(&bytes).map_err(|source| ImageError::Manifest { path, source })?;
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// Reads every part and compares it with the manifest.
    pub fn verify(&self) -> Result<(), ImageError> {
        let problems: Vec<Problem> =
            self.manifest.parts.iter().flat_map(|(name, part)| self.check(name, part)).collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ImageError::Damaged { dir: self.dir.clone(), problems })
        }
    }

    fn check(&self, name: &str, part: &GuestFile) -> Option<Problem> {
        let path = self.dir.join(name);
        let length = match path.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) => {
                let source = FileError::at("read", &path)(error);
                return Some(Problem::Unreadable { name: name.to_owned(), source });
            }
        };
        if length != part.size {
            return Some(Problem::Size { name: name.to_owned(), found: length, stated: part.size });
        }
        // The size was checked against the manifest, whose sizes are capped.
        let bytes = match files::read(&path, part.size) {
            Ok(bytes) => bytes,
            Err(source) => return Some(Problem::Unreadable { name: name.to_owned(), source }),
        };
        let found = files::sha256(&bytes);
        if found != part.sha256 {
            return Some(Problem::Content { name: name.to_owned(), found: found.into() });
        }
        match name {
            KERNEL => format::check_kernel(&bytes, self.manifest.arch).err().map(Problem::Kernel),
            INITRAMFS if !bytes.starts_with(b"070701") => Some(Problem::Initramfs),
            _ => None,
        }
    }
}
