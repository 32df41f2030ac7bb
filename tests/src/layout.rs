//! Container images made on the spot, as OCI image layouts.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

const BLOCK: usize = 512;

/// A tar archive that is being built (POSIX ustar; names of at most 100 bytes).
#[derive(Debug, Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    #[must_use]
    pub fn dir(mut self, name: &str, mode: u32) -> Self {
        self.entry(name, mode, b'5', "", b"");
        self
    }

    /// Adds a directory that belongs to this user and group.
    #[must_use]
    pub fn dir_of(mut self, name: &str, mode: u32, owner: u32) -> Self {
        self.entry_of(name, mode, owner, b'5', "", b"");
        self
    }

    #[must_use]
    pub fn file(mut self, name: &str, mode: u32, bytes: &[u8]) -> Self {
        self.entry(name, mode, b'0', "", bytes);
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, name: &str, target: &str) -> Self {
        self.entry(name, 0o777, b'2', target, b"");
        self
    }

    /// A character device with the number 0:0.
    pub fn null_device(mut self, name: &str) -> Self {
        self.entry(name, 0o644, b'3', "", b"");
        self
    }

    fn entry(&mut self, name: &str, mode: u32, kind: u8, target: &str, bytes: &[u8]) {
        self.entry_of(name, mode, 0, kind, target, bytes);
    }

    fn entry_of(&mut self, name: &str, mode: u32, owner: u32, kind: u8, target: &str, bytes: &[u8]) {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        assert!(name.len() <= 100 && target.len() <= 100);
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}\0{owner:07o}\0{owner:07o}\0").as_bytes());
        put(124, format!("{:011o}\0{:011o}\0        ", bytes.len(), 0).as_bytes());
        put(156, &[kind]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

/// Name of the host's architecture in image configurations.
pub fn goarch() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}

/// The OCI image configuration of an image of one layer; its digest is the image's id. `config` is its field `config`.
pub fn image_config(layer: &[u8], config: &Value) -> Vec<u8> {
    image_config_for(goarch(), layer, config)
}

fn image_config_for(architecture: &str, layer: &[u8], config: &Value) -> Vec<u8> {
    let document = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [digest(layer)] },
    });
    document.to_string().into_bytes()
}

/// `sha256:` and the hexadecimal digest of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn put_blob(dir: &Path, bytes: &[u8]) -> (String, usize) {
    let digest = digest(bytes);
    fs::write(dir.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
    (digest, bytes.len())
}

/// Writes an image of one layer, tagged `1`, as an OCI image layout. `config` is the `config` of the OCI image configuration.
pub fn write_layout(dir: &Path, layer: Tar, config: &Value) {
    write_layout_for(goarch(), dir, layer, config);
}

/// The same for an architecture, by its name in image configurations.
pub fn write_layout_for(architecture: &str, dir: &Path, layer: Tar, config: &Value) {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let layer = layer.finish();
    let (config, config_size) = put_blob(dir, &image_config_for(architecture, &layer, config));
    let (layer, layer_size) = put_blob(dir, &layer);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size }],
    });
    let (manifest, manifest_size) = put_blob(dir, manifest.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest, "size": manifest_size,
            "annotations": { "org.opencontainers.image.ref.name": "1" },
            "platform": { "architecture": architecture, "os": "linux" },
        }],
    });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes an OCI artifact that is not an image, tagged `1`, as a layout. Each layer has a media type, perhaps a title, and its bytes.
pub fn write_artifact(dir: &Path, layers: &[(&str, Option<&str>, &[u8])]) {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let (digest, size) = put_blob(dir, bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    };
    let layer = |(media_type, title, bytes): &(&str, Option<&str>, &[u8])| {
        let mut layer = put(media_type, bytes);
        if let Some(title) = title {
            layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        }
        layer
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.model",
        "config": put("application/vnd.oci.empty.v1+json", b"{}"),
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    let mut top = put(MANIFEST, manifest.to_string().as_bytes());
    top["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
    let index = json!({ "schemaVersion": 2, "manifests": [top] });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
