//! From a descriptor down to one image's configuration and layers: indexes, manifest, configuration (OCI image-spec). It is the same for
//! layouts, archives and registries, which differ only in how a [`Documents`] reads bytes.

use super::super::document::{
    Config, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, Platform, Role, is_config, is_schema_1, role,
};
use super::super::platform::Wanted;
use super::artifact;
use super::{Layer, LayerContent, OpenError, Opened, check_layer_size, shorten};

/// Most indexes on the way to a manifest.
const MAX_NESTING: usize = 4;
/// Most indexes and manifests that are read to find one for the platform.
const MAX_READ: usize = 32;
/// Marks attestations of builds in indexes.
const ATTESTATION: &str = "vnd.docker.reference.type";

/// The source of an image's documents.
pub(in super::super) trait Documents {
    /// A small blob of at most `limit` bytes, with its size and digest checked. `what` names it in errors.
    fn document(&self, descriptor: &Descriptor, limit: u64, what: &str) -> Result<Vec<u8>, OpenError>;
}

/// Follows a descriptor down to the image for a platform.
pub(in super::super) fn walk(
    documents: &dyn Documents,
    top: Descriptor,
    wanted: &Wanted,
) -> Result<Opened, OpenError> {
    Walk { documents, wanted, digests: Vec::new(), read: 0 }.follow(top)
}

struct Walk<'a> {
    documents: &'a dyn Documents,
    wanted: &'a Wanted,
    /// The path to the current document, outermost first.
    digests: Vec<super::Digest>,
    read: usize,
}

impl Walk<'_> {
    /// Follows indexes down to the manifest for the platform. The depth is limited, so this may recurse.
    fn follow(&mut self, descriptor: Descriptor) -> Result<Opened, OpenError> {
        self.read += 1;
        if self.digests.len() == MAX_NESTING {
            return Err(OpenError::Nesting { limit: MAX_NESTING });
        }
        if self.read > MAX_READ {
            return Err(OpenError::TooManyDocuments { limit: MAX_READ });
        }
        let what = format!("the manifest {}", descriptor.digest);
        let role = role(&descriptor.media_type);
        if is_schema_1(&descriptor.media_type) {
            return Err(OpenError::Schema1);
        }
        if !matches!(role, Some(Role::Index | Role::Manifest)) {
            return Err(wrong_type(&what, &descriptor));
        }
        let bytes = self.documents.document(&descriptor, MAX_MANIFEST, &what)?;
        let document: Document = serde_json::from_slice(&bytes)
            .map_err(|source| OpenError::Json { what: what.clone(), source })?;
        check(&document, &descriptor, role == Some(Role::Index))
            .map_err(|problem| OpenError::Document { what, problem })?;
        self.digests.push(descriptor.digest);
        let opened = match role {
            Some(Role::Manifest) => self.image(descriptor, bytes, document),
            _ => self.choose(document.manifests.unwrap_or_default()),
        };
        if opened.is_err() {
            self.digests.pop();
        }
        opened
    }

    /// The first image of an index that is for the platform, the best ones first. What an entry without a platform is for is known only
    /// from its own documents.
    fn choose(&mut self, manifests: Vec<Descriptor>) -> Result<Opened, OpenError> {
        let mut others: Vec<String> = Vec::new();
        for descriptor in candidates(manifests, self.wanted)? {
            match self.follow(descriptor) {
                Err(OpenError::Platform { available, .. }) => others.extend(available),
                opened => return opened,
            }
        }
        Err(not_for(others, self.wanted))
    }

    fn image(&self, descriptor: Descriptor, bytes: Vec<u8>, document: Document) -> Result<Opened, OpenError> {
        let config = document.config.ok_or_else(|| OpenError::Document {
            what: format!("the manifest {}", descriptor.digest),
            problem: "it has no configuration, so it is neither a container image nor an artifact",
        })?;
        let layers = document.layers.unwrap_or_default();
        super::check_layers(layers.len())?;
        let is_plain = role(&config.media_type) == Some(Role::Config);
        if !is_config(&config.media_type) || (document.artifact_type.is_some() && !is_plain) {
            let kind = document.artifact_type.unwrap_or(config.media_type);
            let manifest = artifact::Manifest { descriptor, bytes, layers, kind };
            return artifact::open(manifest, self.digests.clone(), self.wanted.platform());
        }
        let config_bytes = self.documents.document(&config, MAX_CONFIG, "the image's configuration")?;
        let read = read_config(&config_bytes, layers.len(), self.wanted)?;
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
                let content = LayerContent::Changes;
                Ok(Layer { digest: Some(digest), size, compression, media_type, diff_id: *diff_id, content })
            })
            .collect::<Result<_, _>>()?;
        let platform = descriptor.platform.unwrap_or_else(|| read.platform());
        Ok(Opened {
            id: config.digest,
            platform,
            config_bytes,
            config_type: config.media_type,
            config: read,
            digests: self.digests.clone(),
            manifest: Some((descriptor.media_type, bytes)),
            layers,
            is_artifact: false,
        })
    }
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

/// The entry that fits the platform best, the first of equals.
pub(super) fn for_platform(manifests: Vec<Descriptor>, wanted: &Wanted) -> Result<Descriptor, OpenError> {
    let best = candidates(manifests, wanted)?.into_iter().next();
    best.ok_or_else(|| OpenError::NoPlatforms { wanted: wanted.to_string() })
}

/// The entries of an index that may be for the platform: those that fit, the best first, then those that state no platform. What marks
/// itself as an attestation or is not an image at all is left out.
fn candidates(manifests: Vec<Descriptor>, wanted: &Wanted) -> Result<Vec<Descriptor>, OpenError> {
    let is_image = |descriptor: &Descriptor| {
        matches!(role(&descriptor.media_type), Some(Role::Index | Role::Manifest))
            && !descriptor.annotations.contains_key(ATTESTATION)
            && !descriptor.platform.as_ref().is_some_and(Platform::is_unknown)
    };
    let (mut fitting, mut unstated, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for descriptor in manifests.into_iter().filter(is_image) {
        match descriptor.platform.as_ref().map(|found| (wanted.fit(found), found.to_string())) {
            None => unstated.push(descriptor),
            Some((Some(fit), _)) => fitting.push((fit, descriptor)),
            Some((None, platform)) => others.push(platform),
        }
    }
    fitting.sort_by_key(|(fit, _)| *fit);
    let found: Vec<_> = fitting.into_iter().map(|(_, descriptor)| descriptor).chain(unstated).collect();
    if found.is_empty() { Err(not_for(others, wanted)) } else { Ok(found) }
}

/// There is no image for the platform, only for others.
fn not_for(mut available: Vec<String>, wanted: &Wanted) -> OpenError {
    available.sort();
    available.dedup();
    match available.as_slice() {
        [] => OpenError::NoPlatforms { wanted: wanted.to_string() },
        _ => OpenError::Platform { available, wanted: wanted.described() },
    }
}

/// Reads the configuration and checks its platform and number of layers against the manifest.
pub(super) fn read_config(bytes: &[u8], layers: usize, wanted: &Wanted) -> Result<Config, OpenError> {
    let what = || "the image's configuration".to_owned();
    let config: Config =
        serde_json::from_slice(bytes).map_err(|source| OpenError::Json { what: what(), source })?;
    let found = config.platform();
    if !wanted.takes(&found) {
        return Err(not_for(vec![found.to_string()], wanted));
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
    fn an_entry_without_a_platform_is_looked_at_when_none_fits() {
        use serde_json::{Value, json};
        let wanted: Platform = "linux/riscv64".parse().unwrap();
        let wanted = Wanted::from(wanted);
        let of = |platforms: &[Value]| candidates(entries(platforms), &wanted);
        assert_eq!(of(&[Value::Null, Value::Null]).unwrap().len(), 2);
        let [fitting, other] =
            ["riscv64", "s390x"].map(|name| json!({ "os": "linux", "architecture": name }));
        let found = of(&[Value::Null, other.clone(), fitting]).unwrap();
        assert!(found.len() == 2 && found[0].platform.is_some());
        assert_eq!(of(&[other.clone(), Value::Null]).unwrap().len(), 1);
        let unknown = json!({ "os": "unknown", "architecture": "unknown" });
        let error = of(&[other.clone(), unknown.clone(), other]).unwrap_err().to_string();
        assert_eq!(error, "the image is for linux/s390x, not for linux/riscv64");
        for platforms in [&[][..], &[unknown]] {
            let error = of(platforms).unwrap_err().to_string();
            assert!(error.contains("names no platforms") && error.contains("linux/riscv64"), "{error}");
        }
    }
}
