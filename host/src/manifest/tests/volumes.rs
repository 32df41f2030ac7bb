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
    assert_problem(&empty("medium: HugePages"), "emptyDir.medium: \"HugePages\" is not supported");
    assert_problem(&empty("sizeLimit: 500"), "\"500\" is 500 bytes, 1Mi to 1Ti are possible");
    assert_problem(&empty("sizeLimit: 2Ti"), "1Mi to 1Ti are possible");
    assert_eq!(plan(&empty("sizeLimit: 0")).volumes[0].source, VolumeSource::Disk { size_bytes: None });
    assert_problem(&volume("nfs: {server: x}"), "spec.volumes[0].nfs: is not supported: hostPath, emptyDir");
    assert_eq!(problems(&volume("nfs: {server: x}")).lines().count(), 1);
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
    let whole = plan(&mount("{name: v, mountPath: /a, subPath: .}"));
    assert_eq!(whole.containers[0].mounts[0].sub_path, None);
    let many: String = (0..65).map(|n| format!("{{name: v, mountPath: /{n}}}, ")).collect();
    assert_problem(&mount(&many), "volumeMounts: has 65 entries, at most 64");
}

#[test]
fn what_is_expanded_leads_nowhere_else_either() {
    let mount = "    volumeMounts: [{name: v, mountPath: /a, subPathExpr: x/$(UP)}]\n    env: [{name: UP, value: ..}]\n";
    let text = pod(&format!("  volumes: [{{name: v, emptyDir: {{}}}}]\n{CONTAINER}{mount}"));
    assert_problem(&text, "volumeMounts[0].subPathExpr: \"x/..\" must not contain '..'");
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
    assert_problem(&beside("apiVersion: v1\nkind: Service\n"), "a document of kind \"Service\" begins here");
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
    assert_problem(&env(""), "must have one of configMapKeyRef, secretKeyRef and fieldRef");
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
