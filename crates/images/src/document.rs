//! The JSON documents of images: index, manifest, configuration (OCI image-spec and Docker's schema 2).
//! Parses untrusted documents: the fetching code caps their sizes, unknown fields are ignored, and null means absent.

use super::digest::Digest;
pub(super) use super::platform::Platform;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a manifest or an index inside an image.
pub(super) const MAX_MANIFEST: u64 = 1 << 20;
/// Bytes of an image's configuration.
pub(super) const MAX_CONFIG: u64 = 4 << 20;
/// Bytes of the `index.json` of a layout and of the `manifest.json` of an archive, which may list many images.
pub(super) const MAX_TOP: u64 = 4 << 20;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    /// The type of an artifact that is not an image, in lists of referrers.
    #[serde(default)]
    pub(super) artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The descriptor of a document in memory.
    pub(super) fn of(media_type: String, digest: Digest, size: u64) -> Self {
        Self { media_type, digest, size, platform: None, artifact_type: None, annotations: BTreeMap::new() }
    }
}

/// An index or a manifest. Only one of the two lists may be present, or readers could see different images.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) schema_version: Option<u32>,
    pub(super) media_type: Option<String>,
    pub(super) manifests: Option<Vec<Descriptor>>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
    /// The type of an artifact that is not an image.
    pub(super) artifact_type: Option<String>,
}

/// The compression of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    /// gzip, one member or many.
    Gzip,
    /// zstd, one frame or many.
    Zstd,
}

/// Media type of a configuration (OCI image-spec, media-types.md).
pub(super) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a manifest.
pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

impl Compression {
    /// OCI's media type of a layer with this compression.
    pub(super) fn layer_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// The kind of document behind a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Index,
    Manifest,
    Config,
    Layer(Compression),
}

/// Media types of configurations in images that were pushed about 2016 and by old registries: nothing else about them differs.
const OLD_CONFIGS: [&str; 4] = ["", "application/octet-stream", "application/json", "text/html"];

/// Whether a manifest's configuration is that of a container image, as far as its media type tells.
pub(super) fn is_config(media_type: &str) -> bool {
    role(media_type) == Some(Role::Config) || OLD_CONFIGS.contains(&media_type)
}

/// Whether a manifest is one of docker's first schema, signed or not.
pub(super) fn is_schema_1(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws"
    )
}

/// The role of a media type; `None` if an image has no such document.
pub(super) fn role(media_type: &str) -> Option<Role> {
    Some(match media_type {
        "application/vnd.oci.image.index.v1+json"
        | "application/vnd.docker.distribution.manifest.list.v2+json" => Role::Index,
        "application/vnd.oci.image.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v2+json" => Role::Manifest,
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json" => {
            Role::Config
        }
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Role::Layer(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Role::Layer(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Role::Layer(Compression::Zstd),
        _ => return None,
    })
}

/// An image's configuration as stored.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    pub(super) variant: Option<String>,
    pub(super) created: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) config: ImageDefaults,
    pub(super) rootfs: Rootfs,
}

impl Config {
    /// The platform of the image; empty where it is not stated.
    pub(super) fn platform(&self) -> Platform {
        Platform::of(&self.os, &self.architecture, self.variant.as_deref())
    }
}

/// The layers of an image, by the digests of their unpacked archives.
#[derive(Debug, Deserialize)]
pub(super) struct Rootfs {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) diff_ids: Vec<Digest>,
}

/// The image's defaults for running it. They are untrusted text and not checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct ImageDefaults {
    /// The program and its first arguments.
    #[serde(rename = "Entrypoint", deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Arguments, or program and arguments when there is no entry point.
    #[serde(rename = "Cmd", deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(rename = "Env", deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// Empty: `/`.
    #[serde(rename = "WorkingDir", deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `user`, `uid`, `user:group`, `uid:gid`; empty: root.
    #[serde(rename = "User", deserialize_with = "null_is_default")]
    pub user: String,
    /// `SIGTERM`, `15`…
    #[serde(rename = "StopSignal")]
    pub stop_signal: Option<String>,
    /// `80/tcp`, `53/udp`, `80`.
    #[serde(rename = "ExposedPorts", deserialize_with = "keys")]
    pub exposed_ports: BTreeSet<String>,
    #[serde(rename = "Labels", deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// One image of a `docker save` archive's `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ArchiveImage {
    pub(super) config: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) layers: Vec<String>,
}

pub(super) fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The keys of an object of empty objects.
fn keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_of_docker_are_absent() {
        let json = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},
            "config":{"Env":null,"Cmd":["sh"],"Entrypoint":null,"User":"","ExposedPorts":{"80/tcp":{}},"Labels":null,"Volumes":null}}"#;
        let config: Config = serde_json::from_str(json).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert!(config.config.exposed_ports.contains("80/tcp"));
        assert!(config.config.entrypoint.is_empty() && config.rootfs.diff_ids.is_empty());
        let bare: Config = serde_json::from_str(r#"{"rootfs":{},"config":null}"#).unwrap();
        assert_eq!(bare.config, ImageDefaults::default());
    }

    #[test]
    fn media_types_have_roles() {
        assert_eq!(role("application/vnd.oci.image.layer.v1.tar+zstd"), Some(Role::Layer(Compression::Zstd)));
        assert_eq!(role("application/vnd.docker.distribution.manifest.list.v2+json"), Some(Role::Index));
        assert_eq!(role("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"), None);
        assert_eq!(role("application/vnd.docker.distribution.manifest.v1+json"), None);
        assert!(is_config("application/octet-stream") && is_config(CONFIG_TYPE));
        for other in
            ["application/vnd.oci.empty.v1+json", "application/vnd.cncf.helm.config.v1+json", MANIFEST_TYPE]
        {
            assert!(!is_config(other), "{other}");
        }
    }
}
