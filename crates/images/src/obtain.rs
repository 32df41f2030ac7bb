//! Imports images into the store: the layers stream in, and are verified and merged into the root file system at the same time. The image
//! is added to the index when it is complete.

use super::arrival::Arrival;
use super::blob::LayerBlob;
use super::blobs::HeldBlob;
use super::cancel::Cancel;
use super::digest::{Digest, shorten};
use super::document::{MANIFEST_TYPE, MAX_CONFIG};
use super::erofs::RootfsCompression;
use super::error::ImageError;
use super::index::{ImageBlob, ImageEntry, ImageRecord, Named, RootfsEntry};
use super::lock::{BuildLock, Hold};
use super::open::{self, LayerContent, Local, OpenError, Opened};
use super::platform::Wanted;
use super::progress::{LayerInfo, Progress};
use super::reference::Reference;
use super::rootfs::{self, BuildError};
use super::source::Source;
use super::store::{ImageStore, read_capped};
use super::transfer::{Failed, Fetch, Transfer, TransferError};
use magikvm_platform::atomic::{self, Staged};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

/// Options of an import.
#[derive(Debug, Clone)]
pub struct BringOptions {
    pub platform: Wanted,
    /// Cancels the import, on request or at a deadline.
    pub cancel: Cancel,
    /// The compression of the root file system; `None`: keep the existing one, or none for a new image.
    pub compression: Option<RootfsCompression>,
}

impl Default for BringOptions {
    /// For this host's platform, without a deadline.
    fn default() -> Self {
        Self { platform: Wanted::host(), cancel: Cancel::new(), compression: None }
    }
}

/// An image being imported.
pub(super) struct Bringing<'a> {
    pub(super) opened: Opened,
    pub(super) fetch: &'a dyn Fetch,
    pub(super) source_name: String,
    pub(super) name: &'a Reference,
    pub(super) key: Option<Digest>,
    pub(super) options: &'a BringOptions,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
}

/// An image in files, found and checked as far as that needs no unpacking.
#[derive(Debug)]
pub struct ImportSource {
    source_name: String,
    local: Local,
}

impl ImportSource {
    /// The names that the files give the image: `RepoTags` of `docker save`, names in the annotations of a layout. At least one.
    pub fn names(&self) -> Result<&[Reference], ImageError> {
        match self.local.names.names.as_slice() {
            [] => Err(ImageError::Nameless {
                source_name: self.source_name.clone(),
                marks: self.local.names.marks.clone(),
            }),
            names => Ok(names),
        }
    }
}

impl ImageStore {
    /// Imports an image from files under a name, which may belong to another image so far.
    pub fn import(
        &self,
        source: &Source,
        name: &Reference,
        options: &BringOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageRecord, ImageError> {
        self.import_found(self.find_source(source, options)?, name, options, progress)
    }

    /// Finds the image of a source that [`Self::import_found`] imports.
    pub fn find_source(&self, source: &Source, options: &BringOptions) -> Result<ImportSource, ImageError> {
        self.tidy()?;
        let source_name = source.to_string();
        let local = open::open(source, &options.platform, &self.dir("blobs"), &options.cancel);
        let local = local.map_err(|error| match error {
            OpenError::Stopped(source) => ImageError::Stopped { source_name: source_name.clone(), source },
            error => ImageError::Open { source_name: source_name.clone(), source: Box::new(error) },
        })?;
        Ok(ImportSource { source_name, local })
    }

    /// Imports a found image under a name, which may belong to another image so far.
    pub fn import_found(
        &self,
        found: ImportSource,
        name: &Reference,
        options: &BringOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageRecord, ImageError> {
        let ImportSource { source_name, local } = found;
        if name.digest().is_some_and(|pinned| !local.opened.digests.contains(&pinned)) {
            return Err(ImageError::Pinned {
                name: Box::new(name.clone()),
                source_name,
                found: local.opened.digests,
            });
        }
        let opened = local.opened;
        self.bring(&Bringing { opened, fetch: &local.parts, source_name, name, key: None, options, progress })
    }

    /// Imports an image whose documents are present and checked.
    pub(super) fn bring(&self, bringing: &Bringing<'_>) -> Result<ImageRecord, ImageError> {
        let Bringing { opened, progress, .. } = bringing;
        let layers = opened.layers.iter();
        progress(Progress::Opened(
            layers.map(|layer| LayerInfo { digest: layer.digest, size_bytes: layer.size }).collect(),
        ));
        let compression = self.compression(bringing)?;
        let key = rootfs::key_of(&opened.layers, compression);
        let brought = loop {
            let brought = self.bring_locked(bringing, key, compression);
            match &brought {
                // The layers that are complete are kept. Every turn has one mirror less.
                Err(error) if bringing.fetch.take_passed_over() && !error.is_stopped() => {
                    progress(Progress::PassedOver { reason: magikvm_platform::text::chain(error) });
                }
                _ => break brought,
            }
        };
        if let Err(error) = &brought
            && !error.may_pass()
        {
            // The fetched data is of no use to another attempt. If it cannot be removed now, a later sweep removes it; this error says
            // more.
            drop(self.sweep());
        }
        brought
    }

    fn bring_locked(
        &self,
        bringing: &Bringing<'_>,
        key: Digest,
        compression: RootfsCompression,
    ) -> Result<ImageRecord, ImageError> {
        let Bringing { progress, options, .. } = bringing;
        // Held until the index knows the file, so that nobody else builds it and no sweep takes it for a leftover.
        let lock =
            BuildLock::wait(self.build_lock(&key), &mut || progress(Progress::Waiting), &options.cancel)?;
        let _build = lock.map_err(|stopped| bringing.stopped(stopped))?;
        let (rootfs, blobs) = self.layers(bringing, key, compression)?;
        self.record(bringing, rootfs, &blobs)
    }

    /// The requested form, or else the existing one.
    fn compression(&self, bringing: &Bringing<'_>) -> Result<RootfsCompression, ImageError> {
        let Bringing { opened, options, source_name, .. } = bringing;
        let _lock = self.lock_for(Hold::Shared, &options.cancel, source_name)?;
        let known = self.read_index()?.images.get(&opened.id).map(|image| image.rootfs.compression);
        Ok(options.compression.or(known).unwrap_or_default())
    }

    /// Fetches the layers, and meanwhile builds the root file system of them unless it exists.
    fn layers(
        &self,
        bringing: &Bringing<'_>,
        key: Digest,
        compression: RootfsCompression,
    ) -> Result<(RootfsEntry, Vec<HeldBlob>), ImageError> {
        let Bringing { opened, progress, .. } = bringing;
        let cancel = bringing.options.cancel.part();
        let arrivals: Vec<_> = opened.layers.iter().map(|_| Arc::new(Arrival::new(cancel.clone()))).collect();
        let blobs = self.blobs();
        let transfer = Transfer {
            blobs: &blobs,
            fetch: bringing.fetch,
            layers: &opened.layers,
            arrivals: &arrivals,
            cancel: &cancel,
            progress,
        };
        let known = self.built(&key)?;
        let (built, brought) = std::thread::scope(|scope| {
            let brought = scope.spawn(|| transfer.run());
            let built = match known {
                Some(rootfs) => {
                    progress(Progress::Reused);
                    // The existing file was built of layers that unpack to the announced digests; whether these layers do is not known
                    // yet.
                    self.check_layers(bringing, &arrivals).map(|()| (rootfs, None))
                }
                None => self.build(bringing, key, compression, &arrivals),
            };
            // Whether somebody sent wrong bytes is known only when all of them are here.
            if built.is_err() && !bringing.fetch.has_other_places() {
                cancel.cancel();
            }
            (built, brought.join())
        });
        let brought = brought.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A cancellation takes precedence, then a layer that could not be fetched, then a layer that is invalid.
        bringing.options.cancel.check().map_err(|stopped| bringing.stopped(stopped))?;
        let stopped = |failed: &Failed| matches!(failed.1, TransferError::Stopped(_));
        match (built, brought) {
            (_, Err(failed)) if !stopped(&failed) => Err(bringing.failed(failed)),
            (Err(error), _) => Err(error),
            (_, Err(failed)) => Err(bringing.failed(failed)),
            (Ok((rootfs, staged)), Ok(held)) => {
                // Only now every layer is known to match its announcement.
                if let Some(staged) = staged {
                    progress(Progress::Finishing);
                    // The VMM, which may run as a private user, must read it; the directory keeps everybody else out.
                    staged.commit(0o644)?;
                }
                Ok((rootfs, held))
            }
        }
    }

    /// Unpacks the layers that belong to no image in the store, and checks their content.
    fn check_layers(&self, bringing: &Bringing<'_>, arrivals: &[Arc<Arrival>]) -> Result<(), ImageError> {
        let known: BTreeSet<(Digest, Digest)> = {
            let _lock = self.lock(Hold::Shared)?;
            self.read_index()?.layers().collect()
        };
        let of = arrivals.len();
        for (number, (layer, blob)) in (1..).zip(bringing.opened.layers.iter().zip(bringing.blobs(arrivals)))
        {
            if layer.digest.is_none_or(|digest| !known.contains(&(digest, layer.diff_id))) {
                rootfs::check_layer(number, of, blob).map_err(|error| bringing.not_built(error))?;
            }
        }
        Ok(())
    }

    fn build(
        &self,
        bringing: &Bringing<'_>,
        key: Digest,
        compression: RootfsCompression,
        arrivals: &[Arc<Arrival>],
    ) -> Result<(RootfsEntry, Option<Staged>), ImageError> {
        let layers = bringing.blobs(arrivals);
        let mut staged = Staged::new(&self.rootfs_path(&key))?;
        let tails = atomic::scratch(&self.dir("rootfs"), rootfs::TAILS_IN_MEMORY);
        let of = layers.len();
        let mut report = |number: usize, done_bytes: u64| {
            let total_bytes = layers[number - 1].length;
            (bringing.progress)(Progress::Building { number, of, done_bytes, total_bytes });
        };
        let cancel = &bringing.options.cancel;
        let built = rootfs::build(&layers, &key, compression, staged.file(), tails, cancel, &mut report)
            .map_err(|error| bringing.not_built(error))?;
        Ok((RootfsEntry { key, size_bytes: built.size, sha256: built.sha256, compression }, Some(staged)))
    }

    /// Gives the image its name in the index. An image that loses its last name is removed, or stays without a name while it is used.
    fn record(
        &self,
        bringing: &Bringing<'_>,
        rootfs: RootfsEntry,
        held: &[HeldBlob],
    ) -> Result<ImageRecord, ImageError> {
        let opened = &bringing.opened;
        let blobs: Vec<ImageBlob> = opened
            .layers
            .iter()
            .zip(held)
            .map(|(layer, held)| ImageBlob {
                digest: held.digest,
                size_bytes: held.size,
                media_type: layer.media_type.clone(),
                diff_id: (layer.content != LayerContent::Archive).then_some(layer.diff_id),
            })
            .collect();
        let (media_type, manifest) = match &opened.manifest {
            Some((media_type, bytes)) => (media_type.clone(), bytes.clone()),
            None => (MANIFEST_TYPE.to_owned(), made_manifest(opened, &blobs)),
        };
        let digest = Digest::of(&manifest);
        let size_bytes = manifest.len() as u64;
        let _held_manifest = self.blobs().put(&digest, &manifest)?;
        let manifest = ImageBlob { digest, size_bytes, media_type, diff_id: None };

        let _lock = self.lock_for(Hold::Alone, &bringing.options.cancel, &bringing.source_name)?;
        let mut index = self.read_index()?;
        let id = opened.id;
        // Users of the image hold the existing file. What cannot be read is replaced.
        let config = self.config_path(&id);
        if !matches!(read_capped(&config, MAX_CONFIG), Ok(Some(bytes)) if bytes == opened.config_bytes) {
            atomic::write(&config, &opened.config_bytes, 0o600)?;
        }
        let known = index.images.get(&id).map(|image| image.digests.clone()).unwrap_or_default();
        let entry = ImageEntry {
            digests: known.into_iter().chain(opened.digests.iter().copied()).collect(),
            created: opened.config.created.as_deref().map(shorten),
            os: opened.platform.os().to_owned(),
            architecture: opened.platform.architecture().to_owned(),
            variant: opened.platform.variant().map(str::to_owned),
            imported_unix_secs: unix_now(),
            layers: opened.layers.len(),
            manifest: Some(manifest),
            blobs,
            rootfs,
            is_artifact: opened.is_artifact,
        };
        let replaced = index.images.insert(id, entry).map(|image| image.rootfs.key);
        index.names.insert(bringing.name.clone(), Named { id, key: bringing.key });
        self.write_index(&index)?;
        self.drop_nameless(&mut index)?;
        if let Some(former) = replaced.filter(|former| *former != rootfs.key) {
            self.drop_rootfs(&index, &former)?;
        }
        index.record(&id).ok_or_else(|| ImageError::UnknownId { id: id.to_string() })
    }
}

impl Bringing<'_> {
    /// The layers, present or arriving.
    fn blobs(&self, arrivals: &[Arc<Arrival>]) -> Vec<LayerBlob> {
        let both = self.opened.layers.iter().zip(arrivals);
        both.map(|(layer, arrival)| LayerBlob {
            arrival: Arc::clone(arrival),
            length: layer.size,
            compression: layer.compression,
            diff_id: layer.diff_id,
            content: layer.content.clone(),
        })
        .collect()
    }

    fn not_built(&self, error: BuildError) -> ImageError {
        ImageError::Build { source_name: self.source_name.clone(), source: Box::new(error) }
    }

    fn stopped(&self, source: super::cancel::Stopped) -> ImageError {
        ImageError::Stopped { source_name: self.source_name.clone(), source }
    }

    fn failed(&self, (number, error): Failed) -> ImageError {
        let layer = &self.opened.layers[number];
        let digest = layer.digest.map_or_else(String::new, |digest| format!(" ({digest})"));
        ImageError::Transfer {
            layer: format!("layer {} of {}{digest}", number + 1, self.opened.layers.len()),
            source_name: self.source_name.clone(),
            source: Box::new(error),
        }
    }
}

/// The manifest of an image that has none (OCI image-spec, manifest.md).
fn made_manifest(opened: &Opened, blobs: &[ImageBlob]) -> Vec<u8> {
    let descriptor = |media_type: &str, digest: &Digest, size: u64| serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size });
    let layers: Vec<_> =
        blobs.iter().map(|blob| descriptor(&blob.media_type, &blob.digest, blob.size_bytes)).collect();
    let config = descriptor(&opened.config_type, &opened.id, opened.config_bytes.len() as u64);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers,
    });
    manifest.to_string().into_bytes()
}

pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
