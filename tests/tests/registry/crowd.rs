//! Many processes, one store.

use crate::{MIB, id, layers, mounted, pull, pulled, registry_with, some_images};
use magikvm_tests::proxy::{Action, Proxy};
use magikvm_tests::tools::files;
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Running};
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const TAGS: [&str; 4] = ["a", "b", "c", "alone"];

/// Root file systems by file name.
fn all_rootfs(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir = root.join("data/images/rootfs");
    files(&dir).into_iter().map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

#[test]
fn sixteen_processes_pull_overlapping_images_and_each_layer_comes_once() {
    let images = some_images(3 * MIB);
    let registry = registry_with(&images, &TAGS);
    let host = Host::bare();
    let running: Vec<(&str, Running)> = (0..16)
        .map(|number| {
            (TAGS[number % 4], pull(&host, &registry.name(&format!("app:{}", TAGS[number % 4]))).spawn())
        })
        .collect();
    let mut ids = BTreeMap::new();
    for (tag, running) in running {
        let id = id(&running.wait().expect_code(0));
        assert_eq!(ids.entry(tag).or_insert_with(|| id.clone()), &id);
    }
    let mut expected: Vec<String> = TAGS.iter().flat_map(|tag| layers(&images, tag)).collect();
    expected.sort();
    expected.dedup();
    let mut fetched = registry.fetched_blobs();
    fetched.retain(|blob| expected.contains(blob));
    assert_eq!(fetched, expected, "each layer once");

    let alone = Host::bare();
    for tag in TAGS {
        assert_eq!(pulled(&alone, &registry.name(&format!("app:{tag}"))), ids[tag]);
    }
    let (together, one_by_one) = (all_rootfs(&host.root()), all_rootfs(&alone.root()));
    assert_eq!(one_by_one.len(), 4);
    assert!(together == one_by_one, "{:?} {:?}", together.keys(), one_by_one.keys());
    assert_eq!(files(&host.root()), files(&alone.root()), "nothing but the images");
    host.cmd(["image", "verify", "--all"]).ok();
}

/// A process that waits for another one's layer does not wait for ever when that one dies.
#[test]
fn a_waiting_process_takes_over_from_a_killed_one() {
    let images = some_images(MIB);
    let registry = registry_with(&images, &["a", "b"]);
    let shared = layers(&images, "base").pop().unwrap();
    for second in ["app:a", "app:b"] {
        let (times, of_rule) = (Arc::new(AtomicUsize::new(0)), shared.clone());
        let counted = Arc::clone(&times);
        let proxy = Proxy::start(registry.port(), move |request| {
            match request.path.ends_with(&of_rule) && counted.fetch_add(1, Ordering::SeqCst) == 0 {
                true => Action::StallAfter(100_000),
                false => Action::Forward,
            }
        });
        let host = Host::bare();
        let first = pull(&host, &proxy.name("app:a")).spawn();
        until("the first has begun", || times.load(Ordering::SeqCst) == 1);
        let second = pull(&host, &proxy.name(second)).spawn();
        until("the second has asked for the image", || {
            proxy.requests().iter().filter(|one| one.is_manifest()).count() >= 2
        });
        first.signal(Signal::SIGKILL);
        first.wait().expect_code(137);
        second.wait().expect_code(0);
        assert_eq!(times.load(Ordering::SeqCst), 2);
        // The next change of the store removes the first one's remains.
        host.cmd(["image", "prune"]).ok();
        drop(mounted(&host));
    }
}
