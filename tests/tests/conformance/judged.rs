//! When probes run, as whom, and what their outcomes decide. Each row names the page of Kubernetes' documentation whose rules it holds.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::wait_for;
use serde_json::{Value, json};
use std::time::Duration;

const POD: &str = "judged";
/// Sleeps, and ends at once when it is asked to.
const WAITS: &str = "trap 'exit 0' TERM; sleep 100000 & wait";
/// A web server that keeps each request and gives one answer to all.
const ANSWERS: &str =
    "while :; do printf \"$ANSWER\" | nc -l -p $PORT > /tmp/request; mv /tmp/request /tmp/last; done";

pub(crate) static GROUP: Group = Group {
    name: "judged",
    title: "When probes run and what they decide",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "a_startup_probe_holds_back_the_others",
            "Until the startup probe has succeeded the container is neither started nor ready, and its other probes do not run; then they do.",
            a_startup_probe_holds_back_the_others,
        )
        .of("`startupProbe` (Configure Liveness, Readiness and Startup Probes: Protect slow starting containers with startup probes)")
        .within(Duration::from_secs(120)),
        Row::code(
            "a_failed_startup_probe",
            "A container whose startup probe fails as often as its threshold says is ended and started again by its policy.",
            |subject| restarted(subject, "unborn", "Startup", "startup"),
        )
        .of("`startupProbe.failureThreshold` (Configure Liveness, Readiness and Startup Probes)"),
        Row::code(
            "successes_in_a_row",
            "A container is ready when its probe has succeeded as often in a row as its threshold says.",
            successes_in_a_row,
        )
        .of("`successThreshold` (Configure Liveness, Readiness and Startup Probes: Configure Probes)"),
        Row::code(
            "failures_in_a_row",
            "A container is no longer ready when its probe has failed as often in a row as its threshold says.",
            failures_in_a_row,
        )
        .of("`failureThreshold` (Configure Liveness, Readiness and Startup Probes: Configure Probes)")
        .within(Duration::from_secs(120)),
        Row::code(
            "the_first_probe",
            "The first probe runs when the initial delay has passed since the container's start, and further ones follow with the period.",
            the_first_probe,
        )
        .of("`initialDelaySeconds`, `periodSeconds` (Configure Liveness, Readiness and Startup Probes: Configure Probes)"),
        Row::code(
            "a_probe_that_takes_too_long",
            "A command that takes longer than its timeout is a failure, and its process is killed.",
            a_probe_that_takes_too_long,
        )
        .of("`timeoutSeconds` (Configure Liveness, Readiness and Startup Probes: Probe timeouts)"),
        Row::code(
            "who_runs_a_command",
            "A probe's command runs as the container's user, in its directory, with its variables, and `$(VAR)` of a value is expanded.",
            who_runs_a_command,
        )
        .of("`exec.command` (API reference: Probe)"),
        Row::code(
            "what_a_command_says",
            "What a failed command prints is in the event.",
            |subject| await_event(subject, "loud: Unhealthy: Readiness probe failed: no database"),
        )
        .of("`exec` (Pod Lifecycle: Probe outcome)"),
        Row::code(
            "the_request_of_a_probe",
            "A GET has the path with its query, the headers of the manifest, and names itself as kube-probe unless a header says otherwise.",
            the_request_of_a_probe,
        )
        .of("`httpGet.httpHeaders` (Configure Liveness, Readiness and Startup Probes: HTTP probes)"),
        Row::code(
            "a_redirect_to_elsewhere",
            "A redirect to another host is a success.",
            |subject| until("it is ready", || is_ready(subject, "moved")),
        )
        .of("`httpGet` (Configure Liveness, Readiness and Startup Probes: HTTP probes)"),
        Row::code(
            "an_error_of_the_server",
            "An answer of 500 or above is a failure with its code.",
            |subject| await_event(subject, "broken: Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 503"),
        )
        .of("`httpGet` (Define a liveness HTTP request)"),
        Row::code(
            "a_liveness_probe_ends_in_order",
            "Before a container that failed its liveness probe is ended, its preStop hook runs; then it gets its stop signal.",
            a_liveness_probe_ends_in_order,
        )
        .of("`preStop`, `lifecycle.stopSignal` (Container Lifecycle Hooks: Container hooks)"),
        Row::code(
            "the_grace_period_of_a_probe",
            "A container that ignores its signal is killed after the grace period of its probe, not after that of the pod.",
            |subject| restarted(subject, "deaf", "Liveness", "liveness"),
        )
        .of("`terminationGracePeriodSeconds` (Configure Liveness, Readiness and Startup Probes: Probe-level terminationGracePeriodSeconds)"),
        Row::code(
            "readiness_of_a_sidecar",
            "The readiness probe of a sidecar counts for the pod as those of other containers.",
            readiness_of_a_sidecar,
        )
        .of("`initContainers[].readinessProbe` (Sidecar Containers: Sidecar containers and Pod lifecycle)"),
        Row::code(
            "a_hook_that_sleeps",
            "A container whose postStart hook sleeps runs meanwhile, and is not ready before the hook has ended.",
            a_hook_that_sleeps,
        )
        .of("`lifecycle.postStart.sleep` (Container Lifecycle Hooks: Hook handler implementations)"),
        Row::code(
            "a_hook_over_http",
            "A hook may be a GET of a server of the pod.",
            |subject| until("it was asked", || subject.sh(POD, "helper", "cat /tmp/last 2>/dev/null; true").starts_with("GET /warm?up=1 HTTP/1.1")),
        )
        .of("`lifecycle.postStart.httpGet` (Container Lifecycle Hooks: Hook handler implementations)"),
    ],
};

fn exec(command: &[&str], further: Value) -> Value {
    probe(json!({ "exec": { "command": command } }), further)
}

/// A probe with enough time for an emulated processor, and not so often that probes are all it does.
fn probe(mut action: Value, further: Value) -> Value {
    action["periodSeconds"] = json!(3);
    action["timeoutSeconds"] = json!(30);
    let Value::Object(further) = further else { panic!("no mapping: {further}") };
    for (key, value) in further {
        action[key] = value;
    }
    action
}

fn start(subject: &Subject) {
    let sh = |script: &str, further: Value| exec(&["sh", "-c", script], further);
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let empty = "Content-Length: 0\\r\\nConnection: close\\r\\n\\r\\n";
    let ok = format!("HTTP/1.1 200 OK\\r\\n{empty}");
    let answer = |port: u16, answer: &str| json!([{ "name": "PORT", "value": port.to_string() }, { "name": "ANSWER", "value": answer }]);
    let answers = |pod: Pod, name: &str, port: u16, text: &str| {
        pod.script(name, ANSWERS).with("env", answer(port, text))
    };
    // The root of each run is a new one, so that these files tell a probe which run it is in, however early it comes.
    let counted = |name: &str, first: &str| {
        format!(
            "if [ -e /state/{name} ]; then touch /tmp/again; {WAITS}; fi; touch /state/{name} /tmp/first; {first}"
        )
    };
    // Fails in the first run only.
    let again = "until [ -e /tmp/first ] || [ -e /tmp/again ]; do sleep 0.1; done; [ -e /tmp/again ]";
    // Port 8004 in state LISTEN. The hook of another container asks it only once.
    let listens = "grep -q ':1F44 .* 0A ' /proc/net/tcp /proc/net/tcp6";
    let deaf = "trap '' TERM; sleep 100000";
    let ordered = "trap 'echo usr1 >> /state/order; exit 1' USR1; trap 'echo term >> /state/order' TERM; while :; do sleep 100000 & wait; done";
    let pod = Pod::new(POD)
        .annotated("magikvm.dev/memory-mib", "384")
        .set("spec/terminationGracePeriodSeconds", 100)
        .set("spec/os/name", "linux")
        .volume("state", json!({ "emptyDir": {} }))
        .init_script("helper", ANSWERS, Some("Always"))
        .with_init("env", answer(8004, &ok))
        .with_init("volumeMounts", state())
        .with_init("startupProbe", sh(listens, json!({ "periodSeconds": 1, "failureThreshold": 1000 })))
        .with_init("readinessProbe", sh("test ! -e /state/helper-unready", json!({ "failureThreshold": 1 })))
        .script("gated", WAITS)
        .with("startupProbe", sh("test -e /tmp/up", json!({ "failureThreshold": 1000 })))
        .with("livenessProbe", sh("echo x >> /tmp/lived", json!({})))
        .with("readinessProbe", sh("echo x >> /tmp/readied", json!({})))
        .script("unborn", &counted("unborn", WAITS))
        .with("restartPolicy", "Always")
        .with("volumeMounts", state())
        .with("startupProbe", sh(again, json!({ "failureThreshold": 1, "terminationGracePeriodSeconds": 5 })))
        .script("thrice", WAITS)
        .with("readinessProbe", sh("echo x >> /tmp/probed", json!({ "successThreshold": 3 })))
        .script("patient", WAITS)
        .with(
            "readinessProbe",
            sh("[ ! -e /tmp/bad ] || { echo x >> /tmp/failed; false; }", json!({ "failureThreshold": 3 })),
        )
        .script("late", WAITS)
        .with(
            "readinessProbe",
            sh(
                "cut -d' ' -f1 /proc/uptime >> /tmp/probed",
                json!({ "initialDelaySeconds": 4, "periodSeconds": 2 }),
            ),
        )
        .script("slow", WAITS)
        .with("readinessProbe", exec(&["sleep", "12345"], json!({ "timeoutSeconds": 1, "periodSeconds": 5 })))
        .script("user", WAITS)
        .with("securityContext/runAsUser", 1234)
        .with("workingDir", "/tmp")
        .with("env", json!([{ "name": "WORD", "value": "hello" }]))
        .with(
            "readinessProbe",
            exec(
                &["sh", "-c", "echo $(id -u) $(pwd) $WORD $0 > /tmp/seen", "$(WORD)"],
                json!({ "periodSeconds": 5 }),
            ),
        )
        .script("loud", WAITS)
        .with("readinessProbe", sh("echo no database; exit 1", json!({ "periodSeconds": 5 })))
        .script("ill", &counted("ill", ordered))
        .with("restartPolicy", "Always")
        .with("volumeMounts", state())
        .with("livenessProbe", sh(again, json!({ "failureThreshold": 1 })))
        .with("lifecycle/stopSignal", "SIGUSR1")
        .with("lifecycle/preStop/exec/command", json!(["sh", "-c", "echo hook >> /state/order"]))
        .script("deaf", &counted("deaf", deaf))
        .with("restartPolicy", "Always")
        .with("volumeMounts", state())
        .with(
            "livenessProbe",
            sh(again, json!({ "failureThreshold": 1, "terminationGracePeriodSeconds": 1 })),
        )
        .script("sleepy", WAITS)
        .with("lifecycle/postStart/sleep/seconds", 3);
    let pod = answers(pod, "asked", 8001, &ok)
        .with("ports", json!([{ "name": "http", "containerPort": 8001 }]))
        .with(
            "readinessProbe",
            probe(
                json!({ "httpGet": { "port": "http", "path": "/health?full=1", "httpHeaders": [
            { "name": "X-Probe", "value": "yes" }, { "name": "Host", "value": "shop.example" }] } }),
                json!({}),
            ),
        );
    let pod = answers(
        pod,
        "moved",
        8002,
        &format!("HTTP/1.1 302 Found\\r\\nLocation: http://elsewhere.example/\\r\\n{empty}"),
    )
    .with("readinessProbe", probe(json!({ "httpGet": { "port": 8002 } }), json!({ "periodSeconds": 3 })));
    let pod = answers(pod, "broken", 8003, &format!("HTTP/1.1 503 Busy\\r\\n{empty}"))
        .with("readinessProbe", probe(json!({ "httpGet": { "port": 8003 } }), json!({ "periodSeconds": 5 })));
    // The startup probe of the sidecar has seen its server before the container starts whose hook asks it.
    let pod = pod
        .script("hooked", WAITS)
        .with("lifecycle/postStart/httpGet", json!({ "port": 8004, "path": "/warm?up=1" }));
    // Many containers start slowly on a busy host.
    subject.run(&pod).arg("-d").limit(Duration::from_secs(150)).ok();
}

/// Waits longer than usual: many containers with probes are much for an emulated processor.
#[track_caller]
fn until(what: &str, mut ask: impl FnMut() -> bool) {
    wait_for(what, Duration::from_secs(50), || ask().then_some(()));
}

fn status(subject: &Subject, name: &str) -> Value {
    subject.statuses(POD).into_iter().find(|status| status["name"] == name).expect("the container")
}

fn is_ready(subject: &Subject, name: &str) -> bool {
    status(subject, name)["ready"] == true
}

fn await_event(subject: &Subject, text: &str) {
    until(text, || subject.cmd(["events", POD]).ok().stdout.contains(text));
}

/// Waits until a container was ended by its probe and started again.
fn restarted(subject: &Subject, name: &str, title: &str, probe: &str) {
    let limit = Duration::from_secs(60);
    wait_for(&format!("{name} was started again"), limit, || {
        let status = status(subject, name);
        (status["restartCount"].as_u64()? >= 1 && status["state"]["running"].is_object()).then_some(())
    });
    await_event(subject, &format!("{name}: Unhealthy: {title} probe failed: "));
    await_event(
        subject,
        &format!("{name}: Killing: Container {name} failed {probe} probe, will be restarted"),
    );
}

/// The number of lines that a container's probe has written.
fn lines(subject: &Subject, container: &str, file: &str) -> usize {
    subject.sh(POD, container, &format!("cat {file} 2>/dev/null; true")).lines().count()
}

fn a_startup_probe_holds_back_the_others(subject: &Subject) {
    await_event(subject, "gated: Unhealthy: Startup probe failed: ");
    let before = status(subject, "gated");
    assert_eq!((&before["started"], &before["ready"]), (&json!(false), &json!(false)), "{before}");
    assert_eq!(lines(subject, "gated", "/tmp/lived /tmp/readied"), 0);
    subject.sh(POD, "gated", "touch /tmp/up");
    until("it is ready", || is_ready(subject, "gated"));
    until("both have run", || {
        lines(subject, "gated", "/tmp/lived") > 0 && lines(subject, "gated", "/tmp/readied") > 0
    });
    assert_eq!(status(subject, "gated")["started"], true);
}

fn successes_in_a_row(subject: &Subject) {
    until("it is ready", || is_ready(subject, "thrice"));
    assert!(lines(subject, "thrice", "/tmp/probed") >= 3);
}

fn failures_in_a_row(subject: &Subject) {
    until("it is ready", || is_ready(subject, "patient"));
    subject.sh(POD, "patient", "touch /tmp/bad");
    until("it is not ready", || !is_ready(subject, "patient"));
    assert!(lines(subject, "patient", "/tmp/failed") >= 3);
    subject.sh(POD, "patient", "rm /tmp/bad");
    until("it is ready again", || is_ready(subject, "patient"));
}

fn the_first_probe(subject: &Subject) {
    until("it was probed twice", || lines(subject, "late", "/tmp/probed") >= 2);
    // In hundredths of a second since the boot: when its first process was made, and the probes.
    let times = subject.sh(POD, "late", "cut -d' ' -f22 /proc/1/stat; head -n 2 /tmp/probed | tr -d .");
    let times: Vec<u64> = times.lines().map(|line| line.parse().unwrap()).collect();
    // A command that was late does not move those after it, so each is compared with the start.
    assert!(times[1] >= times[0] + 400, "{times:?}");
    assert!(times[2] >= times[0] + 600, "{times:?}");
}

fn a_probe_that_takes_too_long(subject: &Subject) {
    await_event(subject, "slow: Unhealthy: Readiness probe ");
    let events = subject.cmd(["events", POD]).ok().stdout;
    let said = events.lines().find(|line| line.contains("slow: Unhealthy")).expect("the event");
    assert!(said.contains("timed out"), "{said}");
    assert!(!is_ready(subject, "slow"));
    until("its process is gone", || {
        subject.sh(POD, "slow", "cat /proc/[0-9]*/cmdline 2>/dev/null | grep -c 'sleep.1234[5]'; true")
            == "0\n"
    });
}

fn who_runs_a_command(subject: &Subject) {
    until("it is ready", || is_ready(subject, "user"));
    assert_eq!(subject.sh(POD, "user", "cat /tmp/seen"), "1234 /tmp hello hello\n");
}

fn the_request_of_a_probe(subject: &Subject) {
    // It is ready when the probe has its answer, which is before the request is kept.
    until("it has kept a request", || {
        !subject.sh(POD, "asked", "cat /tmp/last 2>/dev/null; true").is_empty()
    });
    let request = subject.sh(POD, "asked", "cat /tmp/last");
    let lines: Vec<&str> = request.lines().map(str::trim_end).collect();
    assert_eq!(lines[0], "GET /health?full=1 HTTP/1.1", "{request}");
    for line in ["Host: shop.example", "X-Probe: yes", "Accept: */*", "Connection: close"] {
        assert!(lines.iter().any(|found| found.eq_ignore_ascii_case(line)), "{line}: {request}");
    }
    assert!(lines.iter().any(|line| line.starts_with("User-Agent: kube-probe/")), "{request}");
}

fn a_liveness_probe_ends_in_order(subject: &Subject) {
    restarted(subject, "ill", "Liveness", "liveness");
    assert_eq!(subject.sh(POD, "ill", "cat /state/order"), "hook\nusr1\n");
}

fn readiness_of_a_sidecar(subject: &Subject) {
    let helper = || {
        let pod = subject.inspect(POD).expect("the pod is there");
        pod["status"]["initContainerStatuses"][0].clone()
    };
    until("it is ready", || helper()["ready"] == true);
    subject.sh(POD, "helper", "touch /state/helper-unready");
    until("it is not ready", || helper()["ready"] == false);
    let pod = subject.inspect(POD).expect("the pod is there");
    let all = pod["status"]["conditions"].as_array().expect("conditions");
    let ready = all.iter().find(|one| one["type"] == "ContainersReady").expect("the condition");
    assert!(ready["message"].as_str().unwrap().contains("helper"), "{ready}");
    subject.sh(POD, "helper", "rm /state/helper-unready");
    until("it is ready again", || helper()["ready"] == true);
}

fn a_hook_that_sleeps(subject: &Subject) {
    until("it is ready", || is_ready(subject, "sleepy"));
    let age = subject.sh(
        POD,
        "sleepy",
        "echo $(( $(cut -d. -f1 /proc/uptime) - $(cut -d' ' -f22 /proc/1/stat) / 100 ))",
    );
    assert!(age.trim().parse::<u64>().unwrap() >= 2, "{age}");
}
