//! Images: references, layouts, layers, EROFS. Knows no pod and no VM.
//!
//! The way of an image: a [`Source`] is opened (`open`: layouts and archives, `document`: their JSON), its layers are
//! unpacked and verified while they stream (`blob`, `tar`), merged into one tree (`layer`, `tree`), and written as one EROFS
//! file in the same pass (`bake`, [`erofs`]). The [`ImageStore`] keeps that file, and names for it. For hosts that cannot mount
//! it, `directory` writes the file as a directory tree.

mod bake;
mod blob;
mod cancel;
mod digest;
mod directory;
mod document;
pub mod erofs;
mod index;
mod layer;
mod lock;
mod open;
mod reference;
mod source;
mod store;
pub mod tar;
pub mod tree;

pub use bake::{BakeError, PartError, bake_in_memory};
pub use blob::BlobError;
pub use cancel::{Cancel, Stopped};
pub use digest::{Digest, DigestError};
pub use directory::{DirectoryError, Owners, UnpackedSummary, unpack};
pub use document::ImageDefaults;
pub use erofs::{RootfsCompression, UnknownCompression};
pub use index::ImageRecord;
pub use layer::LayerError;
pub use open::OpenError;
pub use reference::{Reference, ReferenceError};
pub use source::{Source, SourceError};
pub use store::{Image, ImageError, ImageStore, ImportProgress, Removed, RootfsFile};
