//! OCI image layouts (image-spec, image-layout.md). Blobs are opened beneath the layout's directory without following
//! symbolic links, so that no layout can point at other files of the machine.

use super::super::blob::LayerBlob;
use super::super::digest::Digest;
use super::super::document::{Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, MAX_TOP, Role, role};
use super::{OpenError, Opened, check_layer_size, read_config};
use magikvm_proto::limits::MAX_LAYERS;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const MAX_NESTING: usize = 4;
const MAX_MARKER: u64 = 4096;

#[derive(serde::Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// Opens one image of a layout.
pub(super) fn open(dir: &Path, tag: Option<&str>) -> Result<Opened, OpenError> {
    let layout = Layout::open(dir)?;
    let index: Document = layout.document(&["index.json"], MAX_TOP)?;
    let top = choose(index.manifests.unwrap_or_default(), tag)?;
    let mut digests = Vec::new();
    let manifest = layout.manifest(top, &mut digests)?;
    let what = || "the image's manifest".to_owned();
    let missing = |problem| OpenError::Document { what: what(), problem };
    let config = manifest.config.ok_or_else(|| missing("it has no configuration"))?;
    let layers = manifest.layers.unwrap_or_default();
    if layers.len() > MAX_LAYERS {
        return Err(OpenError::TooManyLayers { layers: layers.len() });
    }
    if role(&config.media_type) != Some(Role::Config) {
        return Err(wrong_type("the image's configuration", &config));
    }
    let config_bytes = layout.blob_bytes(&config, MAX_CONFIG, "the image's configuration")?;
    let read = read_config(&config_bytes, layers.len())?;
    let layers = layers
        .iter()
        .zip(&read.rootfs.diff_ids)
        .map(|(layer, diff_id)| layout.layer(layer, *diff_id))
        .collect::<Result<_, _>>()?;
    Ok(Opened { id: config.digest, config_bytes, config: read, digests, layers })
}

struct Layout {
    dir: PathBuf,
    fd: OwnedFd,
}

impl Layout {
    fn open(dir: &Path) -> Result<Self, OpenError> {
        let fd = File::open(dir).map_err(|source| OpenError::Read { path: dir.to_owned(), source })?;
        let layout = Self { dir: dir.to_owned(), fd: fd.into() };
        let not_a_layout = || OpenError::NotALayout { dir: dir.to_owned() };
        let marker: Marker = layout.document(&["oci-layout"], MAX_MARKER).map_err(|_| not_a_layout())?;
        if marker.version == "1.0.0" { Ok(layout) } else { Err(not_a_layout()) }
    }

    /// Opens a regular file in the layout, no component a symbolic link. Returns it with its length.
    fn file(&self, components: &[&str]) -> Result<(File, u64), OpenError> {
        let path = components.iter().fold(self.dir.clone(), |path, component| path.join(component));
        let failed = |source: std::io::Error| OpenError::Read { path: path.clone(), source };
        let mut at: Option<OwnedFd> = None;
        for (index, component) in components.iter().enumerate() {
            let last = index + 1 == components.len();
            // Non-blocking: opening a named pipe must not hang.
            let kind = if last { OFlag::O_NONBLOCK } else { OFlag::O_DIRECTORY };
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | kind;
            let parent = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let next =
                openat(parent, *component, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
            at = Some(next);
        }
        let Some(fd) = at else { return Err(OpenError::NotAFile { path }) };
        let file = File::from(fd);
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(OpenError::NotAFile { path }) }
    }

    fn bytes(&self, components: &[&str], limit: u64, what: &str) -> Result<Vec<u8>, OpenError> {
        let (file, size) = self.file(components)?;
        if size > limit {
            return Err(OpenError::TooLarge { what: what.to_owned(), size, limit });
        }
        let mut bytes = Vec::new();
        // The file may grow while it is read.
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|source| OpenError::Read { path: self.dir.join(components.join("/")), source })?;
        Ok(bytes)
    }

    fn document<T: DeserializeOwned>(&self, components: &[&str], limit: u64) -> Result<T, OpenError> {
        let what = components.join("/");
        let bytes = self.bytes(components, limit, &what)?;
        serde_json::from_slice(&bytes).map_err(|source| OpenError::Json { what, source })
    }

    /// A small blob, with its size and digest checked.
    fn blob_bytes(&self, descriptor: &Descriptor, limit: u64, what: &str) -> Result<Vec<u8>, OpenError> {
        if descriptor.size > limit {
            return Err(OpenError::TooLarge { what: what.to_owned(), size: descriptor.size, limit });
        }
        let bytes = self.bytes(&["blobs", "sha256", &descriptor.digest.hex()], limit, what)?;
        let (digest, found) = (descriptor.digest, bytes.len() as u64);
        if found != descriptor.size {
            return Err(OpenError::Size { digest, expected: descriptor.size, found });
        }
        match Digest::of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(OpenError::Digest { expected: digest, found }),
        }
    }

    fn layer(&self, descriptor: &Descriptor, diff_id: Digest) -> Result<LayerBlob, OpenError> {
        let digest = descriptor.digest;
        let Some(Role::Layer(compression)) = role(&descriptor.media_type) else {
            return Err(wrong_type(&format!("the layer {digest}"), descriptor));
        };
        check_layer_size(&digest, descriptor.size)?;
        let (file, found) = self.file(&["blobs", "sha256", &digest.hex()])?;
        if found != descriptor.size {
            return Err(OpenError::Size { digest, expected: descriptor.size, found });
        }
        Ok(LayerBlob {
            file: Arc::new(file),
            offset: 0,
            length: found,
            digest: Some(digest),
            compression,
            diff_id,
        })
    }

    /// Follows indexes down to the manifest for this machine.
    fn manifest(&self, mut descriptor: Descriptor, digests: &mut Vec<Digest>) -> Result<Document, OpenError> {
        for _ in 0..MAX_NESTING {
            digests.push(descriptor.digest);
            let what = format!("the manifest {}", descriptor.digest);
            let role = role(&descriptor.media_type);
            if !matches!(role, Some(Role::Index | Role::Manifest)) {
                return Err(wrong_type(&what, &descriptor));
            }
            let bytes = self.blob_bytes(&descriptor, MAX_MANIFEST, &what)?;
            let document: Document = serde_json::from_slice(&bytes)
                .map_err(|source| OpenError::Json { what: what.clone(), source })?;
            check(&document, &descriptor, role == Some(Role::Index))
                .map_err(|problem| OpenError::Document { what, problem })?;
            if role == Some(Role::Manifest) {
                return Ok(document);
            }
            descriptor = for_this_machine(document.manifests.unwrap_or_default())?;
        }
        Err(OpenError::Nesting { limit: MAX_NESTING })
    }
}

/// A document must be of the type its descriptor says, or two readers could see two images in it.
fn check(document: &Document, descriptor: &Descriptor, is_index: bool) -> Result<(), &'static str> {
    if document.schema_version != Some(2) {
        return Err("its schemaVersion is not 2");
    }
    if document.media_type.as_ref().is_some_and(|media_type| *media_type != descriptor.media_type) {
        return Err("its mediaType is not the one of its descriptor");
    }
    match (is_index, document.manifests.is_some(), document.config.is_some() || document.layers.is_some()) {
        (true, true, false) | (false, false, true) => Ok(()),
        _ => Err("it is not what its descriptor says: index or manifest"),
    }
}

fn wrong_type(what: &str, descriptor: &Descriptor) -> OpenError {
    OpenError::MediaType { what: what.to_owned(), media_type: super::shorten(&descriptor.media_type) }
}

fn name(descriptor: &Descriptor) -> Option<&str> {
    [REF_NAME, CONTAINERD_NAME].iter().find_map(|key| descriptor.annotations.get(*key)).map(String::as_str)
}

/// The image that is meant: by its name, or the only one there is.
fn choose(manifests: Vec<Descriptor>, tag: Option<&str>) -> Result<Descriptor, OpenError> {
    let available: BTreeSet<String> = manifests.iter().filter_map(name).map(str::to_owned).collect();
    let available: Vec<String> = available.into_iter().collect();
    let named = |descriptor: &Descriptor, wanted: &str| {
        [REF_NAME, CONTAINERD_NAME]
            .iter()
            .any(|key| descriptor.annotations.get(*key).is_some_and(|name| name == wanted))
    };
    let mut found: Vec<Descriptor> = match tag {
        Some(tag) => manifests.into_iter().filter(|descriptor| named(descriptor, tag)).collect(),
        None => manifests,
    };
    found.dedup_by(|a, b| a.digest == b.digest);
    match found.len() {
        0 => Err(OpenError::NoSuchImage { wanted: tag.unwrap_or("").to_owned(), available }),
        1 => Ok(found.remove(0)),
        // Several under one name (or none): one for each platform, or a choice that nobody made.
        _ if available.len() <= 1 && found.iter().all(|descriptor| descriptor.platform.is_some()) => {
            for_this_machine(found)
        }
        _ => Err(OpenError::Ambiguous { available }),
    }
}

/// The first entry for this machine's platform; one without a platform fits when there is nothing else.
fn for_this_machine(mut manifests: Vec<Descriptor>) -> Result<Descriptor, OpenError> {
    if let [only] = manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(manifests.remove(0));
    }
    let fits = |descriptor: &Descriptor| {
        descriptor.platform.as_ref().is_some_and(super::super::document::Platform::fits)
    };
    let found = manifests.iter().position(fits);
    match found {
        Some(found) => Ok(manifests.swap_remove(found)),
        None => {
            let available = manifests
                .iter()
                .filter_map(|descriptor| Some(descriptor.platform.as_ref()?.to_string()))
                .collect();
            Err(OpenError::Platform { available })
        }
    }
}
