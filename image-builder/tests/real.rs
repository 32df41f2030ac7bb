//! The guest image that `ci/test.sh` has built from Debian's kernel source and our vminit.

mod common;

use common::{World, read, stdout, succeed};
use std::path::PathBuf;

fn guest() -> PathBuf {
    std::env::var_os("MAGIKVM_TEST_GUEST").map(PathBuf::from).expect(
        "MAGIKVM_TEST_GUEST must name the directory of a built guest image; ci/test.sh makes one and sets it: run that",
    )
}

#[test]
fn the_real_image_is_whole_and_its_kernel_has_every_feature_of_the_table() {
    let output = World::new().program().args(["inspect", "-o", "json"]).arg(guest()).output().unwrap();
    succeed(&output);
    let manifest: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let features: Vec<&str> =
        manifest["features"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for feature in magikvm_image::options::FEATURES_X86_64 {
        assert!(features.contains(&feature.name), "{}", feature.name);
    }
    assert!(manifest["kernel_version"].as_str().unwrap().starts_with("6.12."), "{manifest}");
    assert_eq!(manifest["init"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_real_kernel_is_taken_as_a_ready_one_and_unchanged() {
    let world = World::new();
    let kernel = guest().join("vmlinux");
    let mut build = world.program();
    build.args(["build", "--init", "vminit", "--out", "guest", "--kernel"]).arg(&kernel);
    succeed(&build.output().unwrap());
    assert!(read(&world.path("guest/vmlinux")) == read(&kernel), "the kernel was changed");
}

#[test]
fn no_path_and_no_name_of_the_building_machine_is_in_the_real_kernel() {
    let kernel = read(&guest().join("vmlinux"));
    let contains = |text: &str| kernel.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains("(magikvm@magikvm)"));
    assert!(contains("#1 SMP Thu Jan 1 00:00:00 UTC 1970"));
    let cache = std::env::var("HOME").unwrap_or_default() + "/.cache";
    for text in [cache.as_str(), "/tree/kernel/", "/tree/include/"] {
        assert!(!contains(text), "{text}");
    }
}
