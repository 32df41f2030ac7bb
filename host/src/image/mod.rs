//! Images: references, layouts, layers, EROFS. Knows no pod and no VM.
//!
//! The way of an image: a [`Source`] is opened (`open`: layouts and archives, `document`: their JSON), its layers are
//! unpacked and verified while they stream (`blob`, `tar`), merged into one tree (`layer`, `tree`), and written as one EROFS
//! file in the same pass (`bake`, [`erofs`]). The [`ImageStore`] keeps that file, and names for it.

mod arrival;
mod bake;
mod blob;
mod blobs;
mod cancel;
mod digest;
mod document;
mod error;
pub mod erofs;
mod index;
mod layer;
mod lock;
mod obtain;
mod open;
mod platform;
mod progress;
mod reference;
mod source;
mod store;
pub mod tar;
mod transfer;
pub mod tree;

pub use arrival::Missing;
pub use bake::{BakeError, PartError};
pub use blob::BlobError;
pub use cancel::{Cancel, Stopped};
pub use digest::{Digest, DigestError};
pub use document::ImageDefaults;
pub use error::ImageError;
pub use index::{ImageRecord, Part};
pub use layer::LayerError;
pub use obtain::BringOptions;
pub use open::OpenError;
pub use platform::{Platform, PlatformError};
pub use progress::{LayerInfo, LayerState, Progress};
pub use reference::{Reference, ReferenceError};
pub use source::{Source, SourceError};
pub use store::{Image, ImageStore, Removed, RootfsFile};
pub use transfer::TransferError;
