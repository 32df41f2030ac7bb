//! The rows of volumes.

use super::row::{Field, Shape, no, no_source, only, skip, yes};

const NETWORK: &str = "a pod mounts no file system of the network; mount it on the host and use a hostPath, or use a persistentVolumeClaim";
const CLOUD: &str = "there is no cloud that could attach its disk; use a persistentVolumeClaim, or mount the disk on the host and use a hostPath";
const DRIVER: &str = "there are no drivers of volumes; use a persistentVolumeClaim, or a hostPath of what the host has mounted";
const GIT: &str = "Kubernetes has dropped it; clone into an emptyDir, or use an image volume";
const TOKEN: &str =
    "no API server is here to issue it; put what the program needs into a Secret beside the Pod";
const OWNER: &str = "the files of such a volume belong to user 0: give them a group with fsGroup, or a mode";
const NO_CLASSES: &str = "there are no classes of storage: every volume is on the host's disk";
const NO_OTHER: &str = "no other volume is here to choose or to copy; the volume is empty at first";
const DOWNWARD_FIELDS: &str = "Required. `metadata.name`, `.namespace`, `.uid`, `.labels`, `.annotations`, `.labels['KEY']` or `.annotations['KEY']`. \
     All labels or annotations are lines of `KEY=\"VALUE\"`.";

/// Every field of `spec.volumes`, and of the mounts.
pub(super) const FIELDS: &[Field] = &[
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
        "Default false. ConfigMaps, Secrets, projected, downwardAPI and image volumes always are.",
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
        "a microVM has a mount table of its own and each container in it another, so that no mount reaches the host or another container",
    ),
    no(
        "spec.containers[].volumeMounts[].bindMountOptions",
        "a volume is always mounted with nodev, and its other options cannot be chosen",
    ),
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
        "`Memory`: in the memory of the VM or of the host. Default: on the host's disk.",
    ),
    no(
        "spec.volumes[].emptyDir.mode",
        "such a volume has the mode 0777: change it in an init container, or leave it out",
    ),
    yes(
        "spec.volumes[].emptyDir.sizeLimit",
        Shape::Quantity,
        "Bytes it can hold, at least 1Mi, at most 1Ti. Default: half of the memory of the VM or of the host, or a disk that all share.",
    ),
    yes("spec.volumes[].configMap", Shape::Object, "The data of a ConfigMap of the input, each key a file."),
    yes("spec.volumes[].configMap.name", Shape::Text, "Required. Which ConfigMap."),
    yes(
        "spec.volumes[].configMap.items",
        Shape::Objects,
        "Only these keys, and under other names. Default: all keys.",
    ),
    yes("spec.volumes[].configMap.items[].key", Shape::Text, "Required. Which key."),
    yes("spec.volumes[].configMap.items[].path", Shape::Text, "Required. A relative path without `..`."),
    yes("spec.volumes[].configMap.items[].mode", Shape::Mode, "Default: `defaultMode`."),
    no("spec.volumes[].configMap.defaultUser", OWNER),
    no("spec.volumes[].configMap.items[].user", OWNER),
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
    yes("spec.volumes[].secret", Shape::Object, "The data of a Secret of the input, each key a file."),
    yes("spec.volumes[].secret.secretName", Shape::Text, "Required. Which Secret."),
    yes(
        "spec.volumes[].secret.items",
        Shape::Objects,
        "Only these keys, and under other names. Default: all keys.",
    ),
    no("spec.volumes[].secret.defaultUser", OWNER),
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
    yes(
        "spec.volumes[].projected",
        Shape::Object,
        "Files of several sources. No two may name the same path; of keys without `items` the later one wins.",
    ),
    no("spec.volumes[].projected.defaultUser", OWNER),
    yes(
        "spec.volumes[].projected.defaultMode",
        Shape::Mode,
        "Permissions of its files, 0000 to 0777. Default 0644.",
    ),
    yes("spec.volumes[].projected.sources", Shape::Objects, "Each one of the next ones."),
    yes(
        "spec.volumes[].projected.sources[].configMap",
        Shape::Object,
        "The data of a ConfigMap of the input.",
    ),
    yes("spec.volumes[].projected.sources[].configMap.name", Shape::Text, "Required. Which ConfigMap."),
    yes(
        "spec.volumes[].projected.sources[].configMap.items",
        Shape::Objects,
        "Only these keys, and under other names. Default: all keys.",
    ),
    yes(
        "spec.volumes[].projected.sources[].configMap.optional",
        Shape::Bool,
        "True: object and keys may be missing. Default false.",
    ),
    yes("spec.volumes[].projected.sources[].secret", Shape::Object, "The data of a Secret of the input."),
    yes("spec.volumes[].projected.sources[].secret.name", Shape::Text, "Required. Which Secret."),
    yes(
        "spec.volumes[].projected.sources[].secret.items",
        Shape::Objects,
        "Only these keys, and under other names. Default: all keys.",
    ),
    yes(
        "spec.volumes[].projected.sources[].secret.optional",
        Shape::Bool,
        "True: object and keys may be missing. Default false.",
    ),
    yes(
        "spec.volumes[].projected.sources[].downwardAPI",
        Shape::Object,
        "Fields of this Pod and resources of its containers, each a file.",
    ),
    yes("spec.volumes[].projected.sources[].downwardAPI.items", Shape::Objects, "The files."),
    no_source("spec.volumes[].projected.sources[].serviceAccountToken", TOKEN),
    no_source("spec.volumes[].projected.sources[].clusterTrustBundle", TOKEN),
    no_source("spec.volumes[].projected.sources[].podCertificate", TOKEN),
    yes(
        "spec.volumes[].downwardAPI",
        Shape::Object,
        "Fields of this Pod and resources of its containers, each a file.",
    ),
    no("spec.volumes[].downwardAPI.defaultUser", OWNER),
    yes(
        "spec.volumes[].downwardAPI.defaultMode",
        Shape::Mode,
        "Permissions of its files, 0000 to 0777. Default 0644.",
    ),
    yes("spec.volumes[].downwardAPI.items", Shape::Objects, "The files."),
    yes("spec.volumes[].downwardAPI.items[].path", Shape::Text, "Required. A relative path without `..`."),
    yes("spec.volumes[].downwardAPI.items[].mode", Shape::Mode, "Default: `defaultMode`."),
    no("spec.volumes[].downwardAPI.items[].user", OWNER),
    yes("spec.volumes[].downwardAPI.items[].fieldRef", Shape::Object, "A field of this Pod."),
    only("spec.volumes[].downwardAPI.items[].fieldRef.apiVersion", Shape::Text, &["v1"], "Pods are of v1"),
    yes("spec.volumes[].downwardAPI.items[].fieldRef.fieldPath", Shape::Text, DOWNWARD_FIELDS),
    yes(
        "spec.volumes[].downwardAPI.items[].resourceFieldRef",
        Shape::Object,
        "A limit or request of a container, with the fields of that of `env`; `containerName` is required.",
    ),
    yes(
        "spec.volumes[].image",
        Shape::Object,
        "The root file system of a container image, or the files of an OCI artifact; read-only and `noexec`.",
    ),
    yes(
        "spec.volumes[].image.reference",
        Shape::Text,
        "Required. At most 512 characters. It is pulled with the images of the containers.",
    ),
    yes(
        "spec.volumes[].image.pullPolicy",
        Shape::Text,
        "`Always`, `IfNotPresent` or `Never`. Default as for containers.",
    ),
    yes(
        "spec.volumes[].persistentVolumeClaim",
        Shape::Object,
        "A disk or a directory that survives the pod, see `magikvm volume`.",
    ),
    yes(
        "spec.volumes[].persistentVolumeClaim.claimName",
        Shape::Text,
        "Required. A PersistentVolumeClaim of the input, or one that was made before.",
    ),
    yes(
        "spec.volumes[].persistentVolumeClaim.readOnly",
        Shape::Bool,
        "True: no container can write to it. Default false.",
    ),
    yes("spec.volumes[].ephemeral", Shape::Object, "A volume that is made for the pod and removed with it."),
    yes("spec.volumes[].ephemeral.volumeClaimTemplate", Shape::Object, "Required. What it is like."),
    skip("spec.volumes[].ephemeral.volumeClaimTemplate.metadata", "nothing refers to the volume but the pod"),
    yes("spec.volumes[].ephemeral.volumeClaimTemplate.spec", Shape::Object, "Required."),
    yes("spec.volumes[].ephemeral.volumeClaimTemplate.spec.resources", Shape::Object, "How large it is."),
    yes(
        "spec.volumes[].ephemeral.volumeClaimTemplate.spec.resources.requests",
        Shape::Object,
        "How large it is.",
    ),
    yes(
        "spec.volumes[].ephemeral.volumeClaimTemplate.spec.resources.requests.storage",
        Shape::Quantity,
        "Required. Bytes it can hold, 1Mi to 1Ti, as an `emptyDir` with a `sizeLimit`.",
    ),
    skip(
        "spec.volumes[].ephemeral.volumeClaimTemplate.spec.resources.limits",
        "a volume never holds more than it requests",
    ),
    yes(
        "spec.volumes[].ephemeral.volumeClaimTemplate.spec.accessModes",
        Shape::Texts,
        "Required. Any of Kubernetes' modes: nobody uses the volume but the pod.",
    ),
    skip("spec.volumes[].ephemeral.volumeClaimTemplate.spec.storageClassName", NO_CLASSES),
    skip("spec.volumes[].ephemeral.volumeClaimTemplate.spec.volumeAttributesClassName", NO_CLASSES),
    only(
        "spec.volumes[].ephemeral.volumeClaimTemplate.spec.volumeMode",
        Shape::Text,
        &["Filesystem"],
        "block devices are not given to pods",
    ),
    no("spec.volumes[].ephemeral.volumeClaimTemplate.spec.selector", NO_OTHER),
    no("spec.volumes[].ephemeral.volumeClaimTemplate.spec.volumeName", NO_OTHER),
    no("spec.volumes[].ephemeral.volumeClaimTemplate.spec.dataSource", NO_OTHER),
    no("spec.volumes[].ephemeral.volumeClaimTemplate.spec.dataSourceRef", NO_OTHER),
    no_source("spec.volumes[].awsElasticBlockStore", CLOUD),
    no_source("spec.volumes[].azureDisk", CLOUD),
    no_source("spec.volumes[].azureFile", CLOUD),
    no_source("spec.volumes[].cephfs", NETWORK),
    no_source("spec.volumes[].cinder", CLOUD),
    no_source("spec.volumes[].csi", DRIVER),
    no_source("spec.volumes[].fc", NETWORK),
    no_source("spec.volumes[].flexVolume", DRIVER),
    no_source("spec.volumes[].flocker", DRIVER),
    no_source("spec.volumes[].gcePersistentDisk", CLOUD),
    no_source("spec.volumes[].gitRepo", GIT),
    no_source("spec.volumes[].glusterfs", NETWORK),
    no_source("spec.volumes[].iscsi", NETWORK),
    no_source("spec.volumes[].nfs", NETWORK),
    no_source("spec.volumes[].photonPersistentDisk", CLOUD),
    no_source("spec.volumes[].portworxVolume", CLOUD),
    no_source("spec.volumes[].quobyte", NETWORK),
    no_source("spec.volumes[].rbd", NETWORK),
    no_source("spec.volumes[].scaleIO", CLOUD),
    no_source("spec.volumes[].storageos", CLOUD),
    no_source("spec.volumes[].vsphereVolume", CLOUD),
];
