//! Guests whose first boot is silent: they get one more, of which nothing of the first is left.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::command::Running;
use magikvm_tests::host::FIRST_BOOT_WAIT;
use magikvm_tests::processes::of_directory;
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;

const WARNING: &str = "the pod's agent did not answer within 0 s, so its sandbox is started once more";
const EVENT: &str = "the pod's sandbox is started again: its agent did not answer within 0 s";

/// A pod with what the first boot could leave in the way of the second.
fn pod() -> Pod {
    Pod::simple("pod")
        .volume("disk", json!({ "emptyDir": {} }))
        .volume("host", json!({ "hostPath": { "path": "/etc" } }))
        .mount("disk", "/disk", json!({}))
        .mount("host", "/host", json!({ "readOnly": true }))
}

fn guests(host: &Host) -> Vec<i32> {
    let all = of_directory(&host.root());
    all.iter().filter(|process| process.command.contains("__fake-guest")).map(|process| process.pid).collect()
}

/// How often the pod's events have this text.
fn events(host: &Host, text: &str) -> usize {
    host.cmd(["events", "pod"]).ok().stdout.matches(text).count()
}

/// A run whose guest is silent for ever, in its second boot.
fn in_the_second_boot(host: &Host) -> Running {
    let run = host.run_fake(&pod(), "silent").env(FIRST_BOOT_WAIT, "200").arg("-d").spawn();
    // The undo journal has a line for each.
    let journal = host.pod_dir("pod").join("undo.jsonl");
    let started = || fs::read_to_string(&journal).unwrap_or_default().matches(r#""name":"fake""#).count();
    until("the second boot has begun", || started() == 2);
    assert_eq!((guests(host).len(), events(host, EVENT)), (1, 1));
    assert_eq!(host.phase("pod"), "Pending");
    run
}

#[test]
fn a_guest_that_is_silent_once_is_booted_once_more_and_its_pod_runs() {
    let host = Host::fake();
    let before = host.holdings();
    // Warnings are printed.
    let run = host.run_fake(&pod(), "silent-once").env("MAGIKVM_QUIET", "").arg("-d").ok();
    assert_eq!(run.stdout, "default/pod\n");
    assert_eq!(run.stderr.matches(WARNING).count(), 1, "{}", run.transcript());
    assert_eq!((guests(&host).len(), events(&host, EVENT)), (1, 1));
    assert_eq!(host.phase("pod"), "Running");
    until("the output is there", || host.cmd(["logs", "pod"]).ok().stdout.contains("hello from web"));
    assert_eq!(host.cmd(["logs", "pod"]).ok().stdout.matches("hello from web").count(), 1);
    // All ways to the guest lead to the second one.
    host.cmd(["exec", "pod", "--", "x"]).ok();
    assert!(host.cmd(["stats", "pod"]).ok().stdout.contains("web"));
    host.cmd(["pause", "pod"]).ok();
    assert_eq!(host.phase("pod"), "Paused");
    host.cmd(["resume", "pod"]).ok();
    host.cmd(["stop", "pod"]).ok();
    assert_eq!((host.phase("pod").as_str(), guests(&host).len()), ("Failed", 0));
    assert_eq!(events(&host, EVENT), 1, "the story is kept");
    host.cmd(["rm", "pod"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_user_can_cancel_and_remove_a_second_boot() {
    let host = Host::fake();
    let before = host.holdings();
    let run = in_the_second_boot(&host);
    run.signal(Signal::SIGINT);
    run.wait().expect_code(130).complains("cancelled");
    host.assert_as_before(&before);
    let run = in_the_second_boot(&host);
    host.cmd(["rm", "-f", "pod"]).ok();
    run.wait().expect_code(1).complains("removed while it was being started");
    host.assert_as_before(&before);
}

#[test]
fn a_guest_that_dies_in_its_second_boot_fails_the_run_with_both_stories() {
    let host = Host::fake();
    let before = host.holdings();
    let run = in_the_second_boot(&host);
    kill(Pid::from_raw(guests(&host)[0]), Signal::SIGKILL).unwrap();
    let output = run.wait().expect_code(3).complains("Reason: VmmKilled");
    assert_eq!(output.stderr.matches(EVENT).count(), 1, "{}", output.transcript());
    host.assert_as_before(&before);
}

#[test]
fn a_crash_in_the_second_boot_leaves_what_rm_takes() {
    let host = Host::fake();
    let before = host.holdings();
    let run = in_the_second_boot(&host);
    kill(Pid::from_raw(host.process("pod", "monitor")), Signal::SIGKILL).unwrap();
    run.wait().expect_code(70).complains("monitor ended before the pod ran");
    assert_eq!(host.phase("pod"), "Lost");
    until("the guest has died with its monitor", || guests(&host).is_empty());
    host.cmd(["rm", "pod"]).ok();
    host.assert_as_before(&before);
}
