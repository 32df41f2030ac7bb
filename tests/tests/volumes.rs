//! Volumes in comparison with podman, and the places of secrets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::layout::Tar;
use magikvm_tests::virtual_machine::{VmHost, busybox, in_path};
use magikvm_tests::{Cmd, Host, Pod};
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

const SECRET: &str = "correct horse battery staple";

/// Programs that busybox lacks, and their libraries.
fn files_of(program: &str) -> Vec<PathBuf> {
    let program = fs::canonicalize(in_path(program)).unwrap();
    let said = Cmd::new("ldd").arg(&program).ok().stdout;
    let libraries = said.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    std::iter::once(program).chain(libraries).collect()
}

/// A directory as a container sees it: each file's owner, permissions, links, size, kind and time, link targets, and extended attributes.
fn look(getfattr: &Path) -> String {
    format!(
        "cd /v; find . | sort | while read f; do stat -c '%n %u:%g %a %h %s %F %Y' \"$f\"; done; \
         find . -type l | sort | while read f; do readlink \"$f\"; done; cat text/deep; stat -c %d:%i hard1 hard2 | uniq | wc -l; \
         {} -h -d -m ^user. text",
        getfattr.display()
    )
}

fn make_tree(dir: &Path) {
    fs::create_dir_all(dir.join("text")).unwrap();
    fs::write(dir.join("text/deep"), "deep\n").unwrap();
    rustix::fs::setxattr(dir.join("text"), "user.note", b"a note", rustix::fs::XattrFlags::empty()).unwrap();
    for (number, (uid, gid, mode)) in
        [(0, 0, 0o644), (1000, 1000, 0o600), (65_534, 1, 0o4755), (123_456, 7, 0o2711), (1, 0, 0o000)]
            .into_iter()
            .enumerate()
    {
        let path = dir.join(format!("file{number}"));
        fs::write(&path, "x".repeat(number * 100)).unwrap();
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(dir.join("sticky")).unwrap();
    fs::set_permissions(dir.join("sticky"), Permissions::from_mode(0o1777)).unwrap();
    fs::write(dir.join("hard1"), "two names").unwrap();
    fs::hard_link(dir.join("hard1"), dir.join("hard2")).unwrap();
    symlink("text/deep", dir.join("soft")).unwrap();
    symlink("/nowhere", dir.join("dangling")).unwrap();
    std::os::unix::fs::lchown(dir.join("soft"), Some(5), Some(6)).unwrap();
    nix::unistd::mkfifo(&dir.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
}

#[test]
fn a_container_sees_what_podman_shows() {
    let host = VmHost::new();
    let tree = host.file("tree");
    fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    let needed = files_of("getfattr");
    let look = look(&needed[0]);
    let mut layer: Tar = busybox();
    let rootfs = host.file("rootfs");
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    fs::copy(in_path("busybox"), rootfs.join("bin/busybox")).unwrap();
    for name in ["sh", "find", "sort", "stat", "readlink", "cat", "uniq", "wc"] {
        symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
    for file in &needed {
        let name = file.strip_prefix("/").unwrap();
        layer = layer.file(name.to_str().unwrap(), 0o755, &fs::read(file).unwrap());
        fs::create_dir_all(rootfs.join(name).parent().unwrap()).unwrap();
        fs::copy(file, rootfs.join(name)).unwrap();
    }
    host.import("looks:1", layer, &json!({ "Env": ["PATH=/bin"] }));
    let pod = Pod::new("looks")
        .volume("v", json!({ "hostPath": { "path": tree } }))
        .container_of("web", "looks:1", &["sh", "-c", &look])
        .mount("v", "/v", json!({}));
    let ours = host.run(&pod).arg("--no-prefix").ok().stdout;
    // Limits that root without CAP_SYS_RESOURCE may set; crun needs unified control groups.
    let theirs = host
        .other("podman")
        .args([
            "--root",
            host.file("podman").to_str().unwrap(),
            "--runroot",
            host.file("podman-run").to_str().unwrap(),
        ])
        .args([
            "--runtime",
            "runc",
            "run",
            "--rm",
            "--network",
            "none",
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1000:1000",
        ])
        .args([
            "--env",
            "PATH=/bin",
            "-v",
            &format!("{}:/v", tree.display()),
            "--rootfs",
            rootfs.to_str().unwrap(),
        ])
        .args(["sh", "-c", &look])
        .ok()
        .stdout;
    assert!(theirs.contains("123456:7 2711") && theirs.contains("user.note"), "{theirs}");
    assert_eq!(ours, theirs);
}

/// A secret is in the pod's private file system and in memory, and nowhere else.
#[test]
fn a_secret_is_shown_by_nothing() {
    let host = Host::fake();
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" }, "stringData": { "k": SECRET } });
    let reference = json!({ "secretKeyRef": { "name": "keys", "key": "k" } });
    let pod = Pod::simple("holder")
        .with("env", json!([{ "name": "KEY", "valueFrom": reference }]))
        .volume("keys", json!({ "secret": { "secretName": "keys" } }))
        .mount("keys", "/keys", json!({}))
        .beside(secret);
    host.start_fake(&pod, "run");
    for verb in
        [&["inspect", "-o", "json"][..], &["inspect", "-o", "yaml"], &["logs"], &["events"], &["stats"]]
    {
        let (verb, options) = verb.split_first().unwrap();
        let said = host.cmd([verb]).args(options).arg("holder").run();
        assert!(!said.transcript().contains(SECRET), "{}", said.transcript());
    }
    let dir = host.pod_dir("holder");
    for entry in fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    {
        let bytes = fs::read(&entry).unwrap();
        let found = bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        // The request is kept for `restart`, for nobody else's eyes.
        let is_private = entry.ends_with("request.json")
            && fs::metadata(&entry).unwrap().permissions().mode() & 0o177 == 0;
        assert!(!found || is_private, "{}", entry.display());
    }
    let baked = fs::read(dir.join("vm/pod.erofs")).unwrap();
    assert!(baked.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "but the guest has it");
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o077, 0);
    host.cmd(["rm", "-f", "holder"]).ok();
}
