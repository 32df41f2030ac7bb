//! The rows that follow the volumes: where the Pod runs, and with what.

use super::row::{Field, Shape, no, only, skip, skip_quietly, yes};
use super::{CLAIMS, CLUSTER, CLUSTER_API, HUGE_PAGES, NOT_SHARED, WINDOWS};

/// The remaining fields of `spec`.
pub(super) const FIELDS: &[Field] = &[
    yes("spec.resources", Shape::Object, "What the pod may use in all. A VM is sized by it."),
    yes(
        "spec.resources.limits",
        Shape::Object,
        "Enforced by the pod's cgroup, beside the containers' limits.",
    ),
    yes(
        "spec.resources.limits.cpu",
        Shape::Quantity,
        "Processors of all containers together. No container's limit may be more.",
    ),
    yes(
        "spec.resources.limits.memory",
        Shape::Quantity,
        "Bytes of all containers together, at least 1Mi. No container's limit may be more.",
    ),
    yes(
        "spec.resources.limits.ephemeral-storage",
        Shape::Quantity,
        "Bytes that changes to root file systems and emptyDir volumes without a limit may take together, 1Mi to 1Ti.",
    ),
    no("spec.resources.limits.hugepages-2Mi", HUGE_PAGES),
    no("spec.resources.limits.hugepages-1Gi", HUGE_PAGES),
    yes(
        "spec.resources.requests",
        Shape::Object,
        "At least what the containers request together, and at most the limit. They decide about the QoS class.",
    ),
    yes(
        "spec.resources.requests.cpu",
        Shape::Quantity,
        "Processors. Default with a limit: what the containers request, or else the limit.",
    ),
    yes("spec.resources.requests.memory", Shape::Quantity, "Bytes. Default as of `cpu`."),
    skip("spec.resources.requests.ephemeral-storage", "nothing is reserved on the disk"),
    no("spec.resources.requests.hugepages-2Mi", HUGE_PAGES),
    no("spec.resources.requests.hugepages-1Gi", HUGE_PAGES),
    no("spec.resources.claims", CLAIMS),
    yes("spec.dnsConfig", Shape::Object, "Put to what `dnsPolicy` gives."),
    yes("spec.dnsConfig.nameservers", Shape::Texts, "IP addresses, at most 3."),
    yes("spec.dnsConfig.searches", Shape::Texts, "Domains, at most 32, 2048 bytes together."),
    yes("spec.dnsConfig.options", Shape::Objects, "At most 32; one replaces the host's of its name."),
    yes("spec.dnsConfig.options[].name", Shape::Text, "Required. As in resolv.conf(5)."),
    yes("spec.dnsConfig.options[].value", Shape::Text, "What stands behind the colon."),
    yes(
        "spec.dnsPolicy",
        Shape::Text,
        "`Default`, `ClusterFirst` and `ClusterFirstWithHostNet`: the host's name servers; `None`: those of `dnsConfig` alone.",
    ),
    yes("spec.hostAliases", Shape::Objects, "Lines of /etc/hosts, at most 64."),
    yes("spec.hostAliases[].ip", Shape::Text, "Required. An IP address."),
    yes("spec.hostAliases[].hostnames", Shape::Texts, "Its names, at most 64."),
    yes("spec.subdomain", Shape::Text, "An RFC 1123 label: /etc/hosts then has the pod's full name too."),
    yes(
        "spec.setHostnameAsFQDN",
        Shape::Bool,
        "With `subdomain`: the host name is the full name, at most 64 characters.",
    ),
    yes(
        "spec.hostnameOverride",
        Shape::Text,
        "An RFC 1123 subdomain of at most 64 characters: the host name, and nothing else.",
    ),
    yes(
        "spec.hostNetwork",
        Shape::Bool,
        "Pods of the class `pod-containers` only, with `--allow-host-network`: the pod has the network of the host, without a filter. Its ports \
         are ports of the host, so that a `hostPort` must equal its `containerPort`. A pod in a VM has no host but its VM; `true` is refused there.",
    ),
    only("spec.hostPID", Shape::Bool, &["false"], NOT_SHARED),
    only("spec.hostIPC", Shape::Bool, &["false"], NOT_SHARED),
    yes(
        "spec.hostUsers",
        Shape::Bool,
        "In a VM both mean the same: its users are none of the host's users. Pods in namespaces of the host have a user namespace, whose root is \
         an ordinary user of the host. With `true`, possible only for root, the users of the pod are those of the host; capabilities and mounts of \
         `/proc` that are power over the host are refused then.",
    ),
    yes("spec.os", Shape::Object, "What the containers are made for."),
    only("spec.os.name", Shape::Text, &["linux"], WINDOWS),
    yes(
        "spec.imagePullSecrets",
        Shape::Objects,
        "Logins for this Pod's pulls, before those of `podman login` and `docker login`. At most 16.",
    ),
    yes(
        "spec.imagePullSecrets[].name",
        Shape::Text,
        "Required. A Secret beside the Pod of the type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`. A missing one is ignored.",
    ),
    skip_quietly("spec.serviceAccountName", &["default"], CLUSTER_API),
    skip_quietly("spec.serviceAccount", &["default"], CLUSTER_API),
    skip_quietly("spec.automountServiceAccountToken", &["false"], CLUSTER_API),
    skip_quietly("spec.enableServiceLinks", &["true", "false"], "there are no services to link to"),
    skip("spec.affinity", CLUSTER),
    skip("spec.nodeName", CLUSTER),
    skip("spec.nodeSelector", CLUSTER),
    skip("spec.overhead", CLUSTER),
    skip_quietly("spec.preemptionPolicy", &["PreemptLowerPriority"], CLUSTER),
    skip_quietly("spec.priority", &["0"], CLUSTER),
    skip("spec.priorityClassName", CLUSTER),
    no(
        "spec.readinessGates",
        "nothing here sets the conditions that they wait for, so that the Pod would never be ready: write a readinessProbe",
    ),
    no("spec.resourceClaims", CLAIMS),
    skip_quietly("spec.schedulerName", &["default-scheduler"], CLUSTER),
    skip("spec.schedulingGates", CLUSTER),
    skip("spec.tolerations", CLUSTER),
    skip("spec.topologySpreadConstraints", CLUSTER),
    skip("spec.evictionResponders", "nothing evicts a pod from here"),
    skip("spec.schedulingGroup", CLUSTER),
    skip("spec.workloadRef", CLUSTER),
];
