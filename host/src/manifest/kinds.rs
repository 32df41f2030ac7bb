//! The kinds of documents, and what becomes of each: it runs, the Pods use it, it is refused by name, or it is ignored beside a Pod.

use super::fields::did_you_mean;
use super::node::{Entry, Node, Value};
use super::objects::ObjectKind;
use super::problem::{FieldPlace, Mark, ProblemCollector, quote};
use super::walk::{get, text};

/// Workloads that make Pods of a template, and where the template is.
const WORKLOADS: [(&str, &str); 8] = [
    ("Deployment", "spec.template"),
    ("StatefulSet", "spec.template"),
    ("DaemonSet", "spec.template"),
    ("ReplicaSet", "spec.template"),
    ("ReplicationController", "spec.template"),
    ("Job", "spec.template"),
    ("CronJob", "spec.jobTemplate.spec.template"),
    ("PodTemplate", "template"),
];

/// Kinds of Kubernetes itself that only configure a cluster. Kinds of groups with a dot in their name need not be listed.
const CLUSTER: [&str; 27] = [
    "Service",
    "ServiceAccount",
    "Namespace",
    "Ingress",
    "IngressClass",
    "NetworkPolicy",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
    "PodSecurityPolicy",
    "CustomResourceDefinition",
    "PersistentVolume",
    "StorageClass",
    "PriorityClass",
    "RuntimeClass",
    "LimitRange",
    "ResourceQuota",
    "Endpoints",
    "EndpointSlice",
    "Node",
    "Event",
    "Lease",
    "ControllerRevision",
    "Binding",
];

/// Why documents are ignored.
pub(super) const WHY: &str = "only Pods run here, with ConfigMaps, Secrets and PersistentVolumeClaims beside them, and nothing but a cluster has a use for the rest";
/// The same for volumes that claims of a cluster would be bound to.
pub(super) const WHY_VOLUME: &str = "a PersistentVolumeClaim has a volume of its own here, which is empty at first; use a hostPath volume for files of the host, or `magikvm volume import`";
/// The same for documents that protect a Pod on a cluster.
pub(super) const WHY_POLICY: &str = "the rules of a NetworkPolicy are not enforced; the annotation magikvm.dev/egress-allow restricts what a pod may reach";

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Pod,
    Object(ObjectKind),
    /// It makes Pods of a template at this path, on this line.
    Workload {
        template: &'static str,
        line: Option<usize>,
    },
    /// It has no effect here, for this reason.
    Ignored(&'static str),
    Unknown,
    /// It says no kind.
    Nameless,
}

/// The kind that a document claims.
pub(super) fn kind(document: &Node) -> Option<&str> {
    text(get(map(document)?, "kind")?)
}

fn map(node: &Node) -> Option<&[Entry]> {
    match &node.value {
        Value::Map(entries) => Some(entries),
        Value::Scalar { .. } | Value::List(_) => None,
    }
}

/// The node at a path of keys.
fn at<'a>(node: &'a Node, path: &str) -> Option<&'a Node> {
    path.split('.').try_fold(node, |node, key| get(map(node)?, key))
}

/// A text at a path of keys.
pub(super) fn text_at<'a>(node: &'a Node, path: &str) -> Option<&'a str> {
    text(at(node, path)?).filter(|text| !text.is_empty())
}

fn line_of(document: &Node, path: &str) -> Option<usize> {
    let (parent, key) =
        path.rsplit_once('.').map_or((Some(document), path), |(above, key)| (at(document, above), key));
    map(parent?)?.iter().find(|entry| entry.key == key).map(|entry| entry.key_mark.line)
}

pub(super) fn meaning(document: &Node) -> Meaning {
    let Some(kind) = kind(document) else { return Meaning::Nameless };
    let group =
        text_at(document, "apiVersion").and_then(|version| version.split_once('/')).map(|(group, _)| group);
    let is_of_others = group.is_some_and(|group| group.contains('.'));
    if !is_of_others {
        if kind == "Pod" {
            return Meaning::Pod;
        }
        if let Some(kind) = ObjectKind::named(kind) {
            return Meaning::Object(kind);
        }
    }
    let listed = WORKLOADS.iter().find(|(name, _)| *name == kind && !is_of_others);
    let template = listed.map(|(_, template)| *template).or_else(|| {
        // Resources of other groups that run Pods as a Deployment does.
        at(document, "spec.template.spec.containers").is_some().then_some("spec.template")
    });
    match template {
        Some(template) => Meaning::Workload { template, line: line_of(document, template) },
        None if kind == "NetworkPolicy" => Meaning::Ignored(WHY_POLICY),
        None if kind == "PersistentVolume" => Meaning::Ignored(WHY_VOLUME),
        None if is_of_others || CLUSTER.contains(&kind) => Meaning::Ignored(WHY),
        None => Meaning::Unknown,
    }
}

/// Whether this kind is of `v1`, and read here.
pub(super) fn is_core(kind: &str) -> bool {
    kind == "Pod" || ObjectKind::named(kind).is_some()
}

/// The place of a document's kind.
pub(super) fn place(document: &Node) -> FieldPlace {
    let mark = at(document, "kind").map_or(document.mark, |kind| kind.mark);
    FieldPlace { path: "kind".to_owned(), mark }
}

/// `Service "web"`, for messages.
pub(super) fn named(document: &Node) -> String {
    let kind = kind(document).map_or_else(|| "something without a kind".to_owned(), short);
    match text_at(document, "metadata.name").or_else(|| text_at(document, "metadata.generateName")) {
        Some(name) => format!("{kind} {}", quote(name)),
        None => kind,
    }
}

/// A kind without quotes if it is a word.
fn short(kind: &str) -> String {
    let is_word = kind.len() <= 63 && kind.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_word { kind.to_owned() } else { quote(kind) }
}

/// Reports a workload, and where its Pod is.
pub(super) fn refuse_workload(
    document: &Node,
    template: &str,
    line: Option<usize>,
    report: &mut ProblemCollector,
) {
    let kind = short(kind(document).unwrap_or_default());
    let line = line.map_or_else(String::new, |line| format!(", on line {line}"));
    let hint = format!("make a Pod of its `{template}`{line}: its `metadata` and `spec`, below `kind: Pod`");
    report.add(&place(document), format!("a {kind} does not run here"), hint);
}

/// Reports a kind that is no kind of Kubernetes.
pub(super) fn refuse_unknown(document: &Node, report: &mut ProblemCollector) {
    let kind = kind(document).unwrap_or_default();
    let known = ["Pod", "List"].into_iter().chain(ObjectKind::ALL.map(ObjectKind::as_str));
    let known = known.chain(WORKLOADS.map(|(name, _)| name)).chain(CLUSTER);
    let hint = match did_you_mean(kind, known) {
        hint if hint.is_empty() => {
            "only Pods run here, with ConfigMaps, Secrets and PersistentVolumeClaims beside them".to_owned()
        }
        hint => hint,
    };
    report.add(&place(document), format!("must be Pod, not {}", quote(kind)), hint);
}

/// A position for "the first is at".
pub(super) fn position(origin: &str, mark: Mark) -> String {
    format!("{origin}:{}:{}", mark.line, mark.column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::yaml;

    fn meaning_of(text: &str) -> Meaning {
        meaning(&yaml::parse(text).unwrap()[0])
    }

    #[test]
    fn kinds_mean_what_their_groups_say() {
        assert_eq!(meaning_of("apiVersion: v1\nkind: Pod"), Meaning::Pod);
        assert_eq!(meaning_of("kind: Secret"), Meaning::Object(ObjectKind::Secret));
        let workload = |line| Meaning::Workload { template: "spec.template", line };
        assert_eq!(
            meaning_of("apiVersion: apps/v1\nkind: Deployment\nspec:\n  template: {}"),
            workload(Some(4))
        );
        assert_eq!(meaning_of("kind: Job"), workload(None));
        let cron =
            "apiVersion: batch/v1\nkind: CronJob\nspec:\n  jobTemplate:\n    spec:\n\n      template: {}\n";
        let template = "spec.jobTemplate.spec.template";
        assert_eq!(meaning_of(cron), Meaning::Workload { template, line: Some(7) });
        let ignored = Meaning::Ignored(WHY);
        assert_eq!(meaning_of("apiVersion: v1\nkind: Service"), ignored);
        assert_eq!(meaning_of("apiVersion: serving.example.dev/v1\nkind: Service"), ignored);
        assert_eq!(meaning_of("apiVersion: batch.example.dev/v1\nkind: Job"), ignored);
        assert_eq!(meaning_of("apiVersion: shop.example/v1\nkind: Secret"), ignored);
        let rollout = "apiVersion: example.io/v1\nkind: Rollout\nspec: {template: {spec: {containers: []}}}";
        assert_eq!(meaning_of(rollout), workload(Some(3)));
        assert_eq!(
            meaning_of("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy"),
            Meaning::Ignored(WHY_POLICY)
        );
        assert_eq!(meaning_of("apiVersion: v1\nkind: Pdo"), Meaning::Unknown);
        assert_eq!(meaning_of("kind: [Pod]"), Meaning::Nameless);
        assert_eq!(meaning_of("[]"), Meaning::Nameless);
    }
}
