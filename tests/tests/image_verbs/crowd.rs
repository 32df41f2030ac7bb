//! Everybody at once.

use crate::{MIB, image, json_of, some_images, store};
use magikvm_tests::registry::Registry;
use magikvm_tests::tools::files;
use magikvm_tests::{Cmd, Host};
use std::fs;

const ROUNDS: usize = 12;

fn pull(host: &Host, registry: &str, tag: &str) -> Cmd {
    image(host, &["pull", "--plain-http", "-q", &format!("{registry}/app:{tag}")])
}

/// Whatever comes of each, what the index has is whole.
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
