//! A registry or proxy that breaks off, stalls, lies or changes its answers. Each case is an error with its reason and leaves nothing, or does
//! no harm.

use crate::{
    MIB, id, layers, left, left_but_layers, mounted, pull, pulled, refused, registry_with, some_images,
};
use magikvm_tests::Host;
use magikvm_tests::images::{Images, noise};
use magikvm_tests::proxy::{Action, Proxy, Request};
use magikvm_tests::registry::Registry;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The pull fails with these texts and leaves nothing, whatever is wrong with the registry. Complete valid layers may stay for another attempt
/// until they are pruned.
#[track_caller]
fn spoilt(registry: &Registry, texts: &[&str], rule: impl Fn(&Request) -> Action + Send + Sync + 'static) {
    let host = Host::bare();
    let proxy = Proxy::start(registry.port(), rule);
    refused(pull(&host, &proxy.name("app:c")), texts);
    assert_eq!(left_but_layers(&host.root()), [""; 0]);
    host.cmd(["image", "prune"]).ok();
    assert_eq!(left(&host.root()), [""; 0]);
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let images = some_images(3 * MIB);
    let registry = registry_with(&images, &["c"]);
    let cuts = AtomicUsize::new(0);
    let layer = layers(&images, "c").pop().unwrap();
    let path = format!("/v2/app/blobs/sha256:{layer}");
    let cut = path.clone();
    let proxy = Proxy::start(registry.port(), move |request| {
        match request.path == cut && cuts.fetch_add(1, Ordering::SeqCst) < 2 {
            true => Action::CutAfter(1_000_000),
            false => Action::Forward,
        }
    });
    let host = Host::bare();
    pulled(&host, &proxy.name("app:c"));
    let content = fs::read(mounted(&host).path().join("noise-4")).unwrap();
    assert!(content == noise(4, 3 * MIB));
    let requests = proxy.requests();
    let ranges: Vec<_> =
        requests.iter().filter(|one| one.path == path).map(|one| one.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=1000000-"), Some("bytes=2000000-")]);
}

/// Some servers do not support ranges and begin anew.
#[test]
fn a_server_without_ranges_may_begin_anew() {
    let images = some_images(3 * MIB);
    let registry = registry_with(&images, &["c"]);
    let layer = layers(&images, "c").pop().unwrap();
    let body = fs::read(images.layout().join("blobs/sha256").join(&layer)).unwrap();
    let times = AtomicUsize::new(0);
    let proxy = Proxy::start(registry.port(), move |request| match request.path.ends_with(&layer) {
        true if times.fetch_add(1, Ordering::SeqCst) == 0 => Action::CutAfter(1_000_000),
        true => Action::Answer { status: 200, headers: Vec::new(), body: body.clone() },
        false => Action::Forward,
    });
    let host = Host::bare();
    pulled(&host, &proxy.name("app:c"));
    assert!(fs::read(mounted(&host).path().join("noise-4")).unwrap() == noise(4, 3 * MIB));
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let registry = registry_with(&some_images(1000), &["c"]);
    for status in [429, 500, 503] {
        let times = AtomicUsize::new(0);
        let proxy = Proxy::start(registry.port(), move |_| match times.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Action::status(status),
            _ => Action::Forward,
        });
        pulled(&Host::bare(), &proxy.name("app:c"));
    }
    spoilt(&registry, &["HTTP 503"], |request| match request.is_blob() {
        true => Action::status(503),
        false => Action::Forward,
    });
}

#[test]
fn a_connection_that_breaks_again_and_again_is_given_up() {
    let registry = registry_with(&some_images(MIB), &["c"]);
    spoilt(&registry, &["app/blobs"], |request| match request.is_blob() {
        true => Action::CutAfter(0),
        false => Action::Forward,
    });
}

#[test]
fn a_stall_ends_with_the_time_that_was_given() {
    let registry = registry_with(&some_images(MIB), &["c"]);
    let stalls: [fn(&Request) -> Action; 4] = [
        |_| Action::Stall,
        |request| if request.is_manifest() { Action::StallAfter(10) } else { Action::Forward },
        |request| if request.is_blob() { Action::Stall } else { Action::Forward },
        |request| if request.is_blob() { Action::StallAfter(50_000) } else { Action::Forward },
    ];
    for (number, rule) in stalls.into_iter().enumerate() {
        let host = Host::bare();
        let proxy = Proxy::start(registry.port(), rule);
        let output = refused(pull(&host, &proxy.name("app:c")).args(["--timeout", "2"]), &["2 s"]);
        assert!(output.took < Duration::from_secs(8), "{number}: {:?}", output.took);
        assert_eq!(left_but_layers(&host.root()), [""; 0], "{number}");
    }
}

#[test]
fn other_lengths_than_announced() {
    let registry = registry_with(&some_images(100_000), &["c"]);
    let blob = |length: u64| {
        move |request: &Request| if request.is_blob() { Action::Length(length) } else { Action::Forward }
    };
    spoilt(&registry, &["bytes"], blob(50));
    spoilt(&registry, &["bytes"], blob(10_000_000));
    spoilt(&registry, &["app/blobs"], blob(u64::MAX));
    let manifest = |length: u64| {
        move |request: &Request| if request.is_manifest() { Action::Length(length) } else { Action::Forward }
    };
    spoilt(&registry, &["manifests"], manifest(100));
    spoilt(&registry, &["1048576 bytes"], manifest(2 << 20));
}

#[test]
fn other_bytes_than_announced() {
    let images = some_images(100_000);
    let registry = registry_with(&images, &["c", "alone"]);
    let [first, second, third] = layers(&images, "c").try_into().unwrap();
    // Another blob of the same length, and one of another length.
    let swapped = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), format!("/v2/app/blobs/sha256:{to}"));
        move |request: &Request| match request.path.ends_with(&from) {
            true => Action::Instead(to.clone()),
            false => Action::Forward,
        }
    };
    spoilt(&registry, &["digest"], swapped(&second, &third));
    spoilt(&registry, &["digest"], swapped(&first, &third));
    let config = magikvm_tests::images::manifest(&images.layout(), "c")["config"]["digest"].to_string();
    let config = config.trim_matches('"').trim_start_matches("sha256:").to_owned();
    spoilt(&registry, &[&config], swapped(&config, &third));
    for (status, body) in [(200, "{}"), (200, "no JSON"), (200, ""), (418, "")] {
        spoilt(&registry, &["manifests/c"], move |request| match request.is_manifest() {
            true => Action::Answer { status, headers: Vec::new(), body: body.as_bytes().to_vec() },
            false => Action::Forward,
        });
    }
    spoilt(&registry, &["1048576 bytes"], |request| match request.is_manifest() {
        true => Action::Answer { status: 200, headers: Vec::new(), body: vec![b' '; (1 << 20) + 1] },
        false => Action::Forward,
    });
    // Damage in the registry's storage.
    let path = registry.blob_path(&second);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    // The digest or the decompression fails first. Either way the error names the layer.
    spoilt(&registry, &[&second], |_| Action::Forward);
    fs::remove_file(&path).unwrap();
    spoilt(&registry, &[&second], |_| Action::Forward);
}

#[test]
fn redirects_that_lead_nowhere() {
    let registry = registry_with(&some_images(1000), &["c"]);
    for target in ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://127.0.0.1:1/x", "//", "http://[", ""] {
        spoilt(&registry, &[], move |request| match request.is_blob() {
            true => Action::redirect(target),
            false => Action::Forward,
        });
    }
    // A redirect in a circle.
    spoilt(&registry, &["redirect"], |request| match request.is_blob() {
        true => Action::redirect(request.path.clone()),
        false => Action::Forward,
    });
}

/// The result is one of the two images as a whole and never a mixture, however often the tag moves.
#[test]
fn a_tag_that_moves_between_two_requests() {
    let images = Images::new();
    images.empty("empty");
    let mut ids = Vec::new();
    for (seed, tag) in [(1, "old"), (2, "new")] {
        images.noise("empty", tag, seed, 1000);
        let config = magikvm_tests::images::manifest(&images.layout(), tag)["config"]["digest"].clone();
        ids.push(config.as_str().unwrap().to_owned());
    }
    let registry = registry_with(&images, &["old", "new"]);
    for begin in [0, 1] {
        let times = AtomicUsize::new(begin);
        let proxy = Proxy::start(registry.port(), move |request| match request.path.as_str() {
            "/v2/app/manifests/moving" => match times.fetch_add(1, Ordering::SeqCst) % 2 {
                0 => Action::Instead("/v2/app/manifests/old".to_owned()),
                _ => Action::Instead("/v2/app/manifests/new".to_owned()),
            },
            _ => Action::Forward,
        });
        let host = Host::bare();
        let id = id(&pull(&host, &proxy.name("app:moving")).ok());
        let which = ids.iter().position(|one| *one == id).expect("the id of one of them");
        let mounted = mounted(&host);
        for (number, seed) in [1, 2].into_iter().enumerate() {
            let there = mounted.path().join(format!("noise-{seed}")).is_file();
            assert_eq!(there, number == which, "noise-{seed} in {id}");
        }
        host.cmd(["image", "verify", "--all"]).ok();
    }
}

/// An index names its images by digest, so that a substituted image is detected.
#[test]
fn an_index_whose_image_was_exchanged() {
    let images = some_images(1000);
    for tag in ["a", "b"] {
        images.set_architecture(tag, if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" });
    }
    images.index("index", &["a"]);
    let registry = registry_with(&images, &["index", "b"]);
    let host = Host::bare();
    let proxy = Proxy::start(registry.port(), |request| match request.path.contains("/manifests/sha256:") {
        true => Action::Instead("/v2/app/manifests/b".to_owned()),
        false => Action::Forward,
    });
    refused(pull(&host, &proxy.name("app:index")), &["digest"]);
    assert_eq!(left(&host.root()), [""; 0]);
    pulled(&host, &registry.name("app:index"));
}
