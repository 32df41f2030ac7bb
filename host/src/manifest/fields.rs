//! The table of every field of a v1 Pod and what happens to it. The check of a manifest, its documentation
//! (`docs/fields.md`, `magikvm explain`) and the hints for typing errors all come from here.

mod alias;
mod annotations;
mod env;
mod lifecycle;
mod page;
mod placement;
mod row;
mod security;
mod topic;
mod typing;
mod volumes;

pub use alias::ALIASES;
pub use annotations::*;
pub use page::markdown;
pub use row::{Empty, Field, Shape, Status};
use row::{no, skip, yes};
use std::collections::HashMap;
use std::sync::LazyLock;
pub use topic::{Topic, UnknownField, topic};
pub(super) use typing::did_you_mean;
pub use typing::suggest;

const RAW_DEVICES: &str = "block devices are not given to pods";
const CLUSTER: &str = "there is no scheduler and there are no nodes to choose from";
const CLAIMS: &str = "a claim asks for a device, and no device of the host is given to a pod";
const HUGE_PAGES: &str = "huge pages are given to single containers, and only those of 2Mi and of 1Gi";
const OF_HUGE_PAGES: &str = "Bytes of the host's huge pages, whole pages, for a pod without a VM. Default: none. The container also has a limit or \
     request of cpu or memory.";
/// Extended resources have any name with a slash.
const EXTENDED: &str =
    "an extended resource is a device of a node, and no device of the host is given to a pod";
const CLUSTER_API: &str = "there is no API server behind a pod here";
pub(super) const WINDOWS: &str = "only Linux containers run here";
pub(super) const NOT_SHARED: &str = "a pod has no processes and no IPC objects in common with its host";
const SET_BY_SERVER: &str = "what an API server keeps with the object does not say what to run";

/// Every field of a v1 Pod, in the order of the documentation.
pub fn all() -> impl Iterator<Item = &'static Field> + Clone {
    [WORKLOAD, security::FIELDS, lifecycle::FIELDS, env::FIELDS, volumes::FIELDS, placement::FIELDS]
        .into_iter()
        .flatten()
}

/// The fields of metadata and containers.
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
    yes(
        "metadata.generateName",
        Shape::Text,
        "Makes the name of a Pod without `name`: itself, cut to 58 characters, and five random ones. Beside a name it has no effect.",
    ),
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
    yes("spec.containers[].resources", Shape::Object, "What it may use. A VM is sized by it."),
    yes("spec.containers[].resources.limits", Shape::Object, "Enforced by cgroups."),
    yes(
        "spec.containers[].resources.limits.cpu",
        Shape::Quantity,
        "Processors. Default: all of the VM's (2 or more), or of the host's for a pod without a VM.",
    ),
    yes(
        "spec.containers[].resources.limits.memory",
        Shape::Quantity,
        "Bytes, at least 1Mi. If a container has none, a VM has 128Mi or the request for it, and 512Mi or more for all containers together. Without \
         a VM it may use all that the host has.",
    ),
    yes(
        "spec.containers[].resources.limits.ephemeral-storage",
        Shape::Quantity,
        "Bytes that changes to the root file system may take, 1Mi to 1Ti. Without it they share the pod's 10Gi.",
    ),
    yes("spec.containers[].resources.limits.hugepages-2Mi", Shape::Quantity, OF_HUGE_PAGES),
    yes("spec.containers[].resources.limits.hugepages-1Gi", Shape::Quantity, OF_HUGE_PAGES),
    yes(
        "spec.containers[].resources.requests",
        Shape::Object,
        "Shares when processors are scarce. At most the limit, which is the default.",
    ),
    yes("spec.containers[].resources.requests.cpu", Shape::Quantity, "Processors."),
    yes("spec.containers[].resources.requests.memory", Shape::Quantity, "Bytes."),
    yes(
        "spec.containers[].resources.requests.ephemeral-storage",
        Shape::Quantity,
        "Bytes. Nothing is reserved on the disk; a `resourceFieldRef` tells them.",
    ),
    yes(
        "spec.containers[].resources.requests.hugepages-2Mi",
        Shape::Quantity,
        "The limit, which is the default.",
    ),
    yes(
        "spec.containers[].resources.requests.hugepages-1Gi",
        Shape::Quantity,
        "The limit, which is the default.",
    ),
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
    no("spec.containers[].volumeDevices", RAW_DEVICES),
    skip("spec.containers[].resizePolicy", "containers are not resized while they run"),
    yes("spec.restartPolicy", Shape::Text, "`Always` (default), `OnFailure` or `Never`."),
    yes("spec.terminationGracePeriodSeconds", Shape::Int, "0 to 300. Default 30."),
    yes("spec.hostname", Shape::Text, "An RFC 1123 label. Default: the pod's name, cut to 63 characters."),
    yes(
        "spec.runtimeClassName",
        Shape::Text,
        "`pod-microvm-containers` (default), `pod-containers` or `pod-wasm`.",
    ),
    yes("spec.shareProcessNamespace", Shape::Bool, "Containers see each other's processes. Default false."),
    no(
        "spec.ephemeralContainers",
        "they are added to a Pod that runs already; `magikvm exec` runs a program in a container",
    ),
];

/// The field at this path, with `[]` for every element of a list. Its own path is that of the row, see [`ALIASES`].
pub fn find(path: &str) -> Option<&'static Field> {
    // Each key of a manifest is looked up.
    static BY_PATH: LazyLock<HashMap<&str, &Field>> =
        LazyLock::new(|| all().map(|field| (field.path, field)).collect());
    // Nearly all fields have rows of their own, and those inside an alias have none.
    BY_PATH.get(path).or_else(|| BY_PATH.get(&*alias::resolved(path))).copied()
}

/// Why a key that is no field of the object at `parent`, but may be one elsewhere, is refused: resources have names of any kind.
pub fn unlisted(parent: &str, key: &str) -> Option<&'static str> {
    let resources = parent.ends_with(".resources.limits") || parent.ends_with(".resources.requests");
    match key {
        _ if !resources => None,
        "pids" if parent == "spec.resources.limits" => Some(
            "a limit of the processes of a whole pod is not supported yet, and each container has a limit of its own",
        ),
        _ if key.starts_with("hugepages-") => Some(HUGE_PAGES),
        _ if key.contains('/') => Some(EXTENDED),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

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
}
