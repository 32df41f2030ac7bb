//! Manifests as programs write them: what API servers of several kinds answer with, and what templates render. Beside each stands what is
//! said of it: the fields that change nothing, or all its problems.

use super::*;
use crate::manifest::input::{self, Accepts, Source};
use std::path::{Path, PathBuf};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manifest/tests/corpus")
}

fn said(name: &str) -> String {
    let text = std::fs::read(directory().join(format!("{name}.yaml"))).unwrap();
    match parse_all(&text, "pod.yaml") {
        Ok(parsed) => {
            parsed.ignored.iter().map(|ignored| format!("{ignored}\n")).chain(["runs\n".to_owned()]).collect()
        }
        Err(problems) => format!("{problems}\n"),
    }
}

#[test]
fn manifests_of_programs_run_or_are_refused_for_what_they_ask() {
    let mut names: Vec<String> = std::fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".yaml").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        let expected = directory().join(format!("{name}.txt"));
        let said = said(&name);
        if std::env::var_os("MAGIKVM_BLESS").is_some() {
            std::fs::write(&expected, &said).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&expected).unwrap_or_default(), said, "{name}");
    }
}

/// What is said of a whole input: of each Pod whether it runs and what it ignores, then what is ignored beside the Pods, then all problems.
fn said_of_input(text: &[u8]) -> String {
    let source = Source { origin: "pod.yaml".to_owned(), bytes: text.to_vec(), accepts: Accepts::Everything };
    let read = input::read(&[source], &mut |prefix, _| Some(format!("{prefix}12345")));
    let problems: Vec<String> = read.problems().iter().map(|problems| format!("{problems}\n")).collect();
    let pods = read.pods.into_iter().map(|pod| {
        let verdict = if pod.plan.is_some() { "runs" } else { "does not run" };
        let ignored: String = pod.ignored.iter().map(|ignored| format!("  {ignored}\n")).collect();
        format!("{} {verdict}\n{ignored}", pod.name)
    });
    let beside = read.files.iter().flat_map(|file| &file.ignored).map(|ignored| format!("{ignored}\n"));
    pods.chain(beside).chain(problems).collect()
}

/// Manifests in the styles of documentation, blogs and charts; each also with the line ends and the byte order mark of other systems.
#[test]
fn manifests_as_people_publish_them_run_or_are_refused_for_what_they_ask() {
    let published = directory().join("published");
    let mut names: Vec<String> = std::fs::read_dir(&published)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".yaml").map(str::to_owned))
        .collect();
    names.sort();
    assert!(names.len() >= 35, "{names:?}");
    for name in names {
        let text = std::fs::read_to_string(published.join(format!("{name}.yaml"))).unwrap();
        let expected = published.join(format!("{name}.txt"));
        let said = said_of_input(text.as_bytes());
        if std::env::var_os("MAGIKVM_BLESS").is_some() {
            std::fs::write(&expected, &said).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&expected).unwrap_or_default(), said, "{name}");
        let end = if text.starts_with('{') { "" } else { "\n---\n...\n" };
        for other in [text.replace('\n', "\r\n"), format!("\u{feff}{text}"), format!("{text}{end}")] {
            assert_eq!(said_of_input(other.as_bytes()), said, "{name}: {other:?}");
        }
    }
}

#[test]
fn what_an_admission_controller_adds_is_not_in_the_plan() {
    let text = std::fs::read_to_string(directory().join("kubeadm.yaml")).unwrap();
    let found = plan(&text);
    let volumes: Vec<&str> = found.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(volumes, ["cache"]);
    let [container] = &found.containers[..] else { panic!() };
    let mounts: Vec<(usize, &str)> =
        container.mounts.iter().map(|mount| (mount.volume, mount.path.as_str())).collect();
    assert_eq!(mounts, [(0, "/cache")]);
    assert!(!found.manifest.to_string().contains("kube-api-access"), "{}", found.manifest);
    assert_eq!(container.env[0].field, Some(LateField::PodIp));
    assert_eq!(container.env[1].field, Some(LateField::NodeName));
    assert_eq!((container.env[2].name.as_str(), container.env[2].value.as_str()), ("ACCOUNT", "web"));
    // A problem behind the volume has the volume's own index.
    let wrong =
        text.replace("  - emptyDir: {}\n    name: cache", "  - emptyDir: {medium: Tape}\n    name: cache");
    assert_problem(&wrong, "spec.volumes[1].emptyDir.medium: \"Tape\" is not supported");
}

#[test]
fn only_what_an_admission_controller_adds_is_left_out() {
    let text = std::fs::read_to_string(directory().join("old.yaml")).unwrap();
    assert_eq!(plan(&text).volumes.len(), 1);
    // Mounted elsewhere, or in the file, it is what the user wants.
    assert_problem(
        &text.replace("/var/run/secrets/kubernetes.io/serviceaccount", "/token"),
        "there is no Secret \"default-token-x5k2j\" in this file",
    );
    let own = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: default-token-x5k2j}\ndata: {a: YQ==}\n";
    assert_eq!(plan(&format!("{text}{own}")).volumes.len(), 2);
    // Two volumes of one name are a mistake, whatever the name.
    let text = std::fs::read_to_string(directory().join("aks.yaml")).unwrap();
    assert_problem(
        &format!("{text}  - name: azure-identity-token\n"),
        "spec.volumes[0].projected.sources[0].serviceAccountToken: is not supported",
    );
}

#[test]
fn a_field_at_the_default_of_an_api_server_is_not_worth_a_word() {
    let text = "  restartPolicy: Always\n  dnsPolicy: ClusterFirst\n  schedulerName: default-scheduler\n  priority: 0\n  \
                preemptionPolicy: PreemptLowerPriority\n  serviceAccountName: default\n  serviceAccount: default\n  \
                enableServiceLinks: true\n  securityContext: {}\n  terminationGracePeriodSeconds: 30\n  hostUsers: true\n  \
                setHostnameAsFQDN: false\n  automountServiceAccountToken: false\n  os: {name: linux}\n  containers:\n  - name: main\n    \
                image: busybox:1\n    imagePullPolicy: IfNotPresent\n    terminationMessagePath: /dev/termination-log\n    \
                terminationMessagePolicy: File\n    resources: {}\n    ports: [{containerPort: 80, protocol: TCP}]\n    \
                env: [{name: A, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}]\n    \
                volumeMounts: [{name: v, mountPath: /v, mountPropagation: None, recursiveReadOnly: Disabled}]\n  \
                volumes: [{name: v, hostPath: {path: /srv, type: ''}}]\n";
    let parsed = parse_all(pod(text).as_bytes(), "x").unwrap();
    assert_eq!(parsed.ignored, []);
}

#[test]
fn lists_are_their_items() {
    let one = plan(SMALL).manifest;
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "metadata": { "resourceVersion": "" }, "items": [one] });
    assert_eq!(plan(&list.to_string()).id.to_string(), "default/web");
    let mut bare = one.clone();
    bare.as_object_mut().unwrap().retain(|key, _| key != "kind" && key != "apiVersion");
    let typed = serde_json::json!({ "apiVersion": "v1", "kind": "PodList", "items": [bare] });
    assert_eq!(plan(&typed.to_string()).id.to_string(), "default/web");
    assert_eq!(
        plan(&format!(
            "{}\n{}",
            list,
            serde_json::json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "c" }
            })
        ))
        .id
        .to_string(),
        "default/web"
    );
    let mut other = one.clone();
    other["metadata"]["name"] = "other".into();
    let two = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [one, other] });
    assert_problem(&two.to_string(), "a second Pod begins here (put it into a separate file)");
    let nested = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [list] });
    assert_eq!(plan(&nested.to_string()).id.to_string(), "default/web");
    let deep = (0..5)
        .fold(list, |list, _| serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [list] }));
    assert_problem(
        &deep.to_string(),
        "is a list within more than 4 lists (put its items into the outermost list)",
    );
    let beta = serde_json::json!({ "apiVersion": "v1beta1", "kind": "List", "items": {} , "x": 1 });
    for expected in
        ["apiVersion: must be v1", "items: must be a list of objects", "x: is not a field of a v1 List"]
    {
        assert_problem(&beta.to_string(), expected);
    }
    assert_problem("apiVersion: v1\nkind: List\nitems:\n", "holds no Pod");
}

#[test]
fn texts_of_several_writers_are_the_same_manifest() {
    for text in [
        format!("\u{feff}{SMALL}"),
        SMALL.replace('\n', "\r\n"),
        format!("# a comment\n---\n# another\n---\n{SMALL}...\n---\n# the end\n"),
        format!("--- # a comment\n{SMALL}"),
    ] {
        assert_eq!(plan(&text).containers, plan(SMALL).containers, "{text:?}");
    }
    assert_problem(&SMALL.replace("  containers", "\tcontainers"), "is not valid YAML");
    // kubectl's reader takes this tab.
    assert_eq!(plan(&SMALL.replace("name: web", "name:\tweb")).id.to_string(), "default/web");
}
