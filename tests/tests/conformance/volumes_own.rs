//! Volumes over the lives of containers and pods.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::busybox;
use magikvm_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

pub(crate) static GROUP: Group = Group {
    name: "volumes_own",
    title: "Volumes over the lives of containers and pods",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "as_long_as_the_pod",
            "The content of an emptyDir survives the end of a container, and is removed with the pod.",
            as_long_as_the_pod,
        )
        .of("`volumes[].emptyDir`"),
        Row::code(
            "volumes_that_nobody_mounts",
            "Volumes that no container mounts do not keep a pod from running.",
            volumes_that_nobody_mounts,
        )
        .of("`spec.volumes`"),
        Row::code(
            "sixty_four_volumes",
            "A pod may have 16 containers of 16 images with 64 volumes, 16 of them hostPaths.",
            sixty_four_volumes,
        )
        .of("`spec.volumes`"),
        Row::code(
            "no_way_out_of_a_volume",
            "A link that leads out of a volume is refused as a subPath, no matter who created it.",
            no_way_out_of_a_volume,
        )
        .of("`volumeMounts[].subPath`"),
        Row::code(
            "mounts_that_cannot_be_made",
            "A mount that can't be made is reported with its container, its path and the reason; the host's files are not changed for it.",
            mounts_that_cannot_be_made,
        )
        .of("`volumeMounts[].mountPath`"),
        Row::code(
            "links_that_change_meanwhile",
            "Whatever a container does to a volume while others start, they see nothing from outside the volume.",
            links_that_change_meanwhile,
        )
        .of("`volumeMounts[].subPath`")
        .within(Duration::from_secs(240)),
        Row::code(
            "what_was_synced_is_there",
            "Data that was synced to a hostPath survives when the VM is killed; the pod's scratch disk does not.",
            what_was_synced_is_there,
        )
        .of("`volumes[].hostPath`"),
        Row::code(
            "hosts_that_have_it_not",
            "A hostPath that does not match its type is reported by name before anything is created; types that allow it create the path.",
            hosts_that_have_it_not,
        )
        .of("`volumes[].hostPath.type`"),
    ],
};

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn as_long_as_the_pod(subject: &Subject) {
    let pod = Pod::new("phoenix")
        .set("spec/restartPolicy", "OnFailure")
        .volume("kept", json!({ "emptyDir": {} }))
        .volume("memory", json!({ "emptyDir": { "medium": "Memory" } }))
        .script("web", "touch /own; cat /kept/was /part/was /memory/was 2>/dev/null && exit 0; echo kept | tee /kept/was /part/was > /memory/was; exit 1")
        .mount("kept", "/kept", json!({}))
        .mount("kept", "/part", json!({ "subPath": "a/b" }))
        .mount("memory", "/memory", json!({}));
    subject.run(&pod).ok();
    assert_eq!(subject.logs("phoenix", "web"), "kept\nkept\nkept\n");
    subject.cmd(["rm", "phoenix"]).ok();
    subject.assert_as_new();
}

fn volumes_that_nobody_mounts(subject: &Subject) {
    let pod = Pod::new("idle")
        .volume("host", json!({ "hostPath": { "path": "/etc" } }))
        .volume("disk", json!({ "emptyDir": {} }))
        .volume("memory", json!({ "emptyDir": { "medium": "Memory" } }))
        .script("web", "echo runs");
    subject.run(&pod).ok();
    assert_eq!(subject.logs("idle", "web"), "runs\n");
}

fn sixty_four_volumes(subject: &Subject) {
    const CONTAINERS: usize = 16;
    let mut pod = Pod::new("many").annotated("magikvm.dev/memory-mib", "512");
    let data: serde_json::Map<String, Value> =
        (0..16).map(|n| (format!("k{n}"), format!("value {n}").into())).collect();
    for n in 0..CONTAINERS {
        let dir = subject.file(&format!("dir{n}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("host"), format!("host {n}\n")).unwrap();
        let map = json!({ "name": "map", "items": [{ "key": format!("k{n}"), "path": "file" }] });
        pod = pod
            .volume(&format!("host{n}"), json!({ "hostPath": { "path": text(&dir) } }))
            .volume(&format!("map{n}"), json!({ "configMap": map }))
            .volume(&format!("disk{n}"), json!({ "emptyDir": {} }))
            .volume(&format!("memory{n}"), json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }));
    }
    for n in 0..CONTAINERS {
        let image = format!("test/image{n}:1");
        let layer = busybox().file("which", 0o644, format!("image {n}\n").as_bytes());
        subject.import(&image, layer, &json!({ "Env": ["PATH=/bin"] }));
        // Each container sees its volumes, and those of the next one.
        let next = (n + 1) % CONTAINERS;
        let script = format!(
            "cat /which /host/host /map/file; echo; echo c{n} > /disk/from; cat /nexthost/host; echo m > /memory/x; ls -d /disk /memory /nextdisk | wc -l; sleep 1000"
        );
        pod = pod
            .container_of(&format!("c{n}"), &image, &["sh", "-c", &script])
            .mount(&format!("host{n}"), "/host", json!({}))
            .mount(&format!("host{next}"), "/nexthost", json!({ "readOnly": true }))
            .mount(&format!("map{n}"), "/map", json!({}))
            .mount(&format!("disk{n}"), "/disk", json!({}))
            .mount(&format!("disk{next}"), "/nextdisk", json!({ "readOnly": true }))
            .mount(&format!("memory{n}"), "/memory", json!({}));
    }
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "map" }, "data": data });
    // Many containers start slowly on a busy host.
    subject.run(&pod.beside(map)).arg("-d").limit(Duration::from_secs(150)).ok();
    for n in 0..CONTAINERS {
        let (name, next) = (format!("c{n}"), (n + 1) % CONTAINERS);
        let expected = format!("image {n}\nhost {n}\nvalue {n}\nhost {next}\n3\n");
        until(&format!("{name} has seen its volumes"), || subject.logs("many", &name) == expected);
        if n % 5 == 0 {
            assert_eq!(subject.sh("many", &name, "cat /nextdisk/from"), format!("c{next}\n"));
        }
    }
    subject.cmd(["rm", "-f", "many"]).ok();
    subject.assert_as_new();
}

fn no_way_out_of_a_volume(subject: &Subject) {
    let host = subject.file("host");
    fs::create_dir_all(host.join("in")).unwrap();
    fs::write(subject.file("outside"), "outside").unwrap();
    for (name, to) in [("up", "../outside"), ("far", "/etc"), ("loop", "loop"), ("fine", "in")] {
        symlink(to, host.join(name)).unwrap();
    }
    let pod = |sub_path: &str| {
        Pod::new("out")
            .volume("v", json!({ "hostPath": { "path": text(&host) } }))
            .script("web", "ls -A /v")
            .mount("v", "/v", json!({ "subPath": sub_path }))
    };
    for bad in ["up", "far", "far/passwd", "loop", "up/new"] {
        let said = subject.run(&pod(bad)).run().expect_code(125).stderr;
        assert!(said.contains("volume v cannot be provided") && said.contains(bad), "{said}");
    }
    fs::write(host.join("in/here"), "").unwrap();
    assert_eq!(subject.run(&pod("fine")).arg("--no-prefix").ok().stdout, "here\n");
    subject.cmd(["rm", "out"]).ok();

    // In an emptyDir a container can redirect others with links.
    let pod = Pod::new("astray")
        .volume("v", json!({ "emptyDir": {} }))
        .script("liar", "ln -s /etc /v/etc; ln -s / /v/root; sleep 1000")
        .mount("v", "/v", json!({}));
    let pod = pod
        .set("spec/restartPolicy", "Always")
        .script("victim", "cat /lie/passwd /lie/etc/passwd; sleep 2; exit 1")
        .mount("v", "/lie", json!({ "subPath": "root/etc" }));
    // In any order: either the directory is made first, or the link is refused.
    let said = subject.run(&pod).args(["-d"]).run();
    if said.code == 0 {
        assert_eq!(subject.logs("astray", "victim"), "");
        subject.cmd(["rm", "-f", "astray"]).ok();
    } else {
        assert!(said.stderr.contains("mount at /lie"), "{}", said.stderr);
    }
    subject.assert_as_new();
}

fn mounts_that_cannot_be_made(subject: &Subject) {
    let host = subject.file("bare");
    fs::create_dir(&host).unwrap();
    let pod = || {
        Pod::new("unmade")
            .volume("v", json!({ "emptyDir": { "medium": "Memory" } }))
            .container("fine", &["sleep", "1000"])
            .container("bad", &["sleep", "1000"])
    };
    let read_only = pod()
        .volume("host", json!({ "hostPath": { "path": text(&host) } }))
        .mount("host", "/look", json!({ "readOnly": true }))
        .mount("v", "/look/new", json!({}));
    for (pod, path, reason) in [
        (pod().mount("v", "/etc/passwd", json!({})), "/etc/passwd", "Not a directory"),
        (read_only, "/look/new", "Read-only file system"),
    ] {
        let said = subject.run(&pod).arg("-d").fails(1).stderr;
        let expected = format!(
            "container bad could not be started: mount at {path}: cannot use its mount point: {reason}"
        );
        assert!(said.contains(&expected), "{said}");
    }
    assert_eq!(fs::read_dir(&host).unwrap().count(), 0);
    subject.assert_as_new();
}

/// A container swaps a directory for a link and back as fast as it can, while another one is restarted in that directory again and again.
fn links_that_change_meanwhile(subject: &Subject) {
    let starts: usize = std::env::var("MAGIKVM_TEST_RACES").map_or(6, |text| text.parse().unwrap());
    let pod = Pod::new("race")
        .volume("v", json!({ "emptyDir": {} }))
        .script(
            "liar",
            "mkdir -p /v/a/b; ln -s /proc/1/root/etc /v/link; cp -P /v/link /v/link2; while :; do mv /v/a /v/x; mv /v/link /v/a; mv /v/a /v/link; mv /v/x /v/a; done",
        )
        .mount("v", "/v", json!({}))
        .container("victim", &["sh", "-c", "ls /see"])
        .mount("v", "/see", json!({ "subPath": "a/b" }));
    for _ in 0..starts {
        let said = subject.run(&pod).args(["-d"]).run();
        assert!(said.code == 0 || said.stderr.contains("mount at /see"), "{}", said.stderr);
        if said.code == 0 {
            let seen = subject.logs("race", "victim");
            assert!(!seen.contains("passwd"), "{seen}");
            subject.cmd(["rm", "-f", "race"]).ok();
        }
    }
    subject.assert_as_new();
}

fn what_was_synced_is_there(subject: &Subject) {
    let host = subject.file("synced");
    fs::create_dir(&host).unwrap();
    subject.give(&host);
    let pod = Pod::new("victim")
        .volume("host", json!({ "hostPath": { "path": text(&host) } }))
        .volume("disk", json!({ "emptyDir": {} }))
        .script("web", "for d in /host /disk; do dd if=/dev/urandom of=$d/data bs=64k count=16 conv=fsync 2>/dev/null; sha256sum < $d/data; done; sleep 1000")
        .mount("host", "/host", json!({}))
        .mount("disk", "/disk", json!({}));
    subject.start(&pod);
    until("it has written", || subject.logs("victim", "web").lines().count() == 2);
    let digest = subject.logs("victim", "web").lines().next().unwrap().to_owned();
    let vm = subject.process("victim", subject.vm_process());
    kill(Pid::from_raw(vm), Signal::SIGKILL).expect("the process is there");
    subject.wait_for_phase("victim", "Failed");
    let there = subject.other("sha256sum").arg(host.join("data")).ok().stdout;
    assert_eq!(there.split(' ').next(), digest.split(' ').next());
    subject.cmd(["rm", "victim"]).ok();
    subject.assert_as_new();
}

fn hosts_that_have_it_not(subject: &Subject) {
    let (dir, file) = (subject.file("dir"), subject.file("file"));
    fs::create_dir(&dir).unwrap();
    fs::write(&file, "text").unwrap();
    let pod = |path: &Path, kind: &str| {
        Pod::new("wants")
            .volume("v", json!({ "hostPath": { "path": text(path), "type": kind } }))
            .script("web", "ls -d /v")
            .mount("v", "/v", json!({}))
    };
    let cases = [
        (dir, "File", "is a directory, not a regular file"),
        (file.clone(), "Directory", "is a regular file, not a directory"),
        (file, "DirectoryOrCreate", "is a regular file, not a directory"),
        (subject.file("none"), "", "No such file or directory"),
        (subject.file("none"), "Directory", "No such file or directory"),
        (subject.file("none/file"), "FileOrCreate", "No such file or directory"),
        (Path::new("/dev/null").to_owned(), "", "is a character device, not a directory or a regular file"),
    ];
    for (path, kind, why) in cases {
        let said = subject.run(&pod(&path, kind)).run().expect_code(125).stderr;
        assert!(
            said.contains("volume v cannot be provided") && said.contains(why) && said.contains(&text(&path)),
            "{said}"
        );
    }
    subject.assert_as_new();
    let made = subject.file("made/deep");
    subject.run(&pod(&made, "DirectoryOrCreate")).ok();
    assert!(made.is_dir());
    subject.cmd(["rm", "wants"]).ok();
}
