//! What a jail is made of, as data.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::os::fd::RawFd;
use std::path::PathBuf;

/// Everything about one jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailSpec {
    pub inside: Inside,
    /// Files and directories. Nothing else of the machine's file systems is there.
    pub mounts: Vec<JailMount>,
    /// Device nodes, such as `/dev/kvm`. They can be opened by the process whatever the host's mode of them says, as long as whoever starts
    /// it may open them.
    pub devices: Vec<PathBuf>,
    /// Whether there is a `/proc`.
    pub procfs: Procfs,
    /// Absolute, in one of the mounts.
    pub working_dir: PathBuf,
    /// Whether the host's network is there.
    pub network: HostNetwork,
    pub identity: Identity,
    /// Which system calls it has.
    pub filter: SyscallFilter,
    /// How much of the machine it may take.
    pub limits: Limits,
    /// The control group that it belongs to, or why there is none.
    pub cgroup: Result<Cgroup, String>,
    /// Descriptors that it has beside 0 to 3. The caller has them open until it is started. All others are closed.
    pub descriptors: Vec<Descriptor>,
    /// What a wall that can't be had means.
    pub requirement: Requirement,
}

/// What runs in a jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Inside {
    /// Another program. It and the libraries of the system are there, to be read and executed.
    Program { path: PathBuf, arguments: Vec<String> },
    /// This program goes on, as if it had been started with this hidden verb. No file of it is there.
    Verb(String),
}

/// A file or directory of the machine's within the jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailMount {
    pub source: MountSource,
    /// Where; absolute. Usually the path that it has outside, so that arguments and messages mean the same in both places.
    pub target: PathBuf,
    /// What may be done to it.
    pub access: Access,
    /// Whether mounts below it come with it.
    pub submounts: Submounts,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    /// An absolute path; links in it are followed when the jail is built.
    Path(PathBuf),
    /// An open descriptor (`O_PATH` will do) that the caller keeps until the process is started: what was checked is what is mounted.
    Fd(RawFd),
}

/// A descriptor that is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Its number with the caller.
    pub here: RawFd,
    /// Its number in the jail: from 4 to 63.
    pub there: RawFd,
}

/// What may be done to a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Nothing of it can be changed.
    ReadOnly,
    /// What the process's identity may.
    ReadWrite,
}

/// Whether mounts below a mount come with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Submounts {
    With,
    /// It is the one file system alone.
    Without,
}

/// Whether there is a `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Procfs {
    Absent,
    /// With the jail's own processes and nothing else.
    OwnProcesses,
}

/// Whether the host's network is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostNetwork {
    Kept,
    /// There is a network of the process's own, with nothing in it.
    None,
}

/// Who a process is. See `jail::identity` for the choice between the first two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// An ordinary user that nobody else is, without any capability. Only root can start such a process.
    Nobody(PodUser),
    /// The user who starts it, in a user namespace, without any capability. Says why it can't be a user of its own, unless it never could.
    Caller(Option<String>),
    /// For serving shared directories: root of a user namespace of its own with all ids that whoever starts it has (an ordinary user: his
    /// own as root, then his subordinate ones), and of root's capabilities only those about files, in that namespace only.
    FileServer,
}

/// A user id, and a group id of the same number, that no account has and no other pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUser(u32);

impl PodUser {
    /// Ids of pods begin here: above those of accounts, of `systemd`'s containers and of the usual subordinate ids.
    const BASE: u32 = 0x7000_0000;

    /// Of the machine with this id (the pod's UID).
    pub fn of_machine(id: &str) -> Self {
        let digest = Sha256::digest(id.as_bytes());
        Self(Self::BASE | u32::from_be_bytes([0, digest[0], digest[1], digest[2]]))
    }

    pub fn id(self) -> u32 {
        self.0
    }
}

/// Which system calls a process has: one list for each kind of process there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyscallFilter {
    /// libkrun's machine, in this program.
    Krun,
    /// The same, serving shared directories.
    KrunSharing,
    Qemu,
    Vsock,
    /// The server of shared directories.
    FileServer,
    /// The filter of a pod's network.
    NetFilter,
}

/// How much of the machine a process may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub pids: u64,
    pub open_files: u64,
}

/// A control group for all processes of one pod, as it is made before the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Its directories: one with unified control groups, one for each controller with those of version 1.
    pub dirs: Vec<PathBuf>,
}

/// What a wall that can't be had means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Requirement {
    /// It is told of, and the process starts without it.
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
