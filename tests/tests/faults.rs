//! The leak oracle with a failure injected at every step of the flow: a failed run leaves nothing, and `rm` removes what a crash leaves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::mounts::Tmpfs;
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Host, Pod};
use serde_json::{Value, json};

/// The points of `FAULT_POINTS` in host/src/pod/run.rs.
fn points() -> Vec<String> {
    let source = include_str!("../../host/src/pod/run.rs");
    let list = source
        .split_once("FAULT_POINTS: [")
        .and_then(|(_, rest)| rest.split_once("= ["))
        .and_then(|(_, rest)| rest.split_once(']'));
    let points: Vec<String> = list
        .expect("the list of points")
        .0
        .split(',')
        .map(|name| name.trim().trim_matches('"').to_owned())
        .collect();
    assert!(points.len() >= 5, "{points:?}");
    points
}

/// With volumes of every kind that uses something of the host.
fn doomed() -> Pod {
    Pod::simple("doomed")
        .volume("disk", json!({ "emptyDir": {} }))
        .volume("limited", json!({ "emptyDir": { "sizeLimit": "2Mi" } }))
        .volume("host", json!({ "hostPath": { "path": "/etc" } }))
        .mount("disk", "/disk", json!({}))
        .mount("limited", "/limited", json!({}))
        .mount("host", "/host", json!({ "readOnly": true }))
}

/// A run that comes to this point: only a guest that was silent is booted again.
fn reaching(host: &Host, point: &str) -> Cmd {
    match point {
        "reboot" => host.run_fake(&doomed(), "silent-once"),
        _ => host.run_fake(&doomed(), "run"),
    }
}

#[test]
fn a_failure_at_any_step_leaves_nothing() {
    let host = Host::fake();
    let before = host.holdings();
    for point in points() {
        let run = || reaching(&host, &point).env("MAGIKVM_FAULT", &point);
        run().arg("-d").fails(70).complains(&format!("fault injected at {point}"));
        host.assert_as_before(&before);
        run().fails(125).complains(&format!("fault injected at {point}"));
        host.assert_as_before(&before);
    }
    host.start_fake(&doomed(), "run");
    host.cmd(["rm", "-f", "doomed"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_crash_at_any_step_leaves_what_rm_takes() {
    let host = Host::fake();
    let before = host.holdings();
    for point in points() {
        let crash = || {
            let run = reaching(&host, &point).env("MAGIKVM_FAULT", format!("{point}=kill"));
            run.arg("-d")
                .fails(70)
                .complains("monitor ended before the pod ran")
                .complains("Hint: See what is left with `magikvm ps`");
        };
        crash();
        assert_ne!(host.holdings(), before, "{point}: something is left");
        assert_eq!(host.phase("doomed"), "Lost", "{point}");
        host.cmd(["rm", "doomed"]).ok();
        host.assert_as_before(&before);
        // Removal does not depend on the process that removes, nor on the number of attempts.
        crash();
        host.cmd(["rm", "-f", "doomed"]).ok();
        host.cmd(["rm", "doomed"]).fails(1);
        host.assert_as_before(&before);
        crash();
        let again = host.run_fake(&doomed(), "run").arg("-d").run();
        if point == "reserve" {
            assert_eq!(again.code, 0, "what no record names is in nobody's way: {}", again.transcript());
        } else {
            again.expect_code(1).complains("is there (Lost)");
        }
        host.cmd(["rm", "-f", "doomed"]).ok();
        host.assert_as_before(&before);
    }
}

#[test]
fn a_read_only_disk_is_said_to_be_one() {
    let host = Host::fake();
    let disk = Tmpfs::at(&host.root().join("run"), "size=1m");
    disk.make_read_only();
    let before = host.holdings();
    let output = host.run_fake(&Pod::simple("pod"), "run").arg("-d").fails(3);
    let output = output.complains("(stage: reserve)").complains("Caused by: Read-only file system");
    assert!(output.stderr.contains("run/pods"), "the file is named: {}", output.stderr);
    host.assert_as_before(&before);
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
}

/// However full the disk is, a run either succeeds, or leaves nothing and reports what was full.
#[test]
fn a_full_disk_is_said_to_be_one() {
    use std::io::Write;
    let host = Host::fake();
    let mut full = 0;
    let _disk = Tmpfs::at(&host.root().join("run"), "size=4m");
    // Free pages on the disk: from none to enough.
    let filler = host.root().join("run/filler");
    for free_pages in
        [0, 1, 2, 3, 4, 5, 6, 8, 10, 16, 100, 256, 258, 260, 262, 264, 266, 268, 270, 280, 300, 500]
    {
        let mut file = std::fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let whole = file.metadata().unwrap().len() / 4096;
        file.set_len(whole.saturating_sub(free_pages) * 4096).unwrap();
        drop(file);
        let before = host.holdings();
        let output = host.run_fake(&Pod::simple("pod"), "run").arg("-d").run();
        if output.code == 0 {
            host.cmd(["rm", "-f", "pod"]).ok();
        } else {
            full += 1;
            assert_eq!(output.code, 3, "{free_pages} pages: {}", output.transcript());
            assert!(
                output.stderr.contains("No space left on device"),
                "{free_pages} pages: {}",
                output.transcript()
            );
        }
        host.assert_as_before(&before);
        std::fs::remove_file(&filler).unwrap();
    }
    assert!(full > 0, "the disk was never full");
    host.start_fake(&Pod::simple("pod"), "run");
}

/// A disk that fills up while a pod runs costs log lines, but neither the pod, nor its end, nor its removal.
#[test]
fn a_disk_that_fills_up_later_does_not_keep_a_pod_from_ending() {
    let host = Host::fake();
    let disk = Tmpfs::at(&host.root().join("run"), "size=4m");
    let before = host.holdings();
    host.start_fake(&Pod::simple("pod"), "run");
    let filler = disk.fill();
    host.cmd(["stop", "pod"]).ok();
    assert_eq!(host.phase("pod"), "Failed", "its last state is written");
    drop(filler);
    host.start_fake(&Pod::simple("other"), "run");
    let filler = disk.fill();
    host.cmd(["rm", "-f", "--all"]).ok();
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
    drop(filler);
    host.assert_as_before(&before);
}

/// What QEMU tells of a full disk, as the fake VM tells it.
#[test]
fn a_vm_that_stands_still_for_want_of_room_is_shown_and_goes_on() {
    let host = Host::fake();
    let before = host.holdings();
    let full = host.file("full");
    let start =
        || host.run_fake(&Pod::simple("pod"), "run").arg("-d").env("MAGIKVM_FAKE_DISK_FULL", &full).ok();
    start();
    let reason = || host.inspect("pod").unwrap()["status"]["reason"].clone();
    assert_eq!(reason(), Value::Null);
    std::fs::write(&full, "").unwrap();
    until("it is seen", || reason() == "HostDiskFull");
    let status = host.inspect("pod").unwrap()["status"].clone();
    assert_eq!(status["phase"], "Running");
    assert!(status["message"].as_str().unwrap().contains("goes on by itself when there is room"), "{status}");
    let ready = |status: &Value| {
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == "Ready").unwrap().clone()
    };
    assert_eq!(
        (&ready(&status)["status"], &ready(&status)["reason"]),
        (&"False".into(), &"HostDiskFull".into())
    );
    let listed = host.cmd(["ps"]).ok().stdout;
    assert!(listed.contains(" 0/1 ") && listed.contains(" HostDiskFull "), "{listed}");
    host.cmd(["exec", "pod", "--", "x"])
        .fails(3)
        .complains("pod default/pod stands still because the host's disk is full")
        .complains("Hint: Make room on the host's disk");
    std::fs::remove_file(&full).unwrap();
    until("it goes on", || reason() == Value::Null);
    host.cmd(["exec", "pod", "--", "x"]).ok();
    let events = host.cmd(["events", "pod"]).ok().stdout;
    let (stands, goes) =
        (events.find("the VM stands still until there is room"), events.find("has room again"));
    assert!(stands.is_some() && stands < goes, "{events}");

    // A pod without room can be stopped and removed.
    std::fs::write(&full, "").unwrap();
    until("it is seen again", || reason() == "HostDiskFull");
    host.cmd(["stop", "pod", "--grace", "0"]).ok();
    assert_eq!((host.phase("pod"), reason()), ("Failed".to_owned(), "HostDiskFull".into()));
    host.cmd(["rm", "pod"]).ok();
    start();
    until("the next pod stands, too", || reason() == "HostDiskFull");
    host.cmd(["rm", "-f", "pod"]).ok();
    host.assert_as_before(&before);
}
