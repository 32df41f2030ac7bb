//! Images made by hand: tar streams entry by entry, and layouts around them.

use magikvm::image::{Digest, Source};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A tar stream under construction.
#[derive(Default, Clone)]
pub(crate) struct Tar(Vec<u8>);

/// One entry; the rest is `..Default::default()`.
pub(crate) struct Item<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: u64,
    pub(crate) link: &'a [u8],
    pub(crate) data: &'a [u8],
    /// Replaces the data's length in the header.
    pub(crate) size: Option<u64>,
    pub(crate) device: (u32, u32),
    pub(crate) pax: Vec<(&'a str, &'a [u8])>,
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            name: b"file",
            kind: b'0',
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_600_000_000,
            link: b"",
            data: b"",
            size: None,
            device: (0, 0),
            pax: Vec::new(),
        }
    }
}

impl Tar {
    pub(crate) fn item(mut self, item: &Item<'_>) -> Self {
        if !item.pax.is_empty() {
            let records: Vec<u8> = item.pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            self.0.extend(header(&Item { name: b"pax", kind: b'x', data: &records, ..Item::default() }));
            self.padded(&records);
        }
        self.0.extend(header(item));
        self.padded(item.data);
        self
    }

    pub(crate) fn file(self, name: &str, data: &str) -> Self {
        self.item(&Item { name: name.as_bytes(), data: data.as_bytes(), ..Item::default() })
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.item(&Item { name: name.as_bytes(), kind: b'5', mode, ..Item::default() })
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.item(&Item {
            name: name.as_bytes(),
            kind: b'2',
            mode: 0o777,
            link: target.as_bytes(),
            ..Item::default()
        })
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.item(&Item { name: name.as_bytes(), kind: b'1', link: target.as_bytes(), ..Item::default() })
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    fn padded(&mut self, data: &[u8]) {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = body.len() + 1;
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &body].concat()
}

fn header(item: &Item<'_>) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &item.name[..item.name.len().min(100)]);
    put(100, format!("{:07o}", item.mode).as_bytes());
    put(108, format!("{:07o}", item.owner.0).as_bytes());
    put(116, format!("{:07o}", item.owner.1).as_bytes());
    put(124, format!("{:011o}", item.size.unwrap_or(item.data.len() as u64)).as_bytes());
    put(136, format!("{:011o}", item.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[item.kind]);
    put(157, item.link);
    put(257, b"ustar\x0000");
    put(329, format!("{:07o}", item.device.0).as_bytes());
    put(337, format!("{:07o}", item.device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// How a layer is stored.
#[derive(Clone, Copy)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An image layout with one image named `t`. The fields are written as they are when it is saved.
pub(crate) struct Layout {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) layers: Vec<Value>,
    pub(crate) config: Value,
    pub(crate) tag: String,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({"os": "linux", "architecture": architecture, "config": {}, "rootfs": {"type": "layers", "diff_ids": []}});
        Self { dir, layers: Vec::new(), config, tag: "t".into() }
    }

    /// A saved layout with these layers.
    pub(crate) fn of(packing: Packing, layers: &[Vec<u8>]) -> Self {
        let mut layout = Self::new();
        for layer in layers {
            layout.add(packing, layer);
        }
        layout.save();
        layout
    }

    pub(crate) fn source(&self) -> Source {
        Source::OciLayout { dir: self.dir.path().to_owned(), tag: Some(self.tag.clone()) }
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> std::path::PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn typed(&self, media_type: &str, bytes: &[u8]) -> Value {
        let mut descriptor = self.blob(bytes);
        descriptor["mediaType"] = media_type.into();
        descriptor
    }

    pub(crate) fn add(&mut self, packing: Packing, tar: &[u8]) {
        let (suffix, stored) = match packing {
            Packing::Plain => ("", tar.to_vec()),
            Packing::Gzip => ("+gzip", gzip(tar)),
            Packing::Zstd => ("+zstd", zstd::encode_all(tar, 3).unwrap()),
        };
        self.add_stored(
            &format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
            &stored,
            &Digest::of(tar),
        );
    }

    pub(crate) fn add_stored(&mut self, media_type: &str, stored: &[u8], diff_id: &Digest) {
        let descriptor = self.typed(media_type, stored);
        self.layers.push(descriptor);
        self.config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(diff_id.to_string().into());
    }

    /// Writes configuration, manifest and index.
    pub(crate) fn save(&self) {
        let manifest = self.manifest();
        self.save_index(manifest);
    }

    pub(crate) fn manifest(&self) -> Value {
        let config = self.typed(CONFIG, self.config.to_string().as_bytes());
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": self.layers});
        self.typed(MANIFEST, manifest.to_string().as_bytes())
    }

    /// An index as a blob.
    pub(crate) fn index(&self, manifests: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.typed(INDEX, index.to_string().as_bytes())
    }

    pub(crate) fn save_index(&self, mut descriptor: Value) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": self.tag});
        self.save_top(&[descriptor]);
    }

    pub(crate) fn save_top(&self, manifests: &[Value]) {
        write(&self.dir.path().join("index.json"), &json!({"schemaVersion": 2, "manifests": manifests}));
    }
}

fn write(path: &Path, value: &Value) {
    fs::write(path, value.to_string()).unwrap();
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
