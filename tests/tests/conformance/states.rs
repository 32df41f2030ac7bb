//! States, reasons, messages and events of containers that end in several ways. Each row names the page of Kubernetes' documentation whose
//! rules it holds.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::{until, wait_for};
use serde_json::{Value, json};
use std::time::Duration;

const POD: &str = "states";
/// Sleeps, and ends at once when it is asked to.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 0.2; done";

pub(crate) static GROUP: Group = Group {
    name: "states",
    title: "States, reasons and messages",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "a_container_that_runs",
            "It is running since a time, started and ready, has not been restarted, and names its image and the image's id.",
            a_container_that_runs,
        )
        .of("`status.containerStatuses` (Pod Lifecycle: Container states)"),
        Row::code(
            "a_container_that_completed",
            "It is terminated with the reason Completed and code 0, with the times of its start and end, and is not ready.",
            |subject| ended(subject, "done", "Completed", 0),
        )
        .of("`state.terminated` (Pod Lifecycle: Container states)"),
        Row::code(
            "a_container_that_failed",
            "It is terminated with the reason Error and its exit code, and the end of its log is its message where it wants that.",
            a_container_that_failed,
        )
        .of("`state.terminated` (Determine the Reason for Pod Failure)"),
        Row::code(
            "a_container_that_was_killed",
            "A container that a signal ends has the code 128 and the signal's number.",
            a_container_that_was_killed,
        )
        .of("`state.terminated.exitCode` (Pod Lifecycle: Container states)"),
        Row::code(
            "a_container_that_crashes",
            "It waits with the reason CrashLoopBackOff for its next start, and its last state has the code of its end.",
            a_container_that_crashes,
        )
        .of("`state.waiting`, `lastState` (Pod Lifecycle: How Pods handle problems with containers)"),
        Row::code(
            "a_container_that_was_restarted",
            "It runs, its count of restarts is 1, and its last state is the end of its first run with its message.",
            a_container_that_was_restarted,
        )
        .of("`restartCount`, `lastState` (Pod Lifecycle: Container restarts)"),
        Row::code(
            "the_first_restart_is_immediate",
            "A container that ends for the first time is started again at once.",
            the_first_restart_is_immediate,
        )
        .of("`restartPolicy` (Pod Lifecycle: How Pods handle problems with containers)"),
        Row::code(
            "a_policy_of_a_container",
            "A container with the policy OnFailure restarts in a pod that never restarts, until it succeeds.",
            a_policy_of_a_container,
        )
        .of("`containers[].restartPolicy` (Pod Lifecycle: Individual container restart policy and rules)"),
        Row::code(
            "a_rule_for_all_codes_but_some",
            "A rule with NotIn restarts with every code but its own.",
            a_rule_for_all_codes_but_some,
        )
        .of("`restartPolicyRules[].exitCodes.operator` (Pod Lifecycle: Individual container restart policy and rules)"),
        Row::code(
            "a_pod_that_is_not_ready",
            "A pod whose containers do not all run is not ready, and the condition names the others; it is initialized and scheduled.",
            a_pod_that_is_not_ready,
        )
        .of("`status.conditions` (Pod Lifecycle: Pod conditions)"),
        Row::code(
            "the_phase_of_a_pod_whose_containers_crash",
            "A pod is running while a container runs or will be started again; its start has a time.",
            the_phase_of_a_pod_whose_containers_crash,
        )
        .of("`status.phase`, `startTime` (Pod Lifecycle: Pod phase)"),
        Row::code(
            "what_ps_says",
            "The list of pods counts the containers that are ready and all restarts, and names the container that waits.",
            what_ps_says,
        )
        .of("`magikvm ps`"),
        Row::code(
            "events_of_a_life",
            "Events tell that the image of each container is there, that it was created and started, how it ended, and when it restarts.",
            events_of_a_life,
        )
        .of("`magikvm events` (Debug Pods)"),
        Row::code(
            "the_class_without_resources",
            "A pod whose containers ask for nothing is BestEffort.",
            |subject| assert_eq!(subject.inspect(POD).unwrap()["status"]["qosClass"], "BestEffort"),
        )
        .of("`status.qosClass` (Pod Quality of Service Classes: BestEffort)"),
        Row::code(
            "logs_of_the_run_before",
            "The log of a container that was restarted has all of its runs.",
            |subject| {
                await_status(subject, "again", |status| status["restartCount"] == 1);
                until("both have printed", || subject.logs(POD, "again") == "first\nsecond\n");
            },
        )
        .of("`magikvm logs`"),
        Row::shell(
            "a_terminal",
            "A container with a terminal has it as its input and output, and a variable TERM.",
            &[("terminal", "cat /seen; tr '\\0' '\\n' < /proc/1/environ | grep TERM", "terminal\nTERM=xterm\n")],
        )
        .of("`tty` (API reference: Container, Debugging)"),
        Row::code(
            "no_input",
            "A container without input reads the end of its input at once.",
            |subject| ended(subject, "reader", "Completed", 0),
        )
        .of("`stdin` (API reference: Container, Debugging)"),
        Row::code(
            "input_for_one",
            "A container with input for one reads its end when the first who attached has gone.",
            input_for_one,
        )
        .of("`stdinOnce` (API reference: Container, Debugging)"),
        Row::code(
            "the_message_of_a_file",
            "A message in the file of the manifest is that of the container's end, also of one that succeeds.",
            |subject| {
                let status = await_status(subject, "done", |status| status["state"]["terminated"].is_object());
                assert_eq!(status["state"]["terminated"]["message"], "all is done\n");
            },
        )
        .of("`terminationMessagePath` (Determine the Reason for Pod Failure: Customizing the termination message)"),
    ],
};

fn start(subject: &Subject) {
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let once = "if [ -e /state/again ]; then echo second; else touch /state/again; echo first; echo why >> /dev/termination-log; exit 1; fi";
    let until_third = "echo x >> /state/stubborn; [ $(wc -l < /state/stubborn) -ge 2 ]";
    let ruled = "echo x >> /state/ruled; [ $(wc -l < /state/ruled) -ge 2 ] && exit 9; exit 4";
    let pod = Pod::new(POD)
        .annotated("magikvm.dev/memory-mib", "320")
        .volume("state", json!({ "emptyDir": {} }))
        .script("runs", WAITS)
        .script("done", "echo all is done > /tmp/last; sleep 0.1")
        .with("terminationMessagePath", "/tmp/last")
        .script("fails", "echo no such table; exit 3")
        .with("terminationMessagePolicy", "FallbackToLogsOnError")
        .script("victim", "while :; do sleep 0.2; done")
        .script("crashes", "exit 5")
        .with("restartPolicy", "Always")
        .script("again", &format!("{once}; {WAITS}"))
        .with("restartPolicy", "OnFailure")
        .with("volumeMounts", state())
        .script("stubborn", until_third)
        .with("restartPolicy", "OnFailure")
        .with("volumeMounts", state())
        .script("ruled", ruled)
        .with("restartPolicy", "Never")
        .with(
            "restartPolicyRules",
            json!([{ "action": "Restart", "exitCodes": { "operator": "NotIn", "values": [0, 9] } }]),
        )
        .with("volumeMounts", state())
        .script("terminal", &format!("[ -t 0 ] && [ -t 1 ] && echo terminal > /seen; {WAITS}"))
        .with("tty", true)
        .script("reader", "cat")
        .script("once", "cat > /dev/null; echo heard; exit 0")
        .with("stdin", true)
        .with("stdinOnce", true);
    // Many containers start slowly on a busy host.
    subject.run(&pod).arg("-d").limit(Duration::from_secs(150)).ok();
}

/// Waits until the status of a container is as wanted.
fn await_status(subject: &Subject, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_for(&format!("the status of {name}"), Duration::from_secs(20), || {
        subject.statuses(POD).into_iter().find(|status| status["name"] == name && wanted(status))
    })
}

fn ended(subject: &Subject, name: &str, reason: &str, code: i64) {
    let status = await_status(subject, name, |status| status["state"]["terminated"].is_object());
    let run = &status["state"]["terminated"];
    assert_eq!((&run["reason"], &run["exitCode"]), (&json!(reason), &json!(code)), "{status}");
    assert!(run["startedAt"].as_str().unwrap() <= run["finishedAt"].as_str().unwrap(), "{status}");
    assert_eq!((&status["ready"], &status["started"]), (&json!(false), &json!(false)), "{status}");
}

fn a_container_that_runs(subject: &Subject) {
    let status = await_status(subject, "runs", |status| status["ready"] == true);
    assert!(status["state"]["running"]["startedAt"].is_string(), "{status}");
    assert_eq!(status["started"], true);
    assert_eq!((&status["restartCount"], &status["lastState"]), (&json!(0), &json!({})));
    assert_eq!(status["image"], magikvm_tests::host::IMAGE);
    assert!(status["imageID"].as_str().unwrap().contains("sha256:"), "{status}");
}

fn a_container_that_failed(subject: &Subject) {
    ended(subject, "fails", "Error", 3);
    let status = await_status(subject, "fails", |_| true);
    assert_eq!(status["state"]["terminated"]["message"], "no such table\n");
}

fn a_container_that_was_killed(subject: &Subject) {
    subject.cmd(["kill", "-s", "KILL", POD, "-c", "victim"]).run();
    ended(subject, "victim", "Error", 137);
}

fn a_container_that_crashes(subject: &Subject) {
    let status =
        await_status(subject, "crashes", |status| status["state"]["waiting"]["reason"] == "CrashLoopBackOff");
    assert!(status["state"]["waiting"]["message"].is_string(), "{status}");
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("Error"), &json!(5)), "{status}");
    assert!(status["restartCount"].as_u64().unwrap() >= 1, "{status}");
    assert_eq!(status["ready"], false);
}

fn a_container_that_was_restarted(subject: &Subject) {
    let status = await_status(subject, "again", |status| {
        status["restartCount"] == 1 && status["state"]["running"].is_object()
    });
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["message"]), (&json!(1), &json!("why\n")), "{status}");
}

fn the_first_restart_is_immediate(subject: &Subject) {
    await_status(subject, "again", |status| status["restartCount"] == 1);
    let events = subject.cmd(["events", POD]).ok().stdout;
    let end = events.lines().find(|line| line.contains("again: exited with 1")).expect("its end");
    // How long the second run then takes to be made depends on the host.
    assert!(end.contains("restarts in 0 s"), "{events}");
}

fn a_policy_of_a_container(subject: &Subject) {
    ended(subject, "stubborn", "Completed", 0);
    assert_eq!(await_status(subject, "stubborn", |_| true)["restartCount"], 1);
}

fn a_rule_for_all_codes_but_some(subject: &Subject) {
    ended(subject, "ruled", "Error", 9);
    assert_eq!(await_status(subject, "ruled", |_| true)["restartCount"], 1);
}

fn condition(subject: &Subject, kind: &str) -> Value {
    let pod = subject.inspect(POD).expect("the pod is there");
    let all = pod["status"]["conditions"].as_array().expect("conditions").clone();
    all.into_iter().find(|one| one["type"] == kind).expect("the condition")
}

fn a_pod_that_is_not_ready(subject: &Subject) {
    await_status(subject, "fails", |status| status["state"]["terminated"].is_object());
    for kind in ["Ready", "ContainersReady"] {
        let found = condition(subject, kind);
        assert_eq!((&found["status"], &found["reason"]), (&json!("False"), &json!("ContainersNotReady")));
        let message = found["message"].as_str().unwrap();
        assert!(message.starts_with("containers with unready status: ["), "{message}");
        assert!(message.contains("fails") && !message.contains("runs"), "{message}");
    }
    for kind in ["Initialized", "PodScheduled", "PodReadyToStartContainers"] {
        assert_eq!(condition(subject, kind)["status"], "True", "{kind}");
    }
}

fn the_phase_of_a_pod_whose_containers_crash(subject: &Subject) {
    let pod = subject.inspect(POD).expect("the pod is there");
    assert_eq!(pod["status"]["phase"], "Running");
    let (made, started) = (&pod["metadata"]["creationTimestamp"], &pod["status"]["startTime"]);
    assert!(made.as_str().unwrap() <= started.as_str().unwrap(), "{made} {started}");
}

fn what_ps_says(subject: &Subject) {
    // It is started again between two looks.
    until("the list names the container that waits", || {
        let listed = subject.cmd(["ps"]).ok().stdout;
        listed.contains("/11 ") && listed.contains("crashes: CrashLoopBackOff")
    });
}

fn events_of_a_life(subject: &Subject) {
    await_status(subject, "crashes", |status| status["state"]["waiting"]["reason"] == "CrashLoopBackOff");
    let events = subject.cmd(["events", POD]).ok().stdout;
    let image = "already present on machine";
    for text in [image, "runs: created", "runs: started", "done: exited with 0", "fails: exited with 3"] {
        assert!(events.contains(text), "{text}: {events}");
    }
    let crashed: Vec<&str> = events.lines().filter(|line| line.contains("crashes: exited with 5")).collect();
    assert!(crashed[0].contains("restarts in 0 s") && crashed[1].contains("restarts in 10 s"), "{crashed:?}");
}

fn input_for_one(subject: &Subject) {
    let attached = subject.cmd(["attach", POD, "-c", "once"]).input("hello\n").run();
    assert_eq!(attached.code, 0, "{}", attached.stderr);
    ended(subject, "once", "Completed", 0);
    assert_eq!(subject.logs(POD, "once"), "heard\n");
}
