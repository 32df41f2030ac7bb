//! `cp` into containers and out of them, and verbs that run pods again.

use crate::row::{Difference, Group, NAMESPACES, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::{Cmd, Pod};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

const POD: &str = "files";

pub(crate) static GROUP: Group = Group {
    name: "copies",
    title: "Copies",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "trees_both_ways",
            "Trees with large files, modes and links are copied into a container and out of it, without a `tar` in the image.",
            trees_both_ways,
        )
        .of("`cp`"),
        Row::code(
            "with_the_rights_of_the_container",
            "What is copied into a container belongs to the container's user, who can neither read nor write more than a program of the container.",
            with_the_rights_of_the_container,
        )
        .of("`cp -c`"),
        Row::code(
            "what_is_left_out",
            "Links that lead out of the copy, and FIFOs, are left out and named; the rest is copied.",
            what_is_left_out,
        )
        .of("`cp`"),
        Row::code(
            "no_process_is_left",
            "Copies, complete or broken off, leave no process in the container.",
            no_process_is_left,
        )
        .of("`cp`"),
    ],
};

pub(crate) static OWN: Group = Group {
    name: "again",
    title: "Restarts of pods",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "a_pod_that_runs_and_one_that_has_ended",
            "A restart runs a pod again in a new VM with the Secrets and ports of its last run, whether it runs or has ended.",
            a_pod_that_runs_and_one_that_has_ended,
        )
        .of("`restart`")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "it has the kernel of the host, which is not booted again",
            says: "swordfish",
        }]),
    ],
};

fn start(subject: &Subject) {
    let pod = Pod::new(POD)
        .script("root", "for dir in $(echo $PATH | tr : ' '); do rm -f $dir/tar; done; exec sleep 1000")
        .script("user", "exec sleep 1000")
        .with("securityContext/runAsUser", 1234)
        .with("securityContext/runAsGroup", 4321);
    subject.start(&pod);
}

fn cp(subject: &Subject, container: &str, from: &str, to: &str) -> Cmd {
    subject.cmd(["cp", "-c", container, from, to]).current_dir(subject.file(""))
}

fn sh(subject: &Subject, container: &str, script: &str) -> String {
    subject.sh(POD, container, script)
}

fn trees_both_ways(subject: &Subject) {
    let here = subject.file("tree");
    fs::create_dir_all(here.join("sub/empty")).unwrap();
    let large: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(here.join("sub/large"), &large).unwrap();
    fs::write(here.join("run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(here.join("run"), Permissions::from_mode(0o750)).unwrap();
    symlink("../run", here.join("sub/link")).unwrap();
    subject.cmd(["exec", POD, "-c", "root", "--", "tar", "--help"]).fails(127);
    cp(subject, "root", "tree", "files:/tmp/tree").ok();
    assert_eq!(
        sh(subject, "root", "/tmp/tree/sub/link; stat -c '%a %s' /tmp/tree/run /tmp/tree/sub/large"),
        "ran\n750 19\n644 8000000\n"
    );
    cp(subject, "root", "files:/tmp/tree/.", "back").ok();
    let back = subject.file("back");
    assert!(fs::read(back.join("sub/large")).unwrap() == large);
    assert_eq!(fs::metadata(back.join("run")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(back.join("sub/link")).unwrap(), Path::new("../run"));
    assert!(back.join("sub/empty").is_dir());
    cp(subject, "root", "files:/etc/hostname", "hostname").ok();
    assert_eq!(fs::read_to_string(subject.file("hostname")).unwrap(), "files\n");
}

fn with_the_rights_of_the_container(subject: &Subject) {
    fs::write(subject.file("mine"), "text").unwrap();
    cp(subject, "user", "mine", "files:/tmp").ok();
    assert_eq!(sh(subject, "user", "stat -c '%u:%g' /tmp/mine; cat /tmp/mine"), "1234:4321\ntext");
    cp(subject, "user", "mine", "files:/etc/mine")
        .fails(1)
        .complains("cannot write /etc/mine: Permission denied");
    cp(subject, "user", "files:/proc/1/environ", "environ").ok();
    cp(subject, "root", "files:/dev/null", "null").fails(1).complains("neither a file nor a directory");
}

fn what_is_left_out(subject: &Subject) {
    sh(
        subject,
        "root",
        "mkdir -p /tmp/odd; cd /tmp/odd; ln -sf /etc/passwd out; ln -sf here in; echo x > here; [ -p fifo ] || mkfifo fifo",
    );
    let said = cp(subject, "root", "files:/tmp/odd", "odd").env("MAGIKVM_QUIET", "").fails(1);
    let said = said.complains("left out odd/out: the link leads out of the copy, to /etc/passwd");
    said.complains("left out /tmp/odd/fifo: a FIFO is not copied");
    let odd = subject.file("odd");
    assert_eq!(fs::read_to_string(odd.join("in")).unwrap(), "x\n");
    assert!(!odd.join("out").exists() && !odd.join("fifo").exists());
}

fn no_process_is_left(subject: &Subject) {
    // The shell expands the names itself: the second process of a pipe may be there or not.
    let count = || -> u64 { sh(subject, "root", "set -- /proc/[0-9]*; echo $#").trim().parse().unwrap() };
    let before = count();
    sh(subject, "root", "[ -e /tmp/megabytes ] || head -c 3000000 /dev/zero > /tmp/megabytes");
    cp(subject, "root", "files:/tmp/megabytes", "megabytes").args(["--max-size", "1Mi"]).fails(1);
    cp(subject, "root", "files:/tmp/megabytes", "megabytes").ok();
    assert_eq!(fs::metadata(subject.file("megabytes")).unwrap().len(), 3_000_000);
    magikvm_tests::wait::until("no other process is there", || count() <= before);
}

fn a_pod_that_runs_and_one_that_has_ended(subject: &Subject) {
    let pod = Pod::new("again")
        .script("web", "echo $WORD $(cat /proc/sys/kernel/random/boot_id); exec sleep 1000")
        .with("envFrom", serde_json::json!([{ "secretRef": { "name": "words" } }]))
        .beside(serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "words" },
            "stringData": { "WORD": "swordfish" },
        }));
    subject.start(&pod);
    let boot = || {
        magikvm_tests::wait::until("it has said its word", || !subject.logs("again", "web").is_empty());
        let said = subject.logs("again", "web");
        assert!(said.starts_with("swordfish ") && said.lines().count() == 1, "{said}");
        said
    };
    let first = boot();
    subject.cmd(["restart", "again", "--grace", "1s"]).ok();
    let second = boot();
    subject.cmd(["stop", "again", "--grace", "1s"]).ok();
    subject.cmd(["restart", "again"]).ok();
    let third = boot();
    assert!(first != second && second != third, "{first}{second}{third}");
}
