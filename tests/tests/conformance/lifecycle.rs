//! What surrounds the run of a container: init containers, sidecars, probes, hooks, restarts, deadlines. Each row names the page of
//! Kubernetes' documentation whose rules it holds.

use crate::row::{Ended, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::until;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Instant;

const POD: &str = "lifecycle";
/// Sleeps, and ends at once when it is asked to.
const WAITS: &str = "trap 'exit 0' TERM; sleep 100000 & wait";

/// Rows that look at one running pod.
pub(crate) static GROUP: Group = Group {
    name: "lifecycle",
    title: "The life of containers",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::shell(
            "init_containers_in_order",
            "Init containers run one after the other, each to its end, and the main containers start after them.",
            &[("web", "head -n 4 /state/order", "first\nsecond\nsidecar\nthird\n")],
        )
        .of("`initContainers` (Init Containers: Understanding init containers)"),
        Row::shell(
            "a_sidecar_is_started_before_the_next_one",
            "The next init container starts when the startup probe of the sidecar before it has succeeded.",
            &[("web", "cat /state/seen-by-third", "sidecar is up\n")],
        )
        .of("`initContainers[].restartPolicy`, `startupProbe` (Sidecar Containers: Pod lifecycle)"),
        Row::code(
            "the_status_of_init_containers",
            "Init containers have ended and are ready, the sidecar runs, is started and ready; the pod is initialized and ready, with times.",
            the_status_of_init_containers,
        )
        .of("`status.initContainerStatuses`, `status.conditions` (Pod Lifecycle: Pod conditions)"),
        Row::code(
            "the_readiness_probe_decides",
            "A container is ready while its readiness probe succeeds, and the pod is ready while all of its containers are.",
            the_readiness_probe_decides,
        )
        .of("`readinessProbe`, `wait --for` (Pod Lifecycle: Container probes)"),
        Row::shell(
            "the_hook_after_the_start",
            "The postStart hook of a container has run when the container counts as running.",
            &[("web", "cat /state/post-start", "started\n")],
        )
        .of("`lifecycle.postStart` (Container Lifecycle Hooks: Container hooks)"),
        Row::code(
            "a_sidecar_restarts_in_a_pod_that_never_restarts",
            "A sidecar that ends is started again, although the pod's restartPolicy is Never.",
            a_sidecar_restarts_in_a_pod_that_never_restarts,
        )
        .of("`initContainers[].restartPolicy` (Sidecar Containers: Sidecar containers in Kubernetes)"),
    ],
};

/// Rows with pods of their own.
pub(crate) static OWN: Group = Group {
    name: "lifecycle_own",
    title: "Starts, ends and restarts of containers",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "a_failed_init_container",
            "An init container that fails in a pod that never restarts fails the run with its exit code and log; no main container starts.",
            a_failed_init_container,
        )
        .of("`initContainers`, `restartPolicy: Never` (Init Containers: Detailed behavior)"),
        Row::run(
            "an_init_container_is_tried_again",
            "A failed init container is started again until it succeeds; with the policy Always too.",
            tried_again,
            Ended { options: &["--no-prefix"], code: 0, stdout: "no\nyes\nmain\n", stderr: "", phase: "Succeeded" },
        )
        .of("`initContainers`, `restartPolicy: OnFailure` (Init Containers: Detailed behavior)"),
        Row::code(
            "an_interrupted_initialization",
            "An init container whose run is interrupted gets TERM and its grace period, and nothing is left.",
            an_interrupted_initialization,
        )
        .of("`run` (Pod Lifecycle: Termination of Pods)"),
        Row::code(
            "sidecars_end_last",
            "The pod ends with its main containers; sidecars are stopped after them in reverse order, and their exit codes do not count.",
            sidecars_end_last,
        )
        .of("`initContainers[].restartPolicy` (Sidecar Containers: Differences from application containers)"),
        Row::code(
            "a_stop_with_a_hook_and_a_sidecar",
            "A stop runs preStop, then sends the signal; the sidecar serves until the main container has ended.",
            a_stop_with_a_hook_and_a_sidecar,
        )
        .of("`lifecycle.preStop` (Pod Lifecycle: Termination with sidecars)"),
        Row::code(
            "a_hook_that_takes_the_grace_period",
            "A preStop hook counts within the grace period; the container has two seconds after it.",
            a_hook_that_takes_the_grace_period,
        )
        .of("`lifecycle.preStop` (Container Lifecycle Hooks: Hook handler execution)"),
        Row::code(
            "a_failed_liveness_probe",
            "A container whose liveness probe fails as often as its threshold says is ended and started again.",
            a_failed_liveness_probe,
        )
        .of("`livenessProbe` (Configure Liveness, Readiness and Startup Probes)"),
        Row::code(
            "a_failed_hook_after_the_start",
            "A container whose postStart hook fails is ended, and restarted by its policy.",
            a_failed_hook_after_the_start,
        )
        .of("`lifecycle.postStart` (Container Lifecycle Hooks: Hook handler execution)"),
        Row::code(
            "the_deadline_of_a_pod",
            "A pod that is active longer than its deadline is stopped and has failed with the reason DeadlineExceeded.",
            the_deadline_of_a_pod,
        )
        .of("`activeDeadlineSeconds` (Jobs: Job termination and cleanup)"),
        Row::code(
            "the_message_of_an_end",
            "The termination message is what the container wrote to its file, or the end of its log if it failed without one and wants that.",
            the_message_of_an_end,
        )
        .of("`terminationMessagePath`, `terminationMessagePolicy` (Determine the Reason for Pod Failure)"),
        Row::code(
            "restart_rules_of_a_container",
            "A container restarts with the exit codes of its rules, whatever the pod's policy says.",
            restart_rules_of_a_container,
        )
        .of("`restartPolicyRules` (Pod Lifecycle: Individual container restart policy and rules)"),
    ],
};

fn start(subject: &Subject) {
    let note = |name: &str| format!("echo {name} >> /state/order");
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let exec = |script: &str| json!({ "exec": { "command": ["sh", "-c", script] }, "periodSeconds": 1, "timeoutSeconds": 30 });
    let mut startup = exec("test -e /state/up");
    startup["failureThreshold"] = json!(1000);
    let sidecar = format!("{}; (sleep 1; echo sidecar is up > /state/up) & {WAITS}", note("sidecar"));
    let pod = Pod::new(POD)
        .volume("state", json!({ "emptyDir": {} }))
        .init_script("first", &note("first"), None)
        .with_init("volumeMounts", state())
        .init_script("second", &note("second"), None)
        .with_init("volumeMounts", state())
        .init_script("sidecar", &sidecar, Some("Always"))
        .with_init("volumeMounts", state())
        .with_init("startupProbe", startup)
        .init_script("third", &format!("{}; cp /state/up /state/seen-by-third", note("third")), None)
        .with_init("volumeMounts", state())
        .script("web", WAITS)
        .with("volumeMounts", state())
        .with("lifecycle/postStart/exec/command", json!(["sh", "-c", "echo started > /state/post-start"]))
        .with("readinessProbe", exec("test ! -e /state/unready"));
    subject.start(&pod);
}

fn conditions(subject: &Subject, pod: &str) -> Vec<(String, String)> {
    let pod = subject.inspect(pod).expect("the pod is there");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = pod["status"]["conditions"].as_array().expect("it has conditions");
    all.iter()
        .map(|one| {
            assert!(one["lastTransitionTime"].is_string(), "{one}");
            (text(&one["type"]), text(&one["status"]))
        })
        .collect()
}

fn init_statuses(subject: &Subject, pod: &str) -> Vec<Value> {
    let pod = subject.inspect(pod).expect("the pod is there");
    pod["status"]["initContainerStatuses"].as_array().expect("it has init containers").clone()
}

fn await_ready(subject: &Subject, pod: &str) {
    let limit = format!("{}s", subject.seconds(30).as_secs());
    subject.cmd(["wait", "--for=condition=Ready", "--timeout", &limit, pod]).limit(subject.seconds(40)).ok();
}

fn the_status_of_init_containers(subject: &Subject) {
    await_ready(subject, POD);
    for status in init_statuses(subject, POD) {
        let is_sidecar = status["name"] == "sidecar";
        assert_eq!(status["ready"], true, "{status}");
        assert_eq!(status["started"], is_sidecar, "{status}");
        let state = if is_sidecar { "running" } else { "terminated" };
        assert!(status["state"][state].is_object(), "{status}");
    }
    let wanted = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let found = conditions(subject, POD);
    assert_eq!(found, wanted.map(|kind| (kind.to_owned(), "True".to_owned())));
}

fn the_readiness_probe_decides(subject: &Subject) {
    await_ready(subject, POD);
    subject.sh(POD, "web", "touch /state/unready");
    let limit = format!("{}s", subject.seconds(60).as_secs());
    let wait = ["wait", "--for=condition=Ready=false", "--timeout", &limit, POD];
    subject.cmd(wait).limit(subject.seconds(70)).ok();
    let status = &subject.statuses(POD)[0];
    assert_eq!((&status["ready"], &status["started"]), (&json!(false), &json!(true)), "{status}");
    assert!(subject.cmd(["ps"]).ok().stdout.contains("1/2"));
    subject.cmd(["events", POD]).ok().prints("web: Unhealthy: Readiness probe failed: ");
    subject.sh(POD, "web", "rm /state/unready");
    await_ready(subject, POD);
}

fn a_sidecar_restarts_in_a_pod_that_never_restarts(subject: &Subject) {
    let restarts = || init_statuses(subject, POD)[2]["restartCount"].as_u64().unwrap();
    let before = restarts();
    subject.cmd(["kill", "-s", "KILL", POD, "-c", "sidecar"]).ok();
    until("it was started again", || restarts() > before);
    await_ready(subject, POD);
}

fn a_failed_init_container(subject: &Subject) {
    let pod = Pod::new("failed")
        .init_script("setup", "echo no such table; exit 3", None)
        .script("web", "echo never");
    let output = subject.run(&pod).arg("-d").fails(1);
    let output = output.complains("init container setup failed with exit code 3");
    let output = output.complains("no such table").complains("Container web: not started.");
    assert!(!output.stderr.contains("never"), "{}", output.stderr);
    assert_eq!(subject.cmd(["ps", "-q"]).ok().stdout, "");
    subject.assert_as_new();
}

fn tried_again() -> Pod {
    let once = "test -e /state/once && { echo yes; exit 0; }; touch /state/once; echo no; exit 1";
    Pod::new("tried")
        .set("spec/restartPolicy", "OnFailure")
        .volume("state", json!({ "emptyDir": {} }))
        .init_script("setup", once, None)
        .with_init("volumeMounts", json!([{ "name": "state", "mountPath": "/state" }]))
        .script("web", "echo main")
}

fn an_interrupted_initialization(subject: &Subject) {
    let pod = Pod::new("interrupted").init_script("setup", WAITS, None).script("web", "echo never");
    let running = subject.run(&pod).spawn();
    until("it works", || subject.cmd(["ps"]).ok().stdout.contains("Init:0/1"));
    running.signal(Signal::SIGINT);
    running.wait().expect_code(130);
    assert_eq!(subject.cmd(["ps", "-q"]).ok().stdout, "");
    subject.assert_as_new();
}

fn sidecars_end_last(subject: &Subject) {
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let says = |name: &str| {
        format!("trap 'echo {name} ends; exit 7' TERM; touch /state/{name}; sleep 100000 & wait")
    };
    let pod = Pod::new("helped")
        .volume("state", json!({ "emptyDir": {} }))
        .init_script("first", &says("first"), Some("Always"))
        .with_init("volumeMounts", state())
        .init_script("second", &says("second"), Some("Always"))
        .with_init("volumeMounts", state())
        .script("web", "until [ -e /state/first ] && [ -e /state/second ]; do sleep 0.1; done; echo work")
        .with("volumeMounts", state());
    let output = subject.run(&pod).ok();
    for line in ["web    | work", "second | second ends", "first  | first ends"] {
        assert!(output.stdout.contains(line), "{}", output.stdout);
    }
    let events = subject.cmd(["events", "helped"]).ok().stdout;
    let at = |text: &str| events.find(text).unwrap_or_else(|| panic!("{text}: {events}"));
    assert!(at("web: exited with 0") < at("second: exited with 7"));
    assert!(at("second: exited with 7") < at("first: exited with 7"));
    assert_eq!(subject.phase("helped"), "Succeeded");
}

fn a_stop_with_a_hook_and_a_sidecar(subject: &Subject) {
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let ends = "trap 'echo web >> /state/order; exit 0' TERM; while :; do sleep 0.05; done";
    let last = "trap 'cat /state/order; exit 0' TERM; while :; do sleep 0.05; done";
    let pod = Pod::new("hooked")
        .volume("state", json!({ "emptyDir": {} }))
        .init_script("sidecar", last, Some("Always"))
        .with_init("volumeMounts", state())
        .script("web", ends)
        .with("volumeMounts", state())
        .with("lifecycle/preStop/exec/command", json!(["sh", "-c", "echo hook >> /state/order"]));
    subject.start(&pod);
    let grace = subject.seconds(20).as_secs().to_string();
    subject.cmd(["stop", "--grace", &grace, "hooked"]).limit(subject.seconds(40)).ok();
    assert_eq!(subject.logs("hooked", "sidecar"), "hook\nweb\n");
    assert_eq!(subject.phase("hooked"), "Succeeded");
}

fn a_hook_that_takes_the_grace_period(subject: &Subject) {
    let pod = Pod::new("late")
        .script("web", "trap 'echo asked; exit 4' TERM; sleep 100000 & wait")
        .with("lifecycle/preStop/exec/command", json!(["sleep", "1000"]));
    subject.start(&pod);
    let begun = Instant::now();
    let grace = subject.seconds(3);
    subject.cmd(["stop", "--grace", &grace.as_secs().to_string(), "late"]).limit(subject.seconds(30)).ok();
    assert!(begun.elapsed() >= grace, "{:?}", begun.elapsed());
    assert_eq!(subject.logs("late", "web"), "asked\n");
    assert_eq!(subject.cmd(["wait", "late"]).ok().stdout, "4\n");
}

fn restarts(subject: &Subject, pod: &str) -> u64 {
    subject.statuses(pod)[0]["restartCount"].as_u64().unwrap()
}

fn a_failed_liveness_probe(subject: &Subject) {
    let pod = Pod::new("ill").set("spec/restartPolicy", "OnFailure").script("web", WAITS).with(
        "livenessProbe",
        json!({ "exec": { "command": ["false"] }, "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 5 }),
    );
    subject.start(&pod);
    until("it was started again", || restarts(subject, "ill") >= 1);
    let events = subject.cmd(["events", "ill"]).ok();
    events
        .prints("web: Unhealthy: Liveness probe failed: ")
        .prints("web: Killing: Container web failed liveness probe, will be restarted");
    subject.cmd(["stop", "--grace", "0", "ill"]).ok();
}

fn a_failed_hook_after_the_start(subject: &Subject) {
    let pod = Pod::new("hook")
        .set("spec/restartPolicy", "Always")
        .script("web", WAITS)
        .with("lifecycle/postStart/exec/command", json!(["false"]));
    subject.start(&pod);
    until("it was started again", || restarts(subject, "hook") >= 1);
    let events = subject.cmd(["events", "hook"]).ok();
    events.prints("web: FailedPostStartHook: ").prints("web: Killing: FailedPostStartHook");
    subject.cmd(["stop", "--grace", "0", "hook"]).ok();
}

fn the_deadline_of_a_pod(subject: &Subject) {
    // It counts from before the container is made, which must run by then.
    let deadline = subject.seconds(8);
    let pod = Pod::new("brief").set("spec/activeDeadlineSeconds", deadline.as_secs()).script("web", WAITS);
    let pod = pod.set("spec/terminationGracePeriodSeconds", 60);
    subject.run(&pod).limit(deadline + subject.seconds(40)).fails(125);
    let status = subject.inspect("brief").unwrap()["status"].clone();
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
}

fn the_message_of_an_end(subject: &Subject) {
    let pod = Pod::new("told")
        .script("file", "echo from the file > /dev/termination-log; echo from the log; exit 1")
        .script("path", "echo elsewhere > /tmp/why; exit 1")
        .with("terminationMessagePath", "/tmp/why")
        .script("log", "echo from the log; exit 1")
        .with("terminationMessagePolicy", "FallbackToLogsOnError")
        .script("long", "head -c 100000 /dev/zero | tr '\\0' x > /dev/termination-log; exit 1")
        .script("none", "echo from the log; exit 1");
    subject.run(&pod).fails(1);
    let messages: Vec<Value> = subject
        .statuses("told")
        .iter()
        .map(|status| status["state"]["terminated"]["message"].clone())
        .collect();
    let wanted = [json!("from the file\n"), json!("elsewhere\n"), json!("from the log\n")];
    assert_eq!(messages[..3], wanted);
    // The pod's messages have 12 KiB together, in equal parts.
    assert_eq!(messages[3].as_str().map(str::len), Some(12 * 1024 / messages.len()));
    assert_eq!(messages[4], Value::Null);
}

fn restart_rules_of_a_container(subject: &Subject) {
    let once = "test -e /state/once && exit 3; touch /state/once; exit 42";
    let pod = Pod::new("ruled")
        .volume("state", json!({ "emptyDir": {} }))
        .script("web", once)
        .with("volumeMounts", json!([{ "name": "state", "mountPath": "/state" }]))
        .with("restartPolicy", "Never")
        .with(
            "restartPolicyRules",
            json!([{ "action": "Restart", "exitCodes": { "operator": "In", "values": [42] } }]),
        );
    subject.run(&pod).fails(3);
    assert_eq!(restarts(subject, "ruled"), 1);
}
