//! The table of every field of a v1 Pod and what happens to it. The check of a manifest, its documentation
//! (`docs/fields.md`, `magikvm explain`) and the hints for typing errors all come from here.

mod annotations;
mod placement;
mod row;
mod volumes;

pub use annotations::*;
pub use row::{Empty, Field, Shape, Status};
use row::{no, no_source, only, skip, skip_quietly, yes};

const RAW_DEVICES: &str = "block devices are not given to pods";
const REFERENCE: &str = "configMapKeyRef, secretKeyRef and fieldRef are supported";
const INIT: &str = "init and ephemeral containers are not supported yet";
const PROBES: &str = "probes are not supported yet";
const CLUSTER: &str = "there is no scheduler and there are no nodes to choose from";
const CLAIMS: &str = "a claim asks for a device, and no device of the host is given to a VM";
const HUGE_PAGES: &str = "huge pages are not supported yet";
/// Extended resources have any name with a slash.
const EXTENDED: &str =
    "an extended resource is a device of a node, and no device of the host is given to a VM";
const TERMINATION: &str = "messages of terminated containers are not kept: the logs have them";
const CLUSTER_API: &str = "there is no API server behind a pod here";
const MAC: &str = "the guest has no such security module";
const WINDOWS: &str = "only Linux containers run here";
const SHARED_VM: &str = "a pod has no host but its own VM";
const LABELS: &str = "the guest has no SELinux, and nodes without it ignore this too";
const POD_RESOURCES: &str = "only the disk has a limit for the whole pod; write the containers' resources";
const SET_BY_SERVER: &str = "what an API server keeps with the object does not say what to run";

/// Every field of a v1 Pod, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Field> {
    [WORKLOAD, volumes::FIELDS, placement::FIELDS].into_iter().flatten()
}

/// The fields of metadata, containers, and their environment.
const WORKLOAD: &[Field] = &[
    yes("apiVersion", Shape::Text, "`v1`."),
    yes("kind", Shape::Text, "`Pod`."),
    yes("metadata", Shape::Object, "Names and labels."),
    yes("metadata.name", Shape::Text, "Required. An RFC 1123 subdomain, at most 253 characters."),
    yes("metadata.namespace", Shape::Text, "An RFC 1123 label, at most 63 characters. Default `default`."),
    yes("metadata.labels", Shape::TextMap, "At most 64."),
    yes(
        "metadata.annotations",
        Shape::TextMap,
        "At most 64, together at most 256 KiB. See below for those that magikvm reads.",
    ),
    skip("metadata.generateName", SET_BY_SERVER),
    skip("metadata.clusterName", SET_BY_SERVER),
    skip("metadata.finalizers", SET_BY_SERVER),
    skip("metadata.ownerReferences", SET_BY_SERVER),
    skip("metadata.deletionTimestamp", SET_BY_SERVER),
    skip("metadata.deletionGracePeriodSeconds", SET_BY_SERVER),
    skip("metadata.creationTimestamp", SET_BY_SERVER),
    skip("metadata.generation", SET_BY_SERVER),
    skip("metadata.managedFields", SET_BY_SERVER),
    skip("metadata.resourceVersion", SET_BY_SERVER),
    skip("metadata.selfLink", SET_BY_SERVER),
    skip("metadata.uid", SET_BY_SERVER),
    skip("status", SET_BY_SERVER),
    yes("spec", Shape::Object, "What runs."),
    yes(
        "spec.containers",
        Shape::Objects,
        "Required. 1 to 16. None starts before all are created; a stop asks all of them at once.",
    ),
    yes("spec.containers[].name", Shape::Text, "Required. An RFC 1123 label, unique within the pod."),
    yes("spec.containers[].image", Shape::Text, "Required. At most 512 characters."),
    yes(
        "spec.containers[].imagePullPolicy",
        Shape::Text,
        "`Always`, `IfNotPresent` or `Never`. Default: `Always` for the tag `latest` or none, else `IfNotPresent`.",
    ),
    yes(
        "spec.containers[].command",
        Shape::Texts,
        "Replaces the image's entrypoint and its arguments. `$(VAR)` is expanded.",
    ),
    yes("spec.containers[].args", Shape::Texts, "Replaces the image's arguments. `$(VAR)` is expanded."),
    yes("spec.containers[].workingDir", Shape::Text, "An absolute path. Default: the image's."),
    yes("spec.containers[].env", Shape::Objects, "At most 256. Of two with one name the later wins."),
    yes("spec.containers[].env[].name", Shape::Text, "Required. Printable ASCII without `=`."),
    yes(
        "spec.containers[].env[].value",
        Shape::Text,
        "`$(VAR)` of variables above it is expanded. Default empty.",
    ),
    yes("spec.containers[].env[].valueFrom", Shape::Object, "Instead of `value`; nothing in it is expanded."),
    yes(
        "spec.containers[].env[].valueFrom.configMapKeyRef",
        Shape::Object,
        "A value of a ConfigMap in the same file.",
    ),
    yes("spec.containers[].env[].valueFrom.configMapKeyRef.name", Shape::Text, "Required. Which ConfigMap."),
    yes("spec.containers[].env[].valueFrom.configMapKeyRef.key", Shape::Text, "Required. Which of its keys."),
    yes(
        "spec.containers[].env[].valueFrom.configMapKeyRef.optional",
        Shape::Bool,
        "True: without it there is no such variable. Default false.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.secretKeyRef",
        Shape::Object,
        "A value of a Secret in the same file.",
    ),
    yes("spec.containers[].env[].valueFrom.secretKeyRef.name", Shape::Text, "Required. Which Secret."),
    yes("spec.containers[].env[].valueFrom.secretKeyRef.key", Shape::Text, "Required. Which of its keys."),
    yes(
        "spec.containers[].env[].valueFrom.secretKeyRef.optional",
        Shape::Bool,
        "True: without it there is no such variable. Default false.",
    ),
    yes("spec.containers[].env[].valueFrom.fieldRef", Shape::Object, "A field of this Pod."),
    only("spec.containers[].env[].valueFrom.fieldRef.apiVersion", Shape::Text, &["v1"], "Pods are of v1"),
    yes(
        "spec.containers[].env[].valueFrom.fieldRef.fieldPath",
        Shape::Text,
        "Required. `metadata.name`, `.namespace`, `.uid`, `.labels['KEY']` or `.annotations['KEY']`; `spec.nodeName` (the host's name) or `.serviceAccountName`; `status.podIP`, `.podIPs`, `.hostIP` or `.hostIPs`.",
    ),
    no_source("spec.containers[].env[].valueFrom.resourceFieldRef", REFERENCE),
    no_source("spec.containers[].env[].valueFrom.fileKeyRef", REFERENCE),
    yes(
        "spec.containers[].envFrom",
        Shape::Objects,
        "Variables of whole objects. Later ones win, and `env` wins over all of them.",
    ),
    yes("spec.containers[].envFrom[].prefix", Shape::Text, "Before each name. Default empty."),
    yes(
        "spec.containers[].envFrom[].configMapRef",
        Shape::Object,
        "Each key of a ConfigMap in the same file.",
    ),
    yes("spec.containers[].envFrom[].configMapRef.name", Shape::Text, "Required. Which ConfigMap."),
    yes(
        "spec.containers[].envFrom[].configMapRef.optional",
        Shape::Bool,
        "True: it may be missing. Default false.",
    ),
    yes("spec.containers[].envFrom[].secretRef", Shape::Object, "Each key of a Secret in the same file."),
    yes("spec.containers[].envFrom[].secretRef.name", Shape::Text, "Required. Which Secret."),
    yes(
        "spec.containers[].envFrom[].secretRef.optional",
        Shape::Bool,
        "True: it may be missing. Default false.",
    ),
    yes("spec.containers[].resources", Shape::Object, "What it may use; the VM is sized by it."),
    yes("spec.containers[].resources.limits", Shape::Object, "Enforced by cgroups."),
    yes(
        "spec.containers[].resources.limits.cpu",
        Shape::Quantity,
        "Processors. Default: all of the VM's (2 or more).",
    ),
    yes(
        "spec.containers[].resources.limits.memory",
        Shape::Quantity,
        "Bytes, at least 1Mi. Without it the VM has 128Mi for the container.",
    ),
    yes(
        "spec.containers[].resources.limits.ephemeral-storage",
        Shape::Quantity,
        "Bytes that changes to the root file system may take, 1Mi to 1Ti. Without it they share the pod's 10Gi.",
    ),
    no("spec.containers[].resources.limits.hugepages-2Mi", HUGE_PAGES),
    no("spec.containers[].resources.limits.hugepages-1Gi", HUGE_PAGES),
    yes(
        "spec.containers[].resources.requests",
        Shape::Object,
        "Shares when processors are scarce. At most the limit, which is the default.",
    ),
    yes("spec.containers[].resources.requests.cpu", Shape::Quantity, "Processors."),
    yes("spec.containers[].resources.requests.memory", Shape::Quantity, "Bytes."),
    skip("spec.containers[].resources.requests.ephemeral-storage", "nothing is reserved on the disk"),
    no("spec.containers[].resources.requests.hugepages-2Mi", HUGE_PAGES),
    no("spec.containers[].resources.requests.hugepages-1Gi", HUGE_PAGES),
    no("spec.containers[].resources.claims", CLAIMS),
    yes(
        "spec.containers[].ports",
        Shape::Objects,
        "Ports that it says it listens on; only a `hostPort` opens one.",
    ),
    yes("spec.containers[].ports[].name", Shape::Text, "An IANA service name: at most 15 of `a-z0-9-`."),
    yes("spec.containers[].ports[].containerPort", Shape::Int, "Required. 1 to 65535."),
    yes("spec.containers[].ports[].protocol", Shape::Text, "`TCP` (default), `UDP` or `SCTP`."),
    yes(
        "spec.containers[].ports[].hostPort",
        Shape::Int,
        "Port of the host that leads to it. 1 to 65535; 0 is none. TCP, or UDP where the pod's network carries it.",
    ),
    yes("spec.containers[].ports[].hostIP", Shape::Text, "Address of the host for it. Default `0.0.0.0`."),
    yes("spec.containers[].tty", Shape::Bool, "Gives it a terminal. Default false."),
    yes(
        "spec.containers[].stdin",
        Shape::Bool,
        "Keeps its standard input open for attach. Default false: end of file.",
    ),
    yes(
        "spec.containers[].stdinOnce",
        Shape::Bool,
        "Closes standard input after the first attach. Default false.",
    ),
    yes("spec.containers[].securityContext", Shape::Object, "Who it is and what it may do."),
    yes(
        "spec.containers[].securityContext.runAsUser",
        Shape::Int,
        "User id, 0 to 2147483647. Default: the image's user.",
    ),
    yes(
        "spec.containers[].securityContext.runAsGroup",
        Shape::Int,
        "Group id, 0 to 2147483647. Default: the user's.",
    ),
    yes("spec.containers[].securityContext.runAsNonRoot", Shape::Bool, "Refuses to start it as user 0."),
    yes("spec.containers[].securityContext.readOnlyRootFilesystem", Shape::Bool, "Default false."),
    yes(
        "spec.containers[].securityContext.allowPrivilegeEscalation",
        Shape::Bool,
        "False sets `no_new_privs`. Default true.",
    ),
    yes(
        "spec.containers[].securityContext.capabilities",
        Shape::Object,
        "Changes to the 14 default capabilities.",
    ),
    yes(
        "spec.containers[].securityContext.capabilities.add",
        Shape::Texts,
        "Names with or without `CAP_`, or `ALL`.",
    ),
    yes(
        "spec.containers[].securityContext.capabilities.drop",
        Shape::Texts,
        "Names with or without `CAP_`, or `ALL`; applied after `add`, except `ALL`.",
    ),
    only(
        "spec.containers[].securityContext.privileged",
        Shape::Bool,
        &["false"],
        "a privileged container could reach the agent's socket and every other container of the pod: add the capabilities it needs",
    ),
    only(
        "spec.containers[].securityContext.procMount",
        Shape::Text,
        &["Default"],
        "paths under /proc stay masked",
    ),
    yes(
        "spec.containers[].securityContext.seccompProfile",
        Shape::Object,
        "Every container gets the default profile.",
    ),
    only(
        "spec.containers[].securityContext.seccompProfile.type",
        Shape::Text,
        &["RuntimeDefault"],
        "every container gets the default profile",
    ),
    no(
        "spec.containers[].securityContext.seccompProfile.localhostProfile",
        "every container gets the default profile",
    ),
    no("spec.containers[].securityContext.appArmorProfile", MAC),
    skip("spec.containers[].securityContext.seLinuxOptions", LABELS),
    no("spec.containers[].securityContext.windowsOptions", WINDOWS),
    yes("spec.containers[].volumeMounts", Shape::Objects, "What it sees of the pod's volumes. At most 64."),
    yes("spec.containers[].volumeMounts[].name", Shape::Text, "Required. Which volume."),
    yes(
        "spec.containers[].volumeMounts[].mountPath",
        Shape::Text,
        "Required. Where: an absolute path without `..` and `:`, once in a container, not beneath `/proc` or `/sys`.",
    ),
    yes(
        "spec.containers[].volumeMounts[].subPath",
        Shape::Text,
        "A relative path within the volume, without `..`. A missing one becomes a directory. Default: the whole volume.",
    ),
    yes(
        "spec.containers[].volumeMounts[].subPathExpr",
        Shape::Text,
        "Like `subPath`; `$(VAR)` of the container's `env` is expanded.",
    ),
    yes(
        "spec.containers[].volumeMounts[].readOnly",
        Shape::Bool,
        "Default false. ConfigMaps and Secrets always are.",
    ),
    only(
        "spec.containers[].volumeMounts[].recursiveReadOnly",
        Shape::Text,
        &["Disabled", "IfPossible", "Enabled"],
        "what is mounted beneath a read-only volume is always read-only too",
    ),
    only(
        "spec.containers[].volumeMounts[].mountPropagation",
        Shape::Text,
        &["None"],
        "mounts do not propagate between the host and a VM",
    ),
    no("spec.containers[].volumeDevices", RAW_DEVICES),
    no("spec.containers[].livenessProbe", PROBES),
    no("spec.containers[].readinessProbe", PROBES),
    no("spec.containers[].startupProbe", PROBES),
    no("spec.containers[].lifecycle", "lifecycle hooks are not supported yet"),
    skip("spec.containers[].resizePolicy", "containers are not resized while they run"),
    no("spec.containers[].restartPolicy", "only the pod's restartPolicy is supported yet"),
    no("spec.containers[].restartPolicyRules", "only the pod's restartPolicy is supported yet"),
    skip_quietly("spec.containers[].terminationMessagePath", &["/dev/termination-log"], TERMINATION),
    skip_quietly("spec.containers[].terminationMessagePolicy", &["File"], TERMINATION),
    yes("spec.restartPolicy", Shape::Text, "`Always` (default), `OnFailure` or `Never`."),
    yes("spec.terminationGracePeriodSeconds", Shape::Int, "0 to 300. Default 30."),
    yes("spec.hostname", Shape::Text, "An RFC 1123 label. Default: the pod's name, cut to 63 characters."),
    yes(
        "spec.runtimeClassName",
        Shape::Text,
        "`pod-microvm-containers` (default), `pod-containers` or `pod-wasm`.",
    ),
    yes("spec.shareProcessNamespace", Shape::Bool, "Containers see each other's processes. Default false."),
    yes("spec.securityContext", Shape::Object, "Defaults for the containers' own."),
    yes("spec.securityContext.runAsUser", Shape::Int, "As of a container."),
    yes("spec.securityContext.runAsGroup", Shape::Int, "As of a container."),
    yes("spec.securityContext.runAsNonRoot", Shape::Bool, "As of a container."),
    yes("spec.securityContext.seccompProfile", Shape::Object, "As of a container."),
    only(
        "spec.securityContext.seccompProfile.type",
        Shape::Text,
        &["RuntimeDefault"],
        "every container gets the default profile",
    ),
    no("spec.securityContext.seccompProfile.localhostProfile", "every container gets the default profile"),
    yes(
        "spec.securityContext.fsGroup",
        Shape::Int,
        "A group of every container that owns all volumes but hostPath ones. 0 to 2147483647.",
    ),
    only(
        "spec.securityContext.fsGroupChangePolicy",
        Shape::Text,
        &["Always", "OnRootMismatch"],
        "no volume holds anything yet when its group is set",
    ),
    yes(
        "spec.securityContext.supplementalGroups",
        Shape::Ints,
        "Additional groups of every container, beside those that the image gives its user. 0 to 2147483647 each.",
    ),
    only(
        "spec.securityContext.supplementalGroupsPolicy",
        Shape::Text,
        &["Merge"],
        "the image's groups count too",
    ),
    yes(
        "spec.securityContext.sysctls",
        Shape::Objects,
        "At most 64. Kernel parameters of the pod, set before its containers start. Ports below 1024 and ping are open to every user unless a \
         parameter says otherwise.",
    ),
    yes(
        "spec.securityContext.sysctls[].name",
        Shape::Text,
        "Required. `kernel.sem`, `kernel.shm*`, `kernel.msg*`, `fs.mqueue.*` or `net.*`.",
    ),
    yes("spec.securityContext.sysctls[].value", Shape::Text, "Required."),
    no("spec.securityContext.appArmorProfile", MAC),
    skip("spec.securityContext.seLinuxOptions", LABELS),
    skip("spec.securityContext.seLinuxChangePolicy", LABELS),
    no("spec.securityContext.windowsOptions", WINDOWS),
    no("spec.initContainers", INIT),
    no("spec.ephemeralContainers", INIT),
];

/// Handling of the other documents of a file.
const OBJECTS: &str = "\n## ConfigMaps and Secrets\n\nFurther documents of the same file (separated by `---`, or items of a `List`), in any order: v1, with `metadata.name`. A ConfigMap \
     has `data` (strings) and `binaryData` (base64), a Secret `data` (base64), `stringData` (strings, which win) and `type`; both may have `immutable`. \
     The data of one is at most 1 MiB together. In `metadata` only `name` and `namespace` count, and the namespace must be the Pod's.\n";

/// The field at this path, with `[]` for every element of a list.
pub fn find(path: &str) -> Option<&'static Field> {
    all().find(|field| field.path == path)
}

/// Why a key that is no field of the object at `parent`, but may be one elsewhere, is refused: resources have names of any kind.
pub fn unlisted(parent: &str, key: &str) -> Option<&'static str> {
    let resources = parent.ends_with(".resources.limits") || parent.ends_with(".resources.requests");
    match key {
        _ if !resources => None,
        _ if key.starts_with("hugepages-") => Some(HUGE_PAGES),
        _ if key.contains('/') => Some(EXTENDED),
        _ => None,
    }
}

/// The likely intention behind a key that is not a field of the object at `parent` (empty: the top).
pub fn suggest(parent: &str, key: &str) -> Option<String> {
    let siblings = all().filter_map(|field| {
        let (above, name) = field.path.rsplit_once('.').unwrap_or(("", field.path));
        (above == parent).then_some(name)
    });
    if let Some(name) = nearest(key, siblings) {
        return Some(format!("did you mean `{name}`?"));
    }
    let mut elsewhere = all().filter_map(|field| {
        let (above, name) = field.path.rsplit_once('.')?;
        (name == key && field.status == Status::Supported).then_some(above)
    });
    match (elsewhere.next(), elsewhere.next()) {
        (Some(above), None) => Some(format!("`{key}` belongs in `{above}`")),
        _ => None,
    }
}

/// The word that a mistyped one most likely stands for, whatever its case.
fn nearest<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_ascii_lowercase();
    words
        .map(|word| (distance(&lower, &word.to_ascii_lowercase()), word))
        .filter(|&(distance, word)| distance <= (word.len() / 3).max(1))
        .min()
        .map(|(_, word)| word)
}

/// The hint for a mistyped word; empty if it is like none of them.
pub(super) fn did_you_mean<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> String {
    nearest(text, words).map(|word| format!("did you mean {word}?")).unwrap_or_default()
}

/// Edit distance (Levenshtein). Texts of very different length count as far apart without comparison.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 8 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The table as a page of documentation.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Fields of a Pod\n\n\
         Generated from the table in `host/src/manifest/fields.rs`, which the check of a manifest uses too.\n\
         A field that is in none of these lists is refused, so nothing in a manifest is ever silently dropped.\n\n\
         ## Supported\n\n| Field | Value | What it does |\n|---|---|---|\n",
    );
    for field in all().filter(|field| field.status == Status::Supported) {
        page += &format!("| `{}` | {} | {} |\n", field.path, field.shape.describe(), field.about);
    }
    page += "\n## Accepted with one value\n\n| Field | Value | Why no other |\n|---|---|---|\n";
    for field in all() {
        if let Status::Only { values, why } = field.status {
            page += &format!("| `{}` | `{}` | {why} |\n", field.path, values.join("`, `"));
        }
    }
    page += "\n## Ignored\n\n`run` names such a field in a warning, one line for each reason, unless its value is the default of an API server.\n\n| Field | Default | Why that is safe |\n|---|---|---|\n";
    for field in all() {
        if let Status::Ignored { why, defaults } = field.status {
            let values: Vec<String> = defaults.iter().map(|value| format!("`{value}`")).collect();
            page += &format!("| `{}` | {} | {why} |\n", field.path, values.join(", "));
        }
    }
    page += "\nVolumes that an admission controller adds for the token of a service account, and their mounts, are ignored in the same way: \
             projected ones named `kube-api-access-…`, `aws-iam-token…`, `eks-pod-identity-token…` and `azure-identity-token…`, \
             and secrets named `…-token-…` that are mounted at `/var/run/secrets/kubernetes.io/serviceaccount` and not in the file.\n";
    page += "\n## Refused\n\nAn empty value (`null`, `\"\"`, `[]`, `{}`, a resource of 0) asks for nothing and is accepted, except for a source.\n\n| Field | Why |\n|---|---|\n";
    for field in all() {
        if let Status::Refused { why, .. } = field.status {
            page += &format!("| `{}` | {why} |\n", field.path);
        }
    }
    page += &format!("| `spec.containers[].resources.*.DOMAIN/NAME` | {EXTENDED} |\n");
    page += OBJECTS;
    page += "\n## Annotations\n\nUnknown annotations that begin with `magikvm.dev/` are refused, all others are kept.\n\n| Annotation | What it does |\n|---|---|\n";
    for (name, about) in ANNOTATIONS {
        page += &format!("| `{name}` | {about} |\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::path::Path;

    #[test]
    fn the_table_names_each_field_once_and_its_parents_too() {
        let paths: BTreeSet<&str> = all().map(|field| field.path).collect();
        assert_eq!(paths.len(), all().count());
        for field in all() {
            if let Some((parent, _)) = field.path.rsplit_once('.') {
                let (name, shape) = match parent.strip_suffix("[]") {
                    Some(list) => (list, Shape::Objects),
                    None => (parent, Shape::Object),
                };
                assert_eq!(find(name).map(|found| found.shape), Some(shape), "parent of {}", field.path);
            }
            assert!(!field.about.is_empty() || field.status != Status::Supported, "{}", field.path);
        }
    }

    #[test]
    fn typing_errors_are_told_what_was_meant() {
        assert_eq!(suggest("spec", "container").as_deref(), Some("did you mean `containers`?"));
        assert_eq!(suggest("spec", "hostName").as_deref(), Some("did you mean `hostname`?"));
        assert_eq!(suggest("spec.containers[]", "cmd"), None);
        assert_eq!(
            suggest("spec.containers[]", "imagePullpolicy").as_deref(),
            Some("did you mean `imagePullPolicy`?")
        );
        assert_eq!(suggest("spec.containers[]", "enviroment"), None);
        assert_eq!(suggest("spec", "image").as_deref(), Some("`image` belongs in `spec.containers[]`"));
        assert_eq!(suggest("", "metdata").as_deref(), Some("did you mean `metadata`?"));
        assert_eq!(suggest("", &"x".repeat(10_000)), None);
    }

    #[test]
    fn the_documentation_is_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fields.md");
        if std::env::var_os("MAGIKVM_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(page, markdown(), "docs/fields.md is not current: run the test with MAGIKVM_BLESS=1");
    }
}
