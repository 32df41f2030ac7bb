//! What `prune` removes and keeps, and the sums of `df`.

use crate::{
    MIB, blob, image, import, import_from, inspect, json_of, names, on_disk, rootfs, some_images, store,
};
use magikvm_tests::layout::Tar;
use magikvm_tests::tools::files;
use magikvm_tests::{Host, Pod};
use serde_json::json;
use std::fs::{self, File};
use std::time::{Duration, SystemTime};

/// Makes an image appear unused for this number of hours.
#[track_caller]
fn unused_for(host: &Host, name: &str, hours: u64) {
    let then = SystemTime::now() - Duration::from_secs(hours * 3600);
    File::options().write(true).open(rootfs(host, name)).unwrap().set_modified(then).unwrap();
}

/// `prune` does what its dry run reports.
#[track_caller]
fn prune(host: &Host, args: &[&str]) -> String {
    let before = files(&store(host));
    let would = image(host, &["prune", "--dry-run"]).args(args).ok().stdout;
    assert_eq!(files(&store(host)), before);
    let done = image(host, &["prune"]).args(args).ok().stdout;
    assert_eq!(would.replace("would remove", "removed").replace("would free", "freed"), done);
    done
}

#[test]
fn images_without_a_name_go_and_with_all_the_others() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("user"), "run");
    import(&host, "other", "b");
    image(&host, &["tag", "other", "test/app:1"]).ok();
    assert_eq!(prune(&host, &[]), "freed 0B\n", "it is used");
    host.cmd(["rm", "-f", "user"]).ok();
    let said = prune(&host, &[]);
    assert!(said.starts_with("removed <none> (sha256:") && said.lines().count() == 2, "{said}");
    assert_eq!(prune(&host, &[]), "freed 0B\n");
    assert_eq!(names(&host), ["other:latest", "test/app:1"]);
    let said = prune(&host, &["--all"]);
    assert!(said.starts_with("removed other:latest test/app:1 (sha256:"), "{said}");
    assert_eq!(files(&store(&host)), ["index.json", "lock"]);
    let said = json_of(&host, &["prune", "--all"]);
    assert_eq!(said, json!({ "images": [], "freedBytes": 0 }));
}

#[test]
fn what_a_pod_uses_stays() {
    let host = Host::fake();
    import(&host, "other", "b");
    host.start_fake(&Pod::simple("user"), "run");
    unused_for(&host, "test/app:1", 1000);
    let id = inspect(&host, "test/app:1")["id"].clone();
    for args in [&["--all"][..], &["--keep-storage", "0"], &["--all", "--until", "1s"]] {
        prune(&host, args);
        assert_eq!(inspect(&host, "test/app:1")["id"], id, "{args:?}");
    }
    assert_eq!(names(&host), ["test/app:1"]);
    image(&host, &["verify", "--all"]).ok();
    assert_eq!(host.phase("user"), "Running");
    // A pod that has ended uses nothing.
    host.cmd(["stop", "user"]).ok();
    host.cmd(["rm", "user"]).ok();
    prune(&host, &["--all"]);
    assert_eq!(names(&host), [""; 0]);
}

#[test]
fn a_run_counts_as_use() {
    let host = Host::fake();
    unused_for(&host, "test/app:1", 48);
    host.run_fake(&Pod::simple("brief"), "exit=0").arg("--rm").ok();
    assert_eq!(prune(&host, &["--all", "--until", "24h"]), "freed 0B\n");
    unused_for(&host, "test/app:1", 25);
    assert!(prune(&host, &["--all", "--until", "24h"]).contains("removed test/app:1"));
}

#[test]
fn layers_that_another_image_needs_stay() {
    let images = some_images(MIB / 4);
    let host = Host::bare();
    for tag in ["a", "b"] {
        import_from(&host, &images.source(tag), tag);
    }
    let layers = |name: &str| -> Vec<String> {
        let one = inspect(&host, name);
        let parts = one["layers"].as_array().unwrap().iter();
        parts.map(|part| part["digest"].as_str().unwrap().to_owned()).collect()
    };
    let (a, b) = (layers("a"), layers("b"));
    assert!(a[0] == b[0] && a[1] != b[1]);
    unused_for(&host, "a", 3);
    let said = prune(&host, &["--all", "--until", "2h"]);
    assert!(said.contains("removed a:latest"), "{said}");
    assert_eq!(names(&host), ["b:latest"]);
    assert!(blob(&host, &b[0]).is_file() && blob(&host, &b[1]).is_file() && !blob(&host, &a[1]).exists());
    image(&host, &["verify", "--all"]).ok();
}

/// Two images that differ only in their configuration share one root file system.
#[test]
fn a_root_file_system_that_another_image_needs_stays() {
    let host = Host::bare();
    let layer = || Tar::default().file("content", 0o644, b"the same");
    for name in ["a", "b"] {
        host.import(name, layer(), &json!({ "Labels": { "name": name } }));
    }
    assert_eq!(rootfs(&host, "a"), rootfs(&host, "b"));
    image(&host, &["rm", "a"]).ok();
    image(&host, &["verify", "b"]).ok();
    let said = prune(&host, &["--all"]);
    assert!(said.contains("removed b:latest"), "{said}");
    assert_eq!(files(&store(&host)), ["index.json", "lock"]);
}

/// A pod that uses one of them keeps only that one.
#[test]
fn of_two_images_with_one_root_file_system_the_used_one_stays() {
    let host = Host::fake();
    let layer = || Tar::default().dir("bin/", 0o755).file("bin/app", 0o755, b"#!/bin/true\n");
    for name in ["a", "b"] {
        host.import(name, layer(), &json!({ "Labels": { "name": name } }));
    }
    let pod = Pod::new("user").container_of("web", "a", &["app"]).with("imagePullPolicy", "Never");
    host.start_fake(&pod, "run");
    // Another import changes nothing.
    host.import("a", layer(), &json!({ "Labels": { "name": "a" } }));
    image(&host, &["rm", "a"]).fails(1).complains("is used by a pod");
    let said = prune(&host, &["--all"]);
    assert!(said.contains("removed b:latest") && !said.contains("a:latest"), "{said}");
    assert_eq!(names(&host), ["a:latest"]);
    image(&host, &["verify", "--all"]).ok();
    host.cmd(["rm", "-f", "user"]).ok();
    image(&host, &["rm", "a"]).ok();
    assert_eq!(files(&store(&host)), ["index.json", "lock"]);
}

#[test]
fn no_more_goes_than_the_storage_wants() {
    let host = Host::bare();
    for (hours, name) in [(1, "young"), (3, "old"), (2, "middle")] {
        let content = String::from_utf8(vec![b'a' + u8::try_from(hours).unwrap(); MIB]).unwrap();
        import(&host, name, &content);
        unused_for(&host, name, hours);
    }
    let size = || on_disk(&store(&host).join("rootfs")) + on_disk(&store(&host).join("blobs"));
    let all = size();
    assert_eq!(prune(&host, &["--keep-storage", &all.to_string()]), "freed 0B\n");
    let said = prune(&host, &["--keep-storage", &(all - 1).to_string()]);
    assert!(said.starts_with("removed old:latest "), "{said}");
    assert_eq!(names(&host), ["middle:latest", "young:latest"]);
    let two = size();
    assert!(two < all - MIB as u64 && two > all / 2, "{all} {two}");
    // Recently used images stay in any case.
    assert_eq!(prune(&host, &["--keep-storage", "0", "--until", "4h"]), "freed 0B\n");
    let said = prune(&host, &["--keep-storage", "3M"]);
    assert!(said.starts_with("removed middle:latest ") && said.lines().count() == 2, "{said}");
    assert!(size() <= 3 << 20);
    prune(&host, &["--keep-storage", "0"]);
    assert_eq!((names(&host), size()), (Vec::new(), 0));
}

/// The remains of failed pulls and killed processes count towards what prune frees, so that no images are removed for them.
#[test]
fn leftovers_go_before_images() {
    let host = Host::bare();
    import(&host, "app", &"x".repeat(MIB));
    let size = on_disk(&store(&host).join("rootfs")) + on_disk(&store(&host).join("blobs"));
    let leave = || {
        for name in ["blobs", "rootfs"] {
            let suffix = if name == "rootfs" { ".erofs" } else { "" };
            let leftover = store(&host).join(name).join("0".repeat(64) + suffix);
            fs::write(leftover, vec![1; MIB]).unwrap();
        }
    };
    leave();
    assert_eq!(prune(&host, &["--keep-storage", &size.to_string()]), "freed 2.0MiB\n");
    assert_eq!(names(&host), ["app:latest"]);
    leave();
    let usage = json_of(&host, &["df"]);
    let sizes = ["rootfs", "blobs"].map(|kind| usage[kind]["sizeBytes"].as_u64().unwrap());
    assert_eq!(sizes.iter().sum::<u64>(), size + 2 * MIB as u64);
    assert_eq!(prune(&host, &[]), "freed 2.0MiB\n");
    image(&host, &["verify", "--all"]).ok();
}

#[test]
fn what_df_adds_up_is_on_disk_and_what_can_be_freed_is_freed() {
    let images = some_images(MIB / 4);
    let host = Host::fake();
    let usage = |kind: &str, field: &str| json_of(&host, &["df"])[kind][field].as_u64().unwrap();
    for tag in ["a", "b"] {
        import_from(&host, &images.source(tag), tag);
    }
    host.start_fake(&Pod::simple("user"), "run");
    // Layers: one of the test's image and three; manifests: three.
    assert_eq!((usage("rootfs", "count"), usage("blobs", "count")), (3, 7));
    assert_eq!((usage("rootfs", "inUse"), usage("blobs", "inUse")), (1, 2));
    for kind in ["rootfs", "blobs"] {
        assert_eq!(usage(kind, "sizeBytes"), on_disk(&store(&host).join(kind)), "{kind}");
    }
    let reclaimable = usage("rootfs", "reclaimableBytes") + usage("blobs", "reclaimableBytes");
    let all = usage("rootfs", "sizeBytes") + usage("blobs", "sizeBytes");
    assert!(reclaimable > 0 && reclaimable < all);
    let table = image(&host, &["df"]).ok().stdout;
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 4, "{table}");
    assert!(rows[0].starts_with("KIND ") && rows[1].contains(" 3 ") && rows[2].contains(" 7 "), "{table}");
    let pruned = json_of(&host, &["prune", "--all"]);
    assert_eq!(pruned["freedBytes"].as_u64(), Some(reclaimable));
    assert_eq!(usage("rootfs", "sizeBytes") + usage("blobs", "sizeBytes"), all - reclaimable);
    assert_eq!(usage("rootfs", "reclaimableBytes") + usage("blobs", "reclaimableBytes"), 0);
}
