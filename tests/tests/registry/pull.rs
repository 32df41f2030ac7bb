//! The pulled images, and the requests for them.

use crate::{
    ADDED, LARGE, MIB, id, layers, left, mounted, pull, pulled, refused, registry_with, some_images,
};
use magikvm_tests::Host;
use magikvm_tests::images::{Images, noise, unpack, userland};
use magikvm_tests::registry::Registry;
use magikvm_tests::terminal::Terminal;
use magikvm_tests::tools::{assert_same, run};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

fn first_layer(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    for name in ["usr/bin/plain", "usr/bin/capable", "usr/bin/setuid"] {
        fs::copy("/bin/busybox", root.join(name)).expect("/bin/busybox: apt-get install busybox-static");
    }
    run("setcap", &[&"cap_net_bind_service,cap_net_raw=ep", &root.join("usr/bin/capable")]);
    fs::set_permissions(root.join("usr/bin/setuid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("usr/bin/plain"), root.join("usr/bin/other-name")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    fs::write(root.join("owned"), "by somebody else").unwrap();
    chown(root.join("owned"), Some(1000), Some(100_000)).unwrap();
    run("setfattr", &[&"-n", &"user.colour", &"-v", &"green", &root.join("owned")]);
    run("mknod", &[&root.join("device"), &"c", &"1", &"3"]);
    for name in ["gone/sub/file", "opaque/old", "kept/old"] {
        fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        fs::write(root.join(name), "old").unwrap();
    }
}

fn second_layer(root: &Path) {
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), "new").unwrap();
    fs::write(root.join("kept/old"), "changed").unwrap();
    fs::write(root.join("large"), noise(7, 5 * MIB)).unwrap();
}

fn third_layer(root: &Path) {
    fs::remove_file(root.join("usr/bin/other-name")).unwrap();
    fs::create_dir(root.join("gone")).unwrap();
    fs::write(root.join("gone/again"), "back").unwrap();
}

#[test]
fn an_image_of_umoci_is_what_umoci_unpacks() {
    let images = Images::new();
    images.empty("empty");
    images.umoci("empty", "app", &[&first_layer, &second_layer, &third_layer]);
    let registry = registry_with(&images, &["app"]);
    let host = Host::bare();
    let name = registry.name("app:app");
    let output = pull(&host, &name).ok();
    assert_eq!(output.stdout, format!("{name} {}\n", id(&output)));
    let unpacked = tempfile::tempdir().unwrap();
    assert_same(&images.unpack("app", &unpacked.path().join("bundle")), mounted(&host).path(), &ADDED);

    let mut fetched = layers(&images, "app");
    fetched.push(id(&output).trim_start_matches("sha256:").to_owned());
    fetched.sort();
    assert_eq!(registry.fetched_blobs(), fetched, "each once");
    host.cmd(["image", "verify", "--all"]).ok();
    host.cmd(["image", "rm", &name]).ok();
    assert_eq!(left(&host.root()), ["data/images/index.json"]);
}

#[test]
fn images_of_buildah_arrive_in_each_compression() {
    let images = Images::new();
    let registry = Registry::plain();
    for compression in ["gzip", "zstd"] {
        images.buildah(compression, compression, &|root| {
            first_layer(root);
            second_layer(root);
        });
        registry.push(&images.layout(), compression, &format!("app:{compression}"));
        let host = Host::bare();
        pulled(&host, &registry.name(&format!("app:{compression}")));
        // umoci does not support zstd, but skopeo's conversion is the same image.
        let dir = tempfile::tempdir().unwrap();
        let (from, layout) = (images.source(compression), dir.path().join("layout"));
        let to = format!("oci:{}:gzip", layout.display());
        let as_gzip = ["--dest-compress", "--dest-compress-format", "gzip"];
        let copy = host.other("skopeo").args(["--insecure-policy", "copy"]).args(as_gzip);
        copy.args([from, to]).ok();
        let expected = unpack(&layout, "gzip", &dir.path().join("bundle"));
        assert_same(&expected, mounted(&host).path(), &ADDED);
    }
    let manifest = magikvm_tests::images::manifest(&images.layout(), "zstd");
    assert!(manifest["layers"][0]["mediaType"].as_str().unwrap().ends_with("+zstd"), "{manifest}");
}

#[test]
fn a_debian_system_is_what_umoci_unpacks() {
    let registry = Registry::plain();
    registry.push(&userland(), "userland", "debian:1");
    let unpacked = tempfile::tempdir().unwrap();
    let expected = unpack(&userland(), "userland", &unpacked.path().join("bundle"));
    for compress in ["none", "lz4"] {
        let host = Host::bare();
        let name = registry.name("debian:1");
        pull(&host, &name).args(["--compress", compress]).limit(LARGE).ok();
        assert_same(&expected, mounted(&host).path(), &ADDED);
    }
}

#[test]
fn a_platform_is_chosen_of_an_index() {
    let images = some_images(1000);
    for (tag, architecture) in [("a", "amd64"), ("b", "arm64")] {
        images.set_architecture(tag, architecture);
    }
    images.index("index", &["a", "b"]);
    let registry = registry_with(&images, &["index"]);
    let name = registry.name("app:index");
    let (own, file) = match cfg!(target_arch = "aarch64") {
        true => ("linux/arm64", "noise-3"),
        false => ("linux/amd64", "noise-2"),
    };
    let host = Host::bare();
    let host_id = pulled(&host, &name);
    assert!(mounted(&host).path().join(file).is_file());
    for (platform, file) in [("linux/amd64", "noise-2"), ("linux/arm64", "noise-3")] {
        let host = Host::bare();
        let chosen = id(&pull(&host, &name).args(["--platform", platform]).ok());
        assert!(mounted(&host).path().join(file).is_file(), "{platform}");
        assert_eq!(chosen == host_id, platform == own);
    }
    let other = Host::bare();
    refused(
        pull(&other, &name).args(["--platform", "linux/riscv64"]),
        &["linux/riscv64", "linux/amd64", "linux/arm64"],
    );
    refused(pull(&other, &name).args(["--platform", "windows/amd64"]), &["windows"]);
    pull(&other, &name).args(["--platform", "nonsense"]).fails(2);
    assert_eq!(left(&other.root()), [""; 0]);
}

#[test]
fn names_that_are_not_there_are_errors_that_leave_nothing() {
    let registry = registry_with(&some_images(1000), &["a"]);
    let host = Host::bare();
    refused(pull(&host, &registry.name("app:other")), &["not found", "app", "other", "Hint"]);
    refused(pull(&host, &registry.name("nothing/there:a")), &["not found", "nothing/there"]);
    let digest = format!("sha256:{}", "0".repeat(64));
    refused(pull(&host, &registry.name(&format!("app@{digest}"))), &["not found", &digest]);
    refused(pull(&host, "Not A Name"), &["Not A Name"]);
    assert_eq!(left(&host.root()), [""; 0]);
}

#[test]
fn a_pinned_digest_is_asked_for_once() {
    let images = some_images(1000);
    let mut registry = Registry::plain();
    let digest = registry.push(&images.layout(), "a", "app:a");
    let other = registry.push(&images.layout(), "b", "app:b");
    let host = Host::bare();
    let names = [format!("app@{digest}"), format!("app:a@{digest}")].map(|name| registry.name(&name));
    let first = pulled(&host, &names[0]);
    registry.forget();
    for policy in ["missing", "always", "never"] {
        assert_eq!(id(&pull(&host, &names[0]).args(["--policy", policy]).ok()), first, "{policy}");
    }
    assert_eq!(registry.requests(), []);
    registry.stop();
    for policy in ["missing", "always", "never"] {
        assert_eq!(id(&pull(&host, &names[0]).args(["--policy", policy]).ok()), first, "{policy}");
    }
    // Another name for the same image needs no registry either.
    assert_eq!(pulled(&host, &names[1]), first);
    refused(pull(&host, &registry.name(&format!("app@{other}"))), &["cannot connect"]);
}

#[test]
fn policies_say_when_the_registry_is_asked() {
    let images = some_images(1000);
    let registry = registry_with(&images, &["a"]);
    let name = registry.name("app:a");
    let host = Host::bare();
    let with = |policy: &str| pull(&host, &name).args(["--policy", policy]);

    refused(with("never"), &[&name, "Hint"]);
    assert_eq!(registry.requests(), []);
    let old = id(&with("missing").ok());
    registry.forget();
    for policy in ["missing", "never"] {
        assert_eq!(id(&with(policy).ok()), old);
    }
    for (option, value) in [("--platform", "linux/riscv64"), ("--compress", "lz4")] {
        let hint = format!("Hint: Pull it with `magikvm image pull {option} {value} {name}");
        refused(with("never").args([option, value]), &["is in the store, but ", value, &hint]);
    }
    assert_eq!(registry.requests(), []);
    assert_eq!(registry.requests(), []);

    // Nothing is new: the manifest is requested, and no layer is fetched.
    assert_eq!(id(&with("always").ok()), old);
    let asked = registry.requests();
    assert!(asked.iter().any(|one| one.path.ends_with("/v2/app/manifests/a")), "{asked:?}");
    assert!(registry.fetched_blobs().iter().all(|blob| !layers(&images, "a").contains(blob)));

    registry.push(&images.layout(), "c", "app:a");
    assert_eq!(id(&with("missing").ok()), old);
    registry.forget();
    let new = id(&with("always").ok());
    assert_ne!(new, old);
    let below = layers(&images, "a");
    let own = layers(&images, "c").pop().unwrap();
    let fetched = registry.fetched_blobs();
    assert!(fetched.contains(&own) && !fetched.iter().any(|blob| below.contains(blob)), "{fetched:?}");
    assert_eq!(id(&with("never").ok()), new);
}

#[test]
fn progress_is_plain_lines_without_a_terminal_and_bars_on_one() {
    let images = some_images(3 * MIB);
    let registry = registry_with(&images, &["c"]);
    let name = registry.name("app:c");
    let host = Host::bare();
    let output = pull(&host, &name).ok();
    assert!(output.stderr.lines().count() >= 2 && output.stderr.ends_with('\n'), "{}", output.stderr);
    assert!(!output.stderr.contains(['\r', '\x1b', '\x08']), "{:?}", output.stderr);
    let lines = output.stderr.lines().count();
    assert!(lines < 40, "{lines} lines for three layers:\n{}", output.stderr);

    let quiet = Host::bare();
    let output = pull(&quiet, &name).arg("-q").ok();
    assert_eq!((output.stderr.as_str(), id(&output).len()), ("", 71));

    let watched = Host::bare();
    let mut terminal = Terminal::start(pull(&watched, &name), 24, 80);
    assert_eq!(terminal.wait(), 0);
    terminal.wait_for(&format!("{name} sha256:"));
    assert!(terminal.shown().contains('\x1b'), "{:?}", terminal.shown());
}
