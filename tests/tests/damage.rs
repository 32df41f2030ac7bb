//! Whatever is in the place of a pod's files: it hides no other pod, keeps nobody waiting, and the pod can be removed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::command::Cmd;
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// The files of an ended pod.
const FILES: [&str; 8] =
    ["pod.json", "state.json", "lock", "undo.jsonl", "events.jsonl", "log/web.log", "log", "control.sock"];
/// Those without which `ps` cannot say what the pod is.
const DECISIVE: [&str; 4] = ["pod.json", "state.json", "lock", "undo.jsonl"];

/// What may be in the place of a file.
const KINDS: [(&str, fn(&Path)); 6] = [
    ("a directory", |path| fs::create_dir(path).unwrap()),
    ("a FIFO", |path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap()),
    ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
    ("a device", |path| mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap()),
    ("a symbolic link", |path| symlink("/dev/zero", path).unwrap()),
    ("garbage", |path| fs::write(path, "garbage\n").unwrap()),
];

/// Puts something in the place of a pod's file.
fn damage(host: &Host, pod: &str, file: &str, put: fn(&Path)) {
    // A socket's path is short, and `log` is a link whose place is meant.
    let path = host.pod_dir(pod).join(file);
    if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(&path).unwrap();
    } else {
        fs::remove_file(&path).unwrap();
    }
    put(&path);
}

#[test]
fn one_damaged_pod_hides_none_and_can_be_removed() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("good"), "run");
    let name = |index: usize| format!("p{index}");
    for (kind, put) in KINDS {
        for (index, file) in FILES.iter().enumerate() {
            host.start_fake(&Pod::simple(&name(index)), "exit=0");
            host.wait_for_phase(&name(index), "Succeeded");
            host.wait_for_monitor_end(&name(index));
            damage(&host, &name(index), file, put);
        }
        let listed = host.cmd(["ps"]).ok().stdout;
        assert_eq!(listed.lines().count(), FILES.len() + 2, "{kind}: {listed}");
        assert_eq!(host.phase("good"), "Running", "{kind}");
        let json = host.cmd(["ps", "-o", "json"]).ok().stdout;
        for (index, file) in FILES.iter().enumerate() {
            let pod = name(index);
            let is_told = DECISIVE.contains(file) && (kind != "garbage" || file.ends_with(".json"));
            let phase = if is_told { "Damaged" } else { "Succeeded" };
            assert_eq!(host.phase(&pod), phase, "{kind} in place of {file}");
            assert!(json.contains(&format!("\"name\": \"{pod}\"")), "{json}");
            let shown = host.cmd(["inspect", &pod]).ok();
            if is_told {
                let shown = shown.prints("reason: Damaged").prints(file);
                assert!(kind == "garbage" || shown.stdout.contains(kind), "{kind}: {}", shown.stdout);
            }
            for verb in ["logs", "events"] {
                let shown = host.cmd([verb, &pod]).run();
                assert!([0, 3].contains(&shown.code), "{kind} in place of {file}: {}", shown.transcript());
            }
            host.cmd(["exec", &pod, "--", "true"]).run();
            host.cmd(["stop", &pod]).run();
        }
        for (index, file) in FILES.iter().enumerate() {
            let output = host.cmd(["rm", "-f", &name(index)]).run();
            assert_eq!(output.code, 0, "{kind} in place of {file}: {}", output.transcript());
        }
    }
    host.cmd(["rm", "-f", "good"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_running_pod_whose_file_is_damaged_can_be_removed() {
    let host = Host::fake();
    let before = host.holdings();
    for (kind, put) in &KINDS[..2] {
        for file in FILES {
            host.start_fake(&Pod::simple("pod"), "run");
            damage(&host, "pod", file, *put);
            host.cmd(["ps"]).ok();
            let output = host.cmd(["rm", "-f", "pod"]).run();
            assert_eq!(output.code, 0, "{kind} in place of {file}: {}", output.transcript());
            host.assert_as_before(&before);
        }
    }
}

#[test]
fn what_cannot_be_removed_is_named_with_what_to_do() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("pod"), "exit=0");
    host.wait_for_phase("pod", "Succeeded");
    let busy = host.pod_dir("pod").join("busy");
    fs::create_dir(&busy).unwrap();
    mount(Some("tmpfs"), &busy, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let output = host.cmd(["rm", "-f", "pod"]).fails(3);
    let output = output
        .complains("/busy")
        .complains("Device or resource busy")
        .complains("Hint: Remove it with `rm -rf '");
    let left = output.stderr.split('\'').find(|text| text.ends_with("/busy")).expect("the path in quotes");
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "", "the pod itself is gone");
    host.cmd(["rm", "pod"]).fails(1).complains("there is no pod");
    // What is left is in nobody's way, and the next run takes it when it can.
    host.start_fake(&Pod::simple("other"), "run");
    umount2(Path::new(left), MntFlags::empty()).unwrap();
    host.start_fake(&Pod::simple("third"), "run");
    host.cmd(["rm", "-f", "other", "third"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_file_that_an_ordinary_user_cannot_read_is_damage_too() {
    let host = Host::bare();
    for (index, file) in DECISIVE.iter().enumerate() {
        let dir = host.pod_dir(&format!("p{index}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file), "").unwrap();
        fs::set_permissions(dir.join(file), fs::Permissions::from_mode(0)).unwrap();
    }
    fs::create_dir_all(host.pod_dir("locked")).unwrap();
    fs::set_permissions(host.pod_dir("locked"), fs::Permissions::from_mode(0)).unwrap();
    let listed = host.as_user(61234, ["ps"]).ok().stdout;
    assert_eq!(listed.matches("Damaged").count(), 5, "{listed}");
    host.as_user(61234, ["exec", "p0", "--", "true"]).fails(3).complains("Permission denied");
    host.as_user(61234, ["rm", "-f", "p0", "p1", "p2", "p3", "locked"]).ok();
    assert_eq!(host.as_user(61234, ["ps", "-q"]).ok().stdout, "");
}

#[test]
fn a_pod_whose_directory_has_vanished_ends() {
    let host = Host::fake();
    let before = host.holdings();
    let pods = host.root().join("run/pods");
    let aside = host.root().join("run/aside");
    let removals: [(&str, &dyn Fn()); 3] = [
        ("its directory", &|| fs::remove_dir_all(host.pod_dir("pod")).unwrap()),
        ("all pods", &|| fs::remove_dir_all(&pods).unwrap()),
        ("moved away", &|| fs::rename(host.pod_dir("pod"), &aside).unwrap()),
    ];
    for (what, remove) in removals {
        host.start_fake(&Pod::simple("pod"), "run");
        let monitor = host.process("pod", "monitor");
        remove();
        until(&format!("the monitor has ended ({what})"), || !magikvm_tests::processes::is_alive(monitor));
        if aside.exists() {
            fs::remove_dir_all(&aside).unwrap();
        }
        fs::create_dir_all(&pods).unwrap();
        fs::File::create(pods.join(".reserve")).unwrap();
        host.assert_as_before(&before);
    }
}

#[test]
fn a_state_directory_that_others_may_change_is_refused() {
    let host = Host::bare();
    let shared = host.file("shared");
    let root = shared.join("state");
    let victim = host.file("victim");
    let pod = root.join("run/pods/default_forged");
    for dir in [&pod, &victim] {
        fs::create_dir_all(dir).unwrap();
    }
    let step = format!(
        "{{\"n\":1,\"scope\":\"record\",\"step\":{{\"undo\":\"remove_dir\",\"path\":\"{}\"}}}}\n",
        victim.display()
    );
    fs::write(pod.join("undo.jsonl"), step).unwrap();
    let removal = || host.cmd(["rm", "-f", "forged"]).env("MAGIKVM_ROOT", &root).run();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    removal().expect_code(1).complains("others may write to").complains("Hint: ");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&shared, Some(65534), None).unwrap();
    removal().expect_code(1).complains("belongs to another user (uid 65534)");
    assert!(victim.exists() && pod.exists());
    // In a directory like /tmp, one's own is one's own. What no pod has is not removed all the same.
    chown(&shared, Some(0), None).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o1777)).unwrap();
    removal().expect_code(0);
    assert!(victim.exists() && !pod.exists());
}

#[test]
fn names_of_directories_are_shown_harmless_and_other_users_are_told_what_they_lack() {
    let host = Host::bare();
    fs::create_dir_all(host.root().join("run/pods/default_\u{1b}[2Jx")).unwrap();
    let listed = host.cmd(["ps"]).ok().stdout + &host.cmd(["ps", "-o", "json"]).ok().stdout;
    assert!(!listed.contains('\u{1b}') && listed.contains("[2Jx"), "{listed}");
    let other = Host::bare();
    fs::set_permissions(host.root().join("run"), fs::Permissions::from_mode(0o700)).unwrap();
    for verb in [&["exec", "pod", "--", "true"][..], &["stop", "pod"], &["logs", "pod"]] {
        let output = other.as_user(61234, verb).env("MAGIKVM_ROOT", host.root()).run();
        assert_ne!(output.code, 0);
        assert!(output.stderr.to_lowercase().contains("permission denied"), "{}", output.transcript());
    }
}

#[test]
fn a_fifo_is_no_manifest_and_an_open_pipe_is_one() {
    let host = Host::fake();
    let fifo = host.file("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let link = host.file("link");
    symlink(&fifo, &link).unwrap();
    for path in [&fifo, &link] {
        let output = host.cmd(["run", "--vmm", "fake"]).arg(path).fails(125);
        output.complains("it is a FIFO").complains("or `-` for standard input");
    }
    let manifest = host.manifest(&Pod::simple("pod"));
    let streams = [
        "\"$0\" run --vmm fake -d /dev/stdin <\"$1\"",
        "cat \"$1\" | \"$0\" run --vmm fake -d /dev/stdin",
        "cat \"$1\" | \"$0\" run --vmm fake -d /proc/self/fd/0",
        "\"$0\" run --vmm fake -d <(cat \"$1\")",
        "cat \"$1\" | \"$0\" run --vmm fake -d -",
    ];
    for stream in streams {
        let shell: Cmd = host.other("/bin/bash").args(["-c", stream]).arg(magikvm_tests::host::program());
        shell.arg(&manifest).env("MAGIKVM_FAKE", "run").ok();
        host.cmd(["rm", "-f", "pod"]).ok();
    }
}
