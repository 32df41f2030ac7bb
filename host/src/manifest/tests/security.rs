//! Security contexts, the resources of a whole pod, and how much a plan may hold.

use super::*;
use magikvm_proto::security::HugePages;

#[test]
fn profiles_need_what_their_type_says() {
    let of = |profile: &str| container(&format!("    securityContext: {{seccompProfile: {profile}}}\n"));
    let at = "spec.containers[0].securityContext.seccompProfile";
    for (profile, expected) in [
        ("{type: Localhost}", "localhostProfile: is missing"),
        ("{localhostProfile: a.json}", "type: is missing"),
        ("{type: Unconfined, localhostProfile: a.json}", "localhostProfile: is only for the type Localhost"),
        ("{type: Localhost, localhostProfile: /etc/a.json}", "localhostProfile: \"/etc/a.json\""),
        ("{type: Localhost, localhostProfile: a/../../b}", "localhostProfile: \"a/../../b\""),
        ("{type: Strict}", "type: \"Strict\" is not one of RuntimeDefault, Localhost, Unconfined"),
    ] {
        assert_problem(&of(profile), &format!("{at}.{expected}"));
    }
    assert_eq!(plan(&of("{}")).containers[0].security.seccomp, Seccomp::RuntimeDefault);
    let unconfined = format!("{}  runtimeClassName: pod-containers\n", of("{type: Unconfined}"));
    assert_problem(&unconfined, "seccompProfile.type: is possible only in a VM");
    // Of the pod, for containers that have none.
    let pod = "    securityContext: {seccompProfile: {type: RuntimeDefault}}\n  - {name: b, image: b}\n  securityContext: {seccompProfile: {type: Unconfined}}\n";
    let found = plan(&container(pod)).containers;
    assert_eq!(found[0].security.seccomp, Seccomp::RuntimeDefault);
    assert_eq!(found[1].security.seccomp, Seccomp::Unconfined);
}

#[test]
fn what_no_kernel_of_ours_enforces_is_refused_by_name() {
    for (context, expected) in [
        (
            "{appArmorProfile: {type: Localhost, localhostProfile: x}}",
            "appArmorProfile.type: \"Localhost\" is not supported: no AppArmor profile is enforced in a VM",
        ),
        ("{seLinuxOptions: {level: \"s0:c1\"}}", "seLinuxOptions.level: is not supported"),
        ("{windowsOptions: {runAsUserName: Me}}", "windowsOptions: is not supported"),
        (
            "{privileged: true, allowPrivilegeEscalation: false}",
            "can't be false for a container that is privileged",
        ),
        ("{procMount: None}", "procMount: \"None\" is not one of Default, Unmasked"),
    ] {
        assert_problem(&container(&format!("    securityContext: {context}\n")), expected);
    }
    for nothing in ["{type: RuntimeDefault}", "{type: Unconfined}", "{}", "null"] {
        let context = format!("{{appArmorProfile: {nothing}, seLinuxOptions: {{level: \"\"}}}}");
        let parsed = parse_all(
            container(&format!("    securityContext: {context}\n  securityContext: {context}\n")).as_bytes(),
            "x",
        );
        assert_eq!(parsed.unwrap().ignored, [], "{nothing}");
    }
    for users in ["true", "false"] {
        let parsed = parse_all(
            pod(&format!("  hostUsers: {users}\n  containers: [{{name: a, image: b}}]\n")).as_bytes(),
            "x",
        );
        assert_eq!(parsed.unwrap().ignored, []);
    }
    assert_problem(
        &pod("  readinessGates: [{conditionType: a.example/ready}]\n  containers: [{name: a, image: b}]\n"),
        "spec.readinessGates: is not supported: nothing here sets the conditions",
    );
}

/// The AppArmor profiles of a pod of the class pod-containers with these annotations, fields and security contexts of containers a, b…
fn app_armor(annotations: &str, pod_field: &str, containers: &[&str]) -> Result<Vec<AppArmor>, String> {
    let container = |(security, name): (&&str, char)| {
        format!("  - {{name: {name}, image: b, securityContext: {security}}}\n")
    };
    let containers: String = containers.iter().zip('a'..).map(container).collect();
    let text = pod(&format!("  securityContext: {{{pod_field}}}\n  containers:\n{containers}"));
    let text = text.replace("{name: web}", &format!("{{name: web, annotations: {{{annotations}}}}}"));
    in_namespaces(&text).map(|plan| plan.containers.into_iter().map(|one| one.security.app_armor).collect())
}

#[test]
fn a_profile_of_apparmor_is_that_of_the_field_or_the_annotation() {
    let local = |name: &str| AppArmor::Localhost(name.to_owned());
    let of = |name: &str| format!("{{appArmorProfile: {{type: Localhost, localhostProfile: {name}}}}}");
    let key = "container.apparmor.security.beta.kubernetes.io/";
    let annotations = format!(
        "{key}b: localhost/k8s-x, {key}c: unconfined, {key}d: runtime/default, {key}e: '', {key}other: localhost/y"
    );
    let names = ["/usr/sbin/x", "a//hat", "a.b_c-d+e@f%g"];
    let [first, second, third] = names.map(of);
    assert_eq!(
        app_armor("", "", &["{}", &first, &second, &third, "{appArmorProfile: {type: Unconfined}}"]),
        Ok(vec![AppArmor::Unset, local(names[0]), local(names[1]), local(names[2]), AppArmor::Unconfined])
    );
    // The container's own field, its annotation, and the field of the pod.
    let of_pod = "appArmorProfile: {type: Localhost, localhostProfile: of-pod}";
    assert_eq!(
        app_armor(&annotations, of_pod, &["{}", "{}", "{}", &of("own"), "{}"]),
        Ok(vec![local("of-pod"), local("k8s-x"), AppArmor::Unconfined, local("own"), local("of-pod")])
    );
    assert_eq!(
        app_armor(&annotations, "", &["{}", "{}", "{}", "{}", "{}"]),
        Ok(vec![
            AppArmor::Unset,
            local("k8s-x"),
            AppArmor::Unconfined,
            AppArmor::RuntimeDefault,
            AppArmor::Unset
        ])
    );
}

#[test]
fn a_profile_of_apparmor_has_a_plain_name() {
    let at = "spec.containers[0].securityContext.appArmorProfile";
    let long = "x".repeat(256);
    for (profile, says) in [
        ("{type: Localhost}", "localhostProfile: is missing".to_owned()),
        ("{localhostProfile: x}", "type: is missing".to_owned()),
        ("{type: RuntimeDefault, localhostProfile: x}", "localhostProfile: is only for the type".to_owned()),
        ("{type: Strict}", "type: \"Strict\" is not one of RuntimeDefault, Localhost, Unconfined".to_owned()),
        (
            "{type: Localhost, localhostProfile: 'a b'}",
            "localhostProfile: \"a b\" is not the name".to_owned(),
        ),
        ("{type: Localhost, localhostProfile: ':ns:x'}", "it contains ':'".to_owned()),
        ("{type: Localhost, localhostProfile: 'a//&b'}", "it contains '&'".to_owned()),
        ("{type: Localhost, localhostProfile: \"a\\nb\"}", "it contains '\\n'".to_owned()),
        ("{type: Localhost, localhostProfile: é}", "it contains 'é'".to_owned()),
        ("{type: Localhost, localhostProfile: unconfined}", "is the type Unconfined".to_owned()),
        (
            &format!("{{type: Localhost, localhostProfile: {long}}}"),
            "has 256 characters, at most 255".to_owned(),
        ),
    ] {
        let said = app_armor("", "", &[&format!("{{appArmorProfile: {profile}}}")]).unwrap_err();
        assert!(said.contains(at) && said.contains(&says), "{profile}: {said}");
    }
    for (value, says) in [
        ("localhost/", "names no profile"),
        ("localhost/a b", "is not the name of a profile"),
        ("strict", "is not one of runtime/default, unconfined, localhost/NAME"),
    ] {
        let annotation = format!("container.apparmor.security.beta.kubernetes.io/a: {value}");
        let said = app_armor(&annotation, "", &["{}"]).unwrap_err();
        assert!(said.contains("metadata.annotations.container.apparmor") && said.contains(says), "{said}");
    }
}

/// A pod with these resources and containers with those.
fn pod_of(resources: &str, containers: &[&str]) -> String {
    let containers: Vec<String> = containers
        .iter()
        .enumerate()
        .map(|(index, resources)| format!("  - {{name: c{index}, image: b, resources: {resources}}}\n"))
        .collect();
    pod(&format!("  resources: {resources}\n  containers:\n{}", containers.concat()))
}

/// The rules of Kubernetes' KEP-2837.
#[test]
fn requests_of_a_pod_have_the_defaults_of_an_api_server() {
    let request = |resources: &str, containers: &[&str]| {
        let resources = plan(&pod_of(resources, containers)).resources;
        (resources.cpu_request_millis, resources.memory_request_bytes.map(|bytes| bytes >> 20))
    };
    assert_eq!(request("{limits: {cpu: 2, memory: 64Mi}}", &["{}"]), (Some(2000), Some(64)));
    let asking = "{requests: {cpu: 500m, memory: 16Mi}}";
    assert_eq!(request("{limits: {cpu: 2, memory: 64Mi}}", &[asking, asking]), (Some(1000), Some(32)));
    assert_eq!(request("{requests: {memory: 64Mi}}", &[asking]), (None, Some(64)));
    assert_eq!(request("{}", &[asking]), (None, None));
    for (resources, containers, expected) in [
        (
            "{limits: {memory: 64Mi}}",
            &["{limits: {memory: 65Mi}}"][..],
            "limits.memory: is 67108864 bytes, and that of container c0 is 68157440 bytes",
        ),
        (
            "{requests: {cpu: 900m}}",
            &[asking, asking],
            "requests.cpu: is 900m, and the containers request 1000m",
        ),
        ("{limits: {cpu: 900m}}", &[asking, asking], "limits.cpu: is 900m, and the containers request 1000m"),
        (
            "{limits: {cpu: 1}, requests: {cpu: 2}}",
            &["{}"],
            "requests.cpu: \"2\" is more than the limit \"1\"",
        ),
        ("{limits: {memory: 64}}", &["{}"], "limits.memory: \"64\" is 64 bytes"),
    ] {
        assert_problem(&pod_of(resources, containers), &format!("spec.resources.{expected}"));
    }
}

#[test]
fn the_vm_is_as_large_as_its_pod_may_be() {
    let size = |resources: &str, containers: &[&str]| {
        let vm = plan(&pod_of(resources, containers)).vm;
        (vm.memory.get(), vm.vcpus.get())
    };
    assert_eq!(size("{limits: {cpu: 1500m, memory: 100Mi}}", &["{}", "{}"]), (100 + 96 + 16, 2));
    // Less than the containers' limits together.
    let half = "{limits: {cpu: 1, memory: 80Mi}, requests: {cpu: 100m, memory: 1Mi}}";
    assert_eq!(size("{limits: {cpu: 1, memory: 100Mi}}", &[half, half]), (100 + 96 + 16, 1));
    assert_eq!(size("{requests: {cpu: 3, memory: 600Mi}}", &["{}"]).0, 600 + 96 + 8);
}

fn with_object(kind: &str, size: usize, spec: &str) -> String {
    let value = "x".repeat(size);
    format!(
        "{}---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: large}}\ndata: {{k: \"{value}\"}}\n",
        pod(spec)
    )
}

#[test]
fn copies_are_counted_while_they_are_made() {
    let variable = "{name: A, valueFrom: {configMapKeyRef: {name: large, key: k}}}";
    let env = vec![variable; 3000].join(", ");
    let text =
        with_object("ConfigMap", 400_000, &format!("  containers: [{{name: a, image: b, env: [{env}]}}]\n"));
    let found = problems(&text);
    assert!(
        found.contains("spec.containers[0].env[1]: brings the variables of the container to 800002 bytes, at most 524288 are possible (mount large values as files)"),
        "{found}"
    );
    // Each file is a part of the plan.
    let item = |index: usize| format!("{{key: k, path: f{index}}}");
    let items: Vec<String> = (0..60).map(item).collect();
    let volume = format!("{{name: v, configMap: {{name: large, items: [{}]}}}}", items.join(", "));
    let text = with_object(
        "ConfigMap",
        400_000,
        &format!("  containers: [{{name: a, image: b}}]\n  volumes: [{volume}]\n"),
    );
    let found = problems(&text);
    assert!(
        found.contains("spec.volumes[0].configMap.items[26].path: brings the files of the Pod's ConfigMaps, Secrets and downward API to 10800000 bytes"),
        "{found}"
    );
    assert_eq!(found.lines().count(), 1, "{found}");
}

#[test]
fn a_message_says_how_many_files_there_are() {
    use crate::manifest::input::{Accepts, Source, read};
    let pod = container("    envFrom: [{configMapRef: {name: gone}}]\n");
    let source = |origin: &str, text: &str| Source {
        origin: origin.to_owned(),
        bytes: text.as_bytes().to_vec(),
        accepts: Accepts::Everything,
    };
    let other = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}\n";
    let found = read(&[source("a.yaml", &pod), source("b.yaml", other)], &mut |_, _| None);
    let problem = found.problems()[0].to_string();
    assert!(problem.contains("there is no ConfigMap \"gone\" in these files"), "{problem}");
    assert_problem(&pod, "there is no ConfigMap \"gone\" in this file");
}

/// The Pod of Kubernetes' page, with the placeholder that the guest replaces.
#[test]
fn variables_of_files_are_read_in_the_guest() {
    let of = |file: &str, volume: &str| {
        container(&format!(
            "    env: [{{name: A, valueFrom: {{fileKeyRef: {file}}}}}, {{name: B, value: \"is $(A)\"}}]\n    command: [echo, $(A)]\n  volumes: [{volume}]\n"
        ))
    };
    let dir = "{name: config, emptyDir: {}}";
    let key = "{volumeName: config, path: config.env, key: DB_ADDRESS}";
    let plan = plan(&of(key, dir));
    let facts = PodFacts { uid: "uid".to_owned(), ..PodFacts::default() };
    let image = crate::image::ImageDefaults { env: vec!["A=image".to_owned()], ..Default::default() };
    let process = resolve_process(&plan.containers[0], &image, &facts).unwrap();
    assert_eq!(process.args, ["echo", "uid:0"]);
    assert_eq!(process.env[2..], ["A=uid:0".to_owned(), "B=is uid:0".to_owned()]);
    let variable = &process.file_variables[0];
    assert_eq!(
        (variable.volume, variable.path.as_str(), variable.key.as_str()),
        (0, "config.env", "DB_ADDRESS")
    );
    assert_eq!(variable.missing, magikvm_proto::variable::Missing::Fails);
    let optional = "{volumeName: config, path: config.env, key: DB_ADDRESS, optional: true}";
    let process = resolve_process(&self::plan(&of(optional, dir)).containers[0], &image, &facts).unwrap();
    let instead = magikvm_proto::variable::Missing::Instead(Some("image".to_owned()));
    assert_eq!(process.file_variables[0].missing, instead);
    for (file, volume, expected) in [
        (key, "{name: other}", "volumeName: there is no volume \"config\""),
        (key, "{name: config, hostPath: {path: /x}}", "volumeName: \"config\" is not an emptyDir"),
        ("{volumeName: config, path: ../x, key: A}", dir, "path: \"../x\""),
        ("{volumeName: config, path: x, key: A=B}", dir, "key: "),
        ("{volumeName: config, key: A}", dir, "path: is missing"),
    ] {
        assert_problem(&of(file, volume), &format!("env[0].valueFrom.fileKeyRef.{expected}"));
    }
}

/// The problems of a Pod whose class is not that of its manifest.
fn in_namespaces(text: &str) -> Result<PodPlan, String> {
    use crate::manifest::input::{Accepts, Source, read_as};
    let source =
        Source { origin: "x".to_owned(), bytes: text.as_bytes().to_vec(), accepts: Accepts::Everything };
    let read = read_as(Some(RuntimeClass::PodContainers), &[source], &mut |_, _| None);
    read.into_manifests().map(|mut read| read.pods.remove(0).plan).map_err(|problems| problems.to_string())
}

#[test]
fn another_class_than_that_of_the_manifest_has_the_rules_of_its_own() {
    let of = |security: &str, pod_fields: &str| {
        let container = format!("{{name: a, image: b, securityContext: {{{security}}}}}");
        in_namespaces(&pod(&format!("{pod_fields}  containers: [{container}]\n")))
    };
    let vm = "  runtimeClassName: pod-microvm-containers\n";
    for fields in ["  hostUsers: false\n", vm] {
        assert_eq!(of("", fields).map(|plan| plan.runtime_class), Ok(RuntimeClass::PodContainers));
    }
    for (security, pod_fields, says) in [
        (
            "privileged: true",
            "",
            "securityContext.privileged: is possible only in a VM, and pods of the class pod-containers have none",
        ),
        ("seccompProfile: {type: Unconfined}", vm, "seccompProfile.type: is possible only in a VM"),
        ("capabilities: {add: [CHOWN, BPF]}", "  hostUsers: true\n", "add: CAP_BPF is power over the host"),
        ("capabilities: {add: [ALL]}", "  hostUsers: true\n", "add: CAP_SYS_ADMIN is power over the host"),
        (
            "capabilities: {add: [SYS_PTRACE]}",
            "  hostUsers: true\n",
            "add: CAP_SYS_PTRACE is power over the host",
        ),
        (
            "capabilities: {add: [NET_ADMIN]}",
            "  hostUsers: true\n  hostNetwork: true\n",
            "add: CAP_NET_ADMIN is power over the host",
        ),
        (
            "procMount: Unmasked",
            "  hostUsers: true\n",
            "procMount: \"Unmasked\" shows the parameters of the host",
        ),
        ("runAsUser: 65536", "", "must be 0 to 65535 for a pod in namespaces, not 65536"),
        ("runAsGroup: 65536", "", "must be 0 to 65535 for a pod in namespaces, not 65536"),
        (
            "",
            "  securityContext: {supplementalGroups: [5, 70000]}\n",
            "supplementalGroups[1]: must be 0 to 65535 for a pod in namespaces, not 70000",
        ),
        (
            "",
            "  securityContext: {fsGroup: 70000}\n",
            "must be 0 to 65535 for a pod in namespaces, not 70000",
        ),
    ] {
        let said = of(security, pod_fields).unwrap_err();
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn an_annotation_about_a_vm_is_refused_without_one() {
    let annotated =
        |text: &str| SMALL.replace("  name: web", &format!("  name: web\n  annotations: {{{text}}}"));
    for (text, hint) in [
        ("magikvm.dev/memory-mib: '512'", "resources.limits.memory bounds what containers use"),
        ("magikvm.dev/vcpus: '1'", "resources.limits.cpu bounds what containers use"),
        ("magikvm.dev/nested-virtualization: 'true'", "run the pod in a VM"),
        ("magikvm.dev/network: tsi", "write nat"),
        ("magikvm.dev/network: user", "write nat"),
    ] {
        let text = annotated(text);
        assert!(parse(text.as_bytes(), "x").is_ok(), "{text}");
        let said = in_namespaces(&text).unwrap_err();
        assert!(said.starts_with("x:") && said.contains("metadata.annotations.magikvm.dev/"), "{said}");
        assert!(
            said.contains("is possible only in a VM, and pods of the class pod-containers have none"),
            "{said}"
        );
        assert!(said.contains(hint), "{said}");
    }
    for harmless in [
        "magikvm.dev/nested-virtualization: 'false'",
        "magikvm.dev/network: none",
        "magikvm.dev/root: memory",
        "magikvm.dev/jail: x",
    ] {
        assert!(in_namespaces(&annotated(harmless)).is_ok(), "{harmless}");
    }
}

#[test]
fn the_size_of_a_vm_bounds_no_pod_without_one() {
    let of = |resources: &str| container(&format!("    resources: {resources}\n"));
    let large = of("{limits: {memory: 64Gi, cpu: 64}}");
    assert!(problems(&large).contains("at most 4096 MiB are possible"));
    let plan = in_namespaces(&large).unwrap();
    let limits = &plan.containers[0].resources;
    assert_eq!((limits.memory_limit_bytes, limits.cpu_limit_millis), (Some(64 << 30), Some(64_000)));
    for (resources, says) in [
        (
            "{limits: {memory: 65Ti}}",
            "resources.limits.memory: is 71468255805440 bytes, at most 70368744177664 bytes",
        ),
        ("{limits: {cpu: 8193}}", "resources.limits.cpu: is 8193000m, at most 8192000m are possible"),
        ("{requests: {cpu: 8193}}", "resources.requests.cpu: is 8193000m"),
    ] {
        let said = in_namespaces(&of(resources)).unwrap_err();
        assert!(said.contains(says), "{said}");
        // What follows from the limit is not reported again.
        assert_eq!(said.matches("at most").count(), 1, "{said}");
    }
}

#[test]
fn huge_pages_are_asked_for_as_in_kubernetes() {
    let of = |resources: &str| container(&format!("    resources: {resources}\n"));
    let found = in_namespaces(&of("{limits: {cpu: 1, hugepages-2Mi: 4Mi, hugepages-1Gi: 1Gi}}")).unwrap();
    assert_eq!(found.containers[0].resources.huge_pages, HugePages { two_mib: 4 << 20, one_gib: 1 << 30 });
    let none = in_namespaces(&of("{limits: {hugepages-2Mi: 0}, requests: {hugepages-1Gi: 0}}")).unwrap();
    assert_eq!(none.containers[0].resources.huge_pages, HugePages::default());
    let equal = "{limits: {hugepages-2Mi: 2Mi}, requests: {memory: 1Mi, hugepages-2Mi: 2Mi}}";
    assert!(in_namespaces(&of(equal)).is_ok());
    for (resources, says) in [
        (
            "{limits: {cpu: 1, hugepages-2Mi: 3Mi}}",
            "limits.hugepages-2Mi: is 3145728 bytes, no number of whole pages",
        ),
        ("{limits: {hugepages-2Mi: 2Mi}}", "limits.hugepages-2Mi: is alone, without cpu and memory"),
        (
            "{limits: {cpu: 1, hugepages-2Mi: 4Mi}, requests: {hugepages-2Mi: 2Mi}}",
            "requests.hugepages-2Mi: is not the limit",
        ),
        ("{requests: {cpu: 1, hugepages-1Gi: 1Gi}}", "requests.hugepages-1Gi: is not the limit"),
        ("{limits: {cpu: 1, hugepages-2Mi: x}}", "limits.hugepages-2Mi: \"x\" is not a quantity"),
    ] {
        let said = in_namespaces(&of(resources)).unwrap_err();
        assert!(said.contains(says), "{resources}: {said}");
    }
    assert_problem(
        &of("{limits: {cpu: 1, hugepages-2Mi: 2Mi}}"),
        "limits.hugepages-2Mi: is not possible in a VM: the huge pages are the host's",
    );
    // Those of init containers are free when the main ones run.
    let spec = "  initContainers: [{name: i, image: x, resources: {limits: {cpu: 1, hugepages-2Mi: 6Mi}}}]\n  containers:\n";
    let main = |name: &str| {
        format!("  - {{name: {name}, image: x, resources: {{limits: {{cpu: 1, hugepages-2Mi: 2Mi}}}}}}\n")
    };
    let plan = in_namespaces(&pod(&format!("{spec}{}{}", main("a"), main("b")))).unwrap();
    assert_eq!(huge_pages(&plan.containers), HugePages { two_mib: 6 << 20, one_gib: 0 });
}
