//! Tests of the whole path from bytes to plan.

use super::fields::{self, Empty, Shape, Status};
use super::plan::*;
use super::*;
use full::{FULL, OBJECTS};
use magikvm_proto::plan::{ProcessNamespace, RestartPolicy, Stdin, Stdio};
use magikvm_proto::security::{ImageGroups, Privilege};
use magikvm_proto::volume::Access;
use proptest::prelude::*;

const SMALL: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: main\n    image: busybox\n";

fn full(pod: &str) -> String {
    format!("{pod}{OBJECTS}")
}

mod corpus;
mod documents;
mod full;
mod isolation;
mod lifecycle;
mod security;
mod table;
mod volumes;

fn pod(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{spec}")
}

fn container(fields: &str) -> String {
    pod(&format!("  containers:\n  - name: main\n    image: busybox\n{fields}"))
}

fn plan(text: &str) -> PodPlan {
    parse(text.as_bytes(), "pod.yaml").unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

fn problems(text: &str) -> String {
    match parse(text.as_bytes(), "pod.yaml") {
        Err(problems) => problems.to_string(),
        Ok(plan) => panic!("accepted: {plan:?}\n{text}"),
    }
}

fn assert_problem(text: &str, expected: &str) {
    let found = problems(text);
    assert!(found.contains(expected), "expected: {expected}\nfound: {found}\n{text}");
}

#[test]
fn a_small_pod_gets_every_default() {
    let plan = plan(SMALL);
    assert_eq!(plan.id.to_string(), "default/web");
    assert_eq!(plan.hostname, "web");
    assert_eq!(plan.runtime_class, RuntimeClass::PodMicrovmContainers);
    assert_eq!(plan.restart_policy, RestartPolicy::Always);
    assert_eq!(plan.process_namespace, ProcessNamespace::PerContainer);
    assert_eq!(plan.grace_seconds, 30);
    assert_eq!((plan.vm.memory.get(), plan.vm.vcpus.get()), (616, 2));
    let [container] = &plan.containers[..] else { panic!() };
    assert_eq!((container.name.as_str(), container.image_text.as_str()), ("main", "busybox"));
    assert_eq!(container.image.to_string(), "docker.io/library/busybox:latest");
    assert_eq!(container.pull_policy, PullPolicy::Always);
    assert_eq!((container.stdio, container.stdin), (Stdio::Pipes, Stdin::Closed));
    assert_eq!(container.security, Security::default());
    assert_eq!(container.resources, Resources::default());
    assert_eq!(plan.manifest["spec"]["containers"][0]["image"], "busybox");
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Web\nspec:\n  contaniers: []\n  initContainers: [{}]\n  containers:\n  - name: a\n    imagee: x\n    ports:\n    - containerPort: 99999\n    env:\n    - name: A\n      value: 8080\n  - name: a\n    image: b\n    command: x\n";
    assert_eq!(
        problems(text),
        "pod.yaml:4:9: metadata.name: \"Web\" contains 'W'; only lowercase letters, digits, '-' and '.' are allowed (RFC 1123)\n\
         pod.yaml:6:3: spec.contaniers: is not a field of a v1 Pod (did you mean `containers`?)\n\
         pod.yaml:7:20: spec.initContainers[0].name: is missing\n\
         pod.yaml:7:20: spec.initContainers[0].image: is missing\n\
         pod.yaml:9:5: spec.containers[0].image: is missing\n\
         pod.yaml:10:5: spec.containers[0].imagee: is not a field of a v1 Pod (did you mean `image`?)\n\
         pod.yaml:12:22: spec.containers[0].ports[0].containerPort: must be 1 to 65535, not 99999\n\
         pod.yaml:15:14: spec.containers[0].env[0].value: must be a string (write it in quotes: \"8080\")\n\
         pod.yaml:16:11: spec.containers[1].name: \"a\" is also the name of spec.containers[0] (names are unique within a pod)\n\
         pod.yaml:18:14: spec.containers[1].command: must be a list of strings, not \"x\""
    );
}

#[test]
fn a_manifest_that_is_no_pod_says_what_it_is() {
    assert_problem("", "holds no Pod");
    assert_problem("[]", "must be a mapping");
    assert_problem("hello", "must be a mapping");
    assert_problem("a: b", "kind: is missing (write `kind: Pod`)");
    assert_problem(
        "apiVersion: apps/v1\nkind: Deployment\nspec: {x: y}",
        "pod.yaml:2:7: kind: a Deployment does not run here (make a Pod of its `spec.template`: its `metadata` and `spec`, below `kind: Pod`)",
    );
    assert!(!problems("apiVersion: apps/v1\nkind: Deployment").contains("apiVersion"));
    assert_problem(
        &format!("{SMALL}---\nkind: Job"),
        "pod.yaml:10:7: kind: a Job does not run here (make a Pod of its",
    );
    assert_problem("apiVersion: v2\nkind: Pod", "apiVersion: must be v1, not \"v2\"");
    assert_problem("apiVersion: v1\nkind: [Pod]", "kind: must be Pod");
    assert_problem(&format!("{SMALL}---\n{SMALL}"), "pod.yaml:10:1: a second Pod begins here");
    drop(plan(&format!("---\n{SMALL}---\n")));
    assert!(parse(b"a: \xff", "x").unwrap_err().to_string().contains("not UTF-8"));
    assert!(parse(&vec![b' '; (1 << 20) + 1], "x").unwrap_err().to_string().contains("at most 1048576"));
}

#[test]
fn json_is_as_good_as_yaml() {
    let from_yaml = plan(&container("    env: [{name: A, value: b}]\n    resources: {limits: {cpu: 2}}\n"));
    let json = serde_json::to_string_pretty(&from_yaml.manifest).unwrap().replace("  ", "\t");
    assert_eq!(plan(&json), from_yaml);
    assert_problem(
        "{\"apiVersion\": \"v1\",\n\"kind\": \"Pod\",\n \"spec\": {\"x\": 1}}",
        "pod.yaml:3:11: spec.x: is not a field",
    );
    assert_problem("{\"kind\": \"Pod\", \"kind\": \"Pod\"}", "written twice");
}

#[test]
fn what_yaml_readers_disagree_about_must_be_quoted() {
    for text in ["8080", "true", "yes", "on", "1.5", "0755", "1_000", "0x10", "y"] {
        let manifest = container(&format!("    env: [{{name: A, value: {text}}}]\n"));
        assert_problem(
            &manifest,
            &format!("env[0].value: must be a string (write it in quotes: \"{text}\")"),
        );
        let quoted = container(&format!("    env: [{{name: A, value: '{text}'}}]\n"));
        assert_eq!(plan(&quoted).containers[0].env[0].value, text);
    }
    assert_problem(&container("    args: [null]\n"), "args[0]: must be a string");
    assert_problem(&container("    tty: yes\n"), "tty: must be true or false, not \"yes\" (write true)");
    assert_problem(
        &container("    tty: 'true'\n"),
        "must be true or false, not \"true\" (write it without quotes)",
    );
    assert_problem(&container("    tty: [true]\n"), "tty: must be true or false");
    assert_problem(&container("    ports: [{containerPort: '80'}]\n"), "write it without quotes");
    assert_problem(&container("    ports: [{containerPort: 0120}]\n"), "must be a whole number");
    assert_problem(&container("    ports: [{containerPort: 1e3}]\n"), "must be a whole number");
    assert_problem(&container("    securityContext: {runAsUser: 0644}\n"), "must be a whole number");
    assert_problem(&container("    resources: {limits: {cpu: 010}}\n"), "octal");
    assert_problem(&container("    env: [{name: A, value: [x]}]\n"), "must be a string");
    // Null is absent.
    assert_eq!(
        plan(&container("    env: [{name: A, value: ~}]\n    args:\n    tty: null\n")).containers[0].env[0]
            .value,
        ""
    );
}

#[test]
fn resources_follow_the_rules_of_quantities() {
    let resources =
        |text: &str| plan(&container(&format!("    resources: {text}\n"))).containers[0].resources;
    let found = resources("{limits: {cpu: 0.5, memory: 1e9}}");
    assert_eq!((found.cpu_limit_millis, found.cpu_request_millis), (Some(500), Some(500)));
    assert_eq!(
        (found.memory_limit_bytes, found.memory_request_bytes),
        (Some(1_000_000_000), Some(1_000_000_000))
    );
    let found = resources("{limits: {cpu: '0'}, requests: {memory: 64Mi}}");
    assert_eq!((found.cpu_limit_millis, found.cpu_request_millis), (None, None));
    assert_eq!((found.memory_limit_bytes, found.memory_request_bytes), (None, Some(64 << 20)));
    assert_problem(
        &container("    resources: {limits: {memory: 512}}\n"),
        "less than any program needs (1Mi) (did you mean 512Mi?)",
    );
    assert_problem(&container("    resources: {limits: {memory: 400m}}\n"), "did you mean 400Mi?");
    assert_problem(
        &container("    resources: {limits: {memory: 1gb}}\n"),
        "\"1gb\" is not a quantity (for example 500m, 2, 128Mi or 1.5Gi)",
    );
    assert_problem(&container("    resources: {limits: {cpu: -1}}\n"), "must not be negative");
    assert_problem(
        &container("    resources: {limits: {cpu: 1}, requests: {cpu: 2}}\n"),
        "requests.cpu: \"2\" is more than the limit \"1\"",
    );
    assert_problem(
        &container("    resources: {limits: {nvidia.com/gpu: 1}}\n"),
        "limits.nvidia.com/gpu: is not supported: an extended resource is a device of a node",
    );
    assert_problem(
        &container("    resources: {limits: {hugepages-64Ki: 2Mi}}\n"),
        "limits.hugepages-64Ki: is not supported: huge pages are given to single containers, and only those of 2Mi and of 1Gi",
    );
    drop(plan(&container("    resources: {limits: {nvidia.com/gpu: 0, hugepages-1Gi: '0'}}\n")));
}

#[test]
fn a_limit_of_the_disk_is_for_a_container_or_for_the_pod() {
    let limited = |text: &str| container(&format!("    resources: {text}\n"));
    let found = |text: &str| plan(&limited(text)).containers[0].resources.disk_limit_bytes;
    assert_eq!(
        found("{limits: {ephemeral-storage: 2Gi}, requests: {ephemeral-storage: 1Gi}}"),
        Some(2 << 30)
    );
    assert_eq!(found("{limits: {ephemeral-storage: 0}}"), None);
    assert_eq!(found("{requests: {ephemeral-storage: 1Gi}}"), None);
    for (text, expected) in [
        (
            "{limits: {ephemeral-storage: 512}}",
            "limits.ephemeral-storage: \"512\" is 512 bytes, 1Mi to 1Ti are possible",
        ),
        ("{limits: {ephemeral-storage: 2Ti}}", "1Mi to 1Ti are possible"),
        ("{limits: {ephemeral-storage: x}}", "is not a quantity"),
    ] {
        assert_problem(&limited(text), expected);
    }
    let pod = |all: &str, own: &str| {
        let own = format!("{{limits: {{ephemeral-storage: {own}}}}}");
        format!("{}  resources: {{limits: {{ephemeral-storage: {all}}}}}\n", limited(&own))
    };
    assert_eq!(plan(&pod("30Mi", "10Mi")).disk_limit_bytes, Some(30 << 20));
    assert_problem(&pod("9Mi", "10Mi"), "is 9437184 bytes, and the containers need 10485760");
    assert_problem(&pod("100", "0"), "spec.resources.limits.ephemeral-storage: \"100\" is 100 bytes");
    let annotated = |text: &str| SMALL.replace("  name: web", &format!("  name: web\n  annotations: {text}"));
    assert_eq!(plan(SMALL).root, RootPlace::Disk);
    assert_eq!(plan(&annotated("{magikvm.dev/root: memory}")).root, RootPlace::Memory);
    assert_problem(
        &annotated("{magikvm.dev/root: tape}"),
        "magikvm.dev/root: \"tape\" is not one of disk, memory",
    );
}

#[test]
fn the_vm_is_sized_by_the_limits_or_by_annotations() {
    assert_problem(
        &container("    resources: {limits: {memory: 4097Mi}}\n"),
        "spec.containers: need 4097 MiB of memory, at most 4096 MiB are possible (lower resources.requests.memory (a limit",
    );
    // What the VM needs itself does not count, nor does what no node needs to have.
    let vm = |resources: &str| plan(&container(&format!("    resources: {resources}\n"))).vm;
    assert_eq!(vm("{limits: {memory: 4Gi}}").memory.get(), 4096 + 96 + 8);
    assert_eq!(
        vm("{limits: {memory: 16Gi, cpu: 64}, requests: {memory: 1Gi, cpu: 1}}").memory.get(),
        4096 + 96 + 8
    );
    assert_eq!(vm("{limits: {memory: 16Gi, cpu: 64}, requests: {memory: 1Gi, cpu: 1}}").vcpus.get(), 8);
    assert_problem(&container("    resources: {requests: {memory: 10Gi}}\n"), "need 10240 MiB of memory");
    // A container without a limit may use more than it asks for.
    assert_eq!(vm("{}").memory.get(), 512 + 96 + 8);
    assert_eq!(vm("{requests: {memory: 600Mi}}").memory.get(), 600 + 96 + 8);
    assert_eq!(vm("{limits: {memory: 64Mi}}").memory.get(), 64 + 96 + 8);
    assert_problem(
        &container("    resources: {limits: {cpu: 8500m}}\n"),
        "need 9 processors (8500m together), at most 8",
    );
    let annotated = |text: &str| SMALL.replace("  name: web", &format!("  name: web\n  annotations: {text}"));
    let found = plan(&annotated("{magikvm.dev/memory-mib: '512', magikvm.dev/vcpus: '1'}"));
    assert_eq!((found.vm.memory.get(), found.vm.vcpus.get()), (512, 1));
    for (text, expected) in [
        ("{magikvm.dev/memory-mib: '1'}", "a VM has 96 to 4096 MiB of memory, not 1"),
        ("{magikvm.dev/memory-mib: '+512'}", "must be a whole number in quotes"),
        ("{magikvm.dev/memory-mib: 512}", "must be a string (write it in quotes: \"512\")"),
        ("{magikvm.dev/vcpus: '9'}", "a VM has 1 to 8 processors, not 9"),
        ("{magikvm.dev/vcpus: '99999999999'}", "must be a whole number in quotes"),
        (
            "{magikvm.dev/memory: '1'}",
            "is not an annotation of magikvm (known are magikvm.dev/memory-mib, magikvm.dev/vcpus, ",
        ),
    ] {
        assert_problem(&annotated(text), expected);
    }
}

#[test]
fn limits_are_enforced() {
    let labels: String = (0..65).map(|n| format!("l{n}: a, ")).collect();
    let meta = |text: &str| SMALL.replace("  name: web", &format!("  name: web\n  {text}"));
    assert_problem(&meta(&format!("labels: {{{labels}}}")), "metadata.labels: has 65 entries, at most 64");
    assert_problem(&meta(&format!("annotations: {{{labels}}}")), "metadata.annotations: has 65 entries");
    assert_problem(
        &meta(&format!("annotations: {{a: '{}'}}", "x".repeat(256 << 10))),
        "at most 262144 are allowed",
    );
    assert_problem(&meta("labels: {a: '-'}"), "metadata.labels.a: must start and end");
    assert_problem(&meta("labels: {'a b': c}"), "metadata.labels.\"a b\": is not a label key");
    let env: String = (0..257).map(|n| format!("{{name: V{n}}}, ")).collect();
    assert_problem(&container(&format!("    env: [{env}]\n")), "env: has 257 entries, at most 256");
    let containers: String = (0..17).map(|n| format!("  - {{name: c{n}, image: x}}\n")).collect();
    assert_problem(
        &pod(&format!("  containers:\n{containers}")),
        "spec.containers: has 17 entries, 1 to 16 are allowed",
    );
    assert_problem(&pod("  containers: []"), "has 0 entries");
    assert_problem(&pod("  restartPolicy: Never"), "spec.containers: is missing");
    assert_problem(&pod("  terminationGracePeriodSeconds: 301"), "must be 0 to 300, not 301");
    assert_problem(&pod("  terminationGracePeriodSeconds: -1"), "must be 0 to 300, not -1");
    assert_problem(&SMALL.replace("busybox", &"x".repeat(513)), "is longer than 512 bytes");
    assert_problem(&SMALL.replace("web", &"x".repeat(254)), "at most 253 are allowed");
}

#[test]
fn names_and_words_are_checked() {
    assert_problem(
        &pod("  runtimeClassName: kata"),
        "\"kata\" is not one of pod-microvm-containers, pod-containers, pod-wasm",
    );
    assert_problem(
        &pod("  runtimeClassName: pod-micro-vm-containers"),
        "(did you mean pod-microvm-containers?)",
    );
    let text = problems(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: W}\nspec:\n  runtimeClassName: gvisor\n  contaniers: []\n",
    );
    assert!(
        text.contains("pod.yaml:5:21: spec.runtimeClassName: \"gvisor\" is not one of")
            && text.contains("pod.yaml:3:18: metadata.name")
            && text.contains("pod.yaml:6:3: spec.contaniers")
            && text.contains("spec.containers: is missing"),
        "{text}"
    );
    assert_problem(
        &pod("  restartPolicy: always"),
        "\"always\" is not one of Always, OnFailure, Never (did you mean Always?)",
    );
    assert_problem(&pod("  hostname: a.b"), "spec.hostname: \"a.b\" contains '.'");
    assert_problem(&pod("  hostnameOverride: a_b"), "spec.hostnameOverride: \"a_b\" contains '_'");
    let long = "a".repeat(65);
    assert_problem(
        &pod(&format!("  hostnameOverride: {long}")),
        "spec.hostnameOverride: has 65 characters, at most 64",
    );
    assert_problem(&pod("  runtimeClassName: kata"), "(leave it out: each pod is then in a VM of its own)");
    assert_problem(
        &pod("  nodeSelector: {kubernetes.io/os: windows}"),
        "spec.nodeSelector.kubernetes.io/os: \"windows\" is not supported: only Linux containers run here",
    );
    assert_problem(
        &pod("  resources: {limits: {pids: 100}}"),
        "spec.resources.limits.pids: is not supported",
    );
    let profile = |value: &str| {
        SMALL.replace(
            "metadata:",
            &format!(
                "metadata:\n  annotations: {{container.apparmor.security.beta.kubernetes.io/main: {value}}}"
            ),
        )
    };
    assert_problem(
        &profile("localhost/strict"),
        "\"localhost/strict\" is not supported: no AppArmor profile is enforced in a VM",
    );
    assert_problem(&profile("strict"), "is not one of runtime/default, unconfined, localhost/NAME");
    plan(&profile("runtime/default"));
    let again = SMALL.to_owned() + SMALL;
    assert_problem(
        &again,
        "(keep one of them, or write `---` on a line of its own before the next document)",
    );
    let both = "  hostnameOverride: a\n  setHostnameAsFQDN: true";
    assert_problem(&pod(both), "spec.hostnameOverride: cannot be used with setHostnameAsFQDN: true");
    let long = format!("  subdomain: {}\n  setHostnameAsFQDN: true", "a".repeat(60));
    assert_problem(&pod(&long), "spec.setHostnameAsFQDN: makes the host name");
    assert_problem(
        &container("    imagePullPolicy: Sometimes\n"),
        "is not one of Always, IfNotPresent, Never",
    );
    assert_problem(&container("    workingDir: srv\n"), "must be an absolute path");
    assert_problem(&container("    command: ['']\n"), "command[0]: must not be empty");
    assert_problem(&container("    args: [\"a\\0\"]\n"), "args[0]: contains a NUL byte");
    assert_problem(&container("    env: [{name: A=B}]\n"), "env[0].name: contains '='");
    assert_problem(&container("    env: [{value: x}]\n"), "env[0].name: is missing");
    assert_problem(&container("    ports: [{}]\n"), "ports[0].containerPort: is missing");
    assert_problem(
        &container("    ports: [{containerPort: 1, protocol: tcp}]\n"),
        "\"tcp\" is not one of TCP, UDP, SCTP (did you mean TCP?)",
    );
    assert_problem(
        &container("    ports: [{containerPort: 1, name: a}, {containerPort: 2, name: a}]\n"),
        "names another port",
    );
    assert_problem(&container("    securityContext: {runAsUser: -1}\n"), "must be 0 to 2147483647, not -1");
    assert_problem(
        &container("    securityContext: {runAsUser: 0, runAsNonRoot: true}\n"),
        "which runAsNonRoot forbids",
    );
    assert_problem(
        &container("    securityContext: {capabilities: {add: [NET_ADMIM]}}\n"),
        "\"NET_ADMIM\" is not a capability",
    );
    assert_problem(
        &container("    securityContext: {privileged: true}\n  runtimeClassName: pod-containers\n"),
        "securityContext.privileged: is possible only in a VM, and pods of the class pod-containers have none",
    );
    assert_problem(
        &container("    securityContext: {runAsUser: 65536}\n  runtimeClassName: pod-containers\n"),
        "securityContext.runAsUser: must be 0 to 65535 for a pod in namespaces, not 65536",
    );
    assert_problem(
        &container(
            "    securityContext: {capabilities: {add: [SYS_MODULE]}}\n  hostUsers: true\n  runtimeClassName: pod-containers\n",
        ),
        "securityContext.capabilities.add: CAP_SYS_MODULE is power over the host",
    );
    assert_problem(
        &container(
            "    securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [SYS_ADMIN]}}\n",
        ),
        "can't be false for a container that gets CAP_SYS_ADMIN",
    );
}

#[test]
fn a_long_pod_name_is_cut_to_a_host_name() {
    let name = format!("{}.{}", "a".repeat(62), "b".repeat(30));
    assert_eq!(plan(&SMALL.replace("web", &name)).hostname, "a".repeat(62));
}

#[test]
fn images_decide_when_they_are_pulled() {
    assert_eq!(plan(&SMALL.replace("busybox", "a:1")).containers[0].pull_policy, PullPolicy::IfNotPresent);
    assert_eq!(plan(&SMALL.replace("busybox", "a:latest")).containers[0].pull_policy, PullPolicy::Always);
}

#[test]
fn an_image_reference_that_is_none_is_refused_with_its_place() {
    let refused = |image: &str, expected: &str| {
        let expected = format!("pod.yaml:8:12: spec.containers[0].image: {expected}");
        assert_problem(&SMALL.replace("busybox", image), &expected);
    };
    refused("''", "an image reference is empty");
    refused("Busybox", "the image reference \"Busybox\" has a wrong name \"Busybox\": ");
    refused("a:-1", "the image reference \"a:-1\" has a wrong tag \"-1\": ");
    refused("a..b/c", "\"a..b\" in the image reference \"a..b/c\" is not a registry's host name");
    refused("a@sha256:0", "the image reference \"a@sha256:0\" has a wrong digest: ");
    refused("a b", "the image reference \"a b\" has a wrong name \"a b\": ");
    // All its problems are reported at once, and a bad reference causes no other problem.
    let text = problems(&SMALL.replace("busybox", "A\n    imagePullPolicy: Sometimes"));
    assert_eq!(text.matches("pod.yaml:").count(), 2, "{text}");
}

#[test]
fn what_a_manifest_says_cannot_talk_to_the_terminal() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: \"\\e[2J\", labels: {\"\\e]0;x\": \"\\a\"}}\n\"\\e[1m\": x\nspec: {}";
    let found = problems(text);
    assert!(!found.chars().any(|c| c.is_control() && c != '\n'), "{found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(parse(&bytes, "x"));
    }

    #[test]
    fn arbitrary_yaml_never_panics(text in "[-a:{}\\[\\]&*!|>'\"%#?,~ \n\t<0.=@`]{0,60}") {
        drop(parse(text.as_bytes(), "x"));
    }

    #[test]
    fn a_manifest_with_a_random_change_never_panics(
        at in 0..FULL.len(),
        length in 0usize..20,
        new in "[-a0:{}\\[\\]&*!|>'\"%#?,~ \n\t<$]{0,6}",
    ) {
        let end = (at + length).min(FULL.len());
        let text = format!("{}{new}{}", &FULL[..at], &FULL[end..]);
        if let Ok(plan) = parse(text.as_bytes(), "x") {
            let json = serde_json::to_string(&plan).unwrap();
            prop_assert_eq!(serde_json::from_str::<PodPlan>(&json).unwrap(), plan);
        }
    }

    #[test]
    fn a_key_that_is_no_field_is_never_accepted(key in "[a-zA-Z]{1,12}", which in 0usize..4) {
        let parents = ["", "spec", "spec.containers[]", "spec.containers[].securityContext"];
        let path = if which == 0 { key.clone() } else { format!("{}.{key}", parents[which]) };
        prop_assume!(fields::find(&path).is_none());
        let text = [
            format!("{SMALL}{key}: x\n"),
            format!("{SMALL}  {key}: x\n"),
            format!("{SMALL}    {key}: x\n"),
            format!("{SMALL}    securityContext: {{{key}: x}}\n"),
        ];
        prop_assert!(parse(text[which].as_bytes(), "x").is_err(), "{}", text[which]);
    }
}
