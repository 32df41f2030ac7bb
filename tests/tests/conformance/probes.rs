//! Probes and hooks over the network of the pod. What they mean for the life of a container is in `lifecycle`.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::wait::until;
use serde_json::{Value, json};

const POD: &str = "probed";
/// Sleeps, and ends at once when it is asked to.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

pub(crate) static GROUP: Group = Group {
    name: "probes",
    title: "Probes over the network",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "http_and_tcp",
            "A container is ready when a GET of its readiness probe is answered with 200, or its port accepts a connection; a port may be named.",
            http_and_tcp,
        )
        .of("`httpGet`, `tcpSocket` (Configure Liveness, Readiness and Startup Probes)"),
        Row::code(
            "the_words_of_failures",
            "An answer with 404, a closed port and a port that speaks no gRPC are failures, in the kubelet's words.",
            the_words_of_failures,
        )
        .of("`httpGet`, `tcpSocket`, `grpc` (Pod Lifecycle: Probe outcome)"),
        Row::code(
            "the_address_that_is_asked",
            "Probes ask the host that they name, and in a pod without a network its loopback address.",
            the_address_that_is_asked,
        )
        .of("`httpGet.host`, `tcpSocket.host` (Configure Liveness, Readiness and Startup Probes: HTTP probes)"),
    ],
};

fn start(subject: &Subject) {
    let serve = |at: &str| format!("mkdir -p /www; echo yes > /www/ready; exec httpd -f -p {at} -h /www");
    let probe = |action: Value| {
        let mut probe = action;
        probe["periodSeconds"] = json!(1);
        probe["timeoutSeconds"] = json!(10);
        probe
    };
    let container = |pod: Pod, name: &str, script: &str, action: Value| {
        pod.script(name, script).with("resources/limits/memory", "32Mi").with("readinessProbe", probe(action))
    };
    let pod = Pod::new(POD);
    let pod =
        container(pod, "web", &serve("8080"), json!({ "httpGet": { "path": "/ready", "port": "http" } }))
            .with("ports", json!([{ "name": "http", "containerPort": 8080 }]));
    let pod = container(pod, "port", WAITS, json!({ "tcpSocket": { "port": 8080 } }));
    let pod = container(pod, "absent", WAITS, json!({ "httpGet": { "path": "/absent", "port": 8080 } }));
    let pod = container(pod, "closed", WAITS, json!({ "tcpSocket": { "port": 1 } }));
    let pod = container(pod, "other", WAITS, json!({ "grpc": { "port": 8080 } }));
    let pod = container(pod, "alone", &serve("127.0.0.1:9000"), json!({ "tcpSocket": { "port": 9000 } }));
    let loopback = json!({ "httpGet": { "path": "/ready", "port": 9000, "host": "127.0.0.1" } });
    subject.start(&container(pod, "named", WAITS, loopback));
}

/// Whether a container of the pod is ready.
fn is_ready(subject: &Subject, name: &str) -> bool {
    subject.statuses(POD).iter().any(|status| status["name"] == name && status["ready"] == true)
}

fn await_event(subject: &Subject, text: &str) {
    until("the event is there", || subject.cmd(["events", POD]).ok().stdout.contains(text));
}

fn http_and_tcp(subject: &Subject) {
    for name in ["web", "port"] {
        until("it is ready", || is_ready(subject, name));
    }
}

fn the_words_of_failures(subject: &Subject) {
    until("the server is there", || is_ready(subject, "web"));
    let failed = "Unhealthy: Readiness probe failed: ";
    await_event(subject, &format!("absent: {failed}HTTP probe failed with statuscode: 404"));
    await_event(subject, &format!("closed: {failed}dial tcp "));
    await_event(subject, ":1: connect: connection refused");
    await_event(
        subject,
        &format!("other: {failed}error: health rpc probe failed: rpc error: code = Unavailable"),
    );
    assert!(["absent", "closed", "other"].iter().all(|name| !is_ready(subject, name)));
}

fn the_address_that_is_asked(subject: &Subject) {
    for name in ["alone", "named"] {
        until("it is ready", || is_ready(subject, name));
    }
}
