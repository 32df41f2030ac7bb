//! Many verbs at once.

use crate::{MIB, image, json_of, some_images, store};
use magikvm_tests::proxy::{Action, Proxy};
use magikvm_tests::registry::Registry;
use magikvm_tests::tools::files;
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Host, Pod};
use nix::sys::signal::Signal;
use std::fs;

const ROUNDS: usize = 12;

fn pull(host: &Host, registry: &str, tag: &str) -> Cmd {
    image(host, &["pull", "--plain-http", "-q", &format!("{registry}/app:{tag}")])
}

/// Whatever the outcome of each verb, all images of the index are complete.
#[test]
fn prunes_beside_pulls_take_nothing_that_is_needed() {
    let images = some_images(MIB / 2);
    let registry = Registry::plain();
    for tag in ["a", "b"] {
        registry.push(&images.layout(), tag, &format!("app:{tag}"));
    }
    let (host, alone, at) = (&Host::bare(), Host::bare(), &registry.host());
    std::thread::scope(|scope| {
        for tag in ["a", "b", "a"] {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    pull(host, at, tag).ok();
                }
            });
        }
        for args in [["prune", "--all"], ["prune", "--keep-storage=1M"]] {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    image(host, &args).ok();
                    let usage = json_of(host, &["df"]);
                    assert!(usage["rootfs"]["count"].as_u64().unwrap() <= 3, "{usage}");
                }
            });
        }
    });
    image(host, &["verify", "--all"]).ok();
    for tag in ["a", "b"] {
        pull(host, at, tag).ok();
        pull(&alone, at, tag).ok();
    }
    image(host, &["verify", "--all"]).ok();
    image(host, &["prune"]).ok();
    assert_eq!(files(&store(host)), files(&store(&alone)));
    for name in files(&store(host).join("rootfs")) {
        let read = |host: &Host| fs::read(store(host).join("rootfs").join(&name)).unwrap();
        assert!(read(host) == read(&alone), "{name}");
    }
}

/// A pull of the same layers does not make an image unused.
#[test]
fn an_image_in_use_stays_while_its_layers_are_brought_again() {
    let images = some_images(MIB);
    let registry = Registry::plain();
    registry.push(&images.layout(), "a", "app:a");
    let proxy = Proxy::start(registry.port(), |request| match request.is_blob() {
        true => Action::StallAfter(1000),
        false => Action::Forward,
    });
    let host = Host::bare();
    crate::import_from(&host, &images.source("a"), "used:1");
    host.start_fake(&Pod::new("user").container_of("web", "used:1", &["app"]), "run");
    let one = crate::inspect(&host, "used:1");
    fs::remove_file(crate::blob(&host, one["layers"][1]["digest"].as_str().unwrap())).unwrap();
    let pulling = pull(&host, &proxy.host(), "a").spawn();
    until("a layer", || {
        proxy
            .requests()
            .iter()
            .any(|request| request.path.ends_with(one["layers"][1]["digest"].as_str().unwrap()))
    });
    image(&host, &["rm", "used:1"]).fails(1).complains("is used by a pod");
    image(&host, &["prune", "--all"]).ok();
    pulling.signal(Signal::SIGINT);
    pulling.wait().expect_code(130);
    assert_eq!(crate::inspect(&host, "used:1")["id"], one["id"]);
}
