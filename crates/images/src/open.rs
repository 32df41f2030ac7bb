//! Opens images outside the store: finds their blobs, and checks them as far as that needs no unpacking. `layout` reads OCI image layouts,
//! `archive` reads files of `docker save`.

mod archive;
mod artifact;
mod layout;
mod walk;

pub(super) use walk::{Documents, walk};

use super::cancel::{Cancel, Stopped};
use super::digest::{Digest, shorten};
use super::document::{Compression, Config, Platform};
use super::platform::Wanted;
use super::reference::Reference;
use super::registry::RegistryError;
use super::source::Source;
use super::tar::TarError;
use archive::Archive;
use magikvm_proto::raised;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why an image outside the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// A blob that is a directory, device or the like.
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    /// A document is larger than its limit.
    #[error("{what} has {size} bytes; the limit is {limit}")]
    TooLarge { what: String, size: u64, limit: u64 },
    /// The size of a blob differs from its descriptor.
    #[error("the blob {digest} has {found} bytes, but its descriptor says {expected}")]
    Size { digest: Digest, expected: u64, found: u64 },
    /// The content of a document differs from its digest.
    #[error("the blob {expected} has the digest {found}")]
    Digest { expected: Digest, found: Digest },
    /// A document is not readable.
    #[error("{what} is not valid")]
    Json {
        what: String,
        #[source]
        source: serde_json::Error,
    },
    /// A document contradicts itself or its descriptor.
    #[error("{what}: {problem}")]
    Document { what: String, problem: &'static str },
    /// The media type does not belong to a container image.
    #[error("{what} has the media type {media_type:?}, which magikvm does not support")]
    MediaType { what: String, media_type: String },
    /// An artifact that cannot become files.
    #[error("it is an artifact of the type {kind:?}, and {problem}")]
    Artifact { kind: String, problem: String },
    /// A manifest of docker's first schema, whose layers have no digests that can be checked against a configuration.
    #[error("the image has a manifest of docker's schema 1, which was given up in 2017")]
    Schema1,
    /// Indexes are nested too deeply.
    #[error("the image's indexes are nested more than {limit} deep")]
    Nesting { limit: usize },
    /// The directory or archive is not a layout.
    #[error("{} is not an OCI image layout (it has no valid \"oci-layout\" file)", path.display())]
    NotALayout { path: PathBuf },
    /// There is no image with this name.
    #[error("there is no image {wanted:?} in it; there is {}", list(available))]
    NoSuchImage { wanted: String, available: Vec<String> },
    /// There are several images and the source chooses none.
    #[error("it holds several images; choose one by adding \":NAME\" to the source: {}", list(available))]
    Ambiguous { available: Vec<String> },
    /// The index leads to too many documents.
    #[error("more than {limit} documents of the image's index were read, and none is for the platform")]
    TooManyDocuments { limit: usize },
    /// There is no image for the platform.
    #[error("the image is for {}, not for {wanted}", list(available))]
    Platform { available: Vec<String>, wanted: String },
    /// The index lists several images without platforms.
    #[error("the image's index names no platforms, so there is none for {wanted} in it")]
    NoPlatforms { wanted: String },
    #[error("the image has {layers} layers; the limit is {limit} ({remedy})")]
    TooManyLayers { layers: usize, limit: usize, remedy: String },
    #[error("the layer {name} has {size} bytes; the limit is {limit} ({remedy})")]
    LargeLayer { name: String, size: u64, limit: u64, remedy: String },
    /// Manifest and configuration disagree.
    #[error("the image has {layers} layers, but its configuration lists {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("{} is not a readable archive", path.display())]
    Archive {
        path: PathBuf,
        #[source]
        source: TarError,
    },
    /// The archive is compressed in an unsupported format.
    #[error("{} is compressed as a whole with {format}; decompress it first: {command}", path.display())]
    Compressed { path: PathBuf, format: &'static str, command: &'static str },
    /// The compressed archive could not be unpacked.
    #[error("{} cannot be decompressed", path.display())]
    Decompress {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The archive lacks a file that its manifest names.
    #[error("the archive has no file {name:?}")]
    Missing { name: String },
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl OpenError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Platform { .. } => Some(
                "An image for another platform is pulled or imported with `--platform OS/ARCHITECTURE[/VARIANT]`; it does not run on this host."
                    .to_owned(),
            ),
            Self::Schema1 => Some(
                "Pull it with a tool that reads the old form, and push it again, for example with `skopeo copy --format v2s2 docker://OLD docker://NEW`."
                    .to_owned(),
            ),
            _ => None,
        }
    }
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

/// An image outside the store, as its documents describe it.
#[derive(Debug)]
pub(super) struct Opened {
    /// The configuration's digest: the image's id.
    pub(super) id: Digest,
    pub(super) config_bytes: Vec<u8>,
    pub(super) config_type: String,
    pub(super) config: Config,
    /// Digests of the manifest and of the indexes that led to it, outermost first.
    pub(super) digests: Vec<Digest>,
    /// The platform, from the index that led to it or from its configuration; empty where neither states it.
    pub(super) platform: Platform,
    /// Media type and bytes of the manifest; docker archives have none.
    pub(super) manifest: Option<(String, Vec<u8>)>,
    pub(super) layers: Vec<Layer>,
    /// Whether it is no container image: its files can only be a volume.
    pub(super) is_artifact: bool,
}

/// What a layer does to the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LayerContent {
    /// A layer of an image: an archive whose unpacked digest the configuration has.
    Changes,
    /// An archive of an artifact, of which only the stored digest is known.
    Archive,
    /// A file of this path: the stored bytes as they are.
    File(String),
}

/// One layer, as the manifest describes it.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Digest of the stored bytes; archives of `docker save` have none.
    pub(super) digest: Option<Digest>,
    pub(super) size: u64,
    pub(super) compression: Compression,
    pub(super) media_type: String,
    /// Of its unpacked bytes; the stored ones of an artifact.
    pub(super) diff_id: Digest,
    pub(super) content: LayerContent,
}

/// Where a layer's stored bytes are: a whole file, or a part of an archive.
#[derive(Debug, Clone)]
pub(super) struct LayerPlace {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
}

/// An image in files of the host, with the positions of its layers.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) opened: Opened,
    pub(super) parts: Vec<LayerPlace>,
    pub(super) names: OwnNames,
}

/// What an image in files is called there.
#[derive(Debug, Default)]
pub(super) struct OwnNames {
    pub(super) names: Vec<Reference>,
    /// Other marks, which are not whole names: tags of a layout, or text that is not a name.
    pub(super) marks: Vec<String>,
}

impl OwnNames {
    fn of(texts: impl IntoIterator<Item = String>, is_name: impl Fn(&str) -> bool) -> Self {
        let mut own = Self::default();
        for text in texts {
            match text.parse::<Reference>() {
                Ok(name) if is_name(&text) && !own.names.contains(&name) => own.names.push(name),
                Ok(_) if is_name(&text) => {}
                _ => own.marks.push(text),
            }
        }
        own
    }
}

/// Opens an image. Archives that are compressed as a whole are unpacked into `scratch` first.
pub(super) fn open(
    source: &Source,
    wanted: &Wanted,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<Local, OpenError> {
    match source {
        Source::OciLayout { dir, tag } => layout::open(dir, tag.as_deref(), wanted),
        Source::OciArchive { file, tag } => {
            layout::open_archive(&Archive::open(file, scratch, cancel)?, tag.as_deref(), wanted)
        }
        Source::DockerArchive { file, image } => {
            archive::open(&Archive::open(file, scratch, cancel)?, image.as_deref(), wanted)
        }
    }
}

fn check_layer_size(name: &dyn std::fmt::Display, size: u64) -> Result<(), OpenError> {
    let limit = raised::in_force().layer_bytes;
    if size > limit {
        let remedy = raised::remedy("layer-mib");
        return Err(OpenError::LargeLayer { name: name.to_string(), size, limit, remedy });
    }
    Ok(())
}

fn check_layers(layers: usize) -> Result<(), OpenError> {
    let limit = raised::in_force().layers;
    if layers > limit {
        return Err(OpenError::TooManyLayers { layers, limit, remedy: raised::remedy("layers") });
    }
    Ok(())
}
