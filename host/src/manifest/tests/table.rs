//! Tests that the table of fields agrees with the code that reads a manifest.

use super::*;

#[test]
fn every_supported_field_arrives_in_the_plan() {
    let plan = plan(&full(FULL));
    assert_eq!(plan.id.to_string(), "prod/full");
    assert_eq!(plan.labels["app.kubernetes.io/name"], "x");
    assert_eq!(plan.annotations["example.com/note"], "hello");
    assert_eq!(plan.hostname, "box.example.com");
    assert_eq!(plan.runtime_class, RuntimeClass::PodMicrovmContainers);
    assert_eq!(plan.restart_policy, RestartPolicy::OnFailure);
    assert_eq!(plan.process_namespace, ProcessNamespace::Pod);
    assert_eq!(plan.grace_seconds, 5);
    // The annotation says how many processors, and the pod's limit how much memory.
    assert_eq!((plan.vm.memory.get(), plan.vm.vcpus.get()), (512 + 96 + 5 * 8, 3));
    let compute = Resources {
        cpu_limit_millis: Some(4000),
        cpu_request_millis: Some(3000),
        memory_limit_bytes: Some(512 << 20),
        memory_request_bytes: Some(256 << 20),
        disk_limit_bytes: Some(2 << 30),
        ..Resources::default()
    };
    assert_eq!(plan.resources, compute);
    assert_eq!(plan.qos_class(), QosClass::Burstable);
    assert_eq!(plan.disk_limit_bytes, Some(2 << 30));
    let one = &plan.containers[2];
    assert_eq!(one.pull_policy, PullPolicy::Never);
    assert_eq!(one.command, ["/bin/sh", "-c"]);
    assert_eq!(one.args, ["echo $(GREETING)"]);
    assert_eq!(one.working_dir.as_deref(), Some("/srv"));
    let env: Vec<(&str, &str)> =
        one.env.iter().map(|variable| (variable.name.as_str(), variable.value.as_str())).collect();
    let of_objects = [("P_a.txt", "hello\n"), ("P_b", "BBBB"), ("k", "top $$(secret)"), ("other", "other")];
    let own = [
        ("GREETING", "hi"),
        ("A", "BBBB"),
        ("K", "top $$(secret)"),
        ("NS", "prod"),
        ("CPU", ""),
        ("OF_FILE", ""),
        ("DISK", "1048576"),
    ];
    assert_eq!(env, [&of_objects[..], &own[..]].concat());
    let share = ResourceShare { resource: Resource::Cpu, divisor: 1 };
    assert_eq!(one.env[8].field, Some(LateField::Limit(share)));
    let file = FileKey { volume: 1, path: "a/env".to_owned(), key: "KEY".to_owned(), optional: true };
    assert_eq!(one.env[9].file, Some(file));
    let mount = |volume, path: &str, sub_path: Option<&str>, access| MountSpec {
        volume,
        path: path.to_owned(),
        sub_path: sub_path.map(str::to_owned),
        access,
    };
    assert_eq!(
        one.mounts,
        [
            mount(0, "/data", Some("a/b"), Access::ReadOnly),
            mount(1, "/cache", Some("hi/x"), Access::ReadWrite),
            mount(2, "/conf", None, Access::ReadOnly),
        ]
    );
    let [login] = &plan.pull_secrets[..] else { panic!("{:?}", plan.pull_secrets) };
    assert_eq!((login.name.as_str(), login.format), ("login", crate::image::LoginFormat::DockerCfg));
    let sysctls: Vec<(&str, &str)> =
        plan.sysctls.iter().map(|one| (one.name.as_str(), one.value.as_str())).collect();
    assert_eq!(sysctls, [("net.core.somaxconn", "512"), ("kernel/shmmax", "1")]);
    assert_eq!((plan.volume_group, &plan.further_groups[..]), (Some(2000), &[2000, 3000][..]));
    assert_eq!(plan.volume_group_change, GroupChange::OnRootMismatch);
    assert_eq!(plan.image_groups, ImageGroups::Strict);
    let file = |path: &str, mode, content: &str| VolumeFile {
        path: path.to_owned(),
        mode,
        content: content.as_bytes().to_vec().into(),
        late: None,
    };
    let late = |path: &str, field| VolumeFile { late: Some(field), ..file(path, 0o440, "") };
    let sources: Vec<&VolumeSource> = plan.volumes.iter().map(|volume| &volume.source).collect();
    let host = VolumeSource::HostPath { path: "/srv/data".into(), kind: HostPathKind::DirectoryOrCreate };
    let conf = vec![file("b", 0o440, "BBBB"), file("x/y", 0o400, "hello\n")];
    let keys = vec![file("k1", 0o400, "top $(secret)"), file("k2", 0o444, "top $(secret)")];
    let all = vec![
        file("c/a", 0o400, "hello\n"),
        file("cpu", 0o440, "1500"),
        file("labels", 0o400, "app.kubernetes.io/name=\"x\""),
        file("s/k", 0o400, "top $(secret)"),
    ];
    let about =
        vec![file("a/note", 0o400, "hello"), file("memory", 0o440, "32"), late("uid", LateField::Uid)];
    let claim = Claim {
        access_modes: vec![AccessMode::ReadWriteOnce],
        storage_bytes: 1 << 30,
        volume_mode: Default::default(),
        storage_class_name: None,
        labels: Default::default(),
    };
    let expected = [
        host,
        VolumeSource::Memory { size_bytes: Some(8 << 20) },
        VolumeSource::Files(conf),
        VolumeSource::Files(keys),
        VolumeSource::Files(Vec::new()),
        VolumeSource::Files(Vec::new()),
        VolumeSource::Files(all),
        VolumeSource::Files(about),
        VolumeSource::Image {
            image: "tools:1".parse().unwrap(),
            image_text: "tools:1".to_owned(),
            pull_policy: PullPolicy::Never,
        },
        VolumeSource::Claim { name: "data".parse().unwrap(), make: Some(claim), access: Access::ReadOnly },
        VolumeSource::Disk { size_bytes: Some(1 << 30) },
    ];
    assert_eq!(sources, expected.iter().collect::<Vec<_>>());
    assert_eq!(format!("{:?}", plan.volumes[3].source).matches("content: 13 bytes").count(), 2);
    assert_eq!(
        one.ports,
        [ContainerPort { name: Some("http".to_owned()), container_port: 8080, protocol: Protocol::Udp }]
    );
    let published = &plan.published[0];
    assert_eq!((published.host_ip.to_string().as_str(), published.host_port), ("127.0.0.1", 18080));
    assert_eq!((published.container_port, published.protocol), (8080, Protocol::Udp));
    assert_eq!(
        one.resources,
        Resources {
            cpu_limit_millis: Some(1500),
            cpu_request_millis: Some(1000),
            memory_limit_bytes: Some(64 << 20),
            memory_request_bytes: Some(32 << 20),
            disk_limit_bytes: Some(512 << 20),
            ..Resources::default()
        }
    );
    assert_eq!((one.stdio, one.stdin), (Stdio::Terminal, Stdin::Once));
    let security = &one.security;
    assert_eq!((security.run_as_user, security.run_as_group), (Some(7), Some(8)));
    assert_eq!(security.root_user, RootUser::Refused);
    assert_eq!(security.root_filesystem, RootFilesystem::ReadOnly);
    assert_eq!(security.privilege_escalation, PrivilegeEscalation::Denied);
    assert_eq!(
        security.add_capabilities,
        CapabilityList::Only(vec![
            oci_spec::runtime::Capability::NetAdmin,
            oci_spec::runtime::Capability::SysTime
        ])
    );
    assert_eq!(security.drop_capabilities, CapabilityList::All);
    assert_eq!((security.privilege, security.proc_mount), (Privilege::Confined, ProcMount::Unmasked));
    assert_eq!(security.seccomp, Seccomp::Localhost("profiles/audit.json".to_owned()));
    assert_eq!(plan.containers[3].security.seccomp, Seccomp::Unconfined);
    assert_eq!(plan.containers[4].security.privilege, Privilege::Privileged);
    let two = &plan.containers[3].security;
    assert_eq!(
        (two.run_as_user, two.run_as_group, two.root_user),
        (Some(1000), Some(1001), RootUser::Refused)
    );
    // Ignored fields and nulls are not kept.
    assert_eq!(plan.manifest["metadata"].as_object().unwrap().len(), 5);
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<PodPlan>(&json).unwrap(), plan);
}

/// The paths of the table that a JSON value uses.
fn used(json: &serde_json::Value, path: &str, found: &mut std::collections::BTreeSet<String>) {
    found.insert(path.to_owned());
    match json {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                used(value, &path, found);
            }
        }
        serde_json::Value::Array(items) => {
            items.iter().for_each(|item| used(item, &format!("{path}[]"), found))
        }
        _ => {}
    }
}

/// Removes the value at a path of the table.
fn remove(json: &mut serde_json::Value, path: &str) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    let (key, list) = first.strip_suffix("[]").map_or((first, false), |key| (key, true));
    match (rest, json.get_mut(key)) {
        (Some(rest), Some(serde_json::Value::Array(items))) if list => {
            items.iter_mut().for_each(|item| remove(item, rest));
        }
        (Some(rest), Some(inner)) => remove(inner, rest),
        (None, Some(_)) => drop(json.as_object_mut().unwrap().remove(key)),
        _ => {}
    }
}

#[test]
fn the_table_and_the_code_agree_on_what_is_supported() {
    let all = plan(&full(FULL));
    let mut paths = std::collections::BTreeSet::new();
    used(&all.manifest, "", &mut paths);
    for field in fields::all().filter(|field| field.status == Status::Supported) {
        assert!(paths.contains(field.path), "FULL does not use {}", field.path);
        let mut without = all.manifest.clone();
        remove(&mut without, field.path);
        assert_ne!(without, all.manifest, "{}", field.path);
        // A field that is said to have an effect must have one.
        let without = full(&without.to_string());
        if let Ok(mut plan) = parse(without.as_bytes(), "x") {
            plan.manifest = all.manifest.clone();
            // An object of nothing but fields with one possible value.
            let row = fields::ALIASES.iter().find(|(alias, _)| *alias == field.path);
            let inside = format!("{}.", row.map_or(field.path, |(_, of)| of));
            let means_nothing = fields::all().any(|other| other.path.starts_with(&inside))
                && fields::all()
                    .filter(|other| other.path.starts_with(&inside))
                    .all(|other| other.status != Status::Supported);
            let same_by_pod = field.path == "spec.securityContext.runAsNonRoot"
                || field.path.ends_with("securityContext.runAsNonRoot");
            // Only a readiness probe, which has the same rows, has another value than the default.
            let one_value = field.path == "spec.containers[].livenessProbe.successThreshold";
            // FULL has a name, what only the default class can run, and a host name of its own.
            let of_others = [
                "spec.containers[].securityContext.appArmorProfile.localhostProfile",
                "spec.containers[].resources.limits.hugepages-2Mi",
                "spec.containers[].resources.limits.hugepages-1Gi",
                "spec.containers[].resources.requests.hugepages-2Mi",
                "spec.containers[].resources.requests.hugepages-1Gi",
                "metadata.generateName",
                "spec.runtimeClassName",
                "spec.setHostnameAsFQDN",
                "spec.hostNetwork",
            ]
            .contains(&field.path);
            assert!(
                plan != all || means_nothing || same_by_pod || one_value || of_others,
                "{} changes nothing",
                field.path
            );
        }
    }
}

#[test]
fn every_refused_field_is_refused_with_its_place_and_reason() {
    for field in fields::all() {
        let mut json = plan(SMALL).manifest;
        if field.path.starts_with("spec.volumes[].ephemeral.") {
            let spec = serde_json::json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
            json["spec"]["volumes"] = serde_json::json!([{ "name": "v", "ephemeral": { "volumeClaimTemplate": { "spec": spec } } }]);
        }
        let mut at = &mut json;
        for part in field.path.split('.') {
            let (key, list) = part.strip_suffix("[]").map_or((part, false), |key| (key, true));
            let object = at.as_object_mut().unwrap();
            at = object.entry(key).or_insert(if list {
                serde_json::json!([{}])
            } else {
                serde_json::json!({})
            });
            if list {
                at = &mut at[0];
            }
        }
        match field.status {
            Status::Refused { why, empty } => {
                *at = serde_json::json!("x");
                let path = field.path.replace("[]", "[0]");
                assert_problem(&json.to_string(), &format!("{path}: is not supported: {why}"));
                for (nothing, accepted) in [
                    (serde_json::Value::Null, true),
                    (serde_json::json!({}), empty == Empty::AsksNothing),
                    (serde_json::json!([]), empty == Empty::AsksNothing),
                    (serde_json::json!(""), empty == Empty::AsksNothing),
                    (serde_json::json!({ "a": null }), empty == Empty::AsksNothing),
                    (serde_json::json!([{}]), false),
                ] {
                    *at_path(&mut json, field.path) = nothing.clone();
                    let found = parse(json.to_string().as_bytes(), "x").err();
                    let found = found.map(|problems| problems.to_string()).unwrap_or_default();
                    let refused = found.contains(&format!("{path}: is not supported"));
                    assert_eq!(refused, !accepted, "{}: {nothing}: {found}", field.path);
                }
            }
            Status::Only { values, .. } => {
                let wrong = if field.shape == Shape::Bool {
                    serde_json::json!(true)
                } else {
                    serde_json::json!("Other")
                };
                *at = wrong;
                assert_problem(&json.to_string(), &format!("write {}", values[0]));
            }
            Status::Ignored { why, defaults } => {
                *at = serde_json::json!({"anything": [1, 2]});
                let parsed = parse_all(json.to_string().as_bytes(), "x").unwrap();
                assert_eq!(parsed.ignored, [Ignored { why, paths: vec![field.path.to_owned()] }]);
                for quiet in [&[""], defaults].concat() {
                    *at_path(&mut json, field.path) = serde_json::json!(quiet);
                    let parsed = parse_all(json.to_string().as_bytes(), "x").unwrap();
                    assert_eq!(parsed.ignored, [], "{}: {quiet:?}", field.path);
                }
            }
            Status::Supported => {}
        }
    }
}

fn at_path<'a>(json: &'a mut serde_json::Value, path: &str) -> &'a mut serde_json::Value {
    path.split('.').fold(json, |at, part| match part.strip_suffix("[]") {
        Some(key) => &mut at[key][0],
        None => &mut at[part],
    })
}
