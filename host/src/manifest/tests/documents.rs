//! Tests of inputs of several documents and files.

use super::*;
use crate::manifest::input::{Accepts, Input, Named, Source, names, read};

fn source(origin: &str, text: &str) -> Source {
    Source { origin: origin.to_owned(), bytes: text.as_bytes().to_vec(), accepts: Accepts::Everything }
}

fn read_all(files: &[(&str, &str)]) -> Input {
    let sources: Vec<Source> = files.iter().map(|(origin, text)| source(origin, text)).collect();
    read(&sources, &mut |_, prefix| generated_name(prefix, std::iter::repeat(0)))
}

fn ids(files: &[(&str, &str)]) -> Vec<String> {
    let read = read_all(files).into_manifests().unwrap_or_else(|problems| panic!("{problems}"));
    read.pods.iter().map(|parsed| parsed.plan.id.to_string()).collect()
}

#[track_caller]
fn assert_refused(files: &[(&str, &str)], expected: &str) {
    let found = match read_all(files).into_manifests() {
        Err(problems) => problems.to_string(),
        Ok(read) => panic!("accepted: {read:?}"),
    };
    assert!(found.contains(expected), "expected: {expected}\nfound: {found}");
}

fn named(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - name: main\n    image: busybox\n{spec}"
    )
}

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {k: v}\n";
const ENV: &str = "    env: [{name: E, valueFrom: {configMapKeyRef: {name: a, key: k}}}]\n";

#[test]
fn pods_of_all_documents_and_files_are_kept_in_order() {
    let (one, two, three) = (named("one", ""), named("two", ""), named("three", ""));
    assert_eq!(
        ids(&[("a.yaml", &format!("{one}---\n{two}")), ("b.yaml", &three)]),
        ["default/one", "default/two", "default/three"]
    );
    let json = |text: &str| plan(text).manifest.to_string();
    let values = format!("{}\n{}\n\n{}", json(&one), json(&two), json(&three));
    assert_eq!(ids(&[("x.json", &values)]).len(), 3);
    // As programs write them to one file.
    assert_eq!(ids(&[("x.json", &format!("{}\n---\n{}", json(&one), json(&two)))]).len(), 2);
    let other = one.replace("{name: one}", "{name: one, namespace: team}");
    assert_eq!(ids(&[("a.yaml", &one), ("b.yaml", &other)]), ["default/one", "team/one"]);
}

#[test]
fn a_pod_can_use_objects_of_another_file() {
    let pod = named("web", ENV);
    for files in [[("a", MAP), ("b", pod.as_str())], [("b", pod.as_str()), ("a", MAP)]] {
        let read = read_all(&files).into_manifests().unwrap();
        assert_eq!(read.pods[0].plan.containers[0].env[0].value, "v");
    }
    // Each Pod sees the objects of its namespace, and those that say none.
    let elsewhere = pod.replace("{name: web}", "{name: web, namespace: team}");
    let team = MAP.replace("{name: a}", "{name: a, namespace: team}").replace("k: v", "k: w");
    let read =
        read_all(&[("a", MAP), ("b", &team), ("c", &pod), ("d", &elsewhere)]).into_manifests().unwrap();
    let values: Vec<&str> =
        read.pods.iter().map(|parsed| parsed.plan.containers[0].env[0].value.as_str()).collect();
    assert_eq!(values, ["v", "w"]);
    let nobody = MAP.replace("{name: a}", "{name: b, namespace: other}");
    assert_refused(
        &[("a", &nobody), ("c", &pod), ("d", &elsewhere), ("m", MAP)],
        "a:3:32: ConfigMap.metadata.namespace: is \"other\", and no Pod is in it",
    );
}

#[test]
fn what_is_there_twice_is_refused_with_both_places() {
    let pod = named("web", "");
    assert_refused(
        &[("a.yaml", &format!("{MAP}---\n{pod}")), ("b.yaml", MAP)],
        "b.yaml:1:1: ConfigMap: there is another ConfigMap \"a\" (the other one is at a.yaml:1:1)",
    );
    let explicit = MAP.replace("{name: a}", "{name: a, namespace: default}");
    assert_refused(&[("a", MAP), ("b", &explicit), ("c", &pod)], "there is another ConfigMap \"a\"");
    assert_refused(
        &[("a.yaml", &pod), ("b.yaml", &format!("# a comment\n{pod}"))],
        "b.yaml:2:1: metadata.name: there is another Pod \"default/web\" (the other one is at a.yaml:1:1)",
    );
}

#[test]
fn problems_of_every_file_and_pod_are_reported() {
    let broken = named("one", "    imagee: x\n");
    let problems = read_all(&[
        ("a.yaml", &format!("{broken}---\n{}", named("two", "    tty: 5\n"))),
        ("b.yaml", "a: [b"),
        ("c.yaml", &named("three", "")),
    ])
    .into_manifests()
    .unwrap_err()
    .to_string();
    let lines: Vec<&str> = problems.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "a.yaml:8:5: spec.containers[0].imagee: is not a field of a v1 Pod (did you mean `image`?)",
            "a.yaml:17:10: spec.containers[0].tty: must be true or false, not \"5\"",
        ]
    );
    assert!(
        lines.len() == 3 && lines[2].starts_with("b.yaml:") && lines[2].contains("is not valid YAML"),
        "{problems}"
    );
}

#[test]
fn workloads_are_refused_with_the_line_of_their_pod() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 3\n  template:\n    metadata: {}\n";
    assert_refused(
        &[("d.yaml", deployment)],
        "d.yaml:2:7: kind: a Deployment does not run here (make a Pod of its `spec.template`, on line 6: its `metadata`",
    );
    for kind in ["StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job"] {
        let text = deployment.replace("Deployment", kind);
        assert_refused(
            &[("d.yaml", &text)],
            &format!("kind: a {kind} does not run here (make a Pod of its `spec.template`, on line 6"),
        );
    }
    let cron = "apiVersion: batch/v1\nkind: CronJob\nspec:\n  jobTemplate:\n    spec:\n      template: {}\n";
    let pod = named("web", "");
    assert_refused(
        &[("p", &pod), ("c", cron)],
        "a CronJob does not run here (make a Pod of its `spec.jobTemplate.spec.template`, on line 6",
    );
    let list =
        r#"{"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [{"metadata": {"name": "x"}}]}"#;
    assert_refused(&[("l", list)], "a Deployment does not run here");
}

#[test]
fn documents_of_a_cluster_are_ignored_beside_a_pod_and_nothing_alone() {
    let others = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: sa}\n---\n\
                  apiVersion: monitoring.example.com/v1\nkind: ServiceMonitor\nmetadata: {name: m}\n---\n\
                  apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\n";
    let pod = named("web", "");
    let read = read_all(&[("a", others), ("b", &pod)]).into_manifests().unwrap();
    let said: Vec<String> = read.ignored.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with(
            "ignored Service \"web\", ServiceAccount \"sa\", ServiceMonitor \"m\": only Pods run here"
        ),
        "{said:?}"
    );
    assert!(
        said[1].starts_with("ignored NetworkPolicy \"deny\": the rules of a NetworkPolicy are not enforced"),
        "{said:?}"
    );
    assert_refused(&[("a", others)], "a: holds no Pod: it has only Service \"web\", ServiceAccount \"sa\"");
    assert_refused(
        &[("a", MAP), ("b", "")],
        "the input of 2 files: holds no Pod: it has only ConfigMap \"a\"",
    );
    assert_refused(
        &[("a", &format!("{pod}---\napiVersion: v1\nkind: Confgmap\n"))],
        "(did you mean ConfigMap?)",
    );
}

#[test]
fn claims_are_read_and_kept() {
    let claim = |spec: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: data, labels: {{a: b}}}}\nspec:\n{spec}"
        )
    };
    let pod = named("web", "");
    let good = claim(
        "  accessModes: [ReadWriteOnce, ReadOnlyMany]\n  resources: {requests: {storage: 8Gi}}\n  storageClassName: fast\n  volumeMode: Filesystem\n",
    );
    let read = read_all(&[("c", &good), ("p", &pod)]).into_manifests().unwrap();
    let [found] = &read.claims[..] else { panic!("{:?}", read.claims) };
    assert_eq!((found.name.as_str(), found.namespace.is_none()), ("data", true));
    assert_eq!(
        found.claim,
        Claim {
            access_modes: vec![AccessMode::ReadWriteOnce, AccessMode::ReadOnlyMany],
            storage_bytes: 8 << 30,
            volume_mode: VolumeMode::Filesystem,
            storage_class_name: Some("fast".to_owned()),
            labels: [("a".to_owned(), "b".to_owned())].into(),
        }
    );
    let shown = read_all(&[("c", &good), ("p", &pod)]);
    assert_eq!(shown.files[0].objects, ["PersistentVolumeClaim \"data\""]);
    for (spec, expected) in [
        ("  accessModes: []\n", "spec.accessModes: has 0 entries"),
        ("  accessModes: [ReadWriteOnc]\n", "accessModes[0]: \"ReadWriteOnc\" is not one of"),
        ("  accessModes: [ReadWriteOncePod, ReadWriteOnce]\n", "can't be beside another mode"),
        ("  volumeMode: Blok\n", "(did you mean Block?)"),
        ("  resources: {requests: {storage: 1}}\n", "is 1 bytes, 1Mi to 16Ti are possible"),
        ("  resources: {requests: {cpu: 1}}\n", "a claim asks for `storage` only"),
        ("  storageClasName: x\n", "(did you mean storageClassName?)"),
        ("  selector: {}\n", "spec.selector: is not supported"),
        ("  accessModes: [ReadWriteOnce]\n", "spec.resources.requests.storage: is missing"),
    ] {
        assert_refused(&[("c.yaml", &claim(spec)), ("p", &pod)], expected);
    }
    assert_refused(
        &[("c.yaml", "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: a}\n"), ("p", &pod)],
        "PersistentVolumeClaim.spec: is missing",
    );
}

#[test]
fn options_take_only_objects_of_their_kind() {
    let only = |text: &str| {
        let accepts = Accepts::Only { kind: ObjectKind::ConfigMap, option: "--configmap" };
        let objects = Source { accepts, ..source("maps.yaml", text) };
        read(&[source("pod.yaml", &named("web", ENV)), objects], &mut |_, _| None).into_manifests()
    };
    assert_eq!(only(MAP).unwrap().pods[0].plan.containers[0].env[0].value, "v");
    let said = only(&format!("{MAP}---\n{}", named("other", ""))).unwrap_err().to_string();
    let expected = "maps.yaml:7:7: kind: must be ConfigMap; Pod \"other\" is not one (pass this file without `--configmap`)";
    assert_eq!(said, expected);
}

#[test]
fn a_name_is_generated_where_none_is_written() {
    let nameless = named("x", "").replace("{name: x}", "{generateName: web-, namespace: team}");
    let mut asked = Vec::new();
    let read = read(&[source("a", &nameless)], &mut |namespace, prefix| {
        asked.push(format!("{namespace} {prefix}"));
        Some("web-x2x4z".to_owned())
    });
    let read = read.into_manifests().unwrap();
    assert_eq!(asked, ["team web-"]);
    assert_eq!((read.pods[0].plan.id.to_string().as_str(), read.pods[0].generated), ("team/web-x2x4z", true));
    assert_eq!(read.pods[0].plan.hostname, "web-x2x4z");
    assert!(read.pods[0].ignored.is_empty(), "{:?}", read.pods[0].ignored);
    let upper = nameless.replace("web-", "Web-");
    assert_refused(&[("a", &upper)], "a:3:26: metadata.name: \"Web-bbbbb\" contains 'W'");
}

#[test]
fn pull_secrets_are_checked_and_never_shown() {
    let pod = named("web", "").replace("spec:\n", "spec:\n  imagePullSecrets: [{name: login}]\n");
    let secret = |fields: &str| format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: login}}\n{fields}");
    let config = secret(
        "type: kubernetes.io/dockerconfigjson\nstringData: {.dockerconfigjson: '{\"auths\": {\"r.example\": {\"username\": \"me\", \"password\": \"hunter2\"}}}'}\n",
    );
    let read = read_all(&[("p", &pod), ("s", &config)]).into_manifests().unwrap();
    let plan = &read.pods[0].plan;
    assert_eq!(plan.pull_secrets.len(), 1);
    assert!(!format!("{plan:?}").contains("hunter2") && !plan.manifest.to_string().contains("hunter2"));
    // A missing one hinders nothing, as on a cluster.
    let read = read_all(&[("p", &pod)]).into_manifests().unwrap();
    assert!(read.pods[0].ignored[0].why.starts_with("there is no such Secret beside the Pod"), "{read:?}");
    for (fields, expected) in [
        (
            "stringData: {.dockerconfigjson: '{}'}\n",
            "Secret \"login\" has the type \"Opaque\", not kubernetes.io/dockerconfigjson",
        ),
        ("type: kubernetes.io/dockercfg\n", "Secret \"login\" has no key \".dockercfg\""),
        ("type: kubernetes.io/dockercfg\nstringData: {.dockercfg: 'hunter2'}\n", "line 1, column 1"),
    ] {
        assert_refused(&[("p", &pod), ("s", &secret(fields))], expected);
        let said = read_all(&[("p", &pod), ("s", &secret(fields))]).into_manifests().unwrap_err();
        assert!(!said.to_string().contains("hunter2"), "{said}");
    }
}

#[test]
fn names_are_read_whatever_else_is_wrong() {
    let broken = named("one", "    imagee: x\n");
    let text = format!(
        "{broken}---\n{}---\napiVersion: apps/v1\nkind: Deployment\n",
        named("two", "").replace("{name: two}", "{generateName: two-}")
    );
    let found = names(&[source("a", &text)]).unwrap();
    let Named::Pod(one) = &found[0] else { panic!("{found:?}") };
    assert_eq!(
        (one.to_string().as_str(), &found[1..]),
        ("default/one", &[Named::Generated("two-".to_owned())][..])
    );
    for (text, expected) in [
        ("a: [", "is not valid YAML"),
        ("apiVersion: apps/v1\nkind: Deployment\n", "holds no Pod"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", "metadata.name: is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}\n", "metadata.name: \"../x\" contains"),
    ] {
        let said = names(&[source("a", text)]).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn inputs_are_bounded() {
    let pods: String = (0..300).map(|number| format!("{}---\n", named(&format!("p{number}"), ""))).collect();
    assert_refused(&[("a", &pods)], "a: holds more than 256 Pods (run them in several parts)");
    let maps: String = (0..4100)
        .map(|number| format!("{}---\n", MAP.replace("name: a", &format!("name: m{number}"))))
        .collect();
    assert_refused(
        &[("a", &maps), ("b", &named("web", ""))],
        "holds more than 4096 ConfigMaps, Secrets and claims",
    );
    let value = "x".repeat(900_000);
    let map = MAP.replace("k: v", &format!("k: {value}"));
    let volumes = "  volumes: [{name: v, configMap: {name: a}}]\n";
    let pods: String =
        (0..100).map(|number| format!("{}{volumes}---\n", named(&format!("p{number}"), ""))).collect();
    assert_refused(
        &[("a", &map), ("b", &pods)],
        "has Pods with more than 67108864 bytes of ConfigMaps and Secrets",
    );
    let wide = format!("[{}]", "x,".repeat(99_000));
    let files: Vec<(&str, &str)> = (0..6).map(|_| ("w", wide.as_str())).collect();
    assert_refused(&files, "holds more than 500000 values");
}

proptest! {
    #[test]
    fn any_mixture_of_documents_is_read_or_refused(picks in prop::collection::vec(0..9usize, 0..12), cut in 0..400usize) {
        let documents = [
            SMALL.to_owned(), MAP.to_owned(), named("two", ENV), "kind: List\napiVersion: v1\nitems: [{}]\n".to_owned(),
            "a: b\n".to_owned(), "kind: Service\n".to_owned(), "{}\n".to_owned(), "- x\n".to_owned(),
            "kind: PersistentVolumeClaim\nmetadata: {name: c}\nspec: {resources: {requests: {storage: ~}}}\n".to_owned(),
        ];
        let text = picks.iter().map(|&pick| documents[pick].clone()).collect::<Vec<_>>().join("---\n");
        let text: String = text.chars().take(cut * 4).collect();
        let read = read_all(&[("a", &text), ("b", MAP)]);
        let count = read.pods.len();
        match read.into_manifests() {
            Ok(read) => prop_assert!(read.pods.len() == count && count > 0),
            Err(problems) => prop_assert!(!problems.to_string().is_empty()),
        }
    }
}
