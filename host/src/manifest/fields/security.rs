//! The rows of `securityContext`, of containers and of the Pod.

use super::WINDOWS;
use super::row::{Field, Shape, no, skip_quietly, yes};

const LABELS: &str = "no SELinux label is enforced in a pod: leave it out";

/// Every field of `securityContext`.
pub(super) const FIELDS: &[Field] = &[
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
    yes(
        "spec.containers[].securityContext.privileged",
        Shape::Bool,
        "True: all capabilities, all devices of the VM, no seccomp filter, nothing of /proc masked, /sys and /sys/fs/cgroup writable. \
         Only for the class `pod-microvm-containers`: it rules the VM, with the pod's other containers, and nothing of the host. Default false.",
    ),
    yes(
        "spec.containers[].securityContext.procMount",
        Shape::Text,
        "`Default`, or `Unmasked`: all of /proc, as writable as the container's user may. Unlike in Kubernetes, `hostUsers: false` is not \
         required beside it, because the kernel is the VM's.",
    ),
    yes(
        "spec.containers[].securityContext.seccompProfile",
        Shape::Object,
        "Which system calls it may make. A privileged container has no filter.",
    ),
    yes(
        "spec.containers[].securityContext.seccompProfile.type",
        Shape::Text,
        "Required. `RuntimeDefault` (also if there is no profile), `Localhost`, or `Unconfined`: no filter; only for the class \
         `pod-microvm-containers`.",
    ),
    yes(
        "spec.containers[].securityContext.seccompProfile.localhostProfile",
        Shape::Text,
        "Required for `Localhost`, and only there: a relative path without `..` below the directory `seccomp` of the configuration \
         (`~/.config/magikvm` or `/etc/magikvm`). A profile in the format of Docker or OCI, at most 256 KiB.",
    ),
    yes(
        "spec.containers[].securityContext.appArmorProfile",
        Shape::Object,
        "What its programs may not do although their user and capabilities allow it. Without it a container of the class `pod-containers` has the \
         default profile where the host can have one. A VM has no AppArmor.",
    ),
    yes(
        "spec.containers[].securityContext.appArmorProfile.type",
        Shape::Text,
        "Required. `RuntimeDefault`; `Unconfined`; or, only for the class `pod-containers`, `Localhost`.",
    ),
    yes(
        "spec.containers[].securityContext.appArmorProfile.localhostProfile",
        Shape::Text,
        "Required for `Localhost`, and only there: the name of a profile that the host has loaded, at most 255 letters, digits and \
         characters of `._-+@%/`.",
    ),
    yes("spec.containers[].securityContext.seLinuxOptions", Shape::Object, "Accepted if it is empty."),
    no("spec.containers[].securityContext.seLinuxOptions.level", LABELS),
    no("spec.containers[].securityContext.seLinuxOptions.role", LABELS),
    no("spec.containers[].securityContext.seLinuxOptions.type", LABELS),
    no("spec.containers[].securityContext.seLinuxOptions.user", LABELS),
    no("spec.containers[].securityContext.windowsOptions", WINDOWS),
    yes("spec.securityContext", Shape::Object, "Defaults for the containers' own."),
    yes("spec.securityContext.runAsUser", Shape::Int, "As of a container."),
    yes("spec.securityContext.runAsGroup", Shape::Int, "As of a container."),
    yes("spec.securityContext.runAsNonRoot", Shape::Bool, "As of a container."),
    yes("spec.securityContext.seccompProfile", Shape::Object, "As of a container."),
    yes("spec.securityContext.appArmorProfile", Shape::Object, "As of a container."),
    yes("spec.securityContext.seLinuxOptions", Shape::Object, "As of a container."),
    skip_quietly(
        "spec.securityContext.seLinuxChangePolicy",
        &["MountOption", "Recursive"],
        "there are no labels of SELinux to change",
    ),
    yes(
        "spec.securityContext.fsGroup",
        Shape::Int,
        "A group of every container that owns all volumes but hostPath ones. 0 to 2147483647.",
    ),
    yes(
        "spec.securityContext.fsGroupChangePolicy",
        Shape::Text,
        "When the files of a claim get that group: `Always` (default) or `OnRootMismatch`.",
    ),
    yes(
        "spec.securityContext.supplementalGroups",
        Shape::Ints,
        "Additional groups of every container. 0 to 2147483647 each.",
    ),
    yes(
        "spec.securityContext.supplementalGroupsPolicy",
        Shape::Text,
        "`Merge` (default): the groups that the image's /etc/group gives the user count too. `Strict`: they do not.",
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
    no("spec.securityContext.windowsOptions", WINDOWS),
];
