//! Why the store could not do something, and what can be done about it.

use super::rootfs::BuildError;
use super::blob::BlobError;
use super::cancel::Stopped;
use super::digest::Digest;
use super::directory::DirectoryError;
use super::erofs::RootfsCompression;
use super::index::SCHEMA;
use super::open::OpenError;
use super::policy::PolicyError;
use super::reference::{Reference, ReferenceError};
use super::registry::{RegistryConfigError, RegistryError};
use super::signature::SignatureError;
use super::transfer::TransferError;
use magikvm_platform::atomic::FileError;
use magikvm_platform::text::causes;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The source is no usable image.
    #[error("cannot use the image {source_name}")]
    Open {
        source_name: String,
        #[source]
        source: Box<OpenError>,
    },
    /// The registry did not give it.
    #[error("cannot pull {}", name.familiar())]
    Registry {
        name: Box<Reference>,
        #[source]
        source: Box<RegistryError>,
    },
    #[error(transparent)]
    Registries(#[from] RegistryConfigError),
    /// The policy forbids it, or is not valid.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// It has no signature that counts.
    #[error(transparent)]
    Signature(Box<SignatureError<RegistryError>>),
    /// It is not here, and was not to be pulled.
    #[error("the image {} is not here, and its pull policy is Never", name.familiar())]
    NotHere { name: Box<Reference> },
    /// It is here, but not as it is wanted, and was not to be pulled.
    #[error("the image {} is here, but {because}, and its pull policy is Never", name.familiar())]
    NotUsable {
        name: Box<Reference>,
        /// What is in the way.
        because: NotUsable,
    },
    /// A layer could not be brought into the store.
    #[error("cannot get {layer} of {source_name}")]
    Transfer {
        layer: String,
        source_name: String,
        #[source]
        source: Box<TransferError>,
    },
    /// Given up before it was done; nothing of it is left.
    #[error("{source_name} was not brought into the store")]
    Stopped {
        source_name: String,
        #[source]
        source: Stopped,
    },
    /// The layers are no usable root file system.
    #[error("cannot unpack {source_name}")]
    Build {
        source_name: String,
        #[source]
        source: Box<BuildError>,
    },
    /// The name pins a digest that the source does not have.
    #[error("the name {name} pins a digest, but {source_name} holds {}", digests(found))]
    Pinned {
        name: Box<Reference>,
        source_name: String,
        /// Digests of the source.
        found: Vec<Digest>,
    },
    /// There is no such image.
    #[error("there is no image {}", name.familiar())]
    NotFound {
        name: Box<Reference>,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// There is no image with this id.
    #[error("there is no image with the id {id}")]
    UnknownId {
        /// The id, or how it begins.
        id: String,
    },
    /// More than one image has an id that begins so.
    #[error("the id {prefix} is that of several images: {}", found.join(", "))]
    AmbiguousId { prefix: String, found: Vec<String> },
    /// Neither a name nor an id.
    #[error("{text:?} is not an image's name or id")]
    NotAName {
        text: String,
        /// What is wrong with it as a name.
        #[source]
        source: ReferenceError,
    },
    /// It could not be written out.
    #[error("cannot export to {target}")]
    Export {
        target: String,
        #[source]
        source: Box<ExportError>,
    },
    /// The root file system could not be written as a directory.
    #[error("cannot unpack the root file system into {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: DirectoryError,
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
    /// The index is of a newer version.
    #[error("{} was written by a newer magikvm (form {found}; this one knows {SCHEMA})", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error(transparent)]
    File(#[from] FileError),
}

/// Why an image that is here is not the one that is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUsable {
    /// It came under this name without a signature that the policy takes.
    #[error("no signature by a key of the policy was seen when it came")]
    Unsigned,
    /// It is for another machine.
    #[error("it is for {found}, not for {wanted}")]
    Platform { found: String, wanted: String },
    /// Files of it are missing.
    #[error("files of it are missing (magikvm image verify tells which)")]
    Incomplete,
    /// Its root file system is kept in another way.
    #[error("its root file system is kept with the compression {found}, not {wanted}")]
    Form { found: RootfsCompression, wanted: RootfsCompression },
}

fn digests(found: &[Digest]) -> String {
    match found {
        [] => "an image without a manifest digest (a docker archive)".to_owned(),
        found => found.iter().map(Digest::to_string).collect::<Vec<_>>().join(" and "),
    }
}

impl ImageError {
    /// The next attempt may succeed, and is helped by what has come already.
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

    /// Neither the image nor the user is to blame, but this machine: its store, or a disk that is full.
    pub fn is_of_machine(&self) -> bool {
        matches!(self, Self::File(_) | Self::Damaged { .. } | Self::Index { .. } | Self::Newer { .. })
            || matches!(self, Self::Export { source, .. } if matches!(**source, ExportError::Damaged { .. }))
            || self.disk_problem().is_some()
    }

    /// The disk has no room.
    pub(super) fn is_full_disk(&self) -> bool {
        matches!(self.disk_problem(), Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    }

    /// That the disk takes no more, wherever that was noticed.
    fn disk_problem(&self) -> Option<ErrorKind> {
        let disk = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::ReadOnlyFilesystem];
        let kind = causes(self).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        kind.filter(|kind| disk.contains(kind))
    }

    /// The user asked to give it up.
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

    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<String> {
        match self.disk_problem() {
            Some(ErrorKind::ReadOnlyFilesystem) => {
                return Some("the file system is mounted read-only; --root DIR uses another one".to_owned());
            }
            Some(_) => {
                return Some("make room: magikvm image prune --all; df -h tells what is full".to_owned());
            }
            None => {}
        }
        match self {
            Self::NotFound { name, near } => {
                let pull = format!("magikvm image pull {}", name.familiar());
                Some(if near.is_empty() {
                    format!("{pull}; or from a file: magikvm image import SOURCE --name {}", name.familiar())
                } else {
                    format!("did you mean {}? Otherwise: {pull}", near.join(" or "))
                })
            }
            Self::UnknownId { .. } | Self::AmbiguousId { .. } => Some("magikvm image ls".to_owned()),
            Self::Export { source, .. } => source.hint(),
            Self::NotAName { .. } => Some(
                "a name looks like registry.example/team/app:1.0; ids are listed by magikvm image ls"
                    .to_owned(),
            ),
            Self::InUse { .. } => Some("magikvm ps, then magikvm rm POD, then once more".to_owned()),
            Self::Registry { source, .. } => source.hint(),
            Self::Registries(error) => error.hint(),
            Self::Policy(error) => error.hint(),
            Self::Signature(error) => error.hint(),
            Self::Stopped { source: Stopped::TimedOut { .. }, .. } => {
                Some("what has come so far stays for a day: once more, or with a longer --timeout".to_owned())
            }
            Self::Transfer { source, .. } => match &**source {
                TransferError::Registry(error) => error.hint(),
                _ => None,
            },
            Self::NotHere { name } => Some(format!("magikvm image pull {}", name.familiar())),
            Self::NotUsable { name, because } => {
                let how = match because {
                    NotUsable::Unsigned | NotUsable::Incomplete => String::new(),
                    NotUsable::Platform { wanted, .. } => format!("--platform {wanted} "),
                    NotUsable::Form { wanted, .. } => format!("--compress {wanted} "),
                };
                Some(format!("magikvm image pull {how}{}", name.familiar()))
            }
            Self::Pinned { name, .. } => Some(format!("use --name {}", name.without_digest().familiar())),
            Self::Damaged { .. } => Some(
                "magikvm image verify --all tells which images are damaged; remove and pull those again"
                    .to_owned(),
            ),
            Self::Index { path, .. } => {
                Some(format!("move {} away and import the images again", path.display()))
            }
            _ => None,
        }
    }
}

/// Why an image could not be written out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("{} is there already", path.display())]
    Exists { path: PathBuf },
    /// Layers are missing: they were damaged, or the image was imported by a version that kept none.
    #[error("the store does not have the layers of the image as they came ({what})")]
    NoLayers { what: String },
    /// A file of the store is not what it was.
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
            Self::Exists { path } => Some(format!("name another place, for example {}.new", path.display())),
            Self::NoLayers { .. } | Self::Damaged { .. } | Self::Layer { .. } => {
                Some("remove the image and pull or import it again".to_owned())
            }
            _ => None,
        }
    }
}
