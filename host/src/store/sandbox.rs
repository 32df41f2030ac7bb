//! The record of a pod's sandbox for every runtime class: its processes, how its agent is reached, and the names of its failures. It is
//! only data; the layers above act on it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// The purpose of a pod's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Monitor,
    /// Pulls the pod's images before it runs.
    Puller,
    Vmm,
    /// Makes the namespaces of a pod and waits for its end.
    Sandbox,
    /// The first process of a pod in namespaces.
    Supervisor,
    /// Serves the vsock device of a VMM that has none built in.
    VsockDevice,
    /// Serves shared directories to a VMM that cannot.
    FileServer,
    /// Filters the pod's network traffic in both directions.
    NetFilter,
    /// Carries the pod's packets to the host's network.
    Nat,
    /// The same, by another program.
    Passt,
    /// Does what an ordinary user may do only as root of a user namespace.
    Errand,
    /// Loads a profile into the kernel of the host.
    Loader,
    /// Tests whether a jail can be built here and does nothing.
    Trial,
}

impl Role {
    /// Whether it belongs to the pod's network.
    pub fn is_of_network(self) -> bool {
        matches!(self, Self::NetFilter | Self::Nat | Self::Passt)
    }
}

/// A process of ours, identified by number and start time. The number alone may later belong to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    pub role: Role,
    /// For people; nothing is decided by it.
    pub name: String,
    pub pid: i32,
    /// The value of [`crate::os::start_time`].
    pub start_time: u64,
}

/// How a connection to the agent's socket becomes a connection to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handshake {
    Direct,
    /// `CONNECT <port>\n`, answered by `OK <number>\n` (the convention of Firecracker and vhost-device-vsock).
    Port(u32),
    /// A request to the monitor, which makes the connection and lends it to this process.
    Broker(Destination),
}

/// What a connection to the guest is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Requests to the agent.
    Agent,
    /// A connection to a port of the pod.
    Forward,
}

/// Where an agent can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connector {
    /// A Unix socket of any path length.
    pub socket: PathBuf,
    pub handshake: Handshake,
}

/// What a pod's sandbox is made of, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SandboxRecord {
    Vm(VmRecord),
    Containers(ContainersRecord),
}

impl fmt::Display for SandboxRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(VmRecord { memory_mib, vcpus, driver }) => {
                write!(f, "{driver} {vcpus}cpu {memory_mib}MiB")
            }
            Self::Containers(ContainersRecord { users: UsersRecord::Host }) => f.write_str("namespaces"),
            Self::Containers(ContainersRecord { users: UsersRecord::Own }) => {
                f.write_str("namespaces userns")
            }
            Self::Containers(ContainersRecord { users: UsersRecord::Caller }) => {
                f.write_str("namespaces rootless")
            }
        }
    }
}

/// A VM in a pod's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Memory, in MiB.
    pub memory_mib: u64,
    pub vcpus: u32,
    pub driver: String,
}

/// The namespaces of a pod in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainersRecord {
    pub users: UsersRecord,
}

/// Whose users those of a pod are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsersRecord {
    Host,
    /// Those of a user namespace.
    Own,
    /// Those of a user namespace whose root is the user that runs the pod.
    Caller,
}

/// Who is to blame for a failure; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The manifest, a name, an image: exit code 1.
    User,
    /// The host: exit code 3.
    Environment,
    /// magikvm or its guest: exit code 70.
    Internal,
    /// The pod itself, for example a missing program or a misbehaving guest: exit code 1.
    Workload,
}

/// Why a sandbox failed. `status.reason` of a pod shows the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxFailure {
    /// The VMM could not make the VM, for example because a file is missing or memory is short.
    NotMade,
    /// A process of the VMM was killed from outside.
    VmmKilled,
    /// The host's kernel killed a process of the VMM because memory ran out.
    VmmOutOfMemory,
    /// A process of the VMM made a system call that is not on its list and was killed for it.
    FilterViolated,
    VmmFailed,
    /// The pod's sandbox was killed from outside.
    SandboxKilled,
    /// The pod's sandbox ended without a request.
    SandboxFailed,
    /// A process of the pod's network ended.
    NetworkFailed,
    /// The guest's kernel or its init panicked.
    GuestPanicked,
    /// The guest's processor triple-faulted.
    TripleFault,
    /// The guest restarted or turned itself off without a request.
    GuestEnded,
    /// The pod's agent did not answer in time.
    AgentSilent,
    /// The pod's agent violated the protocol.
    AgentBroke,
    /// The pod did not end in time and was killed.
    #[serde(alias = "GuestStuck")]
    SandboxStuck,
    /// The host's disk had no room for what the VM wrote, so that the VM stood still and was killed when it had to end.
    HostDiskFull,
    /// The pod's monitor could not do its part.
    MonitorFailed,
    /// Everything has ended, but something could not be removed.
    Leftover,
}

impl SandboxFailure {
    /// Who is to blame, as far as the name of the failure tells.
    pub fn blame(self) -> Blame {
        match self {
            Self::NotMade
            | Self::VmmKilled
            | Self::VmmOutOfMemory
            | Self::VmmFailed
            | Self::SandboxKilled
            | Self::NetworkFailed
            | Self::HostDiskFull
            | Self::Leftover => Blame::Environment,
            Self::AgentBroke => Blame::Workload,
            Self::FilterViolated
            | Self::SandboxFailed
            | Self::GuestPanicked
            | Self::TripleFault
            | Self::GuestEnded
            | Self::AgentSilent
            | Self::MonitorFailed
            | Self::SandboxStuck => Blame::Internal,
        }
    }

    /// What the user can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::NotMade => {
                "Check with `magikvm doctor` that the guest image is intact, and with `free -m` that the host has the memory that the VM asks for."
            }
            Self::VmmKilled | Self::SandboxKilled => {
                "Run the pod again; if it is killed again, look for the cause with `journalctl -e`."
            }
            Self::VmmOutOfMemory => {
                "See with `free -m` how much memory the host has left; stop other pods with `magikvm stop`, or lower the limits of this pod's containers."
            }
            Self::FilterViolated => {
                "See with `magikvm doctor` which isolation layers the host gives, and report the system call if you trust the workload."
            }
            Self::VmmFailed => "Check the host and its VMM with `magikvm doctor`.",
            Self::SandboxFailed => "See the pod's console with `magikvm logs`, and run the pod again.",
            Self::NetworkFailed => "Check the host's network with `magikvm doctor`.",
            Self::GuestPanicked | Self::TripleFault | Self::GuestEnded => {
                "Check the guest image with `magikvm-image inspect`, and rebuild it with `magikvm-image build` if it is damaged."
            }
            Self::AgentSilent => {
                "See with `uptime` whether the host is too busy to run the pod, and run it again."
            }
            Self::AgentBroke => {
                "Install `magikvm` anew, and for VMs rebuild the guest image with `magikvm-image build`; if all is whole, the workload may have taken over its sandbox."
            }
            Self::MonitorFailed => {
                "See with `ulimit -a` and `free -m` what this process may use, and run the pod again."
            }
            Self::SandboxStuck => "Give the containers more time to end with `magikvm stop --grace`.",
            Self::HostDiskFull => {
                "Make room on the host's disk, for example with `magikvm image prune --all`, or limit what the pod writes with `resources.limits.ephemeral-storage`."
            }
            Self::Leftover => "Remove what is left with `magikvm rm -f`.",
        }
    }
}

impl fmt::Display for SandboxFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name is the same as in JSON.
        fmt::Debug::fmt(self, f)
    }
}

/// The end of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxEnd {
    /// The failure, unless the end was requested.
    pub failure: SandboxFailure,
    pub how: String,
}

impl SandboxEnd {
    pub fn blame(&self) -> Blame {
        self.failure.blame()
    }

    pub fn hint(&self) -> &'static str {
        self.failure.hint()
    }
}
