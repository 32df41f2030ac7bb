//! Containers and pods that end by themselves, and restarts.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::{until, wait_for};
use std::time::Duration;

pub(crate) static GROUP: Group = Group {
    name: "ends",
    title: "Ends and restarts",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "exit_codes_and_signals",
            "Exit codes and signals are those of the containers; the pod runs until the last has ended, and its code is the first that is not zero.",
            exit_codes_and_signals,
        )
        .of("`status.containerStatuses`, `wait`"),
        Row::code(
            "restart_always",
            "Containers that end are restarted, at once and then after increasing delays; the others are not.",
            restart_always,
        )
        .of("`restartPolicy: Always`"),
        Row::code(
            "restart_on_failure",
            "A container that fails is restarted; one that succeeds is not.",
            restart_on_failure,
        )
        .of("`restartPolicy: OnFailure`"),
        Row::code(
            "a_program_that_is_not_there",
            "A container whose program is missing fails the whole run, and nothing is left.",
            a_program_that_is_not_there,
        )
        .of("`command`"),
        Row::code(
            "an_image_that_is_not_there",
            "A container whose image is missing fails the whole run, and nothing is left.",
            an_image_that_is_not_there,
        )
        .of("`imagePullPolicy: Never`"),
    ],
};

fn exit_codes_and_signals(subject: &Subject) {
    let pod = Pod::new("codes")
        .script("zero", "echo fine")
        .script("seven", "echo wrong >&2; exit 7")
        .script("killed", "exec sleep 1000")
        .script("last", "exit 9");
    let mut running = subject.run(&pod).spawn();
    running.wait_for_stderr("seven  | wrong");
    until("the others have ended", || {
        let statuses = subject.statuses("codes");
        statuses.iter().filter(|status| !status["state"]["terminated"].is_null()).count() == 3
    });
    assert_eq!(subject.phase("codes"), "Running");
    subject.cmd(["kill", "-s", "USR1", "codes", "-c", "killed"]).ok();
    // PID 1 ignores USR1 without a handler.
    subject.cmd(["kill", "-s", "KILL", "codes", "-c", "killed"]).ok();
    let output = running.wait().expect_code(7);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("zero   | fine\n", "seven  | wrong\n"));
    let ends: Vec<String> = subject
        .statuses("codes")
        .iter()
        .map(|status| &status["state"]["terminated"])
        .map(|end| format!("{} {} {}", end["exitCode"], end["signal"], end["reason"]))
        .collect();
    assert_eq!(ends, ["0 null \"Completed\"", "7 null \"Error\"", "137 9 \"Error\"", "9 null \"Error\""]);
    assert_eq!(subject.phase("codes"), "Failed");
    assert_eq!(subject.cmd(["wait", "codes"]).ok().stdout, "7\n");
    subject.cmd(["rm", "codes"]).ok();
    subject.assert_as_new();
}

/// One container that succeeds, one that fails, one that stays.
fn start_with_policy(subject: &Subject, name: &str, policy: &str) {
    let pod = Pod::new(name)
        .set("spec/restartPolicy", policy)
        .script("ok", "echo ran")
        .script("bad", "echo ran; exit 3")
        .container("stays", &["sleep", "1000"]);
    subject.start(&pod);
}

fn restarts(subject: &Subject, pod: &str) -> Vec<u64> {
    subject.statuses(pod).iter().map(|status| status["restartCount"].as_u64().unwrap()).collect()
}

/// A pod whose containers are restarted can be stopped.
fn stop_at_once(subject: &Subject, pod: &str) {
    subject.cmd(["stop", "--grace", "0", pod]).ok();
    assert_eq!(subject.phase(pod), "Failed");
}

fn restart_always(subject: &Subject) {
    start_with_policy(subject, "always", "Always");
    until("both were started again", || restarts(subject, "always")[..2].iter().all(|&count| count >= 1));
    until("it waits for its next start", || {
        subject.statuses("always")[1]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let crashed = &subject.statuses("always")[1];
    assert_eq!(crashed["lastState"]["terminated"]["exitCode"], 3, "{crashed}");
    wait_for("its time has come", Duration::from_secs(60), || {
        (restarts(subject, "always")[1] >= 2).then_some(())
    });
    assert_eq!(restarts(subject, "always")[2], 0);
    until("it has printed", || subject.logs("always", "bad").lines().count() >= 3);
    let runs = subject.logs("always", "bad");
    assert!(runs.lines().all(|line| line == "ran"), "{runs}");
    let events = subject.cmd(["events", "always"]).ok();
    events.prints("bad: restarted (1)").prints("restarts in 10 s");
    stop_at_once(subject, "always");
}

fn restart_on_failure(subject: &Subject) {
    start_with_policy(subject, "onfailure", "OnFailure");
    until("the failed one was started again", || restarts(subject, "onfailure")[1] >= 1);
    let finished = &subject.statuses("onfailure")[0];
    assert_eq!(
        (finished["restartCount"].as_u64(), finished["state"]["terminated"]["reason"].as_str()),
        (Some(0), Some("Completed"))
    );
    stop_at_once(subject, "onfailure");
}

fn a_program_that_is_not_there(subject: &Subject) {
    let pod = Pod::simple("missing").container("side", &["/no/such/program"]);
    let output = subject.run(&pod).arg("-d").fails(1);
    let output = output.complains("container side could not be started").complains("(stage: container)");
    assert!(output.stderr.contains("/no/such/program"), "{}", output.stderr);
    subject.run(&pod).fails(127).complains("/no/such/program").complains("The pod's events:");
    let denied = Pod::simple("denied").container("side", &["/etc/passwd"]);
    subject.run(&denied).fails(126).complains("may not be executed");
    assert_eq!(subject.cmd(["ps", "-q"]).ok().stdout, "");
    subject.assert_as_new();
}

fn an_image_that_is_not_there(subject: &Subject) {
    let absent = Pod::simple("absent").container_of("side", "not/there:1", &["x"]);
    let absent = absent.with("imagePullPolicy", "Never");
    subject.run(&absent).fails(125).complains("container side: the image not/there:1 is not in the store");
    assert_eq!(subject.cmd(["ps", "-q"]).ok().stdout, "");
    subject.assert_as_new();
}
