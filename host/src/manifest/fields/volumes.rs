//! The rows of volumes.

use super::row::{Field, Shape, no_source, yes};

const VOLUME: &str = "hostPath, emptyDir, configMap and secret are supported";

/// Every field of `spec.volumes`.
pub(super) const FIELDS: &[Field] = &[
    yes("spec.volumes", Shape::Objects, "At most 64. One with only a name is an `emptyDir`."),
    yes("spec.volumes[].name", Shape::Text, "Required. An RFC 1123 label, unique within the pod."),
    yes("spec.volumes[].hostPath", Shape::Object, "A file or directory of the host."),
    yes(
        "spec.volumes[].hostPath.path",
        Shape::Text,
        "Required. An absolute path without `..`. Links are followed.",
    ),
    yes(
        "spec.volumes[].hostPath.type",
        Shape::Text,
        "`Directory`, `DirectoryOrCreate`, `File` or `FileOrCreate`. Default: a directory or a file that is there.",
    ),
    yes("spec.volumes[].emptyDir", Shape::Object, "An empty directory that lives as long as the pod."),
    yes(
        "spec.volumes[].emptyDir.medium",
        Shape::Text,
        "`Memory`: in the VM's memory. Default: on the host's disk.",
    ),
    yes(
        "spec.volumes[].emptyDir.sizeLimit",
        Shape::Quantity,
        "Bytes it can hold, at least 1Mi, at most 1Ti. Default: half of the VM's memory, or a disk that all share.",
    ),
    yes(
        "spec.volumes[].configMap",
        Shape::Object,
        "The data of a ConfigMap in the same file, each key a file.",
    ),
    yes("spec.volumes[].configMap.name", Shape::Text, "Required. Which ConfigMap."),
    yes(
        "spec.volumes[].configMap.items",
        Shape::Objects,
        "Only these keys, and under other names. Default: all keys.",
    ),
    yes("spec.volumes[].configMap.items[].key", Shape::Text, "Required. Which key."),
    yes("spec.volumes[].configMap.items[].path", Shape::Text, "Required. A relative path without `..`."),
    yes("spec.volumes[].configMap.items[].mode", Shape::Mode, "Default: `defaultMode`."),
    yes(
        "spec.volumes[].configMap.defaultMode",
        Shape::Mode,
        "Permissions of its files, 0000 to 0777. Default 0644.",
    ),
    yes(
        "spec.volumes[].configMap.optional",
        Shape::Bool,
        "True: object and keys may be missing. Default false.",
    ),
    yes("spec.volumes[].secret", Shape::Object, "The data of a Secret in the same file, each key a file."),
    yes("spec.volumes[].secret.secretName", Shape::Text, "Required. Which Secret."),
    yes(
        "spec.volumes[].secret.items",
        Shape::Objects,
        "Only these keys, and under other names. Default: all keys.",
    ),
    yes("spec.volumes[].secret.items[].key", Shape::Text, "Required. Which key."),
    yes("spec.volumes[].secret.items[].path", Shape::Text, "Required. A relative path without `..`."),
    yes("spec.volumes[].secret.items[].mode", Shape::Mode, "Default: `defaultMode`."),
    yes(
        "spec.volumes[].secret.defaultMode",
        Shape::Mode,
        "Permissions of its files, 0000 to 0777. Default 0644.",
    ),
    yes(
        "spec.volumes[].secret.optional",
        Shape::Bool,
        "True: object and keys may be missing. Default false.",
    ),
    no_source("spec.volumes[].awsElasticBlockStore", VOLUME),
    no_source("spec.volumes[].azureDisk", VOLUME),
    no_source("spec.volumes[].azureFile", VOLUME),
    no_source("spec.volumes[].cephfs", VOLUME),
    no_source("spec.volumes[].cinder", VOLUME),
    no_source("spec.volumes[].csi", VOLUME),
    no_source("spec.volumes[].downwardAPI", VOLUME),
    no_source("spec.volumes[].ephemeral", VOLUME),
    no_source("spec.volumes[].fc", VOLUME),
    no_source("spec.volumes[].flexVolume", VOLUME),
    no_source("spec.volumes[].flocker", VOLUME),
    no_source("spec.volumes[].gcePersistentDisk", VOLUME),
    no_source("spec.volumes[].gitRepo", VOLUME),
    no_source("spec.volumes[].glusterfs", VOLUME),
    no_source("spec.volumes[].image", VOLUME),
    no_source("spec.volumes[].iscsi", VOLUME),
    no_source("spec.volumes[].nfs", VOLUME),
    no_source("spec.volumes[].persistentVolumeClaim", VOLUME),
    no_source("spec.volumes[].photonPersistentDisk", VOLUME),
    no_source("spec.volumes[].portworxVolume", VOLUME),
    no_source("spec.volumes[].projected", VOLUME),
    no_source("spec.volumes[].quobyte", VOLUME),
    no_source("spec.volumes[].rbd", VOLUME),
    no_source("spec.volumes[].scaleIO", VOLUME),
    no_source("spec.volumes[].storageos", VOLUME),
    no_source("spec.volumes[].vsphereVolume", VOLUME),
];
