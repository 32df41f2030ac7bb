//! The Pod as meant: every default applied, everything checked. What the monitor keeps in `pod.json`.

use super::objects::Content;
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::plan::{ProcessNamespace, RestartPolicy, Stdin, Stdio};
use magikvm_proto::volume::Access;
use oci_spec::runtime::Capability;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

pub use super::size::{MiB, Vcpus, VmSize};
pub use crate::image::PullPolicy;
use crate::image::Reference;
pub use crate::volume::HostPathKind;

/// Which walls a pod gets (`spec.runtimeClassName`). Closed: an unknown class is an error, never swapped for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeClass {
    /// One hardware VM for the pod, containers inside it.
    #[default]
    PodMicrovmContainers,
    /// Namespaces, cgroups and seccomp of this machine.
    PodContainers,
    PodWasm,
}

impl RuntimeClass {
    pub const ALL: [Self; 3] = [Self::PodMicrovmContainers, Self::PodContainers, Self::PodWasm];

    /// The name in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodMicrovmContainers => "pod-microvm-containers",
            Self::PodContainers => "pod-containers",
            Self::PodWasm => "pod-wasm",
        }
    }
}

impl fmt::Display for RuntimeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodPlan {
    pub id: PodId,
    /// `metadata.labels`, valid.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, valid.
    pub annotations: BTreeMap<String, String>,
    /// The pod's host name: `spec.hostname`, else the pod's name cut to 63 characters as the kubelet does.
    pub hostname: String,
    pub runtime_class: RuntimeClass,
    /// What happens to a container that has ended.
    pub restart_policy: RestartPolicy,
    /// Whose processes a container sees.
    pub process_namespace: ProcessNamespace,
    /// `spec.terminationGracePeriodSeconds`, in seconds.
    pub grace_seconds: u64,
    /// Size of the VM (classes without a VM don't use it).
    pub vm: VmSize,
    /// 1 to 16 containers, in the order they are written.
    pub containers: Vec<ContainerSpec>,
    /// Ports of this machine that lead to it.
    pub published: Vec<PublishedPort>,
    /// At most 64.
    pub volumes: Vec<VolumeSpec>,
    /// The group that volumes belong to (`fsGroup`).
    pub volume_group: Option<u32>,
    /// Groups of every container beside those of its user; that of the volumes is among them.
    pub further_groups: Vec<u32>,
    /// How it gets out, and how it resolves names.
    pub network: super::network::NetworkSpec,
    /// The Pod as written, as JSON, without the fields that are safe to ignore and without nulls.
    pub manifest: serde_json::Value,
}

/// How firmly the containers of a pod hold their memory when there is too little (core/v1 `PodStatus.qosClass`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container has limits of CPU and memory and asks for no less.
    Guaranteed,
    /// Something is asked for or limited.
    Burstable,
    BestEffort,
}

impl PodPlan {
    /// The pod's class by the rules of Kubernetes.
    pub fn qos_class(&self) -> QosClass {
        let amounts = |resources: &Resources| {
            let cpu = (resources.cpu_limit_millis, resources.cpu_request_millis);
            let memory = (resources.memory_limit_bytes, resources.memory_request_bytes);
            [cpu, memory]
        };
        let mut all = self.containers.iter().flat_map(|container| amounts(&container.resources));
        if all.clone().all(|(limit, request)| limit.is_none() && request.unwrap_or(0) == 0) {
            QosClass::BestEffort
        } else if all.all(|(limit, request)| limit.is_some() && limit == request) {
            QosClass::Guaranteed
        } else {
            QosClass::Burstable
        }
    }
}

/// One environment variable, `value` as written (references not yet expanded).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvVar {
    /// Not empty, printable ASCII, no `=`.
    pub name: String,
    pub value: String,
}

/// What a container may use and asks for. A limit of zero is no limit, as in Kubernetes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_limit_millis: Option<u64>,
    /// Thousandths of a processor; the limit when only that is written.
    pub cpu_request_millis: Option<u64>,
    /// Bytes.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes; the limit when only that is written.
    pub memory_request_bytes: Option<u64>,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

/// A port that a container says it listens on. Information only: it opens nothing; see [`PodPlan::published`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPort {
    /// An IANA service name, unique within the container.
    pub name: Option<String>,
    /// 1 to 65535.
    pub container_port: u16,
    pub protocol: Protocol,
}

/// A port of the host that leads to one of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    /// Which address of this machine; `0.0.0.0` for all of IPv4, `::` for all.
    pub host_ip: IpAddr,
    /// Which port of the host; 0 for any that is free.
    pub host_port: u16,
    /// Which port of the pod, 1 to 65535.
    pub container_port: u16,
    pub protocol: Protocol,
    /// Where it was asked for, for messages: a field's path or an option as it was written.
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
    /// It must not be started as user 0, nor as a user that can't be told from user 0.
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

/// Whether a process may gain privileges its parent does not have (`allowPrivilegeEscalation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivilegeEscalation {
    #[default]
    Allowed,
    /// `no_new_privs` is set.
    Denied,
}

/// Capabilities named by one list of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CapabilityList {
    /// `ALL` is among them.
    All,
    /// These, without duplicates, sorted by name.
    Only(Vec<Capability>),
}

impl Default for CapabilityList {
    fn default() -> Self {
        Self::Only(Vec::new())
    }
}

/// Who a container is and what it may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// Instead of the image's user.
    pub run_as_user: Option<u32>,
    /// Instead of the image's or user's group.
    pub run_as_group: Option<u32>,
    /// May it be user 0?
    pub root_user: RootUser,
    /// May it write to `/`?
    pub root_filesystem: RootFilesystem,
    /// May it gain privileges?
    pub privilege_escalation: PrivilegeEscalation,
    /// Capabilities beyond the default ones.
    pub add_capabilities: CapabilityList,
    /// Capabilities taken away; applied after `add_capabilities`.
    pub drop_capabilities: CapabilityList,
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
    /// Something of this machine.
    HostPath {
        /// Absolute, without `..`.
        path: PathBuf,
        kind: HostPathKind,
    },
    /// An empty directory in the VM's memory.
    Memory {
        /// Bytes it can hold.
        size_bytes: Option<u64>,
    },
    /// An empty directory on this machine's disk.
    Disk {
        /// Bytes it can hold; without it, it shares a file system with the others.
        size_bytes: Option<u64>,
    },
    /// Files of a ConfigMap or Secret, no two with one path.
    Files(Vec<VolumeFile>),
}

/// A file of a ConfigMap or Secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeFile {
    /// Relative, without `..`.
    pub path: String,
    pub mode: u16,
    pub content: Content,
}

/// What a container sees of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountSpec {
    /// Index of the volume in [`PodPlan::volumes`].
    pub volume: usize,
    /// Absolute, without `..`.
    pub path: String,
    /// Which part of it; expanded, relative, without `..`.
    pub sub_path: Option<String>,
    /// Whether it can be changed.
    pub access: Access,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    /// Unique within the pod.
    pub name: ContainerName,
    pub image: Reference,
    /// The same reference as it is written in the manifest, for messages and the pod's status.
    pub image_text: String,
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint; empty when not written. Not yet expanded.
    pub command: Vec<String>,
    /// Replaces the image's arguments; empty when not written. Not yet expanded.
    pub args: Vec<String>,
    /// In the order written; of two with one name the later wins.
    pub env: Vec<EnvVar>,
    pub working_dir: Option<String>,
    pub resources: Resources,
    /// Ports it says it listens on.
    pub ports: Vec<ContainerPort>,
    /// Who it is and what it may do.
    pub security: Security,
    /// Standard output and error.
    pub stdio: Stdio,
    pub stdin: Stdin,
    /// What it sees of the volumes.
    pub mounts: Vec<MountSpec>,
}
