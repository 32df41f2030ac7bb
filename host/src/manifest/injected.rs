//! Volumes that an admission controller adds to a Pod for the token of its service account, and their mounts. `kubectl get pod -o yaml` shows
//! them in every Pod. Without an API server there is no token, and its user did not ask for one.

use super::node::{Entry, Node, Value};
use super::objects::{ObjectKind, Objects};
use super::walk::{get, text};
use serde_json::Value as Json;
use std::collections::{HashMap, HashSet};

/// Why they are ignored.
pub(super) const WHY: &str =
    "an API server adds such volumes for the token of a service account, and there is none here";
/// Beginnings of the names of projected volumes: Kubernetes, Amazon's two ways, Azure.
const PROJECTED: [&str; 4] =
    ["kube-api-access-", "aws-iam-token", "eks-pod-identity-token", "azure-identity-token"];
/// Where Kubernetes mounts a service account. Up to version 1.20 it mounted a secret.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The lists of containers.
const LISTS: [&str; 2] = ["initContainers", "containers"];

/// Whether the elements of this list of the table name volumes.
pub(super) fn takes_names(schema: &str) -> bool {
    matches!(schema, "spec.volumes[]" | "spec.containers[].volumeMounts[]")
}

/// The names of such volumes of a Pod.
pub(super) fn volumes(pod: &[Entry], objects: &Objects) -> HashSet<String> {
    let spec = map(get(pod, "spec"));
    let mut uses: HashMap<&str, usize> = HashMap::new();
    let written: Vec<(&str, &[Entry])> = list(get(spec, "volumes"))
        .iter()
        .map(|volume| map(Some(volume)))
        .filter_map(|volume| Some((text(get(volume, "name")?)?, volume)))
        .collect();
    written.iter().for_each(|(name, _)| *uses.entry(name).or_default() += 1);
    written
        .into_iter()
        .filter(|(name, volume)| {
            uses[name] == 1 && (is_projected(name, volume) || is_secret(name, volume, spec, objects))
        })
        .map(|(name, _)| name.to_owned())
        .collect()
}

fn map(node: Option<&Node>) -> &[Entry] {
    match node.map(|node| &node.value) {
        Some(Value::Map(entries)) => entries,
        _ => &[],
    }
}

fn list(node: Option<&Node>) -> &[Node] {
    match node.map(|node| &node.value) {
        Some(Value::List(items)) => items,
        _ => &[],
    }
}

fn is_projected(name: &str, volume: &[Entry]) -> bool {
    let sources = list(get(map(get(volume, "projected")), "sources"));
    let token = |source: &Node| get(map(Some(source)), "serviceAccountToken").is_some();
    PROJECTED.iter().any(|begin| name.starts_with(begin)) && sources.iter().any(token)
}

/// A secret like `default-token-abcde` that is mounted only as a service account, and that the file does not have.
fn is_secret(name: &str, volume: &[Entry], spec: &[Entry], objects: &Objects) -> bool {
    let secret = get(map(get(volume, "secret")), "secretName").and_then(text);
    let mounts = || {
        let containers = LISTS.iter().flat_map(|name| list(get(spec, name)));
        containers
            .flat_map(|container| list(get(map(Some(container)), "volumeMounts")))
            .map(|mount| map(Some(mount)))
    };
    let mut paths = mounts()
        .filter(|mount| get(mount, "name").and_then(text) == Some(name))
        .map(|mount| get(mount, "mountPath").and_then(text))
        .peekable();
    secret == Some(name)
        && name.contains("-token-")
        && objects.get(ObjectKind::Secret, name).is_none()
        && paths.peek().is_some()
        && paths.all(|path| path.is_some_and(|path| path.trim_end_matches('/') == SERVICE_ACCOUNT))
}

/// Removes them from the Pod as JSON.
pub(super) fn remove(pod: &mut Json, injected: &HashSet<String>) {
    let retain = |items: Option<&mut Json>| {
        if let Some(Json::Array(items)) = items {
            items.retain(|item| !item["name"].as_str().is_some_and(|name| injected.contains(name)));
        }
    };
    if injected.is_empty() {
        return;
    }
    retain(pod.pointer_mut("/spec/volumes"));
    for name in LISTS {
        let containers = pod.pointer_mut(&format!("/spec/{name}")).and_then(Json::as_array_mut);
        containers.into_iter().flatten().for_each(|container| retain(container.get_mut("volumeMounts")));
    }
}
