//! The table of every field of a v1 Pod and what happens to it. The check of a manifest, its documentation
//! (`docs/fields.md`, `magikvm explain`) and the hints for typing errors all come from here.

mod row;
mod volumes;

pub use row::{Field, Shape, Status};
use row::{no, only, skip, yes};

const RAW_DEVICES: &str = "block devices are not given to pods";
const REFERENCE: &str = "configMapKeyRef, secretKeyRef and fieldRef are supported";
const INIT: &str = "init and ephemeral containers are not supported yet";
const PROBES: &str = "probes are not supported yet";
const CLUSTER: &str = "there is no scheduler and there are no nodes to choose from";
const CLUSTER_API: &str = "there is no API server behind a pod here";
const MAC: &str = "the guest has no such security module";
const WINDOWS: &str = "only Linux containers run here";
const SHARED_VM: &str = "a pod has no host but its own VM";
const SET_BY_SERVER: &str = "an API server sets it; it describes the object, not what to run";

/// Every field of a v1 Pod, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Field> {
    [WORKLOAD, volumes::FIELDS, PLACEMENT].into_iter().flatten()
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
    no("metadata.generateName", "a pod is known by its name: write `name`"),
    no("metadata.finalizers", CLUSTER_API),
    no("metadata.ownerReferences", CLUSTER_API),
    no("metadata.deletionTimestamp", "this object is being deleted"),
    no("metadata.deletionGracePeriodSeconds", "this object is being deleted"),
    skip("metadata.creationTimestamp", SET_BY_SERVER),
    skip("metadata.generation", SET_BY_SERVER),
    skip("metadata.managedFields", SET_BY_SERVER),
    skip("metadata.resourceVersion", SET_BY_SERVER),
    skip("metadata.selfLink", SET_BY_SERVER),
    skip("metadata.uid", SET_BY_SERVER),
    skip("status", "it is what was, not what shall be"),
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
        "Required. `metadata.name`, `metadata.namespace`, `metadata.labels['KEY']` or `metadata.annotations['KEY']`.",
    ),
    no("spec.containers[].env[].valueFrom.resourceFieldRef", REFERENCE),
    no("spec.containers[].env[].valueFrom.fileKeyRef", REFERENCE),
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
    no("spec.containers[].resources.limits.ephemeral-storage", "only cpu and memory are supported yet"),
    no("spec.containers[].resources.limits.hugepages-2Mi", "only cpu and memory are supported yet"),
    no("spec.containers[].resources.limits.hugepages-1Gi", "only cpu and memory are supported yet"),
    yes(
        "spec.containers[].resources.requests",
        Shape::Object,
        "Shares when processors are scarce. At most the limit, which is the default.",
    ),
    yes("spec.containers[].resources.requests.cpu", Shape::Quantity, "Processors."),
    yes("spec.containers[].resources.requests.memory", Shape::Quantity, "Bytes."),
    no("spec.containers[].resources.requests.ephemeral-storage", "only cpu and memory are supported yet"),
    no("spec.containers[].resources.requests.hugepages-2Mi", "only cpu and memory are supported yet"),
    no("spec.containers[].resources.requests.hugepages-1Gi", "only cpu and memory are supported yet"),
    no("spec.containers[].resources.claims", CLUSTER),
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
    no("spec.containers[].securityContext.seLinuxOptions", MAC),
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
    no("spec.containers[].resizePolicy", "containers can't be resized in place"),
    no("spec.containers[].restartPolicy", "only the pod's restartPolicy is supported yet"),
    no("spec.containers[].restartPolicyRules", "only the pod's restartPolicy is supported yet"),
    no("spec.containers[].terminationMessagePath", "termination messages are not supported yet"),
    no("spec.containers[].terminationMessagePolicy", "termination messages are not supported yet"),
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
    no("spec.securityContext.sysctls", "kernel parameters are not supported yet"),
    no("spec.securityContext.appArmorProfile", MAC),
    no("spec.securityContext.seLinuxOptions", MAC),
    no("spec.securityContext.seLinuxChangePolicy", MAC),
    no("spec.securityContext.windowsOptions", WINDOWS),
    no("spec.initContainers", INIT),
    no("spec.ephemeralContainers", INIT),
];

/// The fields that follow the volumes: where the Pod runs, and with what.
const PLACEMENT: &[Field] = &[
    no("spec.resources", "only containers' resources are supported yet"),
    no("spec.activeDeadlineSeconds", "deadlines are not supported yet"),
    yes("spec.dnsConfig", Shape::Object, "Put to what `dnsPolicy` gives."),
    yes("spec.dnsConfig.nameservers", Shape::Texts, "IP addresses, at most 3."),
    yes("spec.dnsConfig.searches", Shape::Texts, "Domains, at most 32, 2048 bytes together."),
    yes("spec.dnsConfig.options", Shape::Objects, "At most 32; one replaces the host's of its name."),
    yes("spec.dnsConfig.options[].name", Shape::Text, "Required. As in resolv.conf(5)."),
    yes("spec.dnsConfig.options[].value", Shape::Text, "What stands behind the colon."),
    yes(
        "spec.dnsPolicy",
        Shape::Text,
        "`Default` and `ClusterFirst`: the host's name servers; `None`: those of `dnsConfig` alone.",
    ),
    yes("spec.hostAliases", Shape::Objects, "Lines of /etc/hosts, at most 64."),
    yes("spec.hostAliases[].ip", Shape::Text, "Required. An IP address."),
    yes("spec.hostAliases[].hostnames", Shape::Texts, "Its names, at most 64."),
    yes("spec.subdomain", Shape::Text, "An RFC 1123 label: /etc/hosts then has the pod's full name too."),
    no("spec.setHostnameAsFQDN", "the host name is the short one: write `hostname`"),
    no("spec.hostnameOverride", "write `hostname`"),
    only("spec.hostNetwork", Shape::Bool, &["false"], SHARED_VM),
    only("spec.hostPID", Shape::Bool, &["false"], SHARED_VM),
    only("spec.hostIPC", Shape::Bool, &["false"], SHARED_VM),
    no("spec.hostUsers", "user namespaces are not supported yet"),
    no("spec.os", WINDOWS),
    no("spec.imagePullSecrets", "log in with `podman login` or `docker login`: their logins are used"),
    no("spec.serviceAccountName", CLUSTER_API),
    no("spec.serviceAccount", CLUSTER_API),
    only("spec.automountServiceAccountToken", Shape::Bool, &["false"], CLUSTER_API),
    only("spec.enableServiceLinks", Shape::Bool, &["false"], CLUSTER_API),
    no("spec.affinity", CLUSTER),
    no("spec.nodeName", CLUSTER),
    no("spec.nodeSelector", CLUSTER),
    no("spec.overhead", CLUSTER),
    no("spec.preemptionPolicy", CLUSTER),
    no("spec.priority", CLUSTER),
    no("spec.priorityClassName", CLUSTER),
    no("spec.readinessGates", CLUSTER),
    no("spec.resourceClaims", CLUSTER),
    no("spec.schedulerName", CLUSTER),
    no("spec.schedulingGates", CLUSTER),
    no("spec.tolerations", CLUSTER),
    no("spec.topologySpreadConstraints", CLUSTER),
    no("spec.workloadRef", CLUSTER),
];

/// Handling of the other documents of a file.
const OBJECTS: &str = "\n## ConfigMaps and Secrets\n\nFurther documents of the same file (separated by `---`), in any order: v1, with `metadata.name`. A ConfigMap \
     has `data` (strings) and `binaryData` (base64), a Secret `data` (base64), `stringData` (strings, which win) and `type`; both may have `immutable`. \
     The data of one is at most 1 MiB together. In `metadata` only `name` and `namespace` count, and the namespace must be the Pod's.\n";

/// Prefix of the annotations that magikvm reads. An unknown annotation with it is refused.
pub const ANNOTATION_PREFIX: &str = "magikvm.dev/";
/// Sets the memory of the VM, in MiB.
pub const ANNOTATION_MEMORY: &str = "magikvm.dev/memory-mib";
/// Sets the number of processors of the VM.
pub const ANNOTATION_VCPUS: &str = "magikvm.dev/vcpus";
/// Shows the ports of the host that lead to a pod.
pub const ANNOTATION_PORTS: &str = "magikvm.dev/ports";
/// How the pod is connected.
pub const ANNOTATION_NETWORK: &str = "magikvm.dev/network";
/// The only destinations that the pod may reach.
pub const ANNOTATION_EGRESS_ALLOW: &str = "magikvm.dev/egress-allow";
/// Destinations that are open in addition to the default.
pub const ANNOTATION_EGRESS_REACH: &str = "magikvm.dev/egress-reach";
/// Size at which a container's log file is rotated.
pub const ANNOTATION_LOG_MAX_SIZE: &str = "magikvm.dev/log-max-size";
/// Number of log files of a container.
pub const ANNOTATION_LOG_MAX_FILES: &str = "magikvm.dev/log-max-files";
/// Size of all log files of the pod.
pub const ANNOTATION_LOG_MAX_POD_SIZE: &str = "magikvm.dev/log-max-pod-size";
/// Every annotation that magikvm reads, and its effect.
pub const ANNOTATIONS: &[(&str, &str)] = &[
    (
        ANNOTATION_MEMORY,
        "Memory of the VM in MiB, 96 to 4096, instead of the sum of the containers' limits and the overhead.",
    ),
    (
        ANNOTATION_VCPUS,
        "Processors of the VM, 1 to 8, instead of the sum of the containers' limits rounded up.",
    ),
    (ANNOTATION_PORTS, "`inspect` shows the pod's ports of the host here. It has no effect in a manifest."),
    (
        ANNOTATION_NETWORK,
        "The pod's network: `passt` (the default where it is installed), `none`, `tsi` (with `--kernel libkrunfw`), `user` (with `--vmm qemu`).",
    ),
    (
        ANNOTATION_EGRESS_ALLOW,
        "The only destinations that the pod may reach: `HOST[:PORT]`, `*.SUFFIX[:PORT]`, `NETWORK[:PORT]` (`[NETWORK]:PORT` for IPv6), separated by commas, at most 256.",
    ),
    (
        ANNOTATION_EGRESS_REACH,
        "Destinations that are open in addition to the default: `loopback`, `host`, `link-local`, `metadata`, separated by commas.",
    ),
    (
        ANNOTATION_LOG_MAX_SIZE,
        "Size at which a container's log file is rotated, 64Ki to 1Ti (kubelet `containerLogMaxSize`); default 10Mi.",
    ),
    (
        ANNOTATION_LOG_MAX_FILES,
        "Log files that are kept of a container, 2 to 1000 (kubelet `containerLogMaxFiles`); default 5.",
    ),
    (
        ANNOTATION_LOG_MAX_POD_SIZE,
        "Size of all log files of the pod, 64Ki to 1Ti; default 500Mi. Containers share it equally where it is less than they may have together.",
    ),
];

/// The field at this path, with `[]` for every element of a list.
pub fn find(path: &str) -> Option<&'static Field> {
    all().find(|field| field.path == path)
}

/// The likely intention behind a key that is not a field of the object at `parent` (empty: the top).
pub fn suggest(parent: &str, key: &str) -> Option<String> {
    let lower = key.to_ascii_lowercase();
    let siblings = all().filter_map(|field| {
        let (above, name) = field.path.rsplit_once('.').unwrap_or(("", field.path));
        (above == parent).then_some(name)
    });
    let nearest = siblings
        .map(|name| (distance(&lower, &name.to_ascii_lowercase()), name))
        .filter(|&(distance, name)| distance <= (name.len() / 3).max(1))
        .min();
    if let Some((_, name)) = nearest {
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
    page += "\n## Ignored\n\n| Field | Why that is safe |\n|---|---|\n";
    for field in all() {
        if let Status::Ignored { why } = field.status {
            page += &format!("| `{}` | {why} |\n", field.path);
        }
    }
    page += "\n## Refused\n\n| Field | Why |\n|---|---|\n";
    for field in all() {
        if let Status::Refused { why } = field.status {
            page += &format!("| `{}` | {why} |\n", field.path);
        }
    }
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
