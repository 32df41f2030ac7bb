//! The volumes of a described pod.

use super::{NONE, Page, UNKNOWN};
use serde_json::Value;

/// The name of a kind of volume, what `kubectl describe` says of it, and the labels and names of the fields that are shown.
type Kind = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const KINDS: [Kind; 10] = [
    (
        "emptyDir",
        "EmptyDir (a temporary directory of the pod)",
        &[("Medium", "medium"), ("SizeLimit", "sizeLimit")],
    ),
    ("hostPath", "HostPath (a file or directory of the host)", &[("Path", "path"), ("HostPathType", "type")]),
    (
        "configMap",
        "ConfigMap (a volume with the data of a ConfigMap)",
        &[("Name", "name"), ("Optional", "optional")],
    ),
    (
        "secret",
        "Secret (a volume with the data of a Secret)",
        &[("SecretName", "secretName"), ("Optional", "optional")],
    ),
    (
        "persistentVolumeClaim",
        "PersistentVolumeClaim (a volume that survives the pod)",
        &[("ClaimName", "claimName"), ("ReadOnly", "readOnly")],
    ),
    (
        "image",
        "Image (the files of a container image)",
        &[("Reference", "reference"), ("PullPolicy", "pullPolicy")],
    ),
    ("projected", "Projected (a volume with the data of several sources)", &[]),
    ("downwardAPI", "DownwardAPI (a volume with information about the pod)", &[]),
    ("ephemeral", "EphemeralVolume (a claim that is made for the pod)", &[]),
    ("nfs", "NFS", &[("Server", "server"), ("Path", "path")]),
];

pub(super) fn all(page: &mut Page, pod: &Value) {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).map(Vec::as_slice);
    let volumes = volumes.unwrap_or_default();
    if volumes.is_empty() {
        return page.line(0, "Volumes", NONE);
    }
    page.head(0, "Volumes");
    for volume in volumes {
        page.head(1, volume["name"].as_str().unwrap_or(UNKNOWN));
        let known = KINDS.iter().find(|(field, ..)| volume.get(field).is_some());
        let Some((field, words, details)) = known else {
            page.line(2, "Type", UNKNOWN);
            continue;
        };
        page.line(2, "Type", words);
        let source = &volume[*field];
        for (key, field) in *details {
            let shown = match &source[*field] {
                Value::Null if *key == "Optional" || *key == "ReadOnly" => "false".to_owned(),
                Value::Null if *key == "SizeLimit" => "<unset>".to_owned(),
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            page.line(2, key, &shown);
        }
        for (field, kind, name) in [
            ("configMap", "ConfigMapName", "name"),
            ("secret", "SecretName", "name"),
            ("downwardAPI", "DownwardAPI", ""),
        ] {
            for one in source["sources"].as_array().into_iter().flatten().filter_map(|one| one.get(field)) {
                page.line(2, kind, one[name].as_str().unwrap_or("true"));
            }
        }
    }
}
