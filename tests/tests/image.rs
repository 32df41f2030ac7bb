//! The image store against real tools: layouts made by umoci and skopeo, compared file by file with `umoci unpack`;
//! hostile images; many processes; kills and full disks. Needs root (mounts, devices), umoci, skopeo, erofs-utils.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "image/compressed.rs"]
mod compressed;
#[path = "image/directory.rs"]
mod directory;
#[path = "image/hostile.rs"]
mod hostile;
#[path = "image/make.rs"]
mod make;
#[path = "image/real.rs"]
mod real;
#[path = "image/rules.rs"]
mod rules;
#[path = "image/sharing.rs"]
mod sharing;

use magikvm::image::{BringOptions, Image, ImageError, ImageRecord, ImageStore, Source};
use magikvm_tests::tools::{self, files};
use std::error::Error;
use std::path::PathBuf;

/// What the store adds to an image that lacks it.
const ADDED: [&str; 8] = ["proc", "dev", "sys", "etc", "tmp", "etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// A store in a temporary directory.
struct Store {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn import(&self, source: &Source, name: &str) -> Result<ImageRecord, ImageError> {
        self.store.import(source, &name.parse().unwrap(), &BringOptions::default(), &|_| {})
    }

    fn resolve(&self, name: &str) -> Image {
        self.store.resolve(&name.parse().unwrap()).unwrap()
    }

    fn mounted(&self, source: &Source, name: &str) -> tools::Mounted {
        self.import(source, name).unwrap_or_else(|error| panic!("{}", chain(&error)));
        tools::Mounted::erofs(&self.resolve(name).rootfs.path)
    }
}

/// An error with all its causes.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
