//! The plan that the host writes to `/pod/spec.json` and the guest carries out. All names are resolved, all defaults applied.

use crate::id::{ContainerName, PodId};
use crate::lifecycle::{self, Hooks, LifecycleError, Probes, Restarts, Role, TerminationMessage};
use crate::limits::{MAX_CONTAINERS_PER_POD, MAX_INIT_CONTAINERS_PER_POD, MAX_VOLUMES_PER_POD};
use crate::security::{ImageGroups, PodLimits, Privilege};
use crate::service_directory::{self, DirectoryAccess, ListedPort, ListedPortsError};
use crate::signal::Signal;
use crate::sysctl::{self, Sysctl, SysctlError};
use crate::variable::{self, FileVariable};
use crate::volume::{MountPlan, VolumeError, VolumePlan};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// What happens to a container that has ended (core/v1 `PodSpec.restartPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart it, whatever its exit code.
    #[default]
    Always,
    /// Restart it unless it exited with 0.
    OnFailure,
    Never,
}

impl RestartPolicy {
    /// Whether a container that ended with this exit code is restarted.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// Whether the containers of a pod see each other's processes (core/v1 `PodSpec.shareProcessNamespace`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessNamespace {
    /// Each container is PID 1 of a private PID namespace.
    #[default]
    PerContainer,
    /// All containers share one PID namespace, whose PID 1 is a process of vminit that reaps.
    Pod,
}

/// How a container's standard output and error are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    #[default]
    Pipes,
    /// One terminal (core/v1 `Container.tty`).
    Terminal,
}

/// What a container reads from its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// End of file immediately.
    #[default]
    Closed,
    /// A pipe that stays open across attaches (core/v1 `Container.stdin`).
    Open,
    /// A pipe that ends with the first attach that ends (core/v1 `Container.stdinOnce`).
    Once,
}

/// Where a container's read-only root file system is. The writable layer is mounted over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rootfs {
    /// In this partition of the composite disk (EROFS), 2 or more; mounted at [`crate::site::Site::image`].
    Partition(u32),
    /// In the directory with this absolute path.
    Path(PathBuf),
}

/// Where a container's changes to its root file system are kept. They live until the container is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Layer {
    /// In the memory of the supervisor's host.
    Memory {
        /// Most bytes they may take; without a limit, half of that memory.
        size_bytes: Option<u64>,
    },
    /// On a file system of the scratch disk, at [`crate::site::Site::layer`]. It is as large as the container's limit, or shared.
    Disk { partition: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPlan {
    /// Its name; its OCI configuration is at [`crate::site::Site::container_config`].
    pub name: ContainerName,
    /// Its read-only root file system.
    pub rootfs: Rootfs,
    /// Its changes to that.
    pub layer: Layer,
    /// The user it runs as, in the form of an OCI image's `User`: empty (root), `user`, `uid`, `user:group`, `uid:gid` and mixtures.
    /// The guest looks names up in the image's `/etc/passwd` and `/etc/group`. Numbers need neither file.
    pub user: String,
    #[serde(default)]
    pub image_groups: ImageGroups,
    #[serde(default)]
    pub privilege: Privilege,
    /// Variables whose values are in files of its pod's volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub file_variables: Vec<FileVariable>,
    /// Standard output and error.
    pub stdio: Stdio,
    pub stdin: Stdin,
    /// The signal by which a stop asks it to end.
    pub stop_signal: Signal,
    /// What it sees of the pod's volumes, in mount order.
    pub mounts: Vec<MountPlan>,
    /// When it runs in the life of the pod.
    #[serde(default)]
    pub role: Role,
    #[serde(default)]
    pub restarts: Restarts,
    #[serde(default)]
    pub probes: Probes,
    #[serde(default)]
    pub hooks: Hooks,
    #[serde(default)]
    pub termination_message: TerminationMessage,
    /// Whether it may ask the pod's service directory.
    #[serde(default, skip_serializing_if = "DirectoryAccess::is_none")]
    pub directory: DirectoryAccess,
    /// What the service directory lists of its ports; empty in a pod that has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ListedPort>,
}

impl ContainerPlan {
    fn check_lifecycle(&self) -> Result<(), LifecycleError> {
        lifecycle::check(self.role, &self.restarts, &self.probes, &self.hooks, &self.termination_message)
    }
}

/// Most addresses and gateways of a pod's interface.
pub const MAX_ADDRESSES: usize = 8;
/// Smallest MTU for IPv6, and the largest one.
pub const MTU: std::ops::RangeInclusive<u32> = 1280..=65_520;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MacAddress(pub [u8; 6]);

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    /// Prefix length of its network.
    pub prefix: u8,
}

/// A neighbour in the pod's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbour {
    pub address: IpAddr,
    /// Its Ethernet address, if known in advance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// The pod's only interface besides loopback. It is described completely: the guest does not use DHCP or router discovery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlan {
    /// MAC address by which the guest finds the interface.
    pub mac: MacAddress,
    /// MTU in bytes.
    pub mtu: u32,
    pub addresses: Vec<InterfaceAddress>,
    /// Gateways to all other networks, at most one for IPv4 and one for IPv6.
    pub gateways: Vec<Neighbour>,
    /// Other hosts in its network that need no ARP or neighbour discovery.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neighbours: Vec<Neighbour>,
}

impl NetworkPlan {
    fn check(&self) -> Result<(), PlanError> {
        let longest = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let wrong = |what: &'static str| Err(PlanError::Network(what));
        if !MTU.contains(&self.mtu) {
            return wrong("its MTU is not 1280 to 65520");
        }
        if [self.addresses.len(), self.gateways.len(), self.neighbours.len()]
            .iter()
            .any(|&count| count > MAX_ADDRESSES)
        {
            return wrong("it has more than 8 addresses");
        }
        if self.addresses.iter().any(|one| one.prefix > longest(&one.address)) {
            return wrong("a prefix is longer than its address");
        }
        let reachable = |gateway: &Neighbour| {
            self.addresses.iter().any(|one| one.address.is_ipv4() == gateway.address.is_ipv4())
        };
        let four = self.gateways.iter().filter(|one| one.address.is_ipv4()).count();
        if four > 1 || self.gateways.len() > four + 1 || !self.gateways.iter().all(reachable) {
            return wrong(
                "it has several gateways of one address family, or no address of a gateway's family",
            );
        }
        Ok(())
    }
}

/// The whole pod as the guest needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestPlan {
    /// The [`crate::GENERATION`] of the host that wrote the plan.
    pub generation: u32,
    pub pod: PodId,
    /// The pod's unique id (UUID text).
    pub uid: String,
    /// The pod's host name (UTS).
    pub hostname: String,
    /// What happens to a container that has ended.
    pub restart_policy: RestartPolicy,
    /// Whether containers see each other's processes.
    pub process_namespace: ProcessNamespace,
    /// Grace period if the guest itself stops the pod (signal to PID 1), in milliseconds.
    pub grace_ms: u64,
    /// The longest life of the pod from its start, in milliseconds (core/v1 `PodSpec.activeDeadlineSeconds`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// At most 16 init containers and sidecars in their order, then 1 to 16 main containers. No main container starts before all of them
    /// are created; a stop applies to all of them at once.
    pub containers: Vec<ContainerPlan>,
    /// At most 64 volumes.
    pub volumes: Vec<VolumePlan>,
    /// Its network; without one the pod has only loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkPlan>,
    /// The first address of a pod whose interfaces others have set up: the host, or the plugins of a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_address: Option<IpAddr>,
    /// Kernel parameters that the pod sets, at most 64, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<Sysctl>,
    /// What all containers may use together.
    #[serde(default, skip_serializing_if = "PodLimits::is_none")]
    pub limits: PodLimits,
}

/// Why a plan can't be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A host of another generation wrote the plan.
    #[error("the plan is of generation {found}, this vminit speaks {expected}")]
    Generation {
        /// Generation in the plan.
        found: u32,
        /// This program's [`crate::GENERATION`].
        expected: u32,
    },
    /// No main containers, or too many.
    #[error("the plan has {0} containers, 1 to {MAX_CONTAINERS_PER_POD} are allowed")]
    ContainerCount(usize),
    /// Too many init containers and sidecars.
    #[error("the plan has {0} init containers, at most {MAX_INIT_CONTAINERS_PER_POD} are allowed")]
    InitContainerCount(usize),
    /// An init container or sidecar behind a main container.
    #[error("the plan has init container {0} behind a main container")]
    Order(ContainerName),
    /// A container whose restarts, probes or hooks can't be carried out.
    #[error("container {container}: {reason}")]
    Lifecycle { container: ContainerName, reason: LifecycleError },
    /// Two containers have the same name.
    #[error("the plan names container {0} twice")]
    Duplicate(ContainerName),
    /// A partition that can't hold an image.
    #[error("container {container} names partition {partition}, images start at 2")]
    Partition { container: ContainerName, partition: u32 },
    /// A directory that can't be a root file system.
    #[error("container {container} has its root file system at {}, which is not an absolute path without `..`", path.display())]
    RootfsPath { container: ContainerName, path: PathBuf },
    #[error("the plan has {0} volumes, at most {MAX_VOLUMES_PER_POD} are allowed")]
    VolumeCount(usize),
    /// A volume or a mount that can't be made.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A kernel parameter that the pod may not set.
    #[error("the kernel parameter {name:?} {reason}")]
    Sysctl { name: String, reason: SysctlError },
    /// A variable of a file that cannot be.
    #[error("container {0} has a variable of a file that no volume of the pod can have")]
    FileVariable(ContainerName),
    /// Ports that the service directory can't list.
    #[error("container {container}: {reason}")]
    Ports { container: ContainerName, reason: ListedPortsError },
    /// A limit of the whole pod that leaves it nothing.
    #[error("the plan's limits of the pod leave it no processor or less than 1 MiB")]
    Limits,
    /// The network can't be set up.
    #[error("the plan's network is invalid: {0}")]
    Network(&'static str),
}

impl GuestPlan {
    /// Whether a container of the pod may ask its service directory.
    pub fn has_service_directory(&self) -> bool {
        self.containers.iter().any(|container| container.directory == DirectoryAccess::Socket)
    }

    /// Checks what the types can't express. Both ends call it: the host before it writes the plan, the guest before it acts.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.generation != crate::GENERATION {
            return Err(PlanError::Generation { found: self.generation, expected: crate::GENERATION });
        }
        let main = self.containers.iter().filter(|container| container.role == Role::Main).count();
        let before = self.containers.len() - main;
        if !(1..=MAX_CONTAINERS_PER_POD).contains(&main) {
            return Err(PlanError::ContainerCount(main));
        }
        if before > MAX_INIT_CONTAINERS_PER_POD {
            return Err(PlanError::InitContainerCount(before));
        }
        if let Some(late) = self.containers[before..].iter().find(|container| container.role != Role::Main) {
            return Err(PlanError::Order(late.name.clone()));
        }
        for (index, container) in self.containers.iter().enumerate() {
            if self.containers[..index].iter().any(|earlier| earlier.name == container.name) {
                return Err(PlanError::Duplicate(container.name.clone()));
            }
            match &container.rootfs {
                Rootfs::Partition(partition) if *partition < crate::path::FIRST_IMAGE_PARTITION => {
                    return Err(PlanError::Partition {
                        container: container.name.clone(),
                        partition: *partition,
                    });
                }
                Rootfs::Path(path) if !is_plain(path) => {
                    let (container, path) = (container.name.clone(), path.clone());
                    return Err(PlanError::RootfsPath { container, path });
                }
                Rootfs::Partition(_) | Rootfs::Path(_) => {}
            }
            if !variable::are_possible(&container.file_variables, self.volumes.len()) {
                return Err(PlanError::FileVariable(container.name.clone()));
            }
            service_directory::check(&container.ports).map_err(|reason| {
                let container = container.name.clone();
                PlanError::Ports { container, reason }
            })?;
            container.check_lifecycle().map_err(|reason| {
                let container = container.name.clone();
                PlanError::Lifecycle { container, reason }
            })?;
        }
        if self.volumes.len() > MAX_VOLUMES_PER_POD {
            return Err(PlanError::VolumeCount(self.volumes.len()));
        }
        let mounts = self.containers.iter().map(|container| (&container.name, &container.mounts[..]));
        crate::volume::check(&self.volumes, mounts)?;
        sysctl::check(&self.sysctls).map_err(|(index, reason)| PlanError::Sysctl {
            name: self.sysctls.get(index).map_or_else(String::new, |one| one.name.clone()),
            reason,
        })?;
        if !self.limits.is_possible() {
            return Err(PlanError::Limits);
        }
        self.network.as_ref().map_or(Ok(()), NetworkPlan::check)
    }
}

/// Whether a path is absolute and contains no `..`.
pub(crate) fn is_plain(path: &std::path::Path) -> bool {
    use std::path::Component;
    let fine = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    path.is_absolute() && path.components().all(fine) && !path.as_os_str().as_encoded_bytes().contains(&0)
}
