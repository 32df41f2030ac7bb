//! Images: references, layouts, layers, EROFS. Must not know pods and VMs.
//!
//! The path of an image: a [`Source`] is opened (`open`: layouts and archives, `document`: their JSON), its layers are unpacked and
//! verified while they stream (`blob`, `tar`), merged into one tree (`layer`, `tree`), and written as one EROFS file in the same pass
//! (`rootfs`, [`erofs`]). The [`ImageStore`] keeps that file and its names. For hosts that cannot mount it, `directory` unpacks the file
//! into a directory tree.

mod arrival;
mod blob;
mod blobs;
mod cancel;
mod digest;
mod directory;
mod document;
pub mod erofs;
mod error;
mod export;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod index;
mod layer;
mod lock;
mod obtain;
mod open;
mod platform;
mod policy;
mod progress;
mod pull;
mod reference;
mod registry;
mod rootfs;
mod signature;
mod source;
mod store;
pub mod tar;
mod transfer;
pub mod tree;
mod unpacked;
mod upkeep;

pub use arrival::Missing;
pub use blob::BlobError;
pub use cancel::{Cancel, Stopped};
pub use digest::{Digest, DigestError};
pub use directory::{DirectoryError, Owners, UnpackedSummary, clear_unpacked, unpack};
pub use document::ImageDefaults;
pub use erofs::{RootfsCompression, UnknownCompression};
pub use error::{ExportError, ImageError, NotUsable};
pub use export::{Target, TargetError};
pub use index::{ImageBlob, ImageRecord};
pub use layer::LayerError;
pub use obtain::{BringOptions, ImportSource};
pub use open::OpenError;
pub use platform::{Platform, PlatformError, Wanted, host_processor};
pub use policy::{Because, Policy, PolicyError, Requirement};
pub use progress::{LayerInfo, LayerState, Progress};
pub use pull::{PullPolicy, PullSources};
pub use reference::{Reference, ReferenceError};
pub use registry::{
    Cause, ConnectProblem, CredentialError, Credentials, HelperError, Inside, LoginFile, LoginFormat,
    Presented, RegistryConfig, RegistryConfigError, RegistryError,
};
pub use rootfs::{BuildError, PartError, build_in_memory};
pub use signature::{
    Candidate, Candidates, KeyError, KeyId, Keys, Refusal, SignatureError, SignatureForm, Verified,
};
pub use source::{Source, SourceError};
pub use store::{Image, ImageParts, ImageStore, Removed, RootfsFile};
pub use transfer::TransferError;
pub use unpacked::RootfsDirectory;
pub use upkeep::{Damage, PruneOptions, PruneScope, Pruned, PrunedImage, Really, Usage, UsageRow};
