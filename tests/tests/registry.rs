//! `magikvm image pull` against a real registry, filled by skopeo with images of umoci and buildah: what arrives, who is let in, what a
//! hostile registry achieves, and what is left after kills, full disks and interruptions. Needs root (mounts, devices) and the packages
//! that ci/test.sh installs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "registry/access.rs"]
mod access;
#[path = "registry/artifacts.rs"]
mod artifacts;
#[path = "registry/crash.rs"]
mod crash;
#[path = "registry/crowd.rs"]
mod crowd;
#[path = "registry/hostile.rs"]
mod hostile;
#[path = "registry/pull.rs"]
mod pull;

use magikvm_tests::images::{Images, manifest};
use magikvm_tests::registry::Registry;
use magikvm_tests::tools::{Mounted, files};
use magikvm_tests::{Cmd, Host, Output};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the store adds to an image that lacks it.
const ADDED: [&str; 8] = ["proc", "dev", "sys", "etc", "tmp", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
/// Time for an image of realistic size.
const LARGE: Duration = Duration::from_secs(300);
const MIB: usize = 1 << 20;

/// `magikvm image pull` over plain HTTP.
fn pull(host: &Host, name: &str) -> Cmd {
    host.cmd(["image", "pull", "--plain-http", name])
}

/// Pulls over plain HTTP and returns the image's id.
#[track_caller]
fn pulled(host: &Host, name: &str) -> String {
    id(&pull(host, name).ok())
}

/// The id that a pull printed behind the name.
#[track_caller]
fn id(output: &Output) -> String {
    let (name, id) = output.stdout.trim_end().split_once(' ').expect("NAME ID");
    assert!(!name.is_empty() && id.starts_with("sha256:") && id.len() == 71, "{}", output.stdout);
    id.to_owned()
}

/// The command fails in a way that is not a fault of the program, and says all of these texts.
#[track_caller]
fn refused(cmd: Cmd, texts: &[&str]) -> Output {
    let mut output = cmd.run();
    assert!(matches!(output.code, 1 | 3), "{}", output.transcript());
    assert_eq!(output.stdout, "");
    for text in texts {
        output = output.complains(text);
    }
    output
}

/// Every file of a state root but the lock of the store, which stays.
fn left(root: &Path) -> Vec<String> {
    let mut files = files(root);
    files.retain(|file| file != "data/images/lock");
    files
}

/// The same without whole layers in the store, which stay for the next attempt when nothing was wrong with them.
#[track_caller]
fn left_but_layers(root: &Path) -> Vec<String> {
    let mut files = left(root);
    files.retain(|file| match file.strip_prefix("data/images/blobs/") {
        Some(name) if !name.starts_with('.') => {
            let bytes = fs::read(root.join(file)).unwrap();
            let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, name, "a damaged layer under its name");
            false
        }
        _ => true,
    });
    files
}

/// The only root file system of a store.
#[track_caller]
fn rootfs(root: &Path) -> PathBuf {
    let dir = root.join("data/images/rootfs");
    let found: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    match found.as_slice() {
        [one] => one.clone(),
        _ => panic!("not one root file system: {found:?}"),
    }
}

/// The only root file system of a store, mounted.
#[track_caller]
fn mounted(host: &Host) -> Mounted {
    Mounted::erofs(&rootfs(&host.root()))
}

/// Hexadecimal digests of an image's layers.
fn layers(images: &Images, tag: &str) -> Vec<String> {
    let manifest = manifest(&images.layout(), tag);
    let digests =
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap());
    digests.map(|digest| digest.trim_start_matches("sha256:").to_owned()).collect()
}

/// Images `base`, `a`, `b`, `c`, `alone`: `a` and `b` are `base` and a layer more, `c` is `a` and a layer more.
fn some_images(bytes: usize) -> Images {
    let images = Images::new();
    images.empty("empty");
    let layers = [("empty", "base"), ("base", "a"), ("base", "b"), ("a", "c"), ("empty", "alone")];
    for (seed, (below, tag)) in (1..).zip(layers) {
        images.noise(below, tag, seed, bytes);
    }
    images
}

/// A registry with these images in the repository `app`.
fn registry_with(images: &Images, tags: &[&str]) -> Registry {
    let registry = Registry::plain();
    for tag in tags {
        registry.push(&images.layout(), tag, &format!("app:{tag}"));
    }
    registry.forget();
    registry
}
