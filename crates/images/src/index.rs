//! `index.json`: the images of the store and their names. It is one file that is replaced as a whole.

use super::digest::Digest;
use super::erofs::RootfsCompression;
use super::platform::Platform;
use super::reference::Reference;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Version of the file's format. A newer one is refused.
pub(super) const SCHEMA: u32 = 2;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) schema: u32,
    pub(super) images: BTreeMap<Digest, ImageEntry>,
    pub(super) names: BTreeMap<Reference, Named>,
}

/// The image of a name. Form 1 of the index had only the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub(super) struct Named {
    pub(super) id: Digest,
    /// The key whose signature was checked when the name was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Id(Digest),
    Named {
        id: Digest,
        #[serde(default)]
        key: Option<Digest>,
    },
}

impl From<Written> for Named {
    fn from(written: Written) -> Self {
        match written {
            Written::Id(id) => Self { id, key: None },
            Written::Named { id, key } => Self { id, key },
        }
    }
}

/// A blob of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageBlob {
    pub digest: Digest,
    pub size_bytes: u64,
    pub media_type: String,
    /// For layers: the digest of the unpacked layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
}

/// One image, by the digest of its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageEntry {
    /// Manifests and indexes that led to it.
    pub(super) digests: BTreeSet<Digest>,
    pub(super) created: Option<String>,
    /// Its platform. Form 1 of the index had only the architecture.
    #[serde(default)]
    pub(super) os: String,
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) variant: Option<String>,
    /// Seconds since 1970.
    pub(super) imported_unix_secs: u64,
    pub(super) layers: usize,
    /// The manifest; none for images of form 1 of the index.
    #[serde(default)]
    pub(super) manifest: Option<ImageBlob>,
    /// The layers' blobs, bottom first; none for images of form 1 of the index.
    #[serde(default)]
    pub(super) blobs: Vec<ImageBlob>,
    pub(super) rootfs: RootfsEntry,
    /// Whether it is no container image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_artifact: bool,
}

impl ImageEntry {
    /// Its platform; empty where it is not stated.
    pub(super) fn platform(&self) -> Platform {
        Platform::of(&self.os, &self.architecture, self.variant.as_deref())
    }

    /// The blobs that this image needs.
    pub(super) fn blobs(&self) -> impl Iterator<Item = &ImageBlob> {
        self.manifest.iter().chain(&self.blobs)
    }
}

/// The root file system of an image; images with the same layers share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RootfsEntry {
    pub(super) key: Digest,
    pub(super) size_bytes: u64,
    /// sha256 of the file, recorded when it was built.
    pub(super) sha256: Digest,
    #[serde(default)]
    pub(super) compression: RootfsCompression,
}

/// An image of the store and its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageRecord {
    /// Digest of the configuration: the same image has the same id everywhere.
    pub id: Digest,
    /// Sorted. Empty when its last name was given to another image while a pod used it.
    pub names: Vec<Reference>,
    /// Digests of the manifests and indexes it was imported through, sorted; none from `docker save` archives.
    pub digests: Vec<Digest>,
    /// Its creation time according to its configuration (RFC 3339); untrusted text.
    pub created: Option<String>,
    /// `linux`; empty when it is not stated.
    pub os: String,
    /// `amd64`, `arm64`, from the index that led to it or from its configuration.
    pub architecture: String,
    /// `v8`, if stated.
    pub variant: Option<String>,
    /// When it was last imported, in seconds since 1970.
    pub imported_unix_secs: u64,
    pub layers: usize,
    /// Bytes of the root file system's EROFS file.
    pub size_bytes: u64,
    /// sha256 of the root file system's EROFS file, recorded when it was built.
    pub rootfs_sha256: Digest,
    /// Whether it is no container image but an artifact, whose files can only be a volume.
    #[serde(rename = "artifact", skip_serializing_if = "std::ops::Not::not")]
    pub is_artifact: bool,
}

impl ImageRecord {
    /// Its platform; empty where it is not stated.
    pub fn platform(&self) -> Platform {
        Platform::of(&self.os, &self.architecture, self.variant.as_deref())
    }
}

impl Default for Index {
    fn default() -> Self {
        Self { schema: SCHEMA, images: BTreeMap::new(), names: BTreeMap::new() }
    }
}

impl Index {
    /// The record of an image.
    pub(super) fn record(&self, id: &Digest) -> Option<ImageRecord> {
        let names =
            self.names.iter().filter(|(_, named)| named.id == *id).map(|(name, _)| name.clone()).collect();
        self.images.get(id).map(|entry| entry.record(*id, names))
    }

    /// All records, sorted by first name, then id.
    pub(super) fn records(&self) -> Vec<ImageRecord> {
        let mut names: BTreeMap<Digest, Vec<Reference>> = BTreeMap::new();
        for (name, named) in &self.names {
            names.entry(named.id).or_default().push(name.clone());
        }
        let mut records: Vec<_> = self
            .images
            .iter()
            .map(|(id, entry)| entry.record(*id, names.remove(id).unwrap_or_default()))
            .collect();
        // Images without a name are last.
        records
            .sort_by(|a, b| (a.names.is_empty(), &a.names, a.id).cmp(&(b.names.is_empty(), &b.names, b.id)));
        records
    }

    /// The image that a reference means: that name's image, or for a pinned reference any image of the repository with that digest.
    pub(super) fn find(&self, reference: &Reference) -> Option<Named> {
        self.find_fitting(reference, |_, _| true)
    }

    /// Like `find`, but only among images that satisfy the condition.
    pub(super) fn find_fitting(
        &self,
        reference: &Reference,
        fits: impl Fn(&Named, &ImageEntry) -> bool,
    ) -> Option<Named> {
        let is_it = |named: &&Named| {
            self.images.get(&named.id).is_some_and(|image| {
                reference.digest().is_none_or(|digest| image.digests.contains(&digest)) && fits(named, image)
            })
        };
        if let Some(named) = self.names.get(reference).filter(is_it) {
            return Some(*named);
        }
        reference.digest()?;
        let same_repository =
            |name: &Reference| (name.domain(), name.path()) == (reference.domain(), reference.path());
        self.names
            .iter()
            .filter(|(name, _)| same_repository(name))
            .map(|(_, named)| named)
            .find(is_it)
            .copied()
    }

    /// Other images with the same root file system.
    pub(super) fn shares_rootfs(&self, key: &Digest, except: &Digest) -> bool {
        self.images.iter().any(|(id, image)| id != except && image.rootfs.key == *key)
    }

    /// The built root file system with this name.
    pub(super) fn rootfs(&self, key: &Digest) -> Option<RootfsEntry> {
        self.images.values().map(|image| image.rootfs).find(|rootfs| rootfs.key == *key)
    }

    /// Ids of images without a name.
    pub(super) fn nameless(&self) -> Vec<Digest> {
        let named: BTreeSet<_> = self.names.values().map(|named| named.id).collect();
        self.images.keys().filter(|id| !named.contains(id)).copied().collect()
    }

    /// Layers of images in the store: stored and unpacked digests.
    pub(super) fn layers(&self) -> impl Iterator<Item = (Digest, Digest)> {
        let blobs = self.images.values().flat_map(|image| &image.blobs);
        blobs.filter_map(|part| Some((part.digest, part.diff_id?)))
    }

    /// Digests of all blobs that images need.
    pub(super) fn blobs(&self) -> BTreeSet<Digest> {
        self.images.values().flat_map(ImageEntry::blobs).map(|part| part.digest).collect()
    }

    /// Up to five similar names, the nearest first, for error messages.
    pub(super) fn near(&self, reference: &Reference) -> Vec<String> {
        let wanted = reference.familiar();
        let mut near: Vec<(usize, String)> = self
            .names
            .keys()
            .map(|name| {
                let familiar = name.familiar();
                let same_repository = name.repository() == reference.repository();
                (if same_repository { 0 } else { distance(&wanted, &familiar) }, familiar)
            })
            .filter(|(distance, _)| *distance <= 2.max(wanted.len() / 4))
            .collect();
        near.sort();
        near.into_iter().take(5).map(|(_, name)| name).collect()
    }
}

impl ImageEntry {
    fn record(&self, id: Digest, names: Vec<Reference>) -> ImageRecord {
        ImageRecord {
            id,
            names,
            digests: self.digests.iter().copied().collect(),
            created: self.created.clone(),
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            imported_unix_secs: self.imported_unix_secs,
            layers: self.layers,
            size_bytes: self.rootfs.size_bytes,
            rootfs_sha256: self.rootfs.sha256,
            is_artifact: self.is_artifact,
        }
    }
}

/// Edit distance (Levenshtein). Both texts are at most as long as a reference.
fn distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(digest: &str) -> ImageEntry {
        let rootfs = RootfsEntry {
            key: Digest::of(b"key"),
            size_bytes: 4096,
            sha256: Digest::of(b"file"),
            compression: RootfsCompression::None,
        };
        ImageEntry {
            digests: [Digest::of(digest.as_bytes())].into(),
            created: None,
            os: "linux".into(),
            architecture: "amd64".into(),
            variant: None,
            imported_unix_secs: 0,
            layers: 1,
            manifest: None,
            blobs: Vec::new(),
            rootfs,
            is_artifact: false,
        }
    }

    fn index() -> Index {
        let mut index = Index::default();
        let [a, b] = [Digest::of(b"a"), Digest::of(b"b")];
        index.images.extend([(a, entry("ma")), (b, entry("mb"))]);
        for (name, id) in [("busybox", a), ("busybox:1.36", a), ("ghcr.io/x/app:v1", b)] {
            index.names.insert(name.parse().unwrap(), Named { id, key: None });
        }
        index
    }

    #[test]
    fn a_digest_finds_the_image_whatever_the_tag_says() {
        let (index, digest) = (index(), Digest::of(b"ma"));
        let find = |text: String| index.find(&text.parse().unwrap()).map(|named| named.id);
        assert_eq!(find("busybox:1.36".into()), Some(Digest::of(b"a")));
        assert_eq!(find(format!("busybox@{digest}")), Some(Digest::of(b"a")));
        assert_eq!(find(format!("busybox:other@{digest}")), Some(Digest::of(b"a")));
        assert_eq!(find(format!("alpine@{digest}")), None, "another repository");
        assert_eq!(find("busybox:2".into()), None);
    }

    #[test]
    fn names_that_look_alike_are_offered() {
        let near = |text: &str| index().near(&text.parse().unwrap());
        assert_eq!(near("busybox:2"), ["busybox:1.36", "busybox:latest"]);
        assert_eq!(near("busibox"), ["busybox:latest"]);
        assert!(near("postgres:16").is_empty());
        assert_eq!((distance("kitten", "sitting"), distance("", "abc"), distance("a", "a")), (3, 3, 0));
    }

    #[test]
    fn records_are_sorted_and_read_back() {
        let index = index();
        let records = index.records();
        assert_eq!(records.iter().map(|record| record.names.len()).collect::<Vec<_>>(), [2, 1]);
        let json = serde_json::to_string(&index).unwrap();
        let read: Index = serde_json::from_str(&json).unwrap();
        assert_eq!(read.records(), records);
        let form_1: Named = serde_json::from_value(Digest::of(b"a").to_string().into()).unwrap();
        assert_eq!(form_1, Named { id: Digest::of(b"a"), key: None });
        assert!(index.shares_rootfs(&Digest::of(b"key"), &Digest::of(b"a")) && index.nameless().is_empty());
    }
}
