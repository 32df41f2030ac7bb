//! Container images made by common tools.

use crate::tools::run;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A change of a root file system, which becomes a layer.
pub type Change<'a> = &'a dyn Fn(&Path);

/// An OCI image layout that tools put images into, by tag.
#[derive(Debug)]
pub struct Images {
    dir: tempfile::TempDir,
}

impl Images {
    pub fn new() -> Self {
        let images = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        run("umoci", &[&"init", &"--layout", &images.layout()]);
        images
    }

    pub fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    /// An image as umoci names it.
    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.layout().display())
    }

    /// An image as skopeo, buildah and magikvm name it.
    pub fn source(&self, tag: &str) -> String {
        format!("oci:{}", self.image(tag))
    }

    /// umoci: an image without layers.
    pub fn empty(&self, tag: &str) {
        run("umoci", &[&"new", &"--image", &self.image(tag)]);
    }

    /// umoci: one more layer, and a new tag for the result, for each change. gzip, as umoci does it.
    pub fn umoci(&self, base: &str, tag: &str, changes: &[Change<'_>]) {
        let bundle = tempfile::tempdir().unwrap();
        let bundle = bundle.path().join("bundle");
        run("umoci", &[&"tag", &"--image", &self.image(base), &tag]);
        run("umoci", &[&"unpack", &"--image", &self.image(tag), &bundle]);
        for change in changes {
            change(&bundle.join("rootfs"));
            run("umoci", &[&"repack", &"--refresh-bundle", &"--image", &self.image(tag), &bundle]);
        }
    }

    /// umoci: a file of incompressible noise as one more layer. The same seed gives the same layer.
    pub fn noise(&self, base: &str, tag: &str, seed: u64, bytes: usize) {
        let layer = crate::layout::Tar::default().file(&format!("noise-{seed}"), 0o644, &noise(seed, bytes));
        let file = self.dir.path().join("noise.tar");
        fs::write(&file, layer.finish()).unwrap();
        run("umoci", &[&"raw", &"add-layer", &"--image", &self.image(base), &"--tag", &tag, &file]);
    }

    /// umoci: the platform of the image.
    pub fn set_architecture(&self, tag: &str, architecture: &str) {
        run("umoci", &[&"config", &"--image", &self.image(tag), &"--architecture", &architecture]);
    }

    /// umoci: the image as files, for comparison. The result is the root file system.
    pub fn unpack(&self, tag: &str, dir: &Path) -> PathBuf {
        unpack(&self.layout(), tag, dir)
    }

    /// buildah: an image of one layer, compressed as `skopeo` and `buildah` name it (`gzip`, `zstd`).
    pub fn buildah(&self, tag: &str, compression: &str, change: Change<'_>) {
        let storage = Storage::new();
        let container = storage.buildah(&[&"from", &"scratch"]);
        let root = storage.buildah(&[&"mount", &container]);
        change(Path::new(&root));
        storage.buildah(&[&"umount", &container]);
        let image = storage.buildah(&[&"commit", &"--quiet", &container]);
        let to = self.source(tag);
        storage.buildah(&[&"push", &"--quiet", &"--compression-format", &compression, &image, &to]);
    }

    /// buildah: an index of images for several architectures.
    pub fn index(&self, tag: &str, tags: &[&str]) {
        let storage = Storage::new();
        storage.buildah(&[&"manifest", &"create", &"index"]);
        for tag in tags {
            storage.buildah(&[&"manifest", &"add", &"index", &self.source(tag)]);
        }
        let to = self.source(tag);
        storage.buildah(&[&"manifest", &"push", &"--all", &"--quiet", &"--format", &"oci", &"index", &to]);
    }
}

impl Default for Images {
    fn default() -> Self {
        Self::new()
    }
}

/// umoci: an image of a layout as files; the result is the root file system.
pub fn unpack(layout: &Path, tag: &str, dir: &Path) -> PathBuf {
    run("umoci", &[&"unpack", &"--image", &format!("{}:{tag}", layout.display()), &dir]);
    dir.join("rootfs")
}

/// Bytes that do not compress.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The low bits of such a generator are regular.
        let word = (state ^ (state >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        noise.extend((word ^ (word >> 32)).to_be_bytes());
    }
    noise.truncate(bytes);
    noise
}

/// The state of buildah, with its plainest driver, so that it runs anywhere.
struct Storage(tempfile::TempDir);

impl Storage {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// The last line that it printed.
    fn buildah(&self, args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
        let (root, runtime) = (self.0.path().join("root"), self.0.path().join("run"));
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> =
            vec![&"--root", &root, &"--runroot", &runtime, &"--storage-driver", &"vfs"];
        all.extend(args);
        run("buildah", &all).lines().last().unwrap_or_default().to_owned()
    }
}

/// The layout with the images `userland` and `other` of a Debian system, which ci/lib.sh describes.
pub fn userland() -> PathBuf {
    let named = std::env::var_os("MAGIKVM_TEST_USERLAND");
    named
        .map(PathBuf::from)
        .expect("MAGIKVM_TEST_USERLAND is not set: run ci/test.sh, which makes the layout")
}

/// The manifest of an image of a layout.
pub fn manifest(layout: &Path, tag: &str) -> Value {
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let index = read(layout.join("index.json"));
    let named = |one: &&Value| one["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let found = index["manifests"].as_array().unwrap().iter().find(named);
    let digest = found.unwrap_or_else(|| panic!("no image {tag} in {}", layout.display()))["digest"].as_str();
    read(layout.join("blobs").join(digest.unwrap().replace(':', "/")))
}
