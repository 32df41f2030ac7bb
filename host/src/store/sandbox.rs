//! What is written down of a pod's sandbox, whatever its runtime class is: its processes, how its agent is reached, and the names of the ends
//! that nobody asked for. Data alone; what is done with it is the business of the layers above.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// What a process of a pod is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Monitor,
    /// Pulls the pod's images before it runs.
    Puller,
    Vmm,
    /// Serves the vsock device of a VMM that has none of its own.
    VsockDevice,
    /// Serves shared directories to a VMM that can't.
    FileServer,
    /// Filters what the pod sends to the network and what it gets from there.
    NetFilter,
    /// Carries the pod's packets to the host's network.
    Passt,
    /// Tries whether a jail can be built here, and does nothing.
    Trial,
}

impl Role {
    /// Whether it is a part of the pod's network.
    pub fn is_of_network(self) -> bool {
        matches!(self, Self::NetFilter | Self::Passt)
    }
}

/// A process of ours, by number and start time. The number alone may one day be somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    pub role: Role,
    /// For people; nothing is decided by it.
    pub name: String,
    pub pid: i32,
    /// As the system says it ([`crate::os::start_time`]).
    pub start_time: u64,
}

/// How a connection to the agent's socket becomes one to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handshake {
    Direct,
    /// `CONNECT <port>\n`, answered by `OK <number>\n` (the convention of Firecracker and vhost-device-vsock).
    Port(u32),
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
}

impl fmt::Display for SandboxRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Vm(VmRecord { memory_mib, vcpus, driver }) = self;
        write!(f, "{driver} {vcpus}cpu {memory_mib}MiB")
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

/// Whose fault a failure is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The manifest, a name, an image: exit code 1.
    User,
    /// The host: exit code 3.
    Environment,
    /// magikvm or its guest: exit code 70.
    Internal,
    /// The pod itself: its program is not there, its guest misbehaves. Exit code 1.
    Workload,
}

/// Why a sandbox ended otherwise than it should have. `status.reason` of a pod shows the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxFailure {
    /// The VMM could not make the VM: a file is missing or damaged, there is too little memory for it…
    NotMade,
    /// Somebody killed a process of the VMM.
    VmmKilled,
    /// The host's kernel killed one for want of memory.
    VmmOutOfMemory,
    /// A process of the VMM made a system call that its list does not have, and was killed for it.
    FilterViolated,
    VmmFailed,
    /// A process of the pod's network ended.
    NetworkFailed,
    /// The guest's kernel or its init panicked.
    GuestPanicked,
    /// The guest's processor gave up.
    TripleFault,
    /// The guest restarted or turned itself off, and nobody had asked it to.
    GuestEnded,
    /// The pod's agent did not answer in time.
    AgentSilent,
    /// The pod's agent broke the contract.
    AgentBroke,
    /// The guest did not end in time, and was killed.
    GuestStuck,
    /// All has ended, and something of it could not be taken away.
    Leftover,
}

impl SandboxFailure {
    /// Whose fault it is, as far as its name tells.
    pub fn blame(self) -> Blame {
        match self {
            Self::NotMade
            | Self::VmmKilled
            | Self::VmmOutOfMemory
            | Self::VmmFailed
            | Self::NetworkFailed
            | Self::Leftover => Blame::Environment,
            Self::AgentBroke => Blame::Workload,
            Self::FilterViolated
            | Self::GuestPanicked
            | Self::TripleFault
            | Self::GuestEnded
            | Self::AgentSilent
            | Self::GuestStuck => Blame::Internal,
        }
    }

    /// What the user can do about it.
    pub fn hint(self) -> &'static str {
        match self {
            Self::NotMade => {
                "check with `magikvm doctor` that the guest image is whole, and with `free -m` that the host has the memory that the VM asks for."
            }
            Self::VmmKilled => {
                "run the pod again; if it is killed again, look for who did it with `journalctl -e`."
            }
            Self::VmmOutOfMemory => {
                "see with `free -m` how much memory the host has left; stop other pods with `magikvm stop`, or lower the limits of this pod's containers."
            }
            Self::FilterViolated => {
                "see with `magikvm doctor` which isolation layers the host gives, and report the system call if you trust the workload."
            }
            Self::VmmFailed => "check the host and its VMM with `magikvm doctor`.",
            Self::NetworkFailed => "check the host's network and its passt with `magikvm doctor`.",
            Self::GuestPanicked | Self::TripleFault | Self::GuestEnded => {
                "check the guest image with `magikvm-image inspect`, and build it anew with `magikvm-image build` if it is damaged."
            }
            Self::AgentSilent => {
                "see with `uptime` whether the host is too busy to run the VM, and run the pod again."
            }
            Self::AgentBroke => {
                "build the guest image anew with `magikvm-image build`; if it is whole, the workload may have taken its guest over."
            }
            Self::GuestStuck => "give the containers more time to end with `magikvm stop --grace`.",
            Self::Leftover => "take away what is left with `magikvm rm -f`.",
        }
    }
}

impl fmt::Display for SandboxFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its name is what it is called in JSON too.
        fmt::Debug::fmt(self, f)
    }
}

/// The end of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxEnd {
    /// What it was, if nobody asked for it.
    pub failure: SandboxFailure,
    pub how: String,
}

impl SandboxEnd {
    pub fn blame(&self) -> Blame {
        self.failure.blame()
    }

    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        self.failure.hint()
    }
}
