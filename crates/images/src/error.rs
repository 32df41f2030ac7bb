//! Errors of the store, and what the user can do about them.

use super::blob::BlobError;
use super::cancel::Stopped;
use super::digest::{Digest, shorten};
use super::directory::DirectoryError;
use super::erofs::RootfsCompression;
use super::index::SCHEMA;
use super::open::OpenError;
use super::policy::PolicyError;
use super::reference::{Reference, ReferenceError};
use super::registry::{RegistryConfigError, RegistryError};
use super::rootfs::BuildError;
use super::signature::SignatureError;
use super::transfer::TransferError;
use magikvm_platform::atomic::FileError;
use magikvm_platform::text::causes;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The source is not a usable image.
    #[error("cannot use the image {source_name}")]
    Open {
        source_name: String,
        #[source]
        source: Box<OpenError>,
    },
    /// The registry failed.
    #[error("cannot pull {}", name.familiar())]
    Registry {
        name: Box<Reference>,
        /// Whether the store has an image of this name that could be used instead.
        here: bool,
        #[source]
        source: Box<RegistryError>,
    },
    #[error(transparent)]
    Registries(#[from] RegistryConfigError),
    /// The policy rejects the image, or is not valid.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No valid signature.
    #[error(transparent)]
    Signature(Box<SignatureError<RegistryError>>),
    /// It is missing and must not be pulled.
    #[error("the image {} is not in the store, and its pull policy is Never", name.familiar())]
    NotHere { name: Box<Reference> },
    /// It exists, but not as requested, and must not be pulled.
    #[error("the image {} is in the store, but {because}, and its pull policy is Never", name.familiar())]
    NotUsable {
        name: Box<Reference>,
        /// The reason.
        because: NotUsable,
    },
    /// A layer could not be fetched into the store.
    #[error("cannot get {layer} of {source_name}")]
    Transfer {
        layer: String,
        source_name: String,
        #[source]
        source: Box<TransferError>,
    },
    /// Cancelled before it was done; nothing of it is left.
    #[error("{source_name} was not imported")]
    Stopped {
        source_name: String,
        #[source]
        source: Stopped,
    },
    /// The layers do not give a usable root file system.
    #[error("cannot unpack {source_name}")]
    Build {
        source_name: String,
        #[source]
        source: Box<BuildError>,
    },
    /// The source does not have the digest that the name pins.
    #[error("the name {name} pins a digest, but {source_name} has {}", digests(found))]
    Pinned {
        name: Box<Reference>,
        source_name: String,
        /// Digests of the source.
        found: Vec<Digest>,
    },
    /// The source does not say what the image is called.
    #[error("{source_name} does not say what the image is called{}", only(marks))]
    Nameless {
        source_name: String,
        /// Marks that are not names.
        marks: Vec<String>,
    },
    #[error("there is no image {}", name.familiar())]
    NotFound {
        name: Box<Reference>,
        /// Similar names.
        near: Vec<String>,
    },
    #[error("there is no image with the id {id}")]
    UnknownId {
        /// The id or its beginning.
        id: String,
    },
    /// Several images have an id that begins like this.
    #[error("the id {prefix} matches several images: {}", found.join(", "))]
    AmbiguousId { prefix: String, found: Vec<String> },
    /// Neither a name nor an id.
    #[error("{text:?} is not an image's name or id")]
    NotAName {
        text: String,
        /// Why it is not a name.
        #[source]
        source: ReferenceError,
    },
    /// The export failed.
    #[error("cannot export to {target}")]
    Export {
        target: String,
        #[source]
        source: Box<ExportError>,
    },
    /// Unpacking the root file system failed.
    #[error("cannot unpack the root file system into {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: DirectoryError,
    },
    /// A process that unpacks it for other users failed.
    #[error("cannot unpack the root file system into {}", path.display())]
    Helper {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the image {name} is used by a pod")]
    InUse { name: String },
    /// A file of the store is damaged.
    #[error("the image store is damaged: {}: {problem}", path.display())]
    Damaged { path: PathBuf, problem: &'static str },
    /// The index cannot be read.
    #[error("the image store is damaged: {} cannot be read", path.display())]
    Index {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// A newer version wrote the index.
    #[error("{} was written by a newer magikvm (format {found}; this one supports {SCHEMA})", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error(transparent)]
    File(#[from] FileError),
}

/// Why an image in the store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUsable {
    /// It got this name without a signature that the policy accepts.
    #[error("it was imported without a signature by a key of the policy")]
    Unsigned,
    /// It is for another platform.
    #[error("it is for {found}, not for {wanted}")]
    Platform { found: String, wanted: String },
    /// Some of its files are missing.
    #[error("files of it are missing (see `magikvm image verify`)")]
    Incomplete,
    /// Its root file system has another compression.
    #[error("its root file system has the compression {found}, not {wanted}")]
    Form { found: RootfsCompression, wanted: RootfsCompression },
}

fn only(marks: &[String]) -> String {
    match marks {
        [] => String::new(),
        marks => {
            let marks: Vec<_> = marks.iter().take(5).map(|mark| format!("{:?}", shorten(mark))).collect();
            format!(" (it has only {}, which is not a whole name)", marks.join(", "))
        }
    }
}

fn digests(found: &[Digest]) -> String {
    match found {
        [] => "an image without a manifest digest (a docker archive)".to_owned(),
        found => found.iter().map(Digest::to_string).collect::<Vec<_>>().join(" and "),
    }
}

impl ImageError {
    /// Whether the next attempt may succeed with the help of the data fetched so far.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Stopped { .. } => true,
            Self::Transfer { source, .. } => match &**source {
                TransferError::Stopped(_) => true,
                TransferError::Registry(error) => error.may_pass(),
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether neither the image nor the user is to blame but the host: its store, or a full disk.
    pub fn is_of_machine(&self) -> bool {
        matches!(self, Self::File(_) | Self::Damaged { .. } | Self::Index { .. } | Self::Newer { .. })
            || matches!(self, Self::Export { source, .. } if matches!(**source, ExportError::Damaged { .. }))
            || self.disk_problem().is_some()
    }

    /// Whether the disk is full.
    pub(super) fn is_full_disk(&self) -> bool {
        matches!(self.disk_problem(), Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }

    /// The kind of the disk's failure, wherever it was noticed.
    fn disk_problem(&self) -> Option<ErrorKind> {
        let disk = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::ReadOnlyFilesystem];
        let kind = causes(self).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        kind.filter(|kind| disk.contains(kind))
    }

    /// Whether it was given up, by the user or at its deadline.
    pub(super) fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }

    /// Whether the user cancelled it.
    pub fn is_cancelled(&self) -> bool {
        match self {
            Self::Stopped { source, .. } => *source == Stopped::Cancelled,
            Self::Registry { source, .. } => matches!(**source, RegistryError::Stopped(Stopped::Cancelled)),
            Self::Signature(error) => matches!(
                &**error,
                SignatureError::Registry { source: RegistryError::Stopped(Stopped::Cancelled), .. }
            ),
            Self::Export { source, .. } => matches!(**source, ExportError::Stopped(Stopped::Cancelled)),
            _ => false,
        }
    }

    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self.disk_problem() {
            Some(ErrorKind::ReadOnlyFilesystem) => {
                return Some(
                    "The file system is mounted read-only; choose another one with `--root DIR`.".to_owned(),
                );
            }
            Some(_) => {
                return Some(
                    "Free space with `magikvm image prune --all`; `df -h` shows which file system is full."
                        .to_owned(),
                );
            }
            None => {}
        }
        match self {
            Self::NotFound { name, near } => {
                let pull = format!("`magikvm image pull {}`", name.familiar());
                Some(if near.is_empty() {
                    format!("Pull it with {pull}, or import it from a file with `magikvm image import SOURCE --name {}`.", name.familiar())
                } else {
                    format!("Did you mean {}? Otherwise pull it with {pull}.", near.join(" or "))
                })
            }
            Self::UnknownId { .. } | Self::AmbiguousId { .. } => Some("List the ids with `magikvm image ls`.".to_owned()),
            Self::Export { source, .. } => source.hint(),
            Self::NotAName { .. } => Some(
                "Use a name like `registry.example/team/app:1.0`, or an id that `magikvm image ls` shows."
                    .to_owned(),
            ),
            Self::InUse { .. } => Some("Find the pod with `magikvm ps` and remove it with `magikvm rm` first.".to_owned()),
            Self::Registry { source, here: true, .. } => Some(with_the_image_here(source.hint())),
            Self::Registry { source, .. } => source.hint(),
            Self::Registries(error) => error.hint(),
            Self::Policy(error) => error.hint(),
            Self::Signature(error) => error.hint(),
            Self::Stopped { source: Stopped::TimedOut { .. }, .. } => {
                Some("Repeat the command, perhaps with a longer `--timeout`; the data received so far is kept for a day.".to_owned())
            }
            Self::Transfer { source, .. } => match &**source {
                TransferError::Registry(error) => error.hint(),
                _ => None,
            },
            Self::NotHere { name } => Some(format!("Pull it with `magikvm image pull {}`.", name.familiar())),
            Self::NotUsable { name, because } => {
                let how = match because {
                    NotUsable::Unsigned | NotUsable::Incomplete => String::new(),
                    NotUsable::Platform { wanted, .. } => format!("--platform {wanted} "),
                    NotUsable::Form { wanted, .. } => format!("--compress {wanted} "),
                };
                Some(format!("Pull it with `magikvm image pull {how}{}`.", name.familiar()))
            }
            Self::Nameless { source_name, .. } => {
                Some(format!("Name it with `magikvm image import {source_name} --name NAME:TAG`."))
            }
            Self::Open { source, .. } => source.hint(),
            Self::Pinned { name, .. } => Some(format!("Import it with `--name {}`.", name.without_digest().familiar())),
            Self::Damaged { .. } => Some(
                "Find the damaged images with `magikvm image verify --all`, remove them and pull them again."
                    .to_owned(),
            ),
            Self::Index { path, .. } => {
                Some(format!("Move {} away and import the images again.", path.display()))
            }
            _ => None,
        }
    }
}

/// The hint for a registry that cannot be reached while its image is in the store.
fn with_the_image_here(hint: Option<String>) -> String {
    let here = "The image is in the store: `imagePullPolicy: IfNotPresent` in the manifest (or `magikvm image pull --policy missing`) takes it without asking the registry.";
    hint.map_or_else(|| here.to_owned(), |hint| format!("{here} Otherwise: {hint}"))
}

/// Why an export failed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{} already exists", path.display())]
    Exists { path: PathBuf },
    /// Layers are missing: they were damaged, or the image was imported by a version that did not keep them.
    #[error("the store does not have the original layers of the image ({what})")]
    NoLayers { what: String },
    /// Only the files of an artifact can be exported.
    #[error("it is an artifact, not a container image")]
    Artifact,
    /// A file of the store has changed.
    #[error("the image store is damaged: {} has the digest {found}, not {expected}", path.display())]
    Damaged { path: PathBuf, expected: Digest, found: Digest },
    /// A layer cannot be unpacked.
    #[error("the layer {digest} cannot be read")]
    Layer {
        digest: Digest,
        #[source]
        source: BlobError,
    },
    #[error("the root file system cannot be written as a directory")]
    Directory(#[source] DirectoryError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl ExportError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { path } => {
                Some(format!("Choose another path, for example `{}.new`.", path.display()))
            }
            Self::NoLayers { .. } | Self::Damaged { .. } | Self::Layer { .. } => {
                Some("Remove the image with `magikvm image rm`, then pull or import it again.".to_owned())
            }
            Self::Artifact => {
                Some("Export its files with the target `dir:DIRECTORY` or `erofs:FILE`.".to_owned())
            }
            _ => None,
        }
    }
}
