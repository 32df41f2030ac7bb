//! Volumes, and the other documents of a file.

use super::*;
use crate::image::ImageDefaults;

const CONTAINER: &str = "  containers:\n  - name: main\n    image: busybox\n";

fn volume(source: &str) -> String {
    pod(&format!("  volumes: [{{name: v, {source}}}]\n{CONTAINER}"))
}

fn mount(fields: &str) -> String {
    pod(&format!("  volumes: [{{name: v, emptyDir: {{}}}}]\n{CONTAINER}    volumeMounts: [{fields}]\n"))
}

fn beside(document: &str) -> String {
    format!("{SMALL}---\n{document}")
}

#[test]
fn each_kind_of_volume_has_its_rules() {
    let host = |fields: &str| volume(&format!("hostPath: {{{fields}}}"));
    assert_problem(&host("type: Directory"), "hostPath.path: is missing");
    assert_problem(&host("path: srv"), "\"srv\" must be an absolute path");
    assert_problem(&host("path: /a/../b"), "must not contain '..'");
    assert_problem(&host("path: /a, type: Folder"), "\"Folder\" is not one of");
    for kind in ["Socket", "CharDevice", "BlockDevice"] {
        assert_problem(
            &host(&format!("path: /a, type: {kind}")),
            &format!("hostPath.type: {kind} is not supported"),
        );
    }
    drop(plan(&host("path: /")));
    drop(plan(&host("path: /proc/1")));
    let empty = |fields: &str| volume(&format!("emptyDir: {{{fields}}}"));
    for medium in ["HugePages", "HugePages-2Mi"] {
        let said = format!(
            "emptyDir.medium: \"{medium}\" is not supported: a container uses huge pages by mmap(2) with MAP_HUGETLB"
        );
        assert_problem(&empty(&format!("medium: {medium}")), &said);
    }
    assert_problem(&empty("sizeLimit: 500"), "\"500\" is 500 bytes, 1Mi to 1Ti are possible");
    assert_problem(&empty("sizeLimit: 2Ti"), "1Mi to 1Ti are possible");
    assert_eq!(plan(&empty("sizeLimit: 0")).volumes[0].source, VolumeSource::Disk { size_bytes: None });
    assert_problem(
        &volume("nfs: {server: x}"),
        "spec.volumes[0].nfs: is not supported: a pod mounts no file system of the network; mount it on the host and use a hostPath",
    );
    assert_problem(
        &volume("csi: {driver: x}"),
        "spec.volumes[0].csi: is not supported: there are no drivers of volumes",
    );
    assert_problem(
        &volume("awsElasticBlockStore: {volumeID: x}"),
        "there is no cloud that could attach its disk; use a persistentVolumeClaim",
    );
    assert_eq!(problems(&volume("nfs: {server: x}")).lines().count(), 1);
    // Every source of core/v1 that is refused is refused by its name, and with what to use instead.
    for source in [
        "awsElasticBlockStore: {volumeID: x}",
        "azureDisk: {diskName: x, diskURI: x}",
        "azureFile: {secretName: x, shareName: x}",
        "cephfs: {monitors: [x]}",
        "cinder: {volumeID: x}",
        "csi: {driver: x}",
        "fc: {wwids: [x]}",
        "flexVolume: {driver: x}",
        "flocker: {datasetName: x}",
        "gcePersistentDisk: {pdName: x}",
        "gitRepo: {repository: x}",
        "glusterfs: {endpoints: x, path: x}",
        "iscsi: {targetPortal: x, iqn: x, lun: 0}",
        "nfs: {server: x, path: /x}",
        "photonPersistentDisk: {pdID: x}",
        "portworxVolume: {volumeID: x}",
        "quobyte: {registry: x, volume: x}",
        "rbd: {monitors: [x], image: x}",
        "scaleIO: {gateway: x, system: x, secretRef: {name: x}}",
        "storageos: {volumeName: x}",
        "vsphereVolume: {volumePath: x}",
    ] {
        let (name, _) = source.split_once(':').unwrap();
        let said = problems(&volume(source));
        let first = format!("spec.volumes[0].{name}: is not supported: ");
        assert!(said.contains(&first) && said.lines().count() == 1, "{source}: {said}");
        assert!(said.contains("use a ") || said.contains("clone into"), "{source}: {said}");
    }
    assert_problem(&volume("emptyDir: {}, hostPath: {path: /a}"), "has more than one source");
    assert_problem(
        &pod(&format!("  volumes: [{{emptyDir: {{}}}}]\n{CONTAINER}")),
        "volumes[0].name: is missing",
    );
    let two = "  volumes: [{name: v, emptyDir: {}}, {name: v, emptyDir: {}}]\n";
    assert_problem(&pod(&format!("{two}{CONTAINER}")), "\"v\" is also the name of spec.volumes[0]");
    let many: String = (0..65).map(|n| format!("{{name: v{n}, emptyDir: {{}}}}, ")).collect();
    assert_problem(
        &pod(&format!("  volumes: [{many}]\n{CONTAINER}")),
        "spec.volumes: has 65 entries, at most 64",
    );
}

#[test]
fn mounts_have_places_of_their_own() {
    assert_problem(&mount("{mountPath: /a}"), "volumeMounts[0].name: is missing");
    assert_problem(&mount("{name: v}"), "volumeMounts[0].mountPath: is missing");
    assert_problem(&mount("{name: w, mountPath: /a}"), "there is no volume \"w\"");
    for (path, problem) in [
        ("a", "must be an absolute path"),
        ("/a/..", "must not contain '..'"),
        ("/a:b", "must not contain ':'"),
        ("/", "can't be mounted over"),
        ("/proc/x", "can't be mounted over"),
    ] {
        assert_problem(&mount(&format!("{{name: v, mountPath: '{path}'}}")), problem);
    }
    assert_problem(
        &mount("{name: v, mountPath: /a/b}, {name: v, mountPath: /a//b/}"),
        "is also that of spec.containers[0].volumeMounts[0]",
    );
    assert_problem(
        &mount("{name: v, mountPath: /a, subPath: /x}"),
        "subPath: \"/x\" must be a relative path",
    );
    assert_problem(&mount("{name: v, mountPath: /a, subPath: x/..}"), "must not contain '..'");
    assert_problem(&mount("{name: v, mountPath: /a, subPathExpr: $(NO)}"), "there is no variable \"NO\"");
    assert_problem(
        &mount("{name: v, mountPath: /a, subPath: x, subPathExpr: z}"),
        "can't be beside `subPath`",
    );
    assert_problem(&mount("{name: v, mountPath: /a, mountPropagation: Bidirectional}"), "write None");
    let rro = |fields: &str| mount(&format!("{{name: v, mountPath: /a, recursiveReadOnly: {fields}}}"));
    for mode in ["Enabled", "IfPossible"] {
        let said = format!(
            "volumeMounts[0].recursiveReadOnly: {mode} is only possible for a mount that is read-only"
        );
        assert_problem(&rro(mode), &said);
        drop(plan(&rro(&format!("{mode}, readOnly: true"))));
    }
    drop(plan(&rro("Disabled")));
    assert_problem(&rro("Sometimes"), "\"Sometimes\" is not supported");
    let whole = plan(&mount("{name: v, mountPath: /a, subPath: .}"));
    assert_eq!(whole.containers[0].mounts[0].sub_path, None);
    let many: String = (0..65).map(|n| format!("{{name: v, mountPath: /{n}}}, ")).collect();
    assert_problem(&mount(&many), "volumeMounts: has 65 entries, at most 64");
}

#[test]
fn what_is_expanded_leads_nowhere_else_either() {
    let mount = "    volumeMounts: [{name: v, mountPath: /a, subPathExpr: x/$(UP)}]\n    env: [{name: UP, value: ..}]\n";
    let text = pod(&format!("  volumes: [{{name: v, emptyDir: {{}}}}]\n{CONTAINER}{mount}"));
    assert_problem(
        &text,
        "volumeMounts[0].subPathExpr: \"x/$(UP)\" stands for a path that must not contain '..'",
    );
}

#[test]
fn objects_are_checked_with_their_lines() {
    let map =
        |fields: &str| beside(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\n{fields}"));
    let secret =
        |fields: &str| beside(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\n{fields}"));
    drop(plan(&map("data: null\nimmutable: true\n")));
    assert_problem(&map("dota: {}\n"), "pod.yaml:13:1: ConfigMap.dota: is not a field of a v1 ConfigMap");
    assert_problem(&map("stringData: {}\n"), "is not a field of a v1 ConfigMap");
    assert_problem(&secret("binaryData: {}\n"), "is not a field of a v1 Secret");
    assert_problem(&map("data: []\n"), "ConfigMap.data: must be a mapping of strings");
    assert_problem(
        &map("data: {a: 5}\n"),
        "pod.yaml:13:8: ConfigMap.data.a: must be a string (write it in quotes)",
    );
    assert_problem(&map("data: {a/b: x}\n"), "contains '/'; only letters, digits");
    assert_problem(&map("data: {..data: x}\n"), "is not a file name");
    assert_problem(&map(&format!("data: {{{}: x}}\n", "k".repeat(254))), "must have 1 to 253 characters");
    assert_problem(&map("data: {a: x}\nbinaryData: {a: eA==}\n"), "also a key of the object's other data");
    assert_problem(&map("immutable: 'true'\n"), "must be true or false");
    assert_problem(&map("metadata: {}\n"), "the key \"metadata\" is written twice");
    let half = "x".repeat(600_000);
    assert_problem(
        &map(&format!("data: {{a: &a {half}, b: *a}}\n")),
        "has 1200000 bytes of data, at most 1048576",
    );
    assert_problem(&beside("apiVersion: v1\nkind: ConfigMap\n"), "ConfigMap.metadata: is missing");
    assert_problem(
        &beside("apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n"),
        "ConfigMap.metadata.name: is missing",
    );
    assert_problem(&beside("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: A}\n"), "contains 'A'");
    assert_problem(&beside("kind: Secret\nmetadata: {name: a}\n"), "Secret.apiVersion: is missing");
    assert_problem(&beside("apiVersion: v2\nkind: Secret\nmetadata: {name: a}\n"), "must be v1");
    let other = "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: b}\n";
    assert_problem(&beside(other), "is \"b\", and the Pod is in \"default\"");
    let one = "apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n";
    assert_problem(
        &beside(&format!("{one}---\n{one}")),
        "pod.yaml:14:1: Secret: there is another Secret \"a\"",
    );
    assert_problem(
        &beside("apiVersion: v1\nkind: Servise\n"),
        "must be Pod, not \"Servise\" (did you mean Service?)",
    );
    assert_problem(&beside("a: b\n"), "a document without a kind begins here");
    assert_problem(one, "holds no Pod");
    // The Pod need not be the first document.
    assert_eq!(plan(&format!("{one}---\n{SMALL}")), plan(SMALL));
}

#[test]
fn no_message_shows_what_is_secret() {
    let secret = |data: &str| beside(&format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: a}}\n{data}"));
    for data in
        ["data: {k: hunter2!}\n", "data: {k: 1234567}\n", "stringData: {k: [hunter2]}\n", "data: hunter2\n"]
    {
        let said = problems(&secret(data));
        assert!(!said.contains("hunter2") && !said.contains("1234567"), "{said}");
        assert!(said.contains("pod.yaml:13:"), "{said}");
    }
}

#[test]
fn what_is_taken_of_an_object_must_be_there() {
    let taken = |fields: &str| {
        let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\nbinaryData: {bin: /w==}\n---\n";
        format!("{object}{}", container(fields))
    };
    let env = |source: &str| taken(&format!("    env: [{{name: E, valueFrom: {{{source}}}}}]\n"));
    let missing = "there is no ConfigMap \"b\" in this file (add the ConfigMap";
    assert_problem(&env("configMapKeyRef: {name: b, key: k}"), missing);
    assert_problem(&env("configMapKeyRef: {name: a, key: x}"), "ConfigMap \"a\" has no key \"x\"");
    assert_problem(&env("secretKeyRef: {name: a, key: k}"), "there is no Secret \"a\"");
    assert_problem(&env("configMapKeyRef: {name: a, key: bin}"), "not text that a process can be given");
    assert_problem(&env("configMapKeyRef: {name: a}"), "configMapKeyRef.key: is missing");
    assert_problem(
        &env(""),
        "must have one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef and fileKeyRef",
    );
    assert_problem(&env("fieldRef: {fieldPath: status.phase}"), "\"status.phase\" is not supported");
    let both = "    env: [{name: E, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]\n";
    assert_problem(&taken(both), "valueFrom: can't be beside `value`");
    let from = |source: &str| taken(&format!("    envFrom: [{{{source}}}]\n"));
    assert_problem(&from("configMapRef: {name: b}"), missing);
    assert_problem(&from("prefix: x"), "must have one of configMapRef and secretRef");
    let files = |fields: &str| {
        let object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n---\n";
        format!("{object}{}", volume(&format!("configMap: {{{fields}}}")))
    };
    assert_problem(&files("name: b"), missing);
    assert_problem(&files("items: []"), "configMap.name: is missing");
    assert_problem(&files("name: a, items: [{key: x, path: p}]"), "ConfigMap \"a\" has no key \"x\"");
    assert_problem(&files("name: a, items: [{key: k, path: ../p}]"), "must not contain '..'");
    assert_problem(
        &files("name: a, items: [{key: k, path: p}, {key: k, path: p/z}]"),
        "is not a separate path",
    );
    assert_problem(&files("name: a, items: [{key: k, path: ./.}]"), "is not a separate path");
    assert_problem(&files("name: a, items: [{key: k, path: p, mode: 512}]"), "must be 0000 to 0777, not 512");
    assert_problem(&files("name: a, defaultMode: 0888"), "must be a file mode, not \"0888\"");
    let none = plan(&files("name: a, items: [{key: x, path: p}], optional: true"));
    assert_eq!(none.volumes[0].source, VolumeSource::Files(Vec::new()));
}

#[test]
fn values_of_objects_are_not_expanded() {
    let text = format!(
        "{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{k: '$(X) $$ $'}}\n",
        container(
            "    env: [{name: X, value: w}, {name: E, valueFrom: {configMapKeyRef: {name: a, key: k}}}]\n    command: ['$(E)']\n"
        )
    );
    let plan = plan(&text);
    let process =
        resolve_process(&plan.containers[0], &ImageDefaults::default(), &PodFacts::default()).unwrap();
    assert_eq!(process.args, ["$(X) $$ $"]);
}

/// The files of the only volume: their paths, modes and contents.
fn files_of(text: &str) -> Vec<(String, u16, String)> {
    let VolumeSource::Files(files) = &plan(text).volumes[0].source else { panic!("{text}") };
    let content = |file: &VolumeFile| String::from_utf8(file.content.bytes().to_vec()).unwrap();
    files.iter().map(|file| (file.path.clone(), file.mode, content(file))).collect()
}

const TWO_MAPS: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: a, same: a}\n---\n\
    apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\ndata: {l: b, same: b}\n---\n";

#[test]
fn a_projection_has_the_files_of_all_its_sources() {
    let projected =
        |sources: &str| format!("{TWO_MAPS}{}", volume(&format!("projected: {{sources: [{sources}]}}")));
    let file = |path: &str, content: &str| (path.to_owned(), 0o644, content.to_owned());
    // As in Kubernetes, the later one of two equal keys wins.
    assert_eq!(
        files_of(&projected("{configMap: {name: a}}, {configMap: {name: b}}")),
        [file("k", "a"), file("l", "b"), file("same", "b")]
    );
    assert_eq!(
        files_of(&projected("{configMap: {name: a}}, {configMap: {name: b, items: [{key: l, path: same}]}}")),
        [file("k", "a"), file("same", "b")]
    );
    assert!(files_of(&projected("")).is_empty());
    let item = |map: &str, key: &str, path: &str| {
        format!("{{configMap: {{name: {map}, items: [{{key: {key}, path: {path}}}]}}}}")
    };
    for other in ["x", "./x", "x/y"] {
        assert_problem(
            &projected(&format!("{}, {}", item("a", "k", "x"), item("b", "l", other))),
            "pod.yaml:15:",
        );
        assert_problem(
            &projected(&format!("{}, {}", item("a", "k", "x"), item("b", "l", other))),
            "projected.sources[1].configMap.items[0].path: ",
        );
    }
    assert_problem(
        &projected(&format!("{}, {{configMap: {{name: b}}}}", item("a", "k", "same/x"))),
        "projected.sources[1].configMap: its key \"same\" leads through another file of this volume (name the keys in `items`)",
    );
    assert_problem(
        &projected("{configMap: {name: c}}"),
        "sources[0].configMap.name: there is no ConfigMap \"c\"",
    );
    assert_problem(&projected("{}"), "sources[0]: must have one of configMap, secret and downwardAPI");
    assert_problem(
        &projected("{configMap: {name: a}, secret: {name: b}}"),
        "sources[0]: must have one of configMap, secret and downwardAPI",
    );
    let token = problems(&projected("{serviceAccountToken: {path: token}}"));
    assert!(
        token.contains("sources[0].serviceAccountToken: is not supported: no API server is here to issue it"),
        "{token}"
    );
    assert_eq!(token.lines().count(), 1, "{token}");
    assert_problem(&projected("{secret: {secretName: a}}"), "secret.secretName: is not a field of a v1 Pod");
}

#[test]
fn the_downward_api_tells_what_kubernetes_tells() {
    let down = |items: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{b: two, a: one}}, annotations: {{x.y/z: \"q\\\"\\n\"}}}}\nspec:\n  \
             volumes: [{{name: v, downwardAPI: {{items: [{items}]}}}}]\n  containers:\n  - name: main\n    image: busybox\n    \
             resources: {{limits: {{cpu: 250m, memory: 100M}}}}\n"
        )
    };
    let field = |path: &str| down(&format!("{{path: f, fieldRef: {{fieldPath: \"{path}\"}}}}"));
    let content = |text: &str| files_of(text)[0].2.clone();
    assert_eq!(content(&field("metadata.labels")), "a=\"one\"\nb=\"two\"");
    assert_eq!(content(&field("metadata.annotations")), "x.y/z=\"q\\\"\\n\"");
    assert_eq!(content(&field("metadata.labels['b']")), "two");
    assert_eq!(content(&field("metadata.labels['c']")), "");
    assert_eq!(content(&field("metadata.namespace")), "default");
    for path in ["status.podIP", "spec.nodeName", "spec.serviceAccountName", "status.hostIP"] {
        assert_problem(&field(path), &format!("fieldRef.fieldPath: \"{path}\" can't be in a file"));
    }
    assert_problem(&field("metadata.labels['a b']"), "has a key that can't be there: its name contains ' '");
    let resource = |fields: &str| down(&format!("{{path: f, resourceFieldRef: {{{fields}}}}}"));
    let of_main = |fields: &str| content(&resource(&format!("containerName: main, resource: {fields}")));
    assert_eq!(of_main("limits.cpu"), "1", "rounded up");
    assert_eq!(of_main("limits.cpu, divisor: 1m"), "250");
    assert_eq!(of_main("requests.memory, divisor: \"0\""), "100000000", "the limit is the default");
    assert_eq!(of_main("limits.memory, divisor: 1Mi"), "96");
    assert_eq!(of_main("requests.ephemeral-storage"), "0");
    let late = plan(&resource("containerName: main, resource: limits.ephemeral-storage, divisor: 1Gi"));
    let VolumeSource::Files(files) = &late.volumes[0].source else { panic!() };
    assert_eq!(
        files[0].late,
        Some(LateField::Limit(ResourceShare { resource: Resource::Disk, divisor: 1 << 30 }))
    );
    assert_problem(&resource("resource: limits.cpu"), "resourceFieldRef.containerName: is missing");
    assert_problem(
        &resource("containerName: other, resource: limits.cpu"),
        "there is no container \"other\"",
    );
    assert_problem(&resource("containerName: main"), "resourceFieldRef.resource: is missing");
    assert_problem(&resource("containerName: main, resource: limits.gpu"), "\"limits.gpu\" is not supported");
    assert_eq!(of_main("limits.hugepages-2Mi, divisor: 1Mi"), "0");
    assert_problem(
        &resource("containerName: main, resource: limits.hugepages-64Ki"),
        "\"limits.hugepages-64Ki\" is not supported",
    );
    assert_problem(
        &resource("containerName: main, resource: limits.cpu, divisor: 1Mi"),
        "resourceFieldRef.divisor: \"1Mi\" is not one of 1m, 1",
    );
    assert_problem(
        &resource("containerName: main, resource: limits.memory, divisor: 1m"),
        "resourceFieldRef.divisor: \"1m\" is not one of 1, 1k",
    );
    assert_problem(&down("{path: f}"), "items[0]: must have one of fieldRef and resourceFieldRef");
    assert_problem(&down("{fieldRef: {fieldPath: metadata.name}}"), "items[0].path: is missing");
    let whole = container("    env: [{name: E, valueFrom: {fieldRef: {fieldPath: metadata.labels}}}]\n");
    assert_problem(&whole, "fieldRef.fieldPath: \"metadata.labels\" can't be in a variable");
}

#[test]
fn a_claim_is_one_of_the_file_or_of_the_host() {
    let claim = |modes: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: c}}\nspec: {{accessModes: [{modes}], resources: {{requests: {{storage: 1Gi}}}}}}\n---\n"
        )
    };
    let source = |text: &str| plan(text).volumes[0].source.clone();
    let named = volume("persistentVolumeClaim: {claimName: c}");
    assert_eq!(
        source(&named),
        VolumeSource::Claim { name: "c".parse().unwrap(), make: None, access: Access::ReadWrite }
    );
    let VolumeSource::Claim { make: Some(make), access, .. } =
        source(&format!("{}{named}", claim("ReadOnlyMany")))
    else {
        panic!()
    };
    assert_eq!((make.storage_bytes, access), (1 << 30, Access::ReadOnly));
    let mounted = format!(
        "{}{}",
        claim("ReadOnlyMany"),
        named.replace("busybox\n", "busybox\n    volumeMounts: [{name: v, mountPath: /a}]\n")
    );
    assert_eq!(plan(&mounted).containers[0].mounts[0].access, Access::ReadOnly);
    assert_problem(
        &volume("persistentVolumeClaim: {claimName: A}"),
        "persistentVolumeClaim.claimName: \"A\" contains 'A'",
    );
    assert_problem(&volume("persistentVolumeClaim: {}"), "persistentVolumeClaim.claimName: is missing");
    let block = claim("ReadWriteOnce").replace("{accessModes", "{volumeMode: Block, accessModes");
    assert_problem(
        &format!("{block}{named}"),
        "c has `volumeMode: Block`, and block devices are not given to pods",
    );
}

#[test]
fn a_volume_for_the_pod_alone_has_a_size() {
    let storage = |text: &str| {
        volume(&format!(
            "ephemeral: {{volumeClaimTemplate: {{spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: {text}}}}}}}}}}}"
        ))
    };
    assert_eq!(plan(&storage("2Gi")).volumes[0].source, VolumeSource::Disk { size_bytes: Some(2 << 30) });
    assert_problem(&storage("0"), "requests.storage: \"0\" is no size");
    assert_problem(&storage("512"), "\"512\" is 512 bytes, 1Mi to 1Ti are possible");
    assert_problem(
        &volume("ephemeral: {}"),
        "ephemeral.volumeClaimTemplate.spec.resources.requests.storage: is missing",
    );
    assert_problem(&volume("ephemeral: {}"), "volumeClaimTemplate.spec.accessModes: is missing");
    let odd = storage("1Gi").replace("[ReadWriteOnce]", "[ReadWriteonce]");
    assert_problem(&odd, "spec.accessModes[0]: \"ReadWriteonce\" is not one of ReadWriteOnce, ");
    let copied = "ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], dataSource: {kind: x, name: y}, resources: {requests: {storage: 1Gi}}}}}";
    assert_problem(&volume(copied), "spec.dataSource: is not supported: no other volume is here");
}

#[test]
fn an_image_is_a_volume() {
    let image = |fields: &str| volume(&format!("image: {{{fields}}}"));
    let policy = |text: &str| match &plan(text).volumes[0].source {
        VolumeSource::Image { pull_policy, .. } => *pull_policy,
        other => panic!("{other:?}"),
    };
    assert_eq!(policy(&image("reference: tools")), PullPolicy::Always);
    assert_eq!(policy(&image("reference: 'tools:1'")), PullPolicy::IfNotPresent);
    assert_problem(&image("reference: Tools"), "image.reference: ");
    assert_problem(&image(""), "image.reference: is missing");
    assert_problem(&image("reference: a, pullPolicy: never"), "image.pullPolicy: \"never\" is not one of");
}

#[test]
fn the_examples_of_volumes_are_valid() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.file_name().unwrap().to_string_lossy().starts_with("volume-") {
            let text = std::fs::read_to_string(&entry).unwrap();
            assert!(!plan(&text).volumes.is_empty(), "{}", entry.display());
            count += 1;
        }
    }
    assert!(count >= 5, "{count}");
}
