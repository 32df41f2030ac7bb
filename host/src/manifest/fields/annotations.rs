//! The annotations that magikvm reads.

/// Prefix of the annotations that magikvm reads. An unknown annotation with it is refused.
pub const ANNOTATION_PREFIX: &str = "magikvm.dev/";
/// Sets the memory of the VM, in MiB.
pub const ANNOTATION_MEMORY: &str = "magikvm.dev/memory-mib";
/// Sets the number of processors of the VM.
pub const ANNOTATION_VCPUS: &str = "magikvm.dev/vcpus";
/// Shows the ports of the host that lead to a pod.
pub const ANNOTATION_PORTS: &str = "magikvm.dev/ports";
/// Where containers keep the changes to their root file systems.
pub const ANNOTATION_ROOT: &str = "magikvm.dev/root";
/// Whether limits that the host cannot enforce are refused.
pub const ANNOTATION_LIMITS: &str = "magikvm.dev/limits";
/// Shows the isolation layers of a pod's processes.
pub const ANNOTATION_JAIL: &str = "magikvm.dev/jail";
/// Shows the namespaces of a pod without a VM.
pub const ANNOTATION_NAMESPACES: &str = "magikvm.dev/namespaces";
/// How the pod is connected.
pub const ANNOTATION_NETWORK: &str = "magikvm.dev/network";
/// The only destinations that the pod may reach.
pub const ANNOTATION_EGRESS_ALLOW: &str = "magikvm.dev/egress-allow";
/// Destinations that are open in addition to the default.
pub const ANNOTATION_EGRESS_REACH: &str = "magikvm.dev/egress-reach";
/// The network of CNI that the pod joins.
pub const ANNOTATION_CNI: &str = "magikvm.dev/cni";
/// Lets the pod make VMs itself.
pub const ANNOTATION_NESTED: &str = "magikvm.dev/nested-virtualization";
/// Size at which a container's log file is rotated.
pub const ANNOTATION_LOG_MAX_SIZE: &str = "magikvm.dev/log-max-size";
/// Number of log files of a container.
pub const ANNOTATION_LOG_MAX_FILES: &str = "magikvm.dev/log-max-files";
/// Size of all log files of the pod.
pub const ANNOTATION_LOG_MAX_POD_SIZE: &str = "magikvm.dev/log-max-pod-size";
/// Containers that may ask the pod's service directory.
pub const ANNOTATION_SERVICE_DIRECTORY: &str = "magikvm.dev/service-directory";
/// Every annotation that magikvm reads, and its effect.
pub const ANNOTATIONS: &[(&str, &str)] = &[
    (
        ANNOTATION_MEMORY,
        "Memory of the VM in MiB, 96 to 4096, instead of the sum of the containers' limits and the overhead. Refused without a VM.",
    ),
    (
        ANNOTATION_VCPUS,
        "Processors of the VM, 1 to 8, instead of the sum of the containers' limits rounded up. Refused without a VM.",
    ),
    (ANNOTATION_PORTS, "`inspect` shows the pod's ports of the host here. It has no effect in a manifest."),
    (
        ANNOTATION_ROOT,
        "Where containers keep the changes to their root file systems: `disk` (the default) or `memory` (of the VM or the host; each at most half of it).",
    ),
    (
        ANNOTATION_LIMITS,
        "Limits that the host cannot enforce for a pod in namespaces: `enforced` (the default: they are refused) or `best-effort` (a warning).",
    ),
    (
        ANNOTATION_JAIL,
        "`inspect` shows the isolation layers of the pod's processes here. It has no effect in a manifest.",
    ),
    (
        ANNOTATION_NAMESPACES,
        "`inspect` shows the namespaces of a pod without a VM here, as paths for `nsenter`. It has no effect in a manifest.",
    ),
    (
        ANNOTATION_NETWORK,
        "The pod's network: `nat` (the default), `passt`, `none`, and in VMs `tsi` (with `--kernel libkrunfw`) and `user` (with `--vmm qemu`).",
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
        ANNOTATION_CNI,
        "Pods of the class `pod-containers` only: the name of a network of CNI that the host has, which the pod joins with `eth0`. Its plugins decide what the pod reaches; our filter is not there.",
    ),
    (
        ANNOTATION_NESTED,
        "`true`: the pod sees the processor's extension for VMs (VMX, SVM), which a VM hides otherwise. More of the host's kernel can then be attacked. Refused without a VM.",
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
    (
        ANNOTATION_SERVICE_DIRECTORY,
        "Names of the containers, separated by commas, that find the pod's service directory at `/run/magikvm/directory.sock`: which containers and ports live in the pod, and whether they are ready, as HTTP and JSON.",
    ),
];
