//! OCI artifacts that are not images (image-spec, manifest.md, "Guidelines for Artifact Usage"): their blobs become files, as other runtimes of
//! Kubernetes mount them. A layer with a title is a file of that name; an archive of files without a title is unpacked like a layer of an image.
//! Titles are untrusted: they must be relative paths that lead nowhere else.

use super::super::digest::Digest;
use super::super::document::{Config, Descriptor, Role, role};
use super::super::platform::Platform;
use super::{Layer, LayerContent, OpenError, Opened, check_layer_size, shorten};
use magikvm_proto::volume::check_sub_path;
use serde_json::json;
use std::collections::BTreeSet;

/// The name of a blob's file (image-spec, annotations.md).
const TITLE: &str = "org.opencontainers.image.title";
/// Marks a directory that a tool has packed into an archive (ORAS).
const UNPACK: &str = "io.deis.oras.content.unpack";
/// The layer of an artifact without content.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The documents of an artifact.
pub(super) struct Manifest {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Vec<u8>,
    pub(super) layers: Vec<Descriptor>,
    /// The type of the artifact, for messages.
    pub(super) kind: String,
}

/// An artifact as an image for this platform. Its configuration is made here, so that its id depends on the manifest alone.
pub(super) fn open(
    manifest: Manifest,
    digests: Vec<Digest>,
    platform: &Platform,
) -> Result<Opened, OpenError> {
    let Manifest { descriptor, bytes, layers, kind } = manifest;
    let refused = |problem: String| OpenError::Artifact { kind: shorten(&kind), problem };
    let mut titles = BTreeSet::new();
    let layers = layers
        .into_iter()
        .filter(|layer| layer.media_type != EMPTY)
        .map(|layer| {
            let content = content(&layer).map_err(&refused)?;
            if let LayerContent::File(title) = &content
                && !titles.insert(title.clone())
            {
                return Err(refused(format!("two of its layers have the title {:?}", shorten(title))));
            }
            check_layer_size(&layer.digest, layer.size)?;
            let compression = match role(&layer.media_type) {
                Some(Role::Layer(compression)) => compression,
                _ => super::super::document::Compression::None,
            };
            let Descriptor { size, media_type, digest, .. } = layer;
            Ok(Layer { digest: Some(digest), size, compression, media_type, diff_id: digest, content })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if layers.is_empty() {
        return Err(refused("it has no files".to_owned()));
    }
    let is_within = |title: &String| {
        let parents = title.match_indices('/').map(|(at, _)| title[..at].to_owned());
        parents.into_iter().find(|parent| titles.contains(parent))
    };
    if let Some(parent) = titles.iter().find_map(is_within) {
        return Err(refused(format!(
            "the title {:?} is that of a file and of a directory",
            shorten(&parent)
        )));
    }
    let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id).collect();
    let config = json!({
        "architecture": platform.architecture(),
        "os": platform.os(),
        "variant": platform.variant(),
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "dev.magikvm.artifact": { "type": kind, "manifest": descriptor.digest },
    });
    let config_bytes = config.to_string().into_bytes();
    let config: Config = serde_json::from_slice(&config_bytes)
        .map_err(|source| OpenError::Json { what: "the artifact's configuration".to_owned(), source })?;
    Ok(Opened {
        id: Digest::of(&config_bytes),
        platform: platform.clone(),
        config_bytes,
        config_type: String::new(),
        config,
        digests,
        manifest: Some((descriptor.media_type, bytes)),
        layers,
        is_artifact: true,
    })
}

/// What becomes of a layer, or why nothing can.
fn content(layer: &Descriptor) -> Result<LayerContent, String> {
    let is_archive = matches!(role(&layer.media_type), Some(Role::Layer(_)));
    let title = layer.annotations.get(TITLE);
    let is_packed = layer.annotations.get(UNPACK).is_some_and(|value| value == "true");
    match title {
        _ if is_packed => Ok(LayerContent::Archive),
        Some(title) => {
            let wrong = |why: &str| format!("the title {:?} of a layer {why}", shorten(title));
            check_sub_path(title).map_err(|error| wrong(&error.to_string()))?;
            if title.chars().any(char::is_control) {
                return Err(wrong("contains a control character"));
            }
            if title.split('/').any(|name| matches!(name, "" | ".")) {
                return Err(wrong("is not the path of a file"));
            }
            Ok(LayerContent::File(title.clone()))
        }
        None if is_archive => Ok(LayerContent::Archive),
        None => {
            let (digest, media_type) = (layer.digest, shorten(&layer.media_type));
            Err(format!(
                "the layer {digest} ({media_type:?}) has no annotation `{TITLE}`, which would name its file"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(layers: &serde_json::Value) -> Result<Opened, String> {
        let digest = Digest::of(b"x");
        let layers = layers.as_array().unwrap().iter().map(|layer| {
            let mut descriptor = json!({ "mediaType": "text/plain", "digest": digest, "size": 1 });
            descriptor.as_object_mut().unwrap().extend(layer.as_object().unwrap().clone());
            serde_json::from_value(descriptor).unwrap()
        });
        let manifest = Manifest {
            descriptor: Descriptor::of("m".to_owned(), digest, 1),
            bytes: Vec::new(),
            layers: layers.collect(),
            kind: "example/model".to_owned(),
        };
        open(manifest, vec![digest], &"linux/amd64".parse().unwrap()).map_err(|error| error.to_string())
    }

    fn titled(title: &str) -> serde_json::Value {
        json!({ "annotations": { TITLE: title } })
    }

    #[test]
    fn titles_are_files_and_archives_are_unpacked() {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let found = opened(&json!([
            titled("model.bin"),
            titled("deep/..x/weights"),
            { "mediaType": tar },
            { "mediaType": tar, "annotations": { TITLE: "kept.tar.gz" } },
            { "mediaType": tar, "annotations": { TITLE: "dir", UNPACK: "true" } },
            { "mediaType": EMPTY },
        ]))
        .unwrap();
        let contents: Vec<_> = found.layers.iter().map(|layer| layer.content.clone()).collect();
        let file = |title: &str| LayerContent::File(title.to_owned());
        assert_eq!(
            contents,
            [
                file("model.bin"),
                file("deep/..x/weights"),
                LayerContent::Archive,
                file("kept.tar.gz"),
                LayerContent::Archive
            ]
        );
        assert!(found.is_artifact && found.platform.architecture() == "amd64");
    }

    #[test]
    fn titles_lead_nowhere_else() {
        for (title, why) in [
            ("../escaped", "must not contain '..'"),
            ("a/../../b", "must not contain '..'"),
            ("/etc/passwd", "must be a relative path"),
            ("", "must not be empty"),
            ("a\u{0}b", "NUL"),
            ("a\nb", "control character"),
            (".", "not the path of a file"),
            ("dir/", "not the path of a file"),
            ("a//b", "not the path of a file"),
            (&"x/".repeat(600), "longer"),
        ] {
            let error = opened(&json!([titled(title)])).unwrap_err();
            assert!(error.contains(why) && error.contains("example/model"), "{title:?}: {error}");
        }
        let two = |a: &str, b: &str| opened(&json!([titled(a), titled(b)])).unwrap_err();
        assert!(two("a", "a").contains("two of its layers have the title"), "{}", two("a", "a"));
        assert!(two("a/b", "a").contains("of a file and of a directory"), "{}", two("a/b", "a"));
        let error = opened(&json!([{ "mediaType": "application/vnd.example" }])).unwrap_err();
        assert!(error.contains("has no annotation `org.opencontainers.image.title`"), "{error}");
        assert!(opened(&json!([])).unwrap_err().contains("it has no files"));
    }
}
