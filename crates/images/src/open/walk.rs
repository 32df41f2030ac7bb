//! From a descriptor down to one image's configuration and layers: indexes, manifest, configuration (OCI image-spec). It is the same for
//! layouts, archives and registries, which differ only in how a [`Documents`] reads bytes.

use super::super::document::{Config, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, Platform, Role, role};
use super::{Layer, OpenError, Opened, check_layer_size, shorten};

const MAX_NESTING: usize = 4;

/// The source of an image's documents.
pub(in super::super) trait Documents {
    /// A small blob of at most `limit` bytes, with its size and digest checked. `what` names it in errors.
    fn document(&self, descriptor: &Descriptor, limit: u64, what: &str) -> Result<Vec<u8>, OpenError>;
}

/// Follows a descriptor down to the image for a platform.
pub(in super::super) fn walk(
    documents: &dyn Documents,
    top: Descriptor,
    platform: &Platform,
) -> Result<Opened, OpenError> {
    let mut digests = Vec::new();
    let (bytes, descriptor) = manifest(documents, top, platform, &mut digests)?;
    let what = format!("the manifest {}", descriptor.digest);
    let document: Document =
        serde_json::from_slice(&bytes).map_err(|source| OpenError::Json { what: what.clone(), source })?;
    let config = document.config.ok_or(OpenError::Document {
        what,
        problem: "it has no configuration, so it is not a container image",
    })?;
    let layers = document.layers.unwrap_or_default();
    super::check_layers(layers.len())?;
    if role(&config.media_type) != Some(Role::Config) {
        return Err(wrong_type("the image's configuration", &config));
    }
    let config_bytes = documents.document(&config, MAX_CONFIG, "the image's configuration")?;
    let read = read_config(&config_bytes, layers.len(), platform)?;
    let layers = layers
        .into_iter()
        .zip(&read.rootfs.diff_ids)
        .map(|(descriptor, diff_id)| {
            let digest = descriptor.digest;
            let Some(Role::Layer(compression)) = role(&descriptor.media_type) else {
                return Err(wrong_type(&format!("the layer {digest}"), &descriptor));
            };
            check_layer_size(&digest, descriptor.size)?;
            let Descriptor { size, media_type, .. } = descriptor;
            Ok(Layer { digest: Some(digest), size, compression, media_type, diff_id: *diff_id })
        })
        .collect::<Result<_, _>>()?;
    let platform = descriptor.platform.unwrap_or_else(|| read.platform());
    Ok(Opened {
        id: config.digest,
        platform,
        config_bytes,
        config_type: config.media_type,
        config: read,
        digests,
        manifest: Some((descriptor.media_type, bytes)),
        layers,
    })
}

/// Follows indexes down to the manifest for a platform.
fn manifest(
    documents: &dyn Documents,
    mut descriptor: Descriptor,
    platform: &Platform,
    digests: &mut Vec<super::Digest>,
) -> Result<(Vec<u8>, Descriptor), OpenError> {
    for _ in 0..MAX_NESTING {
        digests.push(descriptor.digest);
        let what = format!("the manifest {}", descriptor.digest);
        let role = role(&descriptor.media_type);
        if !matches!(role, Some(Role::Index | Role::Manifest)) {
            return Err(wrong_type(&what, &descriptor));
        }
        let bytes = documents.document(&descriptor, MAX_MANIFEST, &what)?;
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|source| OpenError::Json { what: what.clone(), source })?;
        check(&document, &descriptor, role == Some(Role::Index))
            .map_err(|problem| OpenError::Document { what, problem })?;
        if role == Some(Role::Manifest) {
            return Ok((bytes, descriptor));
        }
        descriptor = for_platform(document.manifests.unwrap_or_default(), platform)?;
    }
    Err(OpenError::Nesting { limit: MAX_NESTING })
}

/// A document must have the type that its descriptor states, or two readers could see two images in it.
fn check(document: &Document, descriptor: &Descriptor, is_index: bool) -> Result<(), &'static str> {
    if document.schema_version != Some(2) {
        return Err("its schemaVersion is not 2");
    }
    if document.media_type.as_ref().is_some_and(|media_type| *media_type != descriptor.media_type) {
        return Err("its mediaType is not the one of its descriptor");
    }
    match (is_index, document.manifests.is_some(), document.config.is_some() || document.layers.is_some()) {
        (true, true, false) | (false, false, true) => Ok(()),
        _ => Err("it is not of the kind that its descriptor says: index or manifest"),
    }
}

fn wrong_type(what: &str, descriptor: &Descriptor) -> OpenError {
    OpenError::MediaType { what: what.to_owned(), media_type: shorten(&descriptor.media_type) }
}

/// The entry that fits the platform best, the first of equals; an entry without a platform fits only when it is the only one.
pub(super) fn for_platform(
    mut manifests: Vec<Descriptor>,
    platform: &Platform,
) -> Result<Descriptor, OpenError> {
    if let [only] = manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(manifests.remove(0));
    }
    let fit = |descriptor: &Descriptor| descriptor.platform.as_ref().and_then(|found| platform.fit(found));
    let best = (0..manifests.len()).filter_map(|at| Some((fit(&manifests[at])?, at))).min();
    match best {
        Some((_, at)) => Ok(manifests.swap_remove(at)),
        None => {
            let available: Vec<String> = manifests
                .iter()
                .filter_map(|descriptor| Some(descriptor.platform.as_ref()?.to_string()))
                .collect();
            let wanted = platform.to_string();
            Err(match available.as_slice() {
                [] => OpenError::NoPlatforms { wanted },
                _ => OpenError::Platform { available, wanted },
            })
        }
    }
}

/// Reads the configuration and checks its platform and number of layers against the manifest.
pub(super) fn read_config(bytes: &[u8], layers: usize, platform: &Platform) -> Result<Config, OpenError> {
    let what = || "the image's configuration".to_owned();
    let config: Config =
        serde_json::from_slice(bytes).map_err(|source| OpenError::Json { what: what(), source })?;
    let found = config.platform();
    if !platform.takes(&found) {
        return Err(OpenError::Platform { available: vec![found.to_string()], wanted: platform.to_string() });
    }
    let diff_ids = config.rootfs.diff_ids.len();
    if layers != diff_ids {
        return Err(OpenError::LayerCount { layers, diff_ids });
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(platforms: &[serde_json::Value]) -> Vec<Descriptor> {
        let digest = super::super::Digest::of(b"");
        let entry = |platform: &serde_json::Value| {
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            let entry = serde_json::json!({ "mediaType": media_type, "digest": digest, "size": 1, "platform": platform });
            serde_json::from_value(entry).unwrap()
        };
        platforms.iter().map(entry).collect()
    }

    #[test]
    fn an_entry_without_a_platform_is_taken_only_when_it_is_alone() {
        use serde_json::{Value, json};
        let wanted: Platform = "linux/arm64".parse().unwrap();
        let error = |platforms: &[Value]| for_platform(entries(platforms), &wanted).unwrap_err().to_string();
        assert!(for_platform(entries(&[Value::Null]), &wanted).is_ok());
        for platforms in [&[][..], &[Value::Null, Value::Null]] {
            let error = error(platforms);
            assert!(error.contains("names no platforms") && error.contains("linux/arm64"), "{error}");
        }
        let other = json!({ "os": "linux", "architecture": "s390x" });
        assert_eq!(error(&[other, Value::Null]), "the image is for linux/s390x, not for linux/arm64");
    }
}
