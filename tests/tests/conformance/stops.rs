//! Pods that are stopped.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::until;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Instant;

/// Prints a line, and exits with 5 on TERM.
const POLITE: &str = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done";
/// Prints a line, and ignores TERM.
pub(crate) const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.05; done";

pub(crate) static GROUP: Group = Group {
    name: "stops",
    title: "Stops",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "asked_at_once",
            "All containers get TERM at the same time; their last output is kept.",
            asked_at_once,
        )
        .of("`stop`"),
        Row::code(
            "the_whole_grace_for_each",
            "Each of several containers has the whole grace period: containers that need most of it all end by themselves.",
            the_whole_grace_for_each,
        )
        .of("`stop`"),
        Row::code(
            "killed_after_their_grace",
            "A container that ignores TERM is killed after the grace period; one that handles it ends by itself.",
            killed_after_their_grace,
        )
        .of("`stop --grace`"),
        Row::code(
            "a_second_request_with_a_shorter_grace_period",
            "A second stop with a shorter grace period takes effect.",
            a_second_request_with_a_shorter_grace_period,
        )
        .of("`stop --grace`"),
        Row::code(
            "an_interrupted_foreground_run",
            "An interrupted foreground run stops its containers, shows their last output and exits with the pod's code.",
            an_interrupted_foreground_run,
        )
        .of("`run --rm`"),
        Row::code(
            "an_interrupted_boot",
            "A foreground run that is interrupted during the boot leaves nothing behind.",
            an_interrupted_boot,
        )
        .of("`run`"),
    ],
};

fn wait_for_all_up(subject: &Subject, pod: &str, count: usize) {
    until("all containers are up", || {
        subject.cmd(["logs", pod]).ok().stdout.matches("up\n").count() == count
    });
}

fn asked_at_once(subject: &Subject) {
    let polite = Pod::new("polite").script("first", POLITE).script("second", POLITE).script("third", POLITE);
    subject.start(&polite);
    wait_for_all_up(subject, "polite", 3);
    let begun = Instant::now();
    let grace = subject.seconds(20).as_secs().to_string();
    subject.cmd(["stop", "--grace", &grace, "polite"]).limit(subject.seconds(40)).ok();
    assert!(begun.elapsed() < subject.seconds(15), "{:?}", begun.elapsed());
    let logs = subject.cmd(["logs", "polite"]).ok().stdout;
    assert_eq!(logs.matches("bye\n").count(), 3, "the last words are kept: {logs}");
    let events = subject.cmd(["events", "polite"]).ok().stdout;
    let mut ends: Vec<&str> =
        events.lines().filter_map(|line| line.split_once("  ")?.1.strip_suffix(": exited with 5")).collect();
    ends.sort_unstable();
    assert_eq!(ends, ["first", "second", "third"], "{events}");
    assert!(events.trim_end().ends_with("the pod has ended"), "it is told after all ends: {events}");
    assert_eq!(subject.cmd(["wait", "polite"]).ok().stdout, "5\n");
    subject.cmd(["rm", "polite"]).ok();
    subject.assert_as_new();
}

fn the_whole_grace_for_each(subject: &Subject) {
    let (grace, needed) = (subject.seconds(10), subject.seconds(8));
    // The sleep is the shell's child, so that only the shell gets TERM.
    let slow = format!(
        "trap 'sleep {}; echo done; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        needed.as_secs()
    );
    let names = ["one", "two", "three", "four"];
    subject.start(&names.iter().fold(Pod::new("slow"), |pod, name| pod.script(name, &slow)));
    wait_for_all_up(subject, "slow", names.len());
    let begun = Instant::now();
    let stop = ["stop", "--grace", &grace.as_secs().to_string(), "slow"];
    subject.cmd(stop).limit(grace + subject.seconds(20)).ok();
    assert!(begun.elapsed() >= needed, "{:?}", begun.elapsed());
    let logs = subject.cmd(["logs", "slow"]).ok().stdout;
    assert_eq!(logs.matches("done\n").count(), names.len(), "{logs}");
    let ends: Vec<Value> = subject
        .statuses("slow")
        .iter()
        .map(|status| status["state"]["terminated"]["exitCode"].clone())
        .collect();
    assert_eq!(ends, [0, 0, 0, 0]);
    assert_eq!(subject.phase("slow"), "Succeeded");
    subject.cmd(["rm", "slow"]).ok();
    subject.assert_as_new();
}

fn killed_after_their_grace(subject: &Subject) {
    subject.start(&Pod::new("stubborn").script("first", STUBBORN).script("second", POLITE));
    wait_for_all_up(subject, "stubborn", 2);
    let grace = subject.seconds(2);
    let begun = Instant::now();
    subject.cmd(["stop", "--grace", &grace.as_secs().to_string(), "stubborn"]).ok();
    assert!((grace..subject.seconds(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let ends: Vec<Value> = subject
        .statuses("stubborn")
        .iter()
        .map(|status| status["state"]["terminated"]["exitCode"].clone())
        .collect();
    assert_eq!(ends, [137, 5]);
    assert!(subject.inspect("stubborn").unwrap()["status"]["message"].is_null(), "nothing was broken");
    subject.cmd(["rm", "stubborn"]).ok();
    subject.assert_as_new();
}

fn a_second_request_with_a_shorter_grace_period(subject: &Subject) {
    subject.start(&Pod::new("hasty").script("first", STUBBORN));
    wait_for_all_up(subject, "hasty", 1);
    let begun = Instant::now();
    let longer = subject.cmd(["stop", "--grace", "200", "hasty"]).spawn();
    until("the pod is being stopped", || subject.cmd(["events", "hasty"]).ok().stdout.contains("stopping"));
    subject.cmd(["stop", "--grace", "0", "hasty"]).ok();
    longer.wait().expect_code(0);
    assert!(begun.elapsed() < subject.seconds(15), "{:?}", begun.elapsed());
    assert_eq!(subject.logs("hasty", "first"), "up\n", "it is there after the pod's end");
    subject.cmd(["rm", "hasty"]).ok();
    subject.assert_as_new();
}

fn an_interrupted_foreground_run(subject: &Subject) {
    let mut running = subject.run(&Pod::new("fore").script("web", POLITE)).arg("--rm").spawn();
    running.wait_for_stdout("web | up");
    running.signal(Signal::SIGINT);
    running.wait().expect_code(5).prints("web | bye");
    subject.assert_as_new();
}

fn an_interrupted_boot(subject: &Subject) {
    let running = subject.run(&Pod::simple("fore")).spawn();
    subject.process("fore", subject.vm_process());
    running.signal(Signal::SIGINT);
    running.wait().expect_code(130).complains("cancelled");
    subject.assert_as_new();
}
