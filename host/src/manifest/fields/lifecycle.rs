//! The rows of what surrounds a container's run: init containers, restarts, probes, hooks, the end.

use super::row::{Field, Shape, no, no_source, only, yes};

/// The fields of init containers, restarts, probes and hooks.
pub(super) const FIELDS: &[Field] = &[
    yes(
        "spec.initContainers",
        Shape::Objects,
        "At most 16, with the fields of `spec.containers[]`. Each runs to its end before the next one and before the containers. One with \
         `restartPolicy: Always` is a sidecar: it has started, and its startup probe has succeeded, before the next one starts, and it ends \
         after the containers. Others have no probes and no `lifecycle`.",
    ),
    yes(
        "spec.containers[].restartPolicy",
        Shape::Text,
        "`Always`, `OnFailure` or `Never`. Default: the pod's. `Always` makes an init container a sidecar.",
    ),
    yes(
        "spec.containers[].restartPolicyRules",
        Shape::Objects,
        "At most 20. The first that matches the exit code restarts the container; if none does, `restartPolicy`, which is then required, \
         decides. Not for sidecars.",
    ),
    only(
        "spec.containers[].restartPolicyRules[].action",
        Shape::Text,
        &["Restart"],
        "restarting all containers of the pod at once is not supported yet",
    ),
    yes(
        "spec.containers[].restartPolicyRules[].exitCodes",
        Shape::Object,
        "Required. The exit codes it is about.",
    ),
    yes(
        "spec.containers[].restartPolicyRules[].exitCodes.operator",
        Shape::Text,
        "Required. `In` or `NotIn`.",
    ),
    yes("spec.containers[].restartPolicyRules[].exitCodes.values", Shape::Ints, "At most 255."),
    yes(
        "spec.containers[].livenessProbe",
        Shape::Object,
        "Runs again and again; its failure ends the container, which then restarts by its policy. It has one of `exec`, `httpGet`, \
         `tcpSocket` and `grpc`.",
    ),
    yes(
        "spec.containers[].livenessProbe.exec",
        Shape::Object,
        "A program in the container; exit code 0 is success.",
    ),
    yes(
        "spec.containers[].livenessProbe.exec.command",
        Shape::Texts,
        "Required. Program and arguments, without a shell, at most 256 of 4096 bytes. `$(VAR)` of a variable of `env` with a `value` is \
         expanded.",
    ),
    yes(
        "spec.containers[].livenessProbe.httpGet",
        Shape::Object,
        "An HTTP GET to the pod; a status from 200 to 399 is success. A redirect is followed within the same host, at most ten times.",
    ),
    yes(
        "spec.containers[].livenessProbe.httpGet.port",
        Shape::Port,
        "Required. 1 to 65535, or the name of a port of the container.",
    ),
    yes("spec.containers[].livenessProbe.httpGet.path", Shape::Text, "With the query, if any. Default `/`."),
    yes(
        "spec.containers[].livenessProbe.httpGet.scheme",
        Shape::Text,
        "`HTTP` (default) or `HTTPS`, whose certificate is not verified.",
    ),
    yes(
        "spec.containers[].livenessProbe.httpGet.host",
        Shape::Text,
        "An IP address or `localhost`. Default: the pod's address. For a virtual host, set the header `Host`.",
    ),
    no(
        "spec.containers[].livenessProbe.httpGet.protocol",
        "a probe speaks HTTP/1.1: leave it out, or use grpc or exec",
    ),
    yes("spec.containers[].livenessProbe.httpGet.httpHeaders", Shape::Objects, "At most 64."),
    yes(
        "spec.containers[].livenessProbe.httpGet.httpHeaders[].name",
        Shape::Text,
        "Required. Letters, digits and `-`. `Host`, `User-Agent` and `Accept` replace the probe's.",
    ),
    yes("spec.containers[].livenessProbe.httpGet.httpHeaders[].value", Shape::Text, "Default empty."),
    yes(
        "spec.containers[].livenessProbe.tcpSocket",
        Shape::Object,
        "A TCP connection; that it is accepted is success.",
    ),
    yes("spec.containers[].livenessProbe.tcpSocket.port", Shape::Port, "Required. As with `httpGet`."),
    yes("spec.containers[].livenessProbe.tcpSocket.host", Shape::Text, "As with `httpGet`."),
    yes(
        "spec.containers[].livenessProbe.grpc",
        Shape::Object,
        "A call of `grpc.health.v1.Health/Check` without TLS; `SERVING` is success.",
    ),
    yes("spec.containers[].livenessProbe.grpc.port", Shape::Int, "Required. 1 to 65535."),
    only(
        "spec.containers[].livenessProbe.grpc.mode",
        Shape::Text,
        &["Plaintext"],
        "a probe calls without TLS",
    ),
    yes(
        "spec.containers[].livenessProbe.grpc.service",
        Shape::Text,
        "The service that is asked about. Default: the server as a whole.",
    ),
    yes(
        "spec.containers[].livenessProbe.initialDelaySeconds",
        Shape::Int,
        "From the container's start to the first probe. Default 0. Every time of a probe is at most 86400.",
    ),
    yes(
        "spec.containers[].livenessProbe.periodSeconds",
        Shape::Int,
        "From probe to probe, at least 1. Default 10.",
    ),
    yes(
        "spec.containers[].livenessProbe.timeoutSeconds",
        Shape::Int,
        "A probe that takes longer has failed, and its program is killed. At least 1. Default 1.",
    ),
    yes(
        "spec.containers[].livenessProbe.successThreshold",
        Shape::Int,
        "Successes in a row that count as success after a failure. Default 1; a liveness or startup probe has no other.",
    ),
    yes(
        "spec.containers[].livenessProbe.failureThreshold",
        Shape::Int,
        "Failures in a row that count as failure, at least 1. Default 3.",
    ),
    yes(
        "spec.containers[].livenessProbe.terminationGracePeriodSeconds",
        Shape::Int,
        "Instead of the pod's when this probe ends the container: 1 to 300. Not for readiness probes.",
    ),
    yes(
        "spec.containers[].readinessProbe",
        Shape::Object,
        "With the fields of `livenessProbe`. The container counts as ready while it succeeds.",
    ),
    yes(
        "spec.containers[].startupProbe",
        Shape::Object,
        "With the fields of `livenessProbe`. The other probes begin when it has succeeded once; its failure ends the container.",
    ),
    yes(
        "spec.containers[].lifecycle",
        Shape::Object,
        "What runs at the container's start and stop, and how it is stopped.",
    ),
    yes(
        "spec.containers[].lifecycle.postStart",
        Shape::Object,
        "Right after the start; its failure ends the container. It has one of `exec`, `httpGet` and `sleep`.",
    ),
    yes(
        "spec.containers[].lifecycle.postStart.exec",
        Shape::Object,
        "With the fields of that of a probe, but as in Kubernetes nothing is expanded.",
    ),
    yes(
        "spec.containers[].lifecycle.postStart.httpGet",
        Shape::Object,
        "With the fields of that of a probe.",
    ),
    no_source(
        "spec.containers[].lifecycle.postStart.tcpSocket",
        "Kubernetes fails such a hook when it runs: write exec, httpGet or sleep",
    ),
    yes("spec.containers[].lifecycle.postStart.sleep", Shape::Object, "Waits."),
    yes(
        "spec.containers[].lifecycle.postStart.sleep.seconds",
        Shape::Int,
        "0 to the pod's `terminationGracePeriodSeconds`.",
    ),
    yes(
        "spec.containers[].lifecycle.preStop",
        Shape::Object,
        "With the fields of `postStart`. Before the stop signal, within the grace period; its failure is only an event.",
    ),
    yes(
        "spec.containers[].lifecycle.stopSignal",
        Shape::Text,
        "A signal like `SIGUSR1` or `SIGRTMIN+3`, instead of the image's. As in Kubernetes, `spec.os.name` is required beside it.",
    ),
    yes(
        "spec.containers[].terminationMessagePath",
        Shape::Text,
        "The file whose beginning (4096 bytes) becomes the message of the container's end: an absolute path without `..`. Default \
         `/dev/termination-log`.",
    ),
    yes(
        "spec.containers[].terminationMessagePolicy",
        Shape::Text,
        "`File` (default), or `FallbackToLogsOnError`: a container that fails without a message has the end of its log as message, at most \
         80 lines of 2048 bytes together.",
    ),
    yes(
        "spec.activeDeadlineSeconds",
        Shape::Int,
        "The longest life of the pod, 1 to 2147483647: then it is stopped and has failed.",
    ),
];
