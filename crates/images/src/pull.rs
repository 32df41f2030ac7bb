//! Pulls an image from its registry into the store, if the store does not have it or must check whether its name still means the same
//! image. The policy is checked before a layer is fetched.

use super::digest::Digest;
use super::document::{Descriptor, Role, role};
use super::error::{ImageError, NotUsable};
use super::index::{ImageRecord, Index, Named};
use super::lock::Hold;
use super::obtain::{BringOptions, Bringing};
use super::open::{self, Documents, Layer, OpenError};
use super::platform::Wanted;
use super::policy::Policy;
use super::progress::{LayerState, Progress};
use super::reference::Reference;
use super::registry::{Credentials, DownloadEvent, RegistryConfig, RegistryError, Repository, Which};
use super::signature::{self, Keys, Referrer, SignatureSource};
use super::store::ImageStore;
use super::transfer::{Fetch, Sink, TransferError};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// When the registry is asked (core/v1 `Container.imagePullPolicy`). It is never asked for a pinned digest that is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Every time; layers in the store are not fetched again. The default of a manifest for `:latest` and for no tag.
    #[default]
    Always,
    /// Only when the image is not in the store. The default of a manifest for every other tag and for digests.
    IfNotPresent,
    /// Never: the image must be in the store.
    Never,
}

/// The sources of images, the logins, and the policy.
#[derive(Debug)]
pub struct PullSources {
    /// `registries.toml`.
    pub registries: RegistryConfig,
    pub credentials: Credentials,
    /// `policy.toml`.
    pub policy: Policy,
}

impl PullSources {
    /// The configuration in this directory, with the logins of this user.
    pub fn load(registries: &Path, policy: &Path) -> Result<Self, ImageError> {
        Ok(Self {
            registries: RegistryConfig::load(registries)?,
            credentials: Credentials::of_environment(),
            policy: Policy::load(policy)?,
        })
    }
}

impl ImageStore {
    /// Pulls the image of a name into the store, if the policy allows it.
    pub fn pull(
        &self,
        name: &Reference,
        sources: &PullSources,
        when: PullPolicy,
        options: &BringOptions,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<ImageRecord, ImageError> {
        let keys = sources.policy.requirement(name).keys(name)?;
        if when != PullPolicy::Always || name.digest().is_some() {
            let here = {
                let _lock = self.lock_for(Hold::Shared, &options.cancel, &name.familiar())?;
                let index = self.read_index()?;
                let usable = self.usable(&index, name, keys, options, Parts::All);
                let here = usable.and_then(|named| index.record(&named.id));
                if here.is_none() && when == PullPolicy::Never {
                    return Err(unusable(&index, name, keys, options));
                }
                here
            };
            if let Some(record) = here {
                return Ok(record);
            }
        }
        self.tidy()?;
        progress(Progress::Resolving);
        let failed = |source: RegistryError| {
            let here = source.is_unreachable() && self.is_usable(name, keys, options);
            ImageError::Registry { name: Box::new(name.clone()), here, source: Box::new(source) }
        };
        let repository = Repository::open(&sources.registries, &sources.credentials, name, &options.cancel)
            .map_err(failed)?;
        let which = match name.digest() {
            Some(digest) => Which::Digest(digest),
            None => Which::Tag(name.tag().unwrap_or("latest")),
        };
        let top = repository.manifest(which).map_err(failed)?;
        progress(Progress::Found { digest: top.digest, endpoint: top.endpoint.clone() });
        if let Some(record) = self.unchanged(name, &top.digest, keys, options)? {
            return Ok(record);
        }
        let descriptor = Descriptor::of(top.media_type, top.digest, top.bytes.len() as u64);
        let remote = Remote { repository, top: (top.digest, top.bytes) };
        let opened = open::walk(&remote, descriptor, &options.platform).map_err(|error| match error {
            OpenError::Registry(source) => failed(*source),
            error => ImageError::Open { source_name: name.familiar(), source: Box::new(error) },
        })?;
        let key = match keys {
            Some(keys) => {
                let verified = signature::verify(keys, name, &opened.digests, &remote.repository)
                    .map_err(|source| ImageError::Signature(Box::new(source)))?;
                progress(Progress::Verified(verified.key.digest()));
                Some(verified.key.digest())
            }
            None => None,
        };
        let source_name = name.familiar();
        self.bring(&Bringing { opened, fetch: &remote, source_name, name, key, options, progress })
    }

    /// The image of a name if it is in the store and the policy allows its use; an image that the policy rejects is an error.
    pub fn present(
        &self,
        name: &Reference,
        policy: &Policy,
        platform: &Wanted,
    ) -> Result<Option<ImageRecord>, ImageError> {
        let keys = policy.requirement(name).keys(name)?;
        let _lock = self.lock(Hold::Shared)?;
        let index = self.read_index()?;
        let usable = self.usable(&index, name, keys, &for_platform(platform), Parts::Rootfs);
        Ok(usable.and_then(|named| index.record(&named.id)))
    }

    /// Why [`present`](Self::present) has no result.
    pub fn absent(
        &self,
        name: &Reference,
        policy: &Policy,
        platform: &Wanted,
    ) -> Result<ImageError, ImageError> {
        let keys = policy.requirement(name).keys(name)?;
        let _lock = self.lock(Hold::Shared)?;
        Ok(unusable(&self.read_index()?, name, keys, &for_platform(platform)))
    }

    /// The present image of the name, if the registry's answer still means that image.
    fn unchanged(
        &self,
        name: &Reference,
        top: &Digest,
        keys: Option<&Keys>,
        options: &BringOptions,
    ) -> Result<Option<ImageRecord>, ImageError> {
        let _lock = self.lock_for(Hold::Shared, &options.cancel, &name.familiar())?;
        let index = self.read_index()?;
        let usable = self.usable(&index, name, keys, options, Parts::All);
        let same =
            |named: &Named| index.images.get(&named.id).is_some_and(|image| image.digests.contains(top));
        Ok(usable.filter(same).and_then(|named| index.record(&named.id)))
    }

    /// Whether a pod could use the image of a name that is in the store. Failures of the store are not told here.
    fn is_usable(&self, name: &Reference, keys: Option<&Keys>, options: &BringOptions) -> bool {
        let Ok(_lock) = self.lock_for(Hold::Shared, &options.cancel, &name.familiar()) else { return false };
        let usable = |index| self.usable(&index, name, keys, options, Parts::Rootfs).is_some();
        self.read_index().is_ok_and(usable)
    }

    /// The usable image of a name: for the platform, in the requested form, signed by one of the keys if required, and with these parts in
    /// the store.
    fn usable(
        &self,
        index: &Index,
        name: &Reference,
        keys: Option<&Keys>,
        options: &BringOptions,
        parts: Parts,
    ) -> Option<Named> {
        index.find_fitting(name, |named, image| {
            let form = options.compression.is_none_or(|wanted| image.rootfs.compression == wanted);
            let blobs = || image.manifest.is_some() && image.blobs().all(|part| self.blobs().has(part));
            options.platform.is_met_by(&image.platform())
                && is_signed(named, keys)
                && form
                && self.built_for(index, &named.id).is_some()
                && (parts == Parts::Rootfs || blobs())
        })
    }
}

fn for_platform(platform: &Wanted) -> BringOptions {
    BringOptions { platform: platform.clone(), ..BringOptions::default() }
}

/// The parts that must exist for an image to count as present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts {
    Rootfs,
    All,
}

/// Whether a signature by one of the keys, if required, was verified when the name was given.
fn is_signed(named: &Named, keys: Option<&Keys>) -> bool {
    keys.is_none_or(|keys| named.key.is_some_and(|key| keys.ids().any(|id| id.digest() == key)))
}

/// Why a name has no usable image.
fn unusable(index: &Index, name: &Reference, keys: Option<&Keys>, options: &BringOptions) -> ImageError {
    let found = index.find(name).and_then(|named| Some((named, index.images.get(&named.id)?)));
    let name = Box::new(name.clone());
    let Some((named, image)) = found else { return ImageError::NotHere { name } };
    let rootfs = image.rootfs.compression;
    let because = match options.compression {
        _ if !is_signed(&named, keys) => NotUsable::Unsigned,
        Some(wanted) if wanted != rootfs => NotUsable::Form { found: rootfs, wanted },
        _ if options.platform.is_met_by(&image.platform()) => NotUsable::Incomplete,
        _ => {
            let (found, wanted) = (image.platform().to_string(), options.platform.to_string());
            NotUsable::Platform { found, wanted }
        }
    };
    ImageError::NotUsable { name, because }
}

/// An image in a registry whose first document is known.
struct Remote {
    repository: Repository,
    top: (Digest, Vec<u8>),
}

impl Documents for Remote {
    fn document(&self, descriptor: &Descriptor, limit: u64, what: &str) -> Result<Vec<u8>, OpenError> {
        let Descriptor { digest, size, media_type, .. } = descriptor;
        if *size > limit {
            return Err(OpenError::TooLarge { what: what.to_owned(), size: *size, limit });
        }
        let bytes = match role(media_type) {
            _ if *digest == self.top.0 => Ok(self.top.1.clone()),
            Some(Role::Index | Role::Manifest) => {
                self.repository.manifest(Which::Digest(*digest)).map(|manifest| manifest.bytes)
            }
            _ => self.repository.blob(digest, *size, limit),
        };
        let bytes = bytes.map_err(|error| OpenError::Registry(Box::new(error)))?;
        match bytes.len() as u64 {
            found if found == *size => Ok(bytes),
            found => Err(OpenError::Size { digest: *digest, expected: *size, found }),
        }
    }
}

impl Fetch for Remote {
    fn fetch(
        &self,
        _number: usize,
        layer: &Layer,
        sink: &mut Sink<'_>,
        report: &(dyn Fn(LayerState) + Sync),
    ) -> Result<(), TransferError> {
        // Every layer of a registry's manifest has a digest.
        let digest = layer.digest.unwrap_or(layer.diff_id);
        let event = |event: DownloadEvent<'_>| {
            let reason = match event {
                DownloadEvent::Retrying { problem, have, wait } => {
                    format!("{problem}; {have} bytes are here, trying again in {} ms", wait.as_millis())
                }
                DownloadEvent::NextEndpoint { problem, endpoint } => format!("{problem}; asking {endpoint}"),
            };
            report(LayerState::Retrying { reason });
        };
        self.repository
            .download(&digest, layer.size, sink, &event)
            .map_err(|error| TransferError::Registry(Box::new(error)))
    }

    fn disown(&self, wanted: &Digest, found: &Digest) -> Option<TransferError> {
        self.repository.disown(wanted, found).map(|error| TransferError::Registry(Box::new(error)))
    }

    fn take_passed_over(&self) -> bool {
        self.repository.take_passed_over()
    }

    fn has_other_places(&self) -> bool {
        self.repository.has_mirrors()
    }
}

impl SignatureSource for Repository {
    type Error = RegistryError;

    fn tagged_manifest(&self, tag: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.manifest(Which::Tag(tag)) {
            Ok(manifest) => Ok(Some(manifest.bytes)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn referrers(&self, digest: &Digest) -> Result<Vec<Referrer>, RegistryError> {
        let listed = Repository::referrers(self, digest, None)?;
        Ok(listed
            .into_iter()
            .map(|Descriptor { digest, artifact_type, annotations, .. }| Referrer {
                digest,
                artifact_type,
                annotations,
            })
            .collect())
    }

    fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        Repository::manifest(self, Which::Digest(*digest)).map(|manifest| manifest.bytes)
    }

    fn blob(&self, digest: &Digest, size: u64, limit: u64) -> Result<Vec<u8>, RegistryError> {
        Repository::blob(self, digest, size, limit)
    }
}
