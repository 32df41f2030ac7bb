//! The contents of a jail, as data.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::os::fd::RawFd;
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    pub inside: Inside,
    /// Files and directories. No other file of the host is visible.
    pub mounts: Vec<JailMount>,
    /// Device nodes, such as `/dev/kvm`. The process can open them whatever their mode on the host is, provided that its starter can.
    pub devices: Vec<PathBuf>,
    /// Whether there is a `/proc`.
    pub procfs: Procfs,
    /// Absolute, in one of the mounts.
    pub working_dir: PathBuf,
    /// Whether the host's network is reachable.
    pub network: HostNetwork,
    pub identity: Identity,
    /// The system calls that it may make.
    pub filter: SyscallFilter,
    /// The limits on its use of the host.
    pub limits: Limits,
    /// The control group that it joins, or why it has none.
    pub cgroup: Result<Cgroup, String>,
    /// Descriptors in addition to 0 to 3. The caller keeps them open until the process is started. All others are closed.
    pub descriptors: Vec<Descriptor>,
    pub requirement: Requirement,
}

/// The program that runs in a jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inside {
    /// Another program. It and the libraries of the system are visible, read-only and executable.
    Program { path: PathBuf, arguments: Vec<String> },
    /// This program continues as if it had been started with this hidden verb. None of its files is visible.
    Verb(String),
}

/// A file or directory of the host within the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailMount {
    pub source: MountSource,
    /// The absolute path in the jail. Usually it is the path outside, so that arguments and messages mean the same in both places.
    pub target: PathBuf,
    pub access: Access,
    /// Whether mounts below it are included.
    pub submounts: Submounts,
}

/// The source of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// An absolute path; links in it are followed when the jail is built.
    Path(PathBuf),
    /// An open descriptor (`O_PATH` suffices) that the caller keeps until the process is started: the file that was checked is the one
    /// that is mounted.
    Fd(RawFd),
}

/// A descriptor that is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number in the calling process.
    pub here: RawFd,
    /// Its number in the jail: from 4 to 63.
    pub there: RawFd,
}

/// How a mount may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Nothing in it can be changed.
    ReadOnly,
    /// Whatever the identity of the process may do.
    ReadWrite,
}

/// Whether mounts below a mount are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Submounts {
    With,
    /// Only the one file system.
    Without,
}

/// Whether there is a `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Procfs {
    Absent,
    /// With only the jail's processes.
    OwnProcesses,
}

/// Whether the host's network is reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostNetwork {
    Kept,
    /// An empty private network.
    None,
}

/// The identity of a process. See `jail::identity` for the choice between the first two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// An ordinary user that nothing else runs as, without any capability. Only root can start such a process.
    Nobody(PodUser),
    /// The user who starts it, in a user namespace, without any capability. Says why it cannot have a private user, unless that was never
    /// possible.
    Caller(Option<String>),
    /// For serving shared directories: root of a private user namespace that has all ids of its starter (for an ordinary user: the user's
    /// id as root, then the subordinate ids). It has only root's capabilities for files, and only in that namespace.
    FileServer,
}

/// A user id, and a group id of the same number, that no account and no other pod has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUser(u32);

impl PodUser {
    /// First id of pods: above the ids of accounts, of `systemd`'s containers and of the usual subordinate ranges.
    const BASE: u32 = 0x7000_0000;

    /// The user of the VM with this id (the pod's UID).
    pub fn of_machine(id: &str) -> Self {
        let digest = Sha256::digest(id.as_bytes());
        Self(Self::BASE | u32::from_be_bytes([0, digest[0], digest[1], digest[2]]))
    }

    pub fn id(self) -> u32 {
        self.0
    }
}

/// The system calls that a process may make: one list for each kind of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyscallFilter {
    /// libkrun's VM, in this program.
    Krun,
    /// libkrun's VM with shared directories.
    KrunSharing,
    Qemu,
    Vsock,
    /// The server of shared directories.
    FileServer,
    /// The filter of a pod's network.
    NetFilter,
    /// The NAT of a pod's network.
    Nat,
}

/// The limits on a process's use of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub pids: u64,
    pub open_files: u64,
}

/// The control group of all processes of a pod, as it is created before the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Its directories: one with unified control groups, one for each controller with version 1.
    pub dirs: Vec<PathBuf>,
}

/// What to do when a layer is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    /// The process starts without the layer, which is reported.
    #[default]
    Warn,
    /// The process does not start.
    Require,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_way_to_its_process() {
        let user = PodUser::of_machine("4c0f3a0e-54d5-4a0d-9f6b-0a4e8a3c1b2d");
        assert_eq!(user.id() >> 24, 0x70);
        assert_ne!(user, PodUser::of_machine("4c0f3a0e-54d5-4a0d-9f6b-0a4e8a3c1b2e"));
        let spec = JailSpec {
            inside: Inside::Program { path: "/usr/bin/x".into(), arguments: vec!["-y".to_owned()] },
            mounts: vec![JailMount {
                source: MountSource::Fd(7),
                target: "/a".into(),
                access: Access::ReadOnly,
                submounts: Submounts::Without,
            }],
            devices: vec!["/dev/kvm".into()],
            procfs: Procfs::Absent,
            working_dir: "/a".into(),
            network: HostNetwork::None,
            identity: Identity::Nobody(user),
            filter: SyscallFilter::Qemu,
            limits: Limits { pids: 64, open_files: 64 },
            cgroup: Ok(Cgroup { dirs: vec!["/sys/fs/cgroup/x".into()] }),
            descriptors: vec![Descriptor { here: 7, there: 4 }],
            requirement: Requirement::Require,
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<JailSpec>(&text).unwrap(), spec);
    }
}
