//! Volumes that survive their pods: their verbs, who may use them at a time, and what a crash leaves; with the fake guest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::{Host, Pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

/// A claim that is a directory.
fn claim(name: &str, mode: &str) -> Value {
    let mut claim = disk(name, "2Gi");
    claim["spec"]["accessModes"] = json!([mode]);
    claim["spec"]["storageClassName"] = json!("directory");
    claim
}

/// A claim that is a disk.
fn disk(name: &str, storage: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "name": name, "labels": { "app": name, "size": storage } },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": storage } } } })
}

/// A pod with the claim `data`.
fn pod(name: &str) -> Pod {
    Pod::simple(name).volume("v", json!({ "persistentVolumeClaim": { "claimName": "data" } })).mount(
        "v",
        "/v",
        json!({}),
    )
}

fn names(host: &Host) -> String {
    host.cmd(["volume", "ls", "-q"]).ok().stdout
}

fn data(host: &Host, name: &str) -> PathBuf {
    host.root().join("data/volumes").join(format!("default_{name}")).join("data")
}

#[test]
fn a_claim_is_shown_with_its_users_and_removed_without() {
    let host = Host::fake();
    assert_eq!(
        host.cmd(["volume", "ls"]).ok().stdout,
        "NAMESPACE   NAME   TYPE   ACCESS MODES   SIZE   USED   USED BY   AGE\n"
    );
    host.start_fake(&pod("one").beside(claim("data", "ReadWriteOnce")), "run");
    host.start_fake(&pod("two"), "run");
    let listed = host.cmd(["volume", "ls"]).ok().stdout;
    let row: Vec<&str> = listed.lines().nth(1).unwrap().split_ascii_whitespace().collect();
    assert_eq!(row[..4], ["default", "data", "directory", "ReadWriteOnce"], "{listed}");
    assert!(!listed.contains(" 2.0GiB ") && listed.contains(" default/one,default/two "), "{listed}");
    let shown: Value = serde_json::from_str(&host.cmd(["volume", "inspect", "data"]).ok().stdout).unwrap();
    assert_eq!(shown[0]["kind"], "PersistentVolumeClaim");
    assert_eq!(shown[0]["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    assert_eq!(shown[0]["status"]["path"], json!(data(&host, "data")));
    let listed: Value = serde_json::from_str(&host.cmd(["volume", "ls", "-o", "json"]).ok().stdout).unwrap();
    assert_eq!(listed["items"], shown);
    host.cmd(["volume", "rm", "data"])
        .fails(1)
        .complains("volume default/data is used by pod default/one")
        .complains("Hint: Stop the pod first with `magikvm stop default/one`");
    fs::write(data(&host, "data").join("file"), "kept").unwrap();
    host.cmd(["rm", "-f", "--all"]).ok();
    assert_eq!(fs::read_to_string(data(&host, "data").join("file")).unwrap(), "kept");
    assert_eq!(host.cmd(["volume", "rm", "data"]).ok().stdout, "removed default/data\n");
    host.cmd(["volume", "rm", "data"])
        .fails(1)
        .complains("there is no volume default/data")
        .complains("Hint: List the volumes with `magikvm volume ls`");
    host.cmd(["volume", "inspect", "data"]).fails(1).complains("there is no volume default/data");
}

#[test]
fn one_pod_at_a_time_means_one_that_lives() {
    let host = Host::fake();
    host.start_fake(&pod("one").beside(claim("data", "ReadWriteOncePod")), "run");
    let second = host.run_fake(&pod("two"), "run").arg("-d").fails(1);
    second.complains(
        "volume default/data is for one pod at a time (ReadWriteOncePod), and pod default/one uses it",
    );
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "default/one\n");
    // Two volumes of one pod may be the same claim.
    host.cmd(["stop", "one"]).ok();
    let twice = pod("two")
        .volume("w", json!({ "persistentVolumeClaim": { "claimName": "data", "readOnly": true } }))
        .mount("w", "/w", json!({}));
    host.start_fake(&twice, "run");
    // The use lasts as long as the process that reaches the volume, which keeps its lock.
    let held = fs::read_link(format!("/proc/{}/fd/12", host.process("two", "fake"))).unwrap();
    assert_eq!(held.parent().unwrap(), data(&host, "data").with_file_name("users"), "{}", held.display());
    // It dies with the monitor, whatever kills that.
    kill(Pid::from_raw(host.process("two", "monitor")), Signal::SIGKILL).unwrap();
    host.wait_for_monitor_end("two");
    host.start_fake(&pod("three"), "run");
    let listed = host.cmd(["volume", "ls"]).ok().stdout;
    assert!(listed.contains(" default/three ") && !listed.contains("default/two"), "{listed}");
    host.cmd(["rm", "-f", "--all"]).ok();
    let users = data(&host, "data").with_file_name("users");
    host.start_fake(&pod("four"), "run");
    host.cmd(["rm", "-f", "four"]).ok();
    let left: Vec<_> = fs::read_dir(users).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_claim_that_is_asked_for_otherwise_or_does_not_exist_is_an_error() {
    let host = Host::fake();
    let before = host.holdings();
    let missing = host.run_fake(&pod("one"), "run").arg("-d").fails(1);
    missing.complains("volume v cannot be provided").complains("there is no volume default/data");
    host.start_fake(&pod("one").beside(claim("data", "ReadWriteOnce")), "run");
    let other = host.run_fake(&pod("two").beside(claim("data", "ReadWriteMany")), "run").arg("-d").fails(1);
    other.complains("volume default/data exists with the access modes ReadWriteOnce, and the manifest asks for ReadWriteMany");
    // Namespaces keep names apart.
    let elsewhere = pod("one").set("metadata/namespace", "shop").beside(claim("data", "ReadWriteMany"));
    host.run_fake(&elsewhere, "run").arg("-d").ok();
    assert_eq!(names(&host), "default/data\nshop/data\n");
    host.cmd(["rm", "-f", "--all"]).ok();
    host.assert_as_before(&before);
}

/// As on a cluster, where a claim does not depend on the pods that name it.
#[test]
fn a_run_that_fails_leaves_the_claim_that_it_made() {
    let host = Host::fake();
    let before = host.holdings();
    for point in ["prepare", "start", "ready"] {
        let name = format!("fails-at-{point}");
        let run = host.run_fake(&pod(&name).beside(claim("data", "ReadWriteOncePod")), "run");
        run.arg("-d").env("MAGIKVM_FAULT", point).fails(70);
        host.assert_as_before(&before);
        let listed = host.cmd(["volume", "ls"]).ok().stdout;
        assert!(listed.contains(" data ") && !listed.contains("fails-at"), "{listed}");
    }
    host.start_fake(&pod("one"), "run");
    host.cmd(["rm", "-f", "one"]).ok();
}

#[test]
fn prune_removes_what_no_pod_names() {
    let host = Host::fake();
    let end = host.run_fake(&pod("ended").beside(claim("data", "ReadWriteOnce")), "exit=0");
    end.ok();
    let empty = host.file("empty.tar");
    fs::write(&empty, [0; 1024]).unwrap();
    host.cmd(["volume", "import", "unused", empty.to_str().unwrap()]).ok();
    assert_eq!(host.cmd(["volume", "prune", "--dry-run"]).ok().stdout, "would remove default/unused\n");
    let asks = "1 volume with everything in them would be removed: default/unused";
    host.cmd(["volume", "prune"]).fails(2).complains(asks).complains("--force");
    assert_eq!(names(&host), "default/data\ndefault/unused\n");
    assert_eq!(host.cmd(["volume", "prune", "--force"]).ok().stdout, "removed default/unused\n");
    host.cmd(["rm", "ended"]).ok();
    assert_eq!(host.cmd(["volume", "prune", "--force"]).ok().stdout, "removed default/data\n");
    assert_eq!(names(&host), "");
}

#[test]
fn an_archive_goes_out_and_in() {
    let host = Host::fake();
    host.start_fake(&pod("one").beside(claim("data", "ReadWriteOnce")), "run");
    let there = data(&host, "data");
    fs::create_dir(there.join("dir")).unwrap();
    fs::write(there.join("dir/file"), "x".repeat(100_000)).unwrap();
    fs::set_permissions(there.join("dir/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(there.join("dir/file"), there.join("hard")).unwrap();
    symlink("dir/file", there.join("soft")).unwrap();
    let archive = host.file("data.tar");
    let export = || host.cmd(["volume", "export", "data", "--output", archive.to_str().unwrap()]);
    // What a guest writes meanwhile could lead the walk out of the volume.
    export().fails(1).complains("volume default/data is used by pod default/one");
    assert!(!archive.exists());
    host.cmd(["rm", "-f", "one"]).ok();
    export().ok();
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    // The program that people have reads it.
    let listed = host.other("tar").arg("-tf").arg(&archive).ok().stdout;
    let mut entries: Vec<&str> = listed.lines().collect();
    entries.sort_unstable();
    assert_eq!(entries.len(), 5, "{entries:?}");
    let import = host.cmd(["volume", "import", "copy", "-"]);
    import.arg("--access-mode").arg("ReadWriteMany").input(fs::read(&archive).unwrap()).ok();
    let copy = data(&host, "copy");
    assert_eq!(fs::read_link(copy.join("soft")).unwrap(), PathBuf::from("dir/file"));
    let (one, two) = (fs::metadata(copy.join("hard")).unwrap(), fs::metadata(copy.join("dir/file")).unwrap());
    assert_eq!((one.ino(), one.len(), one.mode() & 0o777), (two.ino(), 100_000, 0o640));
    host.cmd(["volume", "import", "copy", archive.to_str().unwrap()])
        .fails(1)
        .complains("volume default/copy exists already")
        .complains("Hint: Remove it first with `magikvm volume rm default/copy`");
    let half = host.file("half.tar");
    fs::write(&half, &fs::read(&archive).unwrap()[..60_000]).unwrap();
    host.cmd(["volume", "import", "half", half.to_str().unwrap()])
        .fails(1)
        .complains("cannot read the archive");
    assert_eq!(names(&host), "default/copy\ndefault/data\n");
    host.cmd(["volume", "rm", "data", "copy"]).ok();
    let left: Vec<_> = fs::read_dir(host.root().join("data/volumes"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn a_disk_belongs_to_one_pod_at_a_time_and_grows() {
    let host = Host::fake();
    host.start_fake(&pod("one").beside(disk("data", "8Mi")), "run");
    let image = data(&host, "data").with_file_name("disk").join("image");
    let size = || fs::metadata(&image).unwrap().len();
    let small = size();
    assert!((8 << 20..64 << 20).contains(&small), "{small}");
    assert!(fs::metadata(&image).unwrap().blocks() * 512 < 4 << 20, "it is sparse");
    let second = host.run_fake(&pod("two"), "run").arg("-d").fails(1);
    second
        .complains(
            "volume default/data is a disk, which one pod at a time can have, and pod default/one uses it",
        )
        .complains(
            "Hint: Stop the pod first with `magikvm stop default/one`, or make a claim that pods can share",
        );
    let listed = host.cmd(["volume", "ls"]).ok().stdout;
    assert!(listed.contains(" disk ") && listed.contains(" 8.0MiB "), "{listed}");
    let shown: Value = serde_json::from_str(&host.cmd(["volume", "inspect", "data"]).ok().stdout).unwrap();
    assert_eq!(shown[0]["status"]["capacity"]["storage"], "8388608");
    assert_eq!(shown[0]["status"]["type"], "disk");
    assert_eq!(shown[0]["status"]["path"], json!(image));
    assert!(shown[0]["status"]["usedBytes"].as_u64().unwrap() > 0, "{shown}");
    assert_eq!(shown[0]["metadata"]["labels"], json!({ "app": "data", "size": "8Mi" }));
    host.cmd(["rm", "-f", "one"]).ok();
    let smaller = host.run_fake(&pod("two").beside(disk("data", "4Mi")), "run").arg("-d").fails(1);
    smaller
        .complains(
            "volume default/data holds 8388608 bytes, and the manifest asks for 4194304; disks never shrink",
        )
        .complains("Hint: Request 8388608 or more");
    host.start_fake(&pod("two").beside(disk("data", "128Mi")), "run");
    assert!(size() > small + (100 << 20));
    assert!(host.cmd(["volume", "ls"]).ok().stdout.contains(" 128.0MiB "));
    host.cmd(["rm", "-f", "two"]).ok();
    let other = host.run_fake(&pod("two").beside(claim("data", "ReadWriteOnce")), "run").arg("-d").fails(1);
    other.complains("volume default/data exists as a disk, and the manifest asks for a directory");
}

#[test]
fn a_pod_has_few_disks_and_any_number_of_directories() {
    let host = Host::fake();
    let before = host.holdings();
    let many = |count: usize, class: &str| {
        (0..count).fold(Pod::simple("many"), |pod, number| {
            let name = format!("v{number}");
            let mut claim = disk(&name, "1Mi");
            claim["spec"]["storageClassName"] = json!(class);
            pod.volume(&name, json!({ "persistentVolumeClaim": { "claimName": name } }))
                .mount(&name, &format!("/{name}"), json!({}))
                .beside(claim)
        })
    };
    let refused = host.run_fake(&many(5, "fast"), "run").arg("-d").fails(1);
    refused
        .complains("the pod has 5 volumes that are disks, a VM has slots for 4")
        .complains("make the claim a directory with `storageClassName: directory`");
    host.assert_as_before(&before);
    host.cmd(["volume", "prune", "--force"]).ok();
    host.start_fake(&many(5, "directory"), "run");
    host.cmd(["rm", "-f", "many"]).ok();
    let class = json!({ "accessModes": ["ReadWriteMany"], "storageClassName": "disk", "resources": { "requests": { "storage": "1Mi" } } });
    let mut shared = claim("data", "ReadWriteMany");
    shared["spec"] = class;
    host.run_fake(&pod("one").beside(shared), "run")
        .arg("-d")
        .fails(1)
        .complains("a disk is for one pod at a time, which ReadWriteMany is not");
}

#[test]
fn labels_choose_volumes() {
    let host = Host::fake();
    let named = |name: &str| {
        let claim_name = json!({ "persistentVolumeClaim": { "claimName": name } });
        Pod::simple("one").volume("v", claim_name).mount("v", "/v", json!({})).beside(disk(name, "1Mi"))
    };
    for name in ["web", "db"] {
        host.run_fake(&named(name), "exit=0").arg("--rm").ok();
    }
    let listed = |selector: &str| host.cmd(["volume", "ls", "-q", "-l", selector]).ok().stdout;
    assert_eq!(listed("app=web"), "default/web\n");
    assert_eq!(listed("app in (web,db),size=1Mi"), "default/db\ndefault/web\n");
    assert_eq!(listed("!app"), "");
    host.cmd(["volume", "ls", "-l", "app="]).ok();
    host.cmd(["volume", "ls", "-l", "app ("]).fails(2);
    assert_eq!(host.cmd(["volume", "prune", "--force", "-l", "app=db"]).ok().stdout, "removed default/db\n");
    assert_eq!(names(&host), "default/web\n");
    let mut bad = disk("web", "1Mi");
    bad["metadata"]["labels"] = json!({ "a/b/c": "x", "app": "-" });
    let refused = host.run_fake(&named("web").beside(bad), "run").arg("-d").fails(1);
    refused.complains("is not a label key").complains("must start and end with a letter or digit");
}

#[test]
fn a_disk_is_exported_and_imported_as_it_is() {
    let host = Host::fake();
    host.run_fake(&pod("one").beside(disk("data", "8Mi")), "exit=0").arg("--rm").ok();
    let tar = host.file("data.tar");
    host.cmd(["volume", "export", "data", "-o", tar.to_str().unwrap()])
        .fails(1)
        .complains("volume default/data is a disk, and the host does not look into its file system")
        .complains("`magikvm volume export --disk default/data -o FILE`");
    let image = host.file("data.img");
    host.cmd(["volume", "export", "--disk", "data"]).fails(2);
    host.cmd(["volume", "export", "--disk", "data", "-o", image.to_str().unwrap()]).ok();
    let found = fs::metadata(&image).unwrap();
    assert!(found.blocks() * 512 < 4 << 20 && found.permissions().mode() & 0o777 == 0o600);
    host.cmd(["volume", "import", "--disk", "copy", image.to_str().unwrap()]).ok();
    let shown: Value = serde_json::from_str(&host.cmd(["volume", "inspect", "copy"]).ok().stdout).unwrap();
    assert_eq!(
        (&shown[0]["status"]["type"], &shown[0]["spec"]["accessModes"][0]),
        (&json!("disk"), &json!("ReadWriteOnce"))
    );
    let bytes: u64 = shown[0]["status"]["capacity"]["storage"].as_str().unwrap().parse().unwrap();
    assert!((1 << 20..=8 << 20).contains(&bytes), "{bytes}");
    fs::write(&tar, [0; 8192]).unwrap();
    host.cmd(["volume", "import", "--disk", "bad", tar.to_str().unwrap()])
        .fails(1)
        .complains("is not a disk of a volume");
    host.cmd([
        "volume",
        "import",
        "--disk",
        "--access-mode",
        "ReadWriteMany",
        "bad",
        image.to_str().unwrap(),
    ])
    .fails(1)
    .complains("a disk is for one pod at a time, which ReadWriteMany is not");
    assert_eq!(names(&host), "default/copy\ndefault/data\n");
    // The manifest that the disk was made for is as good for its copy.
    host.cmd(["volume", "rm", "data"]).ok();
    host.cmd(["volume", "import", "--disk", "data", image.to_str().unwrap()]).ok();
    host.run_fake(&pod("again").beside(disk("data", "8Mi")), "exit=0").arg("--rm").ok();
    host.run_fake(&pod("two").beside(disk("copy", "256Mi")), "exit=0").arg("--rm").ok();
}

#[test]
fn damage_is_said_and_can_be_removed() {
    let host = Host::fake();
    host.run_fake(&pod("one").beside(claim("data", "ReadWriteOnce")), "exit=0").arg("--rm").ok();
    let record = data(&host, "data").with_file_name("volume.json");
    fs::write(&record, "garbage").unwrap();
    let listed = host.cmd(["volume", "ls", "-q"]).env("MAGIKVM_QUIET", "").ok();
    assert_eq!(listed.stdout, "");
    assert!(listed.stderr.contains("volume.json is damaged"), "{}", listed.stderr);
    host.run_fake(&pod("one"), "run").arg("-d").fails(3).complains("volume.json is damaged");
    host.cmd(["volume", "rm", "data"]).ok();
    assert_eq!(host.cmd(["volume", "ls", "-q"]).env("MAGIKVM_QUIET", "").ok().stderr, "");
}
