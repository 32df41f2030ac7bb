//! Pods that are stopped.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::layout::write_layout;
use magikvm_tests::virtual_machine::busybox;
use magikvm_tests::wait::until;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

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
            "the_signal_of_the_image",
            "A stop sends the signal that each container's image names, or TERM with a warning if it names none that exists; kill knows the same names.",
            the_signal_of_the_image,
        )
        .of("`stop`, `kill --signal`, `securityContext.sysctls`"),
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
    // The longest that there is.
    let grace = Duration::from_secs(300);
    let stop = ["stop", "--grace", &grace.as_secs().to_string(), "polite"];
    subject.cmd(stop).limit(grace + subject.seconds(30)).ok();
    assert!(begun.elapsed() < subject.seconds(60), "{:?}", begun.elapsed());
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
    // All of them together need more than the grace period, and each of them less, by more than a host stands still.
    let needed = Duration::from_secs(16);
    let grace = needed + subject.seconds(10);
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
    // More than a host stands still, or the polite one is killed too.
    let grace = Duration::from_secs(15);
    let begun = Instant::now();
    let stop = ["stop", "--grace", &grace.as_secs().to_string(), "stubborn"];
    subject.cmd(stop).limit(grace + subject.seconds(40)).ok();
    assert!((grace..grace + subject.seconds(30)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
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

fn the_signal_of_the_image(subject: &Subject) {
    let signals =
        [("quit", "SIGQUIT", 3), ("number", "2", 2), ("real", "SIGRTMIN+3", 37), ("unknown", "SIGNOPE", 15)];
    let start = json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "1024" }]);
    let mut pod = Pod::new("asked")
        .set("spec/securityContext/sysctls", start)
        .set("spec/terminationGracePeriodSeconds", 60);
    for (name, signal, number) in signals {
        let (image, layout) = (format!("test/{name}:1"), subject.file(name));
        let config = json!({ "Env": ["PATH=/bin"], "StopSignal": signal, "Labels": { "name": name } });
        write_layout(&layout, busybox(), &config);
        let source = format!("oci:{}:1", layout.display());
        subject.cmd(["image", "import", &source, "--name", &image]).ok();
        let other = if number == 15 { 2 } else { 15 };
        let script = format!(
            "trap 'echo asked; [ -e /tmp/once ] && exit 5; touch /tmp/once' {number}; trap 'exit 9' {other}; \
             httpd -p 80 2>/dev/null || echo refused; echo up; while :; do sleep 0.05; done"
        );
        pod = pod.container_of(name, &image, &["sh", "-c", &script]);
        pod = pod.with("securityContext/runAsUser", 1000);
    }
    subject.start(&pod);
    let warning = "warning: container unknown: the stop signal \"SIGNOPE\"";
    until("there is a warning", || subject.cmd(["events", "asked"]).ok().stdout.contains(warning));
    assert_eq!(subject.cmd(["events", "asked"]).ok().stdout.matches("warning").count(), 1);
    wait_for_all_up(subject, "asked", signals.len());
    for (name, signal) in [("quit", "quit"), ("number", "SIGINT"), ("real", "RTMIN+3"), ("unknown", "15")] {
        subject.cmd(["kill", "--signal", signal, "asked", "-c", name]).ok();
        until("the signal has arrived", || subject.logs("asked", name) == "refused\nup\nasked\n");
    }
    subject.cmd(["stop", "asked"]).ok();
    for (name, _, _) in signals {
        assert_eq!(subject.logs("asked", name), "refused\nup\nasked\nasked\n", "{name}");
    }
    assert_eq!(subject.cmd(["wait", "asked"]).run().stdout, "5\n");
    subject.cmd(["rm", "asked"]).ok();
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
    assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", begun.elapsed());
    assert_eq!(subject.logs("hasty", "first"), "up\n", "it is there after the pod's end");
    subject.cmd(["rm", "hasty"]).ok();
    subject.assert_as_new();
}

fn an_interrupted_foreground_run(subject: &Subject) {
    let pod = Pod::new("fore").script("web", POLITE).set("spec/terminationGracePeriodSeconds", 60);
    let mut running = subject.run(&pod).arg("--rm").spawn();
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
