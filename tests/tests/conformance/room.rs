//! The room that containers have for changes to their root file systems.

use crate::row::{Difference, Group, NAMESPACES, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::{until, wait_for};
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

const POD: &str = "room";
const MIB: u64 = 1 << 20;
const LIMIT: &str = "resources/limits/ephemeral-storage";

pub(crate) static GROUP: Group = Group {
    name: "room",
    title: "Room in root file systems",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "more_than_memory",
            "A container with 64 MiB of memory writes 200 MiB to its root file system, which is on disk.",
            more_than_memory,
        )
        .of("`limits.memory`"),
        Row::code(
            "as_much_as_its_limit",
            "A container that writes beyond its limit gets \"No space left on device\" and lives; what is full for one is not full for another.",
            as_much_as_its_limit,
        )
        .of("`limits.ephemeral-storage`"),
        Row::shell(
            "a_limit_is_seen",
            "A container sees its limit by `df`, or what the pod has in all.",
            &[
                ("limited", "df -m / | tail -1 | awk '{print ($2 >= 20 && $2 <= 22)}'", "1\n"),
                ("large", "df -m / | tail -1 | awk '{print ($2 >= 190 && $2 <= 10240)}'", "1\n"),
            ],
        )
        .of("`limits.ephemeral-storage`")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "what has no limit is in a directory of the host",
            says: "in large: df",
        }]),
        Row::shell(
            "changes_of_every_kind",
            "Files and directories of the image can be replaced, renamed, linked and removed, and a removed directory that is made again is empty.",
            &[
                ("large", "cd /image; rm -r a/deep; mkdir a/deep; ls -A a/deep | wc -l; mv a b && cat b/file; echo new > b/file; ln b/file hard; cat hard; \
                 rm -r /image; ls -d /image 2>/dev/null || echo gone", "0\ntext\nnew\ngone\n"),
                ("large", "mknod /null c 1 3 && echo x > /null && mkfifo /pipe && ls -l /null /pipe | cut -c1 | tr -d '\\n'; rm /null /pipe", "cp"),
            ],
        )
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "no device can be made in a user namespace",
            says: "mknod",
        }]),
        Row::shell(
            "no_room_is_needed",
            "A root file system that is read-only needs no room.",
            &[("fixed", "touch /x 2>&1 | grep -o 'Read-only.*'; grep ' / overlay' /proc/mounts | grep -c scratch; true", "Read-only file system\n0\n")],
        )
        .of("`readOnlyRootFilesystem`"),
        Row::code(
            "what_is_removed_goes_back",
            "What a container has removed from its root file system is free again on the host's disk.",
            what_is_removed_goes_back,
        ),
    ],
};

pub(crate) static OWN: Group = Group {
    name: "room_own",
    title: "Room in root file systems over the lives of containers and pods",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "each_run_is_new",
            "A restarted container finds its root file system as the image has it, and all of its room; nothing is left of the pod's disk when the pod is gone.",
            each_run_is_new,
        )
        .of("`restartPolicy`"),
        Row::code(
            "in_memory",
            "Changes to root file systems stay in the VM's memory if the pod demands it, and also then a limit holds.",
            in_memory,
        )
        .of("`magikvm.dev/root`, `limits.ephemeral-storage`"),
        Row::code(
            "as_much_as_the_pod_may",
            "Containers and volumes without a limit share what the pod's limit leaves, and get \"No space left on device\" beyond it.",
            as_much_as_the_pod_may,
        )
        .of("`spec.resources.limits.ephemeral-storage`"),
    ],
};

/// Writes until there is no room and prints why it ended, and how many MiB there were.
const FILL: &str =
    "dd if=/dev/zero of=/x bs=4k 2>&1 | grep -o 'No space.*'; echo $(($(stat -c %s /x) / 1048576)) MiB";

fn start(subject: &Subject) {
    let layer = magikvm_tests::virtual_machine::busybox()
        .dir("image/", 0o755)
        .dir("image/a/", 0o755)
        .dir("image/a/deep/", 0o755)
        .file("image/a/file", 0o644, b"text\n")
        .file("image/a/deep/file", 0o644, b"text\n");
    subject.import("test/room:1", layer, &json!({ "Env": ["PATH=/bin"] }));
    let container =
        |pod: Pod, name: &str, script: &str| pod.container_of(name, "test/room:1", &["sh", "-c", script]);
    let pod = Pod::new(POD);
    let write = "dd if=/dev/zero of=/big bs=1M count=200 2>/dev/null; stat -c %s /big; sleep 1000";
    let pod = container(pod, "large", write).with("resources/limits/memory", "64Mi");
    let pod = container(pod, "limited", &format!("{FILL}; sleep 1000")).with(LIMIT, "20Mi");
    let pod = container(pod, "neighbour", &format!("{FILL}; sleep 1000")).with(LIMIT, "12Mi");
    let pod = container(pod, "fixed", "sleep 1000").with("securityContext/readOnlyRootFilesystem", true);
    subject.start(&pod);
}

/// Waits for the lines that a container prints at its start.
#[track_caller]
fn printed(subject: &Subject, container: &str, expected: &str) {
    // 200 MiB are written under emulation, and the host's disk may be busy.
    let what = format!("{container} has printed {expected:?}");
    wait_for(&what, Duration::from_secs(120), || (subject.logs(POD, container) == expected).then_some(()));
}

fn more_than_memory(subject: &Subject) {
    printed(subject, "large", "209715200\n");
    let status = &subject.statuses(POD)[0];
    assert!(status["state"]["running"].is_object() && status["restartCount"] == 0, "{status}");
}

fn as_much_as_its_limit(subject: &Subject) {
    printed(subject, "limited", "No space left on device\n20 MiB\n");
    printed(subject, "neighbour", "No space left on device\n12 MiB\n");
    for status in &subject.statuses(POD)[1..3] {
        assert!(status["state"]["running"].is_object() && status["restartCount"] == 0, "{status}");
    }
    // Each can use its room again.
    let again = "rm /x; dd if=/dev/zero of=/x bs=1M count=11 2>/dev/null; stat -c %s /x";
    assert_eq!(subject.sh(POD, "neighbour", again), "11534336\n");
}

/// Bytes that the pod's scratch disk takes on the host.
fn taken(subject: &Subject) -> u64 {
    fn beneath(dir: &Path) -> u64 {
        let of = |path: &Path| match fs::symlink_metadata(path) {
            Ok(found) if found.is_dir() => beneath(path),
            Ok(found) => found.blocks() * 512,
            // It has just been removed.
            Err(_) => 0,
        };
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| of(&entry.path())).sum()
    }
    beneath(&subject.root().join("data/scratch"))
}

fn what_is_removed_goes_back(subject: &Subject) {
    printed(subject, "large", "209715200\n");
    let write = "dd if=/dev/urandom of=/gone bs=1M count=40 2>/dev/null; sync";
    subject.sh(POD, "large", write);
    let full = taken(subject);
    assert!(full > 40 * MIB, "{full}");
    subject.sh(POD, "large", "rm /gone");
    // The guest collects what was freed for some seconds.
    let goes_back = || (taken(subject) < full - 30 * MIB).then_some(());
    wait_for("most of it is free again", Duration::from_secs(60), goes_back);
}

fn each_run_is_new(subject: &Subject) {
    let pod = Pod::new("anew")
        .set("spec/restartPolicy", "OnFailure")
        .volume("v", json!({ "emptyDir": {} }))
        .script("web", &format!("ls -d /x /deep 2>/dev/null | wc -l; mkdir -p /deep/a/b/c && echo x > /deep/a/b/c/d; {FILL}; cat /v/was 2>/dev/null && exit 0; echo again > /v/was; exit 1"))
        .with(LIMIT, "8Mi")
        .mount("v", "/v", json!({}));
    subject.run(&pod).ok();
    let run = "0\nNo space left on device\n8 MiB\n";
    assert_eq!(subject.logs("anew", "web"), format!("{run}{run}again\n"));
    assert!(fs::read_dir(subject.root().join("data/scratch")).unwrap().next().is_none(), "the disk is gone");
    subject.cmd(["rm", "anew"]).ok();
    subject.assert_as_new();
}

fn in_memory(subject: &Subject) {
    let pod = Pod::new("memory")
        .annotated("magikvm.dev/root", "memory")
        .script("web", &format!("{FILL}; sleep 1000"))
        .with(LIMIT, "8Mi");
    subject.start(&pod);
    until("it is full", || subject.logs("memory", "web") == "No space left on device\n8 MiB\n");
    assert!(
        !subject.root().join("data/scratch").exists()
            || fs::read_dir(subject.root().join("data/scratch")).unwrap().next().is_none()
    );
    subject.cmd(["rm", "-f", "memory"]).ok();
    subject.assert_as_new();
}

fn as_much_as_the_pod_may(subject: &Subject) {
    let pod = Pod::new("all")
        .set("spec/resources", json!({ "limits": { "ephemeral-storage": "30Mi" } }))
        .volume("v", json!({ "emptyDir": {} }))
        .script("web", &format!("dd if=/dev/zero of=/v/x bs=1M count=10 2>/dev/null; {FILL}"))
        .mount("v", "/v", json!({}))
        .script("limited", FILL)
        .with(LIMIT, "10Mi");
    subject.run(&pod).ok();
    assert_eq!(subject.logs("all", "limited"), "No space left on device\n10 MiB\n");
    assert_eq!(subject.logs("all", "web"), "No space left on device\n10 MiB\n");
    subject.cmd(["rm", "all"]).ok();
    subject.assert_as_new();
}
