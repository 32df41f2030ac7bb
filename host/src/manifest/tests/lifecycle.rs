//! Init containers, restarts, probes, hooks and deadlines: what they become, and every rule of Kubernetes' validation.

use super::*;
use magikvm_proto::lifecycle::*;
use magikvm_proto::signal::Signal;

/// A pod with one container that has these fields and these ports.
fn with(fields: &str) -> String {
    container(&format!("    ports: [{{name: web, containerPort: 8080}}, {{containerPort: 9090}}]\n{fields}"))
}

/// A pod with these init containers.
fn init(containers: &str) -> String {
    pod(&format!("  initContainers:\n{containers}  containers:\n  - {{name: main, image: b}}\n"))
}

fn probe(text: &str) -> ProbePlan {
    let plan = plan(&with(&format!("    readinessProbe: {text}\n")));
    plan.containers[0].probes.readiness.clone().unwrap()
}

fn hook(text: &str) -> Handler {
    let plan = plan(&with(&format!("    lifecycle: {{preStop: {text}}}\n")));
    plan.containers[0].hooks.pre_stop.clone().unwrap()
}

/// Asserts the problem of a probe, at the field below it.
fn assert_probe(text: &str, expected: &str) {
    assert_problem(
        &with(&format!("    livenessProbe: {text}\n")),
        &format!("containers[0].livenessProbe{expected}"),
    );
}

fn http(port: u16) -> Handler {
    Handler::HttpGet { scheme: Scheme::Http, host: None, port, path: "/".to_owned(), headers: Vec::new() }
}

#[test]
fn init_containers_stand_before_the_others_and_have_roles() {
    let found = plan(&init(
        "  - {name: first, image: b}\n  - {name: proxy, image: b, restartPolicy: Always}\n  - {name: retry, image: b, restartPolicy: OnFailure}\n",
    ));
    let roles: Vec<(&str, Role, Option<RestartPolicy>)> = found
        .containers
        .iter()
        .map(|container| (container.name.as_str(), container.role, container.restarts.policy))
        .collect();
    assert_eq!(
        roles,
        [
            ("first", Role::Init, None),
            ("proxy", Role::Sidecar, None),
            ("retry", Role::Init, Some(RestartPolicy::OnFailure)),
            ("main", Role::Main, None),
        ]
    );
    assert_eq!(found.containers[0].termination_message, TerminationMessage::default());
}

#[test]
fn problems_of_init_containers_have_their_place() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  initContainers:\n  - name: a\n    imagee: b\n  - {name: main, image: b, tty: 7}\n  - {name: c, image: b, env: [{name: A, value: 1}]}\n  containers:\n  - {name: main, image: b}\n";
    assert_eq!(
        problems(text),
        "pod.yaml:6:5: spec.initContainers[0].image: is missing\n\
         pod.yaml:7:5: spec.initContainers[0].imagee: is not a field of a v1 Pod (did you mean `image`?)\n\
         pod.yaml:8:33: spec.initContainers[1].tty: must be true or false, not \"7\"\n\
         pod.yaml:9:48: spec.initContainers[2].env[0].value: must be a string (write it in quotes: \"1\")\n\
         pod.yaml:11:12: spec.containers[0].name: \"main\" is also the name of spec.initContainers[1] (names are unique within a pod)"
    );
    let many: String = (0..17).map(|n| format!("  - {{name: i{n}, image: b}}\n")).collect();
    assert_problem(&init(&many), "spec.initContainers: has 17 entries, at most 16 are allowed");
    assert_problem(
        &init("  - {name: a, image: b, volumeMounts: [{name: x, mountPath: /x}]}\n"),
        "spec.initContainers[0].volumeMounts[0].name",
    );
}

#[test]
fn only_sidecars_among_the_init_containers_have_probes_and_hooks() {
    for (field, value) in [
        ("livenessProbe", "{exec: {command: [a]}}"),
        ("readinessProbe", "{exec: {command: [a]}}"),
        ("startupProbe", "{}"),
        ("lifecycle", "{}"),
    ] {
        assert_problem(
            &init(&format!("  - name: a\n    image: b\n    {field}: {value}\n")),
            &format!(
                "pod.yaml:8:5: spec.initContainers[0].{field}: may not be set for an init container without `restartPolicy: Always`"
            ),
        );
    }
    let found = plan(&init(
        "  - {name: a, image: b, restartPolicy: Always, livenessProbe: {exec: {command: [a]}}, lifecycle: {preStop: {sleep: {seconds: 1}}}}\n",
    ));
    assert!(found.containers[0].probes.liveness.is_some());
    assert_eq!(found.containers[0].hooks.pre_stop, Some(Handler::Sleep { seconds: 1 }));
}

#[test]
fn restarts_have_a_policy_and_rules() {
    let found = plan(&with(
        "    restartPolicy: Never\n    restartPolicyRules:\n    - {action: Restart, exitCodes: {operator: In, values: [42, 43]}}\n    - {action: Restart, exitCodes: {operator: NotIn, values: [0]}}\n",
    ));
    assert_eq!(
        found.containers[0].restarts,
        Restarts {
            policy: Some(RestartPolicy::Never),
            rules: vec![RestartRule::In(vec![42, 43]), RestartRule::NotIn(vec![0])],
        }
    );
    let rules = |policy: &str, rules: &str| with(&format!("    {policy}restartPolicyRules: [{rules}]\n"));
    let rule = "{action: Restart, exitCodes: {operator: In, values: [1]}}";
    for (text, expected) in [
        (
            with("    restartPolicy: Sometimes\n"),
            "restartPolicy: \"Sometimes\" is not one of Always, OnFailure, Never",
        ),
        (
            rules("", rule),
            "containers[0].restartPolicy: is missing (it decides when no rule of restartPolicyRules matches)",
        ),
        (
            rules("restartPolicy: Never\n    ", &format!("{rule}, ").repeat(21)),
            "restartPolicyRules: has 21 entries, at most 20",
        ),
        (rules("restartPolicy: Never\n    ", "{}"), "restartPolicyRules[0].action: is missing"),
        (
            rules("restartPolicy: Never\n    ", "{action: Restart}"),
            "restartPolicyRules[0].exitCodes: is missing",
        ),
        (
            rules(
                "restartPolicy: Never\n    ",
                "{action: RestartAllContainers, exitCodes: {operator: In, values: [1]}}",
            ),
            "restartPolicyRules[0].action: \"RestartAllContainers\" is not supported: restarting all containers of the pod at once",
        ),
        (
            rules("restartPolicy: Never\n    ", "{action: Restart, exitCodes: {values: [1]}}"),
            "exitCodes.operator: is missing",
        ),
        (
            rules("restartPolicy: Never\n    ", "{action: Restart, exitCodes: {operator: Is, values: [1]}}"),
            "exitCodes.operator: \"Is\" is not one of In, NotIn",
        ),
        (
            rules(
                "restartPolicy: Never\n    ",
                "{action: Restart, exitCodes: {operator: In, values: [2147483648]}}",
            ),
            "exitCodes.values[0]: 2147483648 is not an exit code",
        ),
        (
            rules(
                "restartPolicy: Never\n    ",
                &format!("{{action: Restart, exitCodes: {{operator: In, values: [{}]}}}}", "1, ".repeat(256)),
            ),
            "exitCodes.values: has 256 entries, at most 255",
        ),
        (
            init(&format!(
                "  - {{name: a, image: b, restartPolicy: Always, restartPolicyRules: [{rule}]}}\n"
            )),
            "spec.initContainers[0].restartPolicyRules: may not be set for a sidecar",
        ),
    ] {
        assert_problem(&text, expected);
    }
}

#[test]
fn probes_have_the_defaults_of_kubernetes() {
    let plain = ProbePlan {
        handler: http(8080),
        initial_delay_secs: 0,
        period_secs: 10,
        timeout_secs: 1,
        success_threshold: 1,
        failure_threshold: 3,
        grace_secs: None,
    };
    assert_eq!(probe("{httpGet: {port: 8080}}"), plain);
    // The zero values are the defaults.
    assert_eq!(
        probe(
            "{httpGet: {port: web, path: '', scheme: '', host: ''}, initialDelaySeconds: 0, periodSeconds: 0, timeoutSeconds: 0, \
             successThreshold: 0, failureThreshold: 0}"
        ),
        plain
    );
    assert_eq!(
        probe(
            "{exec: {command: [sh, -c, test]}, initialDelaySeconds: 5, periodSeconds: 6, timeoutSeconds: 7, successThreshold: 8, \
             failureThreshold: 9}"
        ),
        ProbePlan {
            handler: Handler::Exec { command: ["sh", "-c", "test"].map(str::to_owned).into() },
            initial_delay_secs: 5,
            period_secs: 6,
            timeout_secs: 7,
            success_threshold: 8,
            failure_threshold: 9,
            grace_secs: None,
        }
    );
    assert_eq!(probe("{tcpSocket: {port: web}}").handler, Handler::TcpSocket { host: None, port: 8080 });
    assert_eq!(
        probe("{tcpSocket: {port: 1, host: '[::1]'}}").handler,
        Handler::TcpSocket { host: Some("::1".to_owned()), port: 1 }
    );
    assert_eq!(probe("{grpc: {port: 9000}}").handler, Handler::Grpc { port: 9000, service: String::new() });
    assert_eq!(
        probe(
            "{httpGet: {port: web, path: 'ready?deep=1', scheme: HTTPS, host: localhost, httpHeaders: [{name: X-A, value: 'b c'}, {name: X-A, value: d}]}}"
        )
        .handler,
        Handler::HttpGet {
            scheme: Scheme::Https,
            host: Some("localhost".to_owned()),
            port: 8080,
            path: "ready?deep=1".to_owned(),
            headers: vec![("X-A".to_owned(), "b c".to_owned()), ("X-A".to_owned(), "d".to_owned())],
        }
    );
}

#[test]
fn probes_follow_the_rules_of_kubernetes() {
    for (text, expected) in [
        ("{}", ": must have one of exec, httpGet, tcpSocket and grpc"),
        (
            "{httpGet: {port: 80}, exec: {command: [a]}, grpc: {port: 1}}",
            ".httpGet: can't be beside `exec` (keep one of them)",
        ),
        ("{httpGet: {port: 80}, grpc: {port: 1}}", ".grpc: can't be beside `httpGet`"),
        ("{exec: {}}", ".exec.command: must not be empty"),
        ("{exec: {command: a}}", ".exec.command: must be a list of strings"),
        ("{exec: {command: [\"a\\0\"]}}", ".exec.command[0]: contains a NUL byte"),
        ("{httpGet: {}}", ".httpGet.port: is missing"),
        ("{httpGet: {port: 0}}", ".httpGet.port: must be 1 to 65535, not 0"),
        ("{httpGet: {port: 65536}}", ".httpGet.port: must be 1 to 65535, not 65536"),
        ("{httpGet: {port: [80]}}", ".httpGet.port: must be a port number or name"),
        ("{httpGet: {port: 1.5}}", ".httpGet.port: must be a port number or name, not \"1.5\""),
        (
            "{httpGet: {port: wen}}",
            ".httpGet.port: \"wen\" is not the name of a port of this container (did you mean web?)",
        ),
        (
            "{httpGet: {port: '8080'}}",
            ".httpGet.port: \"8080\" is not the name of a port of this container (write a number without quotes)",
        ),
        (
            "{httpGet: {port: 80, scheme: https}}",
            ".httpGet.scheme: \"https\" is not one of HTTP, HTTPS (did you mean HTTPS?)",
        ),
        (
            "{httpGet: {port: 80, host: shop.example}}",
            ".httpGet.host: \"shop.example\" is not an IP address, and a probe resolves no names",
        ),
        ("{httpGet: {port: 80, path: \"/a\\r\\nb\"}}", ".httpGet.path: contains a control character"),
        ("{httpGet: {port: 80, httpHeaders: [{value: x}]}}", ".httpGet.httpHeaders[0].name: is missing"),
        (
            "{httpGet: {port: 80, httpHeaders: [{name: 'X A'}]}}",
            ".httpGet.httpHeaders[0].name: \"X A\" is not a header's name",
        ),
        (
            "{httpGet: {port: 80, httpHeaders: [{name: ''}]}}",
            ".httpGet.httpHeaders[0].name: \"\" is not a header's name",
        ),
        (
            "{httpGet: {port: 80, httpHeaders: [{name: A, value: \"b\\nc\"}]}}",
            ".httpGet.httpHeaders[0].value: contains a control character",
        ),
        ("{tcpSocket: {}}", ".tcpSocket.port: is missing"),
        ("{tcpSocket: {port: dns}}", ".tcpSocket.port: \"dns\" is not the name of a port"),
        ("{grpc: {}}", ".grpc.port: is missing"),
        ("{grpc: {port: web}}", ".grpc.port: must be a whole number, not \"web\""),
        ("{grpc: {port: 70000}}", ".grpc.port: must be 1 to 65535, not 70000"),
        ("{sleep: {seconds: 1}}", ".sleep: is not a field of a v1 Pod"),
        (
            "{exec: {command: [a]}, initialDelaySeconds: -1}",
            ".initialDelaySeconds: must be 0 to 86400, not -1",
        ),
        ("{exec: {command: [a]}, periodSeconds: -1}", ".periodSeconds: must be 0 to 86400, not -1"),
        ("{exec: {command: [a]}, timeoutSeconds: 86401}", ".timeoutSeconds: must be 0 to 86400, not 86401"),
        (
            "{exec: {command: [a]}, failureThreshold: -1}",
            ".failureThreshold: must be 0 to 2147483647, not -1",
        ),
        (
            "{exec: {command: [a]}, successThreshold: -1}",
            ".successThreshold: must be 0 to 2147483647, not -1",
        ),
        ("{exec: {command: [a]}, successThreshold: 2}", ".successThreshold: must be 1, not 2"),
        (
            "{exec: {command: [a]}, terminationGracePeriodSeconds: 0}",
            ".terminationGracePeriodSeconds: must be 1 to 300, not 0",
        ),
        (
            "{exec: {command: [a]}, terminationGracePeriodSeconds: 301}",
            ".terminationGracePeriodSeconds: must be 1 to 300, not 301 (an administrator can raise `grace-secs`",
        ),
        ("{exec: {command: [a]}, initialDelay: 3}", ".initialDelay: is not a field of a v1 Pod"),
    ] {
        assert_probe(text, expected);
    }
    assert_probe(
        &format!("{{exec: {{command: [{}]}}}}", "a, ".repeat(257)),
        ".exec.command: has 257 entries, at most 256 are allowed",
    );
    assert_probe(
        &format!("{{exec: {{command: [{}]}}}}", "a".repeat(4097)),
        ".exec.command[0]: is 4097 bytes long, at most 4096 are allowed (put a longer script into a file",
    );
    assert_probe(
        &format!("{{httpGet: {{port: 80, httpHeaders: [{}]}}}}", "{name: A}, ".repeat(65)),
        ".httpGet.httpHeaders: has 65 entries, at most 64",
    );
    assert_probe(
        &format!("{{grpc: {{port: 80, service: {}}}}}", "a".repeat(4097)),
        ".grpc.service: is 4097 bytes long",
    );
    assert_problem(
        &with("    startupProbe: {exec: {command: [a]}, successThreshold: 2}\n"),
        "startupProbe.successThreshold: must be 1, not 2 (only a readiness probe has another one)",
    );
    assert_problem(
        &with("    readinessProbe: {exec: {command: [a]}, terminationGracePeriodSeconds: 5}\n"),
        "readinessProbe.terminationGracePeriodSeconds: must not be set for a readiness probe",
    );
    let place = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: a\n    image: b\n    readinessProbe:\n      httpGet:\n        path: /ready\n        port: http\n";
    assert_problem(
        place,
        "pod.yaml:11:15: spec.containers[0].readinessProbe.httpGet.port: \"http\" is not the name of a port of this container",
    );
}

#[test]
fn the_command_of_a_probe_is_expanded_as_the_kubelet_does() {
    let text = with(
        "    env:\n    - {name: A, value: one}\n    - {name: B, value: \"$(A) two\"}\n    - {name: C, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n    \
         livenessProbe: {exec: {command: [\"$(A)\", \"<$(B)>\", \"<$(C)>\", \"$(D)\", \"$$(A)\"]}}\n    \
         lifecycle: {postStart: {exec: {command: [\"$(A)\", \"$$(A)\"]}}}\n",
    );
    let container = &plan(&text).containers[0];
    let words = |list: &[&str]| Handler::Exec { command: list.iter().map(|&word| word.to_owned()).collect() };
    // Values of `env` as they are written; those of a `valueFrom` are empty.
    assert_eq!(
        container.probes.liveness.as_ref().unwrap().handler,
        words(&["one", "<$(A) two>", "<>", "$(D)", "$(A)"])
    );
    assert_eq!(container.hooks.post_start, Some(words(&["$(A)", "$$(A)"])));
}

#[test]
fn hooks_follow_the_rules_of_kubernetes() {
    assert_eq!(hook("{httpGet: {port: web}}"), http(8080));
    assert_eq!(hook("{sleep: {seconds: 0}}"), Handler::Sleep { seconds: 0 });
    assert_eq!(hook("{sleep: {seconds: 30}}"), Handler::Sleep { seconds: 30 });
    for (text, expected) in [
        ("{}", ": must have one of exec, httpGet and sleep"),
        ("{sleep: {seconds: 1}, exec: {command: [a]}}", ".sleep: can't be beside `exec`"),
        ("{sleep: {seconds: -1}}", ".sleep.seconds: must be 0 to 30, not -1"),
        (
            "{sleep: {seconds: 31}}",
            ".sleep.seconds: must be 0 to 30, not 31 (it is part of terminationGracePeriodSeconds)",
        ),
        (
            "{tcpSocket: {port: 80}}",
            ".tcpSocket: is not supported: Kubernetes fails such a hook when it runs",
        ),
        ("{exec: {command: []}}", ".exec.command: must not be empty"),
        ("{httpGet: {port: gone}}", ".httpGet.port: \"gone\" is not the name of a port"),
        ("{grpc: {port: 1}}", ".grpc: is not a field of a v1 Pod"),
    ] {
        for name in ["postStart", "preStop"] {
            assert_problem(
                &with(&format!("    lifecycle: {{{name}: {text}}}\n")),
                &format!("containers[0].lifecycle.{name}{expected}"),
            );
        }
    }
    // A hook that is refused is not missing too.
    let found = problems(&with("    lifecycle: {preStop: {tcpSocket: {port: 80}}}\n"));
    assert_eq!(found.lines().count(), 1, "{found}");
}

#[test]
fn a_stop_signal_is_named_and_needs_the_system() {
    let stop = |text: &str| {
        format!("{}  os: {{name: linux}}\n", with(&format!("    lifecycle: {{stopSignal: {text}}}\n")))
    };
    let found = |text: &str| plan(&stop(text)).containers[0].stop_signal;
    assert_eq!(found("SIGUSR1"), Some(Signal::try_from(10).unwrap()));
    assert_eq!(found("SIGRTMIN+3"), Some(Signal::try_from(37).unwrap()));
    assert_problem(
        &stop("TERM"),
        "lifecycle.stopSignal: \"TERM\" is not the name of a signal (write SIGTERM)",
    );
    assert_problem(&stop("SIGTREM"), "\"SIGTREM\" is not the name of a signal (write a name like SIGTERM");
    assert_problem(&stop("'15'"), "\"15\" is not the name of a signal (write a name like SIGTERM");
    assert_problem(
        &with("    lifecycle: {stopSignal: SIGTERM}\n"),
        "containers[0].lifecycle.stopSignal: may not be set without `spec.os.name` (write `os: {name: linux}` in spec)",
    );
    assert_problem(
        &with("    lifecycle: {stopSignal: SIGTERM}\n").replace("spec:\n", "spec:\n  os: {name: windows}\n"),
        "spec.os.name: \"windows\" is not supported: only Linux containers run here",
    );
}

#[test]
fn messages_of_the_end_have_a_path_and_a_policy() {
    let found = plan(&with(
        "    terminationMessagePath: /tmp/end\n    terminationMessagePolicy: FallbackToLogsOnError\n",
    ));
    assert_eq!(
        found.containers[0].termination_message,
        TerminationMessage { path: "/tmp/end".to_owned(), fallback: MessageFallback::Logs }
    );
    for (text, expected) in [
        ("terminationMessagePath: tmp", "terminationMessagePath: must be an absolute path"),
        ("terminationMessagePath: /a/../b", "terminationMessagePath: must not contain `..`"),
        (
            "terminationMessagePath: /a\n    terminationMessagePolicy: Log",
            "\"Log\" is not one of File, FallbackToLogsOnError",
        ),
    ] {
        assert_problem(&with(&format!("    {text}\n")), expected);
    }
    assert_problem(
        &with(&format!("    terminationMessagePath: /{}\n", "a".repeat(4096))),
        "terminationMessagePath: is 4097 bytes long, at most 4096",
    );
}

#[test]
fn a_deadline_is_a_positive_number_of_seconds() {
    let deadline = |text: &str| format!("{SMALL}  activeDeadlineSeconds: {text}\n");
    assert_eq!(plan(&deadline("1")).deadline_seconds, Some(1));
    assert_eq!(plan(&deadline("2147483647")).deadline_seconds, Some(2_147_483_647));
    for wrong in ["0", "-1", "2147483648"] {
        assert_problem(
            &deadline(wrong),
            &format!("pod.yaml:9:26: spec.activeDeadlineSeconds: must be 1 to 2147483647, not {wrong}"),
        );
    }
}

#[test]
fn the_vm_has_room_for_the_largest_stage() {
    let limits = |mib: u64| format!("resources: {{limits: {{memory: {mib}Mi, cpu: 1}}}}");
    let containers = |first: u64| {
        pod(&format!(
            "  initContainers:\n  - {{name: a, image: b, {}}}\n  - {{name: s, image: b, restartPolicy: Always, {}}}\n  - {{name: c, image: b, {}}}\n  \
             containers:\n  - {{name: d, image: b, {}}}\n  - {{name: e, image: b, {}}}\n",
            limits(first),
            limits(32),
            limits(100),
            limits(20),
            limits(40)
        ))
    };
    // The third runs beside the sidecar, and needs more memory than the sidecar with both containers, but fewer processors.
    let found = plan(&containers(16)).vm;
    assert_eq!((found.memory.get(), found.vcpus.get()), (32 + 100 + 96 + 2 * 8, 3));
    let found = plan(&containers(512)).vm;
    assert_eq!((found.memory.get(), found.vcpus.get()), (512 + 96 + 8, 3));
    assert_problem(&containers(4097), "need 4097 MiB of memory, at most 4096 MiB are possible");
}

#[test]
fn ports_of_the_host_lead_to_what_runs_with_the_pod() {
    let text = init(
        "  - {name: a, image: b, ports: [{containerPort: 80, hostPort: 8080}]}\n  - {name: s, image: b, restartPolicy: Always, ports: [{containerPort: 81, hostPort: 8080}]}\n",
    );
    let parsed = parse_all(text.as_bytes(), "x").unwrap();
    let published: Vec<(u16, &str)> =
        parsed.plan.published.iter().map(|port| (port.container_port, port.origin.as_str())).collect();
    assert_eq!(published, [(81, "spec.initContainers[1].ports[0].hostPort")]);
    let [ignored] = &parsed.ignored[..] else { panic!("{:?}", parsed.ignored) };
    assert_eq!(ignored.paths, ["spec.initContainers[].ports[].hostPort"]);
}
