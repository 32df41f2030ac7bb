//! The guest images that `ci/test.sh` has built from Debian's kernel source and our vminit: for the host's architecture and for aarch64.

mod common;

use common::{World, init, read, succeed};
use magikvm_proto::guest_image::GuestManifest;
use std::path::PathBuf;

fn guests() -> [PathBuf; 2] {
    ["MAGIKVM_TEST_GUEST", "MAGIKVM_TEST_GUEST_AARCH64"].map(|variable| {
        std::env::var_os(variable).map(PathBuf::from).unwrap_or_else(|| {
            panic!("{variable} must name the directory of a built guest image; ci/test.sh makes one and sets it: run that")
        })
    })
}

#[test]
fn the_real_images_are_whole_and_their_kernels_have_every_feature_of_the_table() {
    for guest in guests() {
        let output = World::new().program().args(["inspect", "-o", "json"]).arg(&guest).output().unwrap();
        succeed(&output);
        let manifest = GuestManifest::parse(&output.stdout).unwrap();
        for feature in magikvm_image::options::features(manifest.arch) {
            assert!(manifest.features.contains(feature.name), "{} for {}", feature.name, manifest.arch);
        }
        assert!(manifest.kernel_version.starts_with("6.12."), "{manifest:?}");
        assert_eq!(manifest.init.version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
    }
    assert!(String::from_utf8_lossy(&read(&guests()[1].join("manifest.json"))).contains("\"aarch64\""));
}

#[test]
fn the_real_kernels_are_taken_as_ready_ones_and_unchanged() {
    for guest in guests() {
        let world = World::new();
        let kernel = guest.join("vmlinux");
        let manifest = GuestManifest::parse(&read(&guest.join("manifest.json"))).unwrap();
        std::fs::write(world.path("vminit"), init(manifest.arch)).unwrap();
        let mut build = world.program();
        build.args(["build", "--init", "vminit", "--out", "guest", "--kernel"]).arg(&kernel);
        succeed(&build.output().unwrap());
        assert!(read(&world.path("guest/vmlinux")) == read(&kernel), "the kernel was changed");
    }
}

#[test]
fn no_path_and_no_name_of_the_build_host_is_in_the_real_kernels() {
    for guest in guests() {
        let kernel = read(&guest.join("vmlinux"));
        let contains = |text: &str| kernel.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(contains("(magikvm@magikvm)"));
        assert!(contains("#1 SMP Thu Jan 1 00:00:00 UTC 1970"));
        let cache = std::env::var("HOME").unwrap_or_default() + "/.cache";
        for text in [cache.as_str(), "/tree/kernel/", "/tree/include/"] {
            assert!(!contains(text), "{text}");
        }
    }
}
