//! Images outside the store, opened: which blobs they have, checked as far as that needs no unpacking.
//! `layout` reads OCI image layouts, `archive` files of `docker save`.

mod archive;
mod layout;

use super::blob::LayerBlob;
use super::digest::{Digest, shorten};
use super::document::{Config, host_architecture};
use super::source::Source;
use super::tar::TarError;
use magikvm_proto::limits::{MAX_LAYER_SIZE, MAX_LAYERS};
use std::io;
use std::path::PathBuf;

/// Why an image outside the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blob that is a directory, device or the like.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What it is.
        path: PathBuf,
    },
    /// A document is larger than its limit.
    #[error("{what} has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// Which document or layer.
        what: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A blob has another size than its descriptor says.
    #[error("the blob {digest} has {found} bytes, its descriptor says {expected}")]
    Size {
        /// The blob.
        digest: Digest,
        /// As announced.
        expected: u64,
        /// As stored.
        found: u64,
    },
    /// A document is not what its digest says.
    #[error("the blob {expected} has the digest {found}")]
    Digest {
        /// As announced.
        expected: Digest,
        /// As computed.
        found: Digest,
    },
    /// A document is not readable.
    #[error("{what} is not valid")]
    Json {
        /// Which.
        what: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A document contradicts itself or its descriptor.
    #[error("{what}: {problem}")]
    Document {
        /// Which.
        what: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A media type that no container image has.
    #[error("{what} has the media type {media_type:?}, which magikvm does not take")]
    MediaType {
        /// Which part.
        what: String,
        /// The type.
        media_type: String,
    },
    /// Indexes in indexes in indexes.
    #[error("the image's indexes are nested more than {limit} deep")]
    Nesting {
        /// The limit.
        limit: usize,
    },
    /// A directory that is no layout.
    #[error("{} is not an OCI image layout (it has no valid \"oci-layout\" file)", dir.display())]
    NotALayout {
        /// The directory.
        dir: PathBuf,
    },
    /// A name that is not there.
    #[error("there is no image {wanted:?} in it; there is {}", list(available))]
    NoSuchImage {
        /// As asked for.
        wanted: String,
        /// What there is.
        available: Vec<String>,
    },
    /// More than one image and no choice.
    #[error("it holds several images; choose one by adding \":NAME\" to the source: {}", list(available))]
    Ambiguous {
        /// What there is.
        available: Vec<String>,
    },
    /// Nothing for this machine.
    #[error("the image is for {}, not for linux/{}", list(available), host_architecture())]
    Platform {
        /// What there is.
        available: Vec<String>,
    },
    /// Too many layers.
    #[error("the image has {layers} layers; the limit is {MAX_LAYERS}")]
    TooManyLayers {
        /// How many.
        layers: usize,
    },
    /// Manifest and configuration disagree.
    #[error("the image has {layers} layers, but its configuration lists {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// The archive's own tar.
    #[error("{} is not a readable docker archive", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TarError,
    },
    /// A compressed archive, in which nothing can be found without unpacking it.
    #[error("{} is compressed as a whole; decompress it first (for example: gunzip FILE, zstd -d FILE)", path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
    },
    /// A file that the archive's manifest names and the archive lacks.
    #[error("the archive has no file {name:?}")]
    Missing {
        /// Its name.
        name: String,
    },
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none with a name".to_owned(),
        names => {
            let shown: Vec<_> = names.iter().take(20).map(|name| shorten(name)).collect();
            let more = if names.len() > shown.len() { ", …" } else { "" };
            shown.join(", ") + more
        }
    }
}

/// An image outside the store.
#[derive(Debug)]
pub(super) struct Opened {
    /// The configuration's digest: the image's id.
    pub(super) id: Digest,
    /// The configuration, as stored.
    pub(super) config_bytes: Vec<u8>,
    /// The configuration, read.
    pub(super) config: Config,
    /// Digests of the manifest and of the indexes that led to it, outermost first.
    pub(super) digests: Vec<Digest>,
    /// Bottom layer first.
    pub(super) layers: Vec<LayerBlob>,
}

/// Opens an image.
pub(super) fn open(source: &Source) -> Result<Opened, OpenError> {
    match source {
        Source::OciLayout { dir, tag } => layout::open(dir, tag.as_deref()),
        Source::DockerArchive { file, image } => archive::open(file, image.as_deref()),
    }
}

/// Reads the configuration and checks that it is for this machine and has as many layers as the manifest.
fn read_config(bytes: &[u8], layers: usize) -> Result<Config, OpenError> {
    let what = || "the image's configuration".to_owned();
    let config: Config =
        serde_json::from_slice(bytes).map_err(|source| OpenError::Json { what: what(), source })?;
    let wrong_os = !matches!(config.os.as_str(), "" | "linux");
    if wrong_os || !(config.architecture.is_empty() || config.architecture == host_architecture()) {
        let platform = format!("{}/{}", config.os, config.architecture);
        return Err(OpenError::Platform { available: vec![platform] });
    }
    if layers > MAX_LAYERS {
        return Err(OpenError::TooManyLayers { layers });
    }
    let diff_ids = config.rootfs.diff_ids.len();
    if layers != diff_ids {
        return Err(OpenError::LayerCount { layers, diff_ids });
    }
    Ok(config)
}

fn check_layer_size(name: &dyn std::fmt::Display, size: u64) -> Result<(), OpenError> {
    if size > MAX_LAYER_SIZE {
        return Err(OpenError::TooLarge { what: format!("the layer {name}"), size, limit: MAX_LAYER_SIZE });
    }
    Ok(())
}
