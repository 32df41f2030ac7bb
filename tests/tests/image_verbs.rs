//! The verbs of `magikvm image` except `pull`: names, removal, pruning, checking, export and import.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "image_verbs/crowd.rs"]
mod crowd;
#[path = "image_verbs/export.rs"]
mod export;
#[path = "image_verbs/import.rs"]
mod import;
#[path = "image_verbs/names.rs"]
mod names;
#[path = "image_verbs/prune.rs"]
mod prune;
#[path = "image_verbs/verify.rs"]
mod verify;

use magikvm_tests::images::Images;
use magikvm_tests::layout::Tar;
use magikvm_tests::tools::files;
use magikvm_tests::{Cmd, Host};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

const MIB: usize = 1 << 20;

/// `magikvm image` with these arguments.
fn image(host: &Host, args: &[&str]) -> Cmd {
    host.cmd(["image"]).args(args)
}

/// What it prints as JSON.
#[track_caller]
fn json_of(host: &Host, args: &[&str]) -> Value {
    let output = image(host, args).args(["-o", "json"]).ok();
    serde_json::from_str(&output.stdout).unwrap()
}

/// The output of `inspect` for an image.
#[track_caller]
fn inspect(host: &Host, name: &str) -> Value {
    json_of(host, &["inspect", name])[0].take()
}

/// Imports a new image of one layer with one file, and returns its ID.
#[track_caller]
fn import(host: &Host, name: &str, content: &str) -> String {
    let layer = Tar::default().file("content", 0o644, content.as_bytes());
    let output = host.import(name, layer, &json!({ "Cmd": ["/bin/app"] }));
    output.stdout.trim_end().rsplit(' ').next().unwrap().to_owned()
}

/// Imports an image from a layout of other tools, and returns its ID.
#[track_caller]
fn import_from(host: &Host, source: &str, name: &str) -> String {
    let output = image(host, &["import", source, "--name", name, "-q"]).ok();
    let (familiar, id) = output.stdout.trim_end().split_once(' ').unwrap();
    assert!(familiar.starts_with(name), "{}", output.stdout);
    id.to_owned()
}

/// Names (`<none>` for none) and first digits of the ids that `ls` shows.
#[track_caller]
fn listed(host: &Host) -> Vec<(String, String)> {
    let rows = image(host, &["ls"]).ok().stdout;
    let words = rows.lines().skip(1).map(|row| {
        let mut words = row.split_ascii_whitespace().map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap())
    });
    words.collect()
}

/// The names that `ls` shows.
#[track_caller]
fn names(host: &Host) -> Vec<String> {
    listed(host).into_iter().map(|(name, _)| name).collect()
}

fn store(host: &Host) -> PathBuf {
    host.root().join("data/images")
}

/// A blob of the store.
fn blob(host: &Host, digest: &str) -> PathBuf {
    store(host).join("blobs").join(digest.trim_start_matches("sha256:"))
}

/// The root file system of an image.
#[track_caller]
fn rootfs(host: &Host, name: &str) -> PathBuf {
    PathBuf::from(inspect(host, name)["rootfs"]["path"].as_str().unwrap())
}

/// Bytes that a directory's files take on disk.
fn on_disk(dir: &std::path::Path) -> u64 {
    files(dir).iter().map(|name| std::fs::metadata(dir.join(name)).unwrap().blocks() * 512).sum()
}

/// Images `base`, `a`, `b`: `a` and `b` are `base` with one more layer. Layers are noise of this size.
fn some_images(bytes: usize) -> Images {
    let images = Images::new();
    images.empty("empty");
    for (seed, (below, tag)) in (1..).zip([("empty", "base"), ("base", "a"), ("base", "b")]) {
        images.noise(below, tag, seed, bytes);
    }
    images
}
