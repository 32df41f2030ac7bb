//! The Pod as meant, with every default applied and everything checked. The monitor stores it in `pod.json`.

use super::objects::{Claim, Content};
use magikvm_proto::id::{ContainerName, PodId, PodName};
use magikvm_proto::lifecycle::{Hooks, Probes, Restarts, Role, TerminationMessage};
use magikvm_proto::plan::{ProcessNamespace, RestartPolicy, Stdin, Stdio};
use magikvm_proto::security::{HugePages, ImageGroups, Privilege};
use magikvm_proto::signal::Signal;
use magikvm_proto::sysctl::Sysctl;
use magikvm_proto::volume::Access;
use oci_spec::runtime::Capability;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

pub use super::class::{MAX_NAMESPACE_ID, RuntimeClass, UnknownClass};
pub use super::qos::QosClass;
pub use super::size::{MiB, Vcpus, VmSize};
pub use crate::image::PullPolicy;
use crate::image::{LoginFormat, Reference};
pub use crate::nested::Nested;
pub use crate::volume::{GroupChange, HostPathKind};

/// The users of a pod in namespaces of the host (`spec.hostUsers`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodUsers {
    /// Those of a user namespace.
    #[default]
    Own,
    Host,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodPlan {
    pub id: PodId,
    /// `metadata.labels`, valid.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, valid.
    pub annotations: BTreeMap<String, String>,
    /// Limits of the logs that its annotations ask for.
    pub logs: super::logs::LogOptions,
    /// The pod's host name: `label`, the full name (`spec.setHostnameAsFQDN`), or `spec.hostnameOverride`.
    pub hostname: String,
    /// The first label of the pod's full name: `spec.hostname`, or else the pod's name cut to 63 characters as the kubelet does.
    pub label: String,
    /// `label.subdomain.namespace.svc.cluster.local`, if it has a subdomain.
    pub full_name: Option<String>,
    pub runtime_class: RuntimeClass,
    /// Whose users it has, if it shares the host's kernel.
    #[serde(default)]
    pub users: PodUsers,
    pub restart_policy: RestartPolicy,
    /// Which processes a container sees.
    pub process_namespace: ProcessNamespace,
    /// `spec.terminationGracePeriodSeconds`, in seconds.
    pub grace_seconds: u64,
    /// Size of the VM. Of a pod without one it says nothing.
    pub vm: VmSize,
    /// Where containers keep the changes to their root file systems.
    #[serde(default)]
    pub root: RootPlace,
    /// Limits that the host cannot enforce.
    #[serde(default)]
    pub limits_kept: LimitsKept,
    /// Bytes that these changes and emptyDir volumes without a limit may take together.
    #[serde(default)]
    pub disk_limit_bytes: Option<u64>,
    /// What the containers may use together (`spec.resources`), with the defaults of an API server.
    #[serde(default)]
    pub resources: Resources,
    /// `spec.activeDeadlineSeconds`, in seconds.
    #[serde(default)]
    pub deadline_seconds: Option<u64>,
    /// At most 16 init containers and sidecars, then 1 to 16 main containers, each in the order they are written.
    pub containers: Vec<ContainerSpec>,
    /// Ports of the host that lead to the pod.
    pub published: Vec<PublishedPort>,
    /// At most 64.
    pub volumes: Vec<VolumeSpec>,
    /// The group that volumes belong to (`fsGroup`).
    pub volume_group: Option<u32>,
    /// When the files of a claim get that group (`fsGroupChangePolicy`).
    #[serde(default)]
    pub volume_group_change: GroupChange,
    /// Groups of every container in addition to its user's, including that of the volumes.
    pub further_groups: Vec<u32>,
    /// Whether the image's groups of a user count (`supplementalGroupsPolicy`).
    #[serde(default)]
    pub image_groups: ImageGroups,
    /// Kernel parameters that the pod sets.
    pub sysctls: Vec<Sysctl>,
    /// The pod's outbound network and its name resolution.
    pub network: super::network::NetworkSpec,
    /// Whether the VM's processor can make VMs itself.
    #[serde(default)]
    pub nested: Nested,
    /// The containers that may ask the pod's service directory, each once (the annotation `magikvm.dev/service-directory`).
    #[serde(default)]
    pub service_directory: Vec<ContainerName>,
    /// Logins for the pulls of this pod. They are passed on to the process that pulls and stored nowhere.
    #[serde(default)]
    pub pull_secrets: Vec<PullSecret>,
    /// The Pod as written, as JSON, without the fields that are safe to ignore and without nulls.
    pub manifest: serde_json::Value,
}

/// A Secret with logins of registries (`spec.imagePullSecrets`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullSecret {
    pub name: String,
    pub format: LoginFormat,
    pub content: Content,
}

/// One environment variable with its `value` as written (references not yet expanded).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvVar {
    /// Not empty, printable ASCII, no `=`.
    pub name: String,
    pub value: String,
    /// What its value is instead, once the VM is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<LateField>,
    /// Where its value is instead when the container is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileKey>,
}

/// A key of a file that a container has written into an emptyDir volume (`fileKeyRef`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileKey {
    /// Index of the volume in [`PodPlan::volumes`].
    pub volume: usize,
    /// Relative, without `..`.
    pub path: String,
    pub key: String,
    /// Without the file or the key there is no such variable.
    pub optional: bool,
}

/// A resource of a container that the downward API tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    Cpu,
    Memory,
    Disk,
    HugePages2Mi,
    HugePages1Gi,
}

impl Resource {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::HugePages2Mi => "hugepages-2Mi",
            Self::HugePages1Gi => "hugepages-1Gi",
        }
    }
}

/// An amount of a resource and the unit in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceShare {
    pub resource: Resource,
    /// Thousandths of a processor, or bytes.
    pub divisor: u64,
}

/// A field of the Pod that gets its value when the VM is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LateField {
    Uid,
    NodeName,
    PodIp,
    PodIps,
    HostIp,
    HostIps,
    /// What a container without such a limit can have at most.
    Limit(ResourceShare),
}

impl LateField {
    /// Each by its path.
    pub const TABLE: [(&str, Self); 6] = [
        ("metadata.uid", Self::Uid),
        ("spec.nodeName", Self::NodeName),
        ("status.podIP", Self::PodIp),
        ("status.podIPs", Self::PodIps),
        ("status.hostIP", Self::HostIp),
        ("status.hostIPs", Self::HostIps),
    ];
}

impl fmt::Display for LateField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Limit(share) = self {
            return write!(f, "limits.{}", share.resource.as_str());
        }
        let found = Self::TABLE.iter().find(|(_, field)| field == self);
        f.write_str(found.map_or("", |(path, _)| path))
    }
}

/// Limits and requests of a container. A limit of zero is not a limit, as in Kubernetes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_limit_millis: Option<u64>,
    /// Thousandths of a processor; defaults to the limit.
    pub cpu_request_millis: Option<u64>,
    /// Bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes; defaults to the limit.
    pub memory_request_bytes: Option<u64>,
    /// Bytes that the changes to the root file system may take.
    #[serde(default)]
    pub disk_limit_bytes: Option<u64>,
    #[serde(default)]
    pub huge_pages: HugePages,
}

impl Resources {
    /// Whether something is said about processors or memory.
    pub fn is_of_compute(&self) -> bool {
        let Self { cpu_limit_millis, cpu_request_millis, memory_limit_bytes, memory_request_bytes, .. } =
            self;
        [cpu_limit_millis, cpu_request_millis, memory_limit_bytes, memory_request_bytes]
            .iter()
            .any(|amount| amount.is_some())
    }
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

/// A port that a container says it listens on. It is only information and opens nothing; see [`PodPlan::published`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPort {
    /// An IANA service name, unique within the container.
    pub name: Option<String>,
    /// 1 to 65535.
    pub container_port: u16,
    pub protocol: Protocol,
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// The address of the host; `0.0.0.0` for all of IPv4, `::` for all.
    pub host_ip: IpAddr,
    /// The port of the host; 0 for any free port.
    pub host_port: u16,
    /// The port of the pod, 1 to 65535.
    pub container_port: u16,
    pub protocol: Protocol,
    /// The origin for messages: a field's path or an option as written.
    pub origin: String,
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.host_port, self.origin)
    }
}

/// Whether a container may run as user 0 (`runAsNonRoot`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootUser {
    #[default]
    Allowed,
    /// It must not be started as user 0, nor as a user that may be user 0.
    Refused,
}

/// Whether a container may write to its root file system (`readOnlyRootFilesystem`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootFilesystem {
    /// Through a writable layer.
    #[default]
    Writable,
    ReadOnly,
}

/// What happens to limits that the host cannot enforce (the annotation `magikvm.dev/limits`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitsKept {
    /// The pod is refused.
    #[default]
    Enforced,
    /// The pod runs without them.
    BestEffort,
}

/// Where containers keep the changes to their root file systems (the annotation `magikvm.dev/root`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootPlace {
    /// On the pod's scratch disk.
    #[default]
    Disk,
    /// In the VM's memory.
    Memory,
}

/// Whether a process may gain privileges its parent does not have (`allowPrivilegeEscalation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivilegeEscalation {
    #[default]
    Allowed,
    Denied,
}

/// What a container sees of /proc (`procMount`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcMount {
    /// Paths that tell or change something of the kernel are hidden or read-only.
    #[default]
    Masked,
    Unmasked,
}

/// Which system calls a container may make (`seccompProfile`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    #[default]
    RuntimeDefault,
    /// All of them.
    Unconfined,
    /// Those of a profile: its path below the directory of profiles, without `..`.
    Localhost(String),
}

/// The AppArmor profile of a container (`appArmorProfile`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppArmor {
    /// Nothing is asked for: the default profile where the host can have it.
    #[default]
    Unset,
    RuntimeDefault,
    Unconfined,
    /// A profile by the name under which the host has loaded it.
    Localhost(String),
}

/// Capabilities in one list of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapabilityList {
    /// Whether the list contains `ALL`.
    All,
    /// The others, without duplicates, sorted by name.
    Only(Vec<Capability>),
}

impl Default for CapabilityList {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

/// The identity and the rights of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// Replaces the image's user.
    pub run_as_user: Option<u32>,
    /// Replaces the group of the image or its user.
    pub run_as_group: Option<u32>,
    /// Whether it may be user 0.
    pub root_user: RootUser,
    /// Whether it may write to `/`.
    pub root_filesystem: RootFilesystem,
    /// Whether it may gain privileges.
    pub privilege_escalation: PrivilegeEscalation,
    /// Capabilities in addition to the default ones.
    pub add_capabilities: CapabilityList,
    /// Removed capabilities; applied after `add_capabilities`.
    pub drop_capabilities: CapabilityList,
    /// Whether it rules the VM.
    #[serde(default)]
    pub privilege: Privilege,
    #[serde(default)]
    pub proc_mount: ProcMount,
    #[serde(default)]
    pub seccomp: Seccomp,
    #[serde(default)]
    pub app_armor: AppArmor,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// Unique within the pod.
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VolumeSource {
    /// A file or directory of the host.
    HostPath {
        /// Absolute, without `..`.
        path: PathBuf,
        kind: HostPathKind,
    },
    /// An empty directory in the VM's memory.
    Memory {
        /// Its capacity in bytes.
        size_bytes: Option<u64>,
    },
    /// An empty directory on the host's disk.
    Disk {
        /// Its capacity in bytes; without one, it shares a file system with the others.
        size_bytes: Option<u64>,
    },
    /// Files of ConfigMaps, Secrets and the downward API, each with a different path.
    Files(Vec<VolumeFile>),
    /// The root file system of a container image.
    Image {
        image: Reference,
        /// The reference as written in the manifest.
        image_text: String,
        pull_policy: PullPolicy,
    },
    /// A volume that survives the pod.
    Claim {
        /// Of the pod's namespace.
        name: PodName,
        /// What to make if it does not exist.
        make: Option<Claim>,
        /// Whether the pod may change it at all.
        access: Access,
    },
}

/// A file of a ConfigMap, a Secret or the downward API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    /// Relative, without `..`.
    pub path: String,
    pub mode: u16,
    pub content: Content,
    /// What its content is instead, once the VM is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<LateField>,
}

/// A mount of a volume in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Index of the volume in [`PodPlan::volumes`].
    pub volume: usize,
    /// Absolute, without `..`.
    pub path: String,
    /// The part of the volume to mount; expanded, relative, without `..`.
    pub sub_path: Option<String>,
    /// Whether it is writable.
    pub access: Access,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Unique within the pod.
    pub name: ContainerName,
    pub image: Reference,
    /// The reference as written in the manifest, for messages and the pod's status.
    pub image_text: String,
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint; empty when not written. Not yet expanded.
    pub command: Vec<String>,
    /// Replaces the image's arguments; empty when not written. Not yet expanded.
    pub args: Vec<String>,
    /// In the order written; the later of two with one name wins.
    pub env: Vec<EnvVar>,
    pub working_dir: Option<String>,
    pub resources: Resources,
    /// Ports that it says it listens on.
    pub ports: Vec<ContainerPort>,
    /// Its identity and rights.
    pub security: Security,
    /// Whether standard output and error are a terminal.
    pub stdio: Stdio,
    pub stdin: Stdin,
    /// Its volume mounts.
    pub mounts: Vec<MountSpec>,
    /// When it runs in the life of the pod.
    #[serde(default)]
    pub role: Role,
    #[serde(default)]
    pub restarts: Restarts,
    /// With ports resolved and variables expanded.
    #[serde(default)]
    pub probes: Probes,
    #[serde(default)]
    pub hooks: Hooks,
    /// `lifecycle.stopSignal`, instead of the image's.
    #[serde(default)]
    pub stop_signal: Option<Signal>,
    #[serde(default)]
    pub termination_message: TerminationMessage,
}
