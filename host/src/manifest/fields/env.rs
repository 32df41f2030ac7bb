//! The rows of variables.

use super::row::{Field, Shape, only, yes};

/// Every field of `env` and `envFrom`.
pub(super) const FIELDS: &[Field] = &[
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
        "A value of a ConfigMap of the input.",
    ),
    yes("spec.containers[].env[].valueFrom.configMapKeyRef.name", Shape::Text, "Required. Which object."),
    yes("spec.containers[].env[].valueFrom.configMapKeyRef.key", Shape::Text, "Required. Which of its keys."),
    yes(
        "spec.containers[].env[].valueFrom.configMapKeyRef.optional",
        Shape::Bool,
        "True: without it there is no such variable. Default false.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.secretKeyRef",
        Shape::Object,
        "A value of a Secret of the input, with the fields of `configMapKeyRef`.",
    ),
    yes("spec.containers[].env[].valueFrom.fieldRef", Shape::Object, "A field of this Pod."),
    only("spec.containers[].env[].valueFrom.fieldRef.apiVersion", Shape::Text, &["v1"], "Pods are of v1"),
    yes(
        "spec.containers[].env[].valueFrom.fieldRef.fieldPath",
        Shape::Text,
        "Required. `metadata.name`, `.namespace`, `.uid`, `.labels['KEY']` or `.annotations['KEY']`; `spec.nodeName` (the host's name) or `.serviceAccountName`; `status.podIP`, `.podIPs`, `.hostIP` or `.hostIPs`.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.resourceFieldRef",
        Shape::Object,
        "A limit or request of a container.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.resourceFieldRef.containerName",
        Shape::Text,
        "Which container. Default: this one.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.resourceFieldRef.resource",
        Shape::Text,
        "Required. `limits` or `requests` of `cpu`, `memory` or `ephemeral-storage`, as in `limits.cpu`. Without a limit: what the VM or the host has.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.resourceFieldRef.divisor",
        Shape::Quantity,
        "The unit of the value, which is rounded up: `1` (default) or `1m` of processors; `1`, `1k` to `1E` or `1Ki` to `1Ei` of bytes.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.fileKeyRef",
        Shape::Object,
        "A variable of a file that another container, such as an init container, has written before this one is made. The file has lines of \
         `NAME='VALUE'`, at most 64 KiB.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.fileKeyRef.volumeName",
        Shape::Text,
        "Required. Which emptyDir volume; this container need not mount it.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.fileKeyRef.path",
        Shape::Text,
        "Required. A relative path in the volume, without `..`.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.fileKeyRef.key",
        Shape::Text,
        "Required. Which variable of the file. At most 128 bytes.",
    ),
    yes(
        "spec.containers[].env[].valueFrom.fileKeyRef.optional",
        Shape::Bool,
        "True: without the file or the key there is no such variable. Default false: the container is not made.",
    ),
    yes(
        "spec.containers[].envFrom",
        Shape::Objects,
        "Variables of whole objects. Later ones win, and `env` wins over all of them.",
    ),
    yes("spec.containers[].envFrom[].prefix", Shape::Text, "Before each name. Default empty."),
    yes("spec.containers[].envFrom[].configMapRef", Shape::Object, "Each key of a ConfigMap of the input."),
    yes("spec.containers[].envFrom[].configMapRef.name", Shape::Text, "Required. Which object."),
    yes(
        "spec.containers[].envFrom[].configMapRef.optional",
        Shape::Bool,
        "True: it may be missing. Default false.",
    ),
    yes(
        "spec.containers[].envFrom[].secretRef",
        Shape::Object,
        "Each key of a Secret of the input, with the fields of `configMapRef`.",
    ),
];
