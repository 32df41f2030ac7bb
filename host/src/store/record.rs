//! The two files that describe a pod: its definition (`pod.json`, written once) and its state (`state.json`, written only by its monitor).

use super::atomic::{self, FileError};
use super::layout::{Layout, PodDir, RESTART_PREFIX, TRASH_PREFIX};
use super::lock::{self, LockState};
use super::regular::{self, Access};
use super::sandbox::{Connector, ProcessRef, Role, SandboxFailure, SandboxRecord};
use super::text::harmless;
use crate::os;
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::state::ContainerStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Schema of both files. A file of another schema can only be shown as such and removed.
pub const SCHEMA: u32 = 2;
/// Longest file that is read. The definition has the manifest, whose request to the monitor has the same limit.
const MAX_RECORD: u64 = 16 << 20;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    pub schema: u32,
    pub id: PodId,
    /// UUID, as in `metadata.uid`.
    pub uid: String,
    /// `runtimeClassName` in effect.
    pub runtime_class: String,
    /// Milliseconds since 1970 when its monitor accepted it.
    pub created_ms: u64,
    /// The Pod as written in the manifest, as JSON.
    pub manifest: serde_json::Value,
    /// The containers in order, each with its image.
    pub containers: Vec<ContainerRecord>,
    pub sandbox: SandboxRecord,
    /// Grace period in seconds, unless a command overrides it.
    pub grace_secs: u64,
    /// Path of the file that the manifest was in; absent if it was in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub name: ContainerName,
    #[serde(default)]
    pub role: magikvm_proto::lifecycle::Role,
    pub image: String,
    /// Digest of the image that the name meant.
    pub image_id: String,
    pub terminal: bool,
    pub stdin: bool,
}

/// The phase of a pod's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Its images are being pulled. Nothing is recorded of a pod in this phase.
    Pulling,
    /// Not all containers run yet.
    Starting,
    /// All containers ran at least once.
    Running,
    /// It was asked to end, or all its containers have ended.
    Stopping,
    /// None of its processes runs.
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    pub schema: u32,
    pub stage: Stage,
    /// Milliseconds since 1970 when all containers ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// Milliseconds since 1970 since when processes of the VM are stopped; absent while all of them run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ms: Option<u64>,
    /// Why the VM stands still although its processes run; absent while it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_full: Option<DiskFull>,
    /// Milliseconds since 1970 when nothing ran any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The failure that ended the pod, unless its containers or the user ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
    /// Why the pod counts as failed, whatever the exit codes of its containers are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedReason>,
    /// The pod's conditions as the monitor saw them last.
    #[serde(default)]
    pub conditions: Conditions,
    /// The pod's addresses if it has a network device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_ips: Vec<std::net::IpAddr>,
    /// An address of the host if the pod has a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<std::net::IpAddr>,
    /// The containers in order, with times of the host's clock.
    pub containers: Vec<ContainerStatus>,
    /// The monitor and the sandbox's processes.
    pub processes: Vec<ProcessRef>,
    /// Ports of the host that lead to the pod while it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<BoundPort>,
    /// Annotations that `inspect` adds to the pod's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How to reach the agent while it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Connector>,
}

/// The host's disk has no room for what the VM writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFull {
    /// Milliseconds since 1970 since when.
    pub since_ms: u64,
    /// A directory on that disk.
    pub dir: PathBuf,
}

/// A port of the host that leads to a port of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundPort {
    /// The address of the host that listens.
    pub host_ip: std::net::IpAddr,
    /// The port of the host; not 0.
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    Tcp,
    Udp,
}

impl std::fmt::Display for BoundPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = std::net::SocketAddr::new(self.host_ip, self.host_port);
        let protocol = match self.protocol {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{address}->{}/{protocol}", self.container_port)
    }
}

/// Why Kubernetes counts a pod as failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailedReason {
    /// It was active longer than `activeDeadlineSeconds`.
    DeadlineExceeded,
}

impl FailedReason {
    /// As the kubelet words it.
    pub fn message(self) -> &'static str {
        match self {
            Self::DeadlineExceeded => "Pod was active on the node longer than the specified deadline",
        }
    }
}

/// The pod's conditions (core/v1 `PodCondition`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    pub scheduled: Condition,
    /// Its sandbox runs and its agent answers (core/v1 `PodReadyToStartContainers`).
    pub sandbox_ready: Condition,
    /// Its init containers are through, and its sidecars were started.
    pub initialized: Condition,
    pub containers_ready: Condition,
    pub ready: Condition,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub holds: bool,
    /// Milliseconds since 1970 since when.
    pub since_ms: u64,
}

impl Condition {
    pub fn set(&mut self, holds: bool, now_ms: u64) {
        if self.holds != holds || self.since_ms == 0 {
            *self = Self { holds, since_ms: now_ms };
        }
    }
}

/// Paths of the namespaces of a pod without a VM, for programs such as `nsenter`. They lead to the pod as long as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespacePaths {
    pub network: PathBuf,
    pub ipc: PathBuf,
    pub uts: PathBuf,
    /// That of the pod's first process. A container has one within it.
    pub pid: PathBuf,
    pub user: PathBuf,
    /// That of the pod's first process, which makes those of the containers.
    pub mount: PathBuf,
}

impl NamespacePaths {
    /// Those of a process.
    fn of(process: &ProcessRef) -> Self {
        let dir = Path::new("/proc").join(process.pid.to_string()).join("ns");
        let path = |name: &str| dir.join(name);
        Self {
            network: path("net"),
            ipc: path("ipc"),
            uts: path("uts"),
            pid: path("pid"),
            user: path("user"),
            mount: path("mnt"),
        }
    }
}

/// The failure that ended a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    pub reason: SandboxFailure,
    pub message: String,
}

/// Why a record can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The file does not have the format that this program writes.
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// A pod found on disk.
#[derive(Debug)]
pub struct Found {
    pub dir: PodDir,
    /// Its definition; `None` before it was written, and when the file is damaged.
    pub record: Option<PodRecord>,
    /// Its state; `None` before its monitor wrote it for the first time, and when the file is damaged.
    pub state: Option<PodState>,
    pub lock: LockState,
    /// The files that are there and cannot be used. Damage neither hides other pods nor keeps this one from being removed.
    pub damage: Vec<Arc<RecordError>>,
}

impl PodRecord {
    /// What the kubelet calls the pod in its messages: `NAME_NAMESPACE(UID)`.
    pub fn kubelet_name(&self) -> String {
        format!("{}_{}({})", self.id.name, self.id.namespace, self.uid)
    }
}

impl Found {
    /// Reads the files in a pod's directory; `None` when there is no such directory.
    pub fn read(dir: PodDir) -> Result<Option<Self>, RecordError> {
        match fs::symlink_metadata(dir.path()) {
            Ok(there) if there.is_dir() => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::at("open", dir.path())(error).into()),
        }
        let mut damage = Vec::new();
        // The lock is queried before the state is read, because a monitor writes its last state before it frees the lock.
        let lock = kept(lock::state(&dir.lock()).map_err(RecordError::from), &mut damage);
        let record = kept(read_json(&dir.pod_json()), &mut damage);
        let state: Option<PodState> = kept(read_json(&dir.state_json()), &mut damage);
        kept(regular::open(&dir.undo(), Access::Read).map_err(RecordError::from), &mut damage);
        // A lock that cannot be asked says nothing, but the state names the monitor.
        let lock = lock.unwrap_or_else(|| {
            let processes = state.iter().flat_map(|state| &state.processes);
            let mut monitors = processes.filter(|process| process.role == Role::Monitor);
            let lives = monitors.any(|monitor| os::start_time(monitor.pid) == Some(monitor.start_time));
            if lives { LockState::Held } else { LockState::Free }
        });
        Ok(Some(Self { dir, record, state, lock, damage }))
    }

    /// Whether its monitor ended without having seen the pod's end.
    pub fn is_lost(&self) -> bool {
        self.lock == LockState::Free && self.state.as_ref().is_none_or(|state| state.stage != Stage::Ended)
    }

    /// Whether every container has ended for good, as the supervisor of a pod that ran has reported it. The end of its sandbox follows by itself, and
    /// the monitor may not have seen it yet.
    pub fn all_have_ended(&self) -> bool {
        self.state.as_ref().is_some_and(|state| {
            let has_run = matches!(state.stage, Stage::Running | Stage::Stopping | Stage::Ended);
            let mut all = state.containers.iter();
            has_run && !state.containers.is_empty() && all.all(|status| status.state.terminated().is_some())
        })
    }

    /// Whether a live monitor has not brought all containers up yet. A damaged pod says nothing about that.
    pub fn is_starting(&self) -> bool {
        let stage = self.state.as_ref().map(|state| state.stage);
        self.lock == LockState::Held
            && match stage {
                None => self.damage.is_empty(),
                Some(stage) => matches!(stage, Stage::Pulling | Stage::Starting),
            }
    }

    /// The pod's namespaces, if it has some and its first process lives.
    pub fn namespaces(&self) -> Option<NamespacePaths> {
        let processes = &self.state.as_ref()?.processes;
        let first = processes.iter().find(|process| process.role == Role::Supervisor)?;
        (os::start_time(first.pid) == Some(first.start_time)).then(|| NamespacePaths::of(first))
    }

    /// Whether nothing is in its directory yet, or nothing any more.
    pub fn is_empty(&self) -> bool {
        let has_files = self.record.is_some() || self.state.is_some() || !self.damage.is_empty();
        self.lock == LockState::Free && !has_files
    }

    /// Namespace and name. Without a record the name of the directory has to do, which anybody may have chosen.
    pub fn name(&self) -> String {
        match &self.record {
            Some(record) => record.id.to_string(),
            None => {
                let name = self.dir.path().file_name().unwrap_or_default().to_string_lossy();
                harmless(&name.replacen('_', "/", 1), &[])
            }
        }
    }
}

/// A file's content, unless it is missing or damaged.
fn kept<T>(read: Result<T, RecordError>, damage: &mut Vec<Arc<RecordError>>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(RecordError::File(error)) if error.source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            damage.push(Arc::new(error));
            None
        }
    }
}

/// Reads a file of a pod that [`write_json`] has written.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let read = || {
        let bytes = regular::read(path, MAX_RECORD)?;
        serde_json::from_slice(&bytes)
            .map_err(|source| RecordError::Damaged { path: path.to_owned(), source })
    };
    // On a full disk it may have been read while it was overwritten.
    read().or_else(|_: RecordError| read())
}

/// Writes `pod.json` or `state.json`.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| RecordError::Damaged { path: path.to_owned(), source })?;
    atomic::write(path, &bytes, 0o600)?;
    Ok(())
}

/// `state.json` has at least this many bytes more than its content, and whole blocks.
const STATE_SLACK: usize = 1 << 10;
const STATE_BLOCK: usize = 4 << 10;

/// Writes `state.json`. When the disk is full it is overwritten in its place, which needs no room: users have to see why a pod stands still.
pub fn write_state(path: &Path, state: &PodState) -> Result<(), RecordError> {
    let damaged = |source| RecordError::Damaged { path: path.to_owned(), source };
    let mut bytes = serde_json::to_vec(state).map_err(damaged)?;
    let padded = (bytes.len() + STATE_SLACK).next_multiple_of(STATE_BLOCK);
    bytes.resize(padded, b' ');
    match atomic::write(path, &bytes, 0o600) {
        Err(error) if atomic::is_full(&error.source) => overwrite(path, &bytes).map_err(|_| error.into()),
        written => Ok(written?),
    }
}

/// Replaces the bytes of a file that is at least as long.
fn overwrite(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let there = usize::try_from(fs::symlink_metadata(path)?.len()).map_err(|_| full())?;
    if there < bytes.len() {
        return Err(full());
    }
    let mut bytes = bytes.to_vec();
    bytes.resize(there, b' ');
    let file = regular::open(path, Access::Lock).map_err(|error| error.source)?;
    file.write_all_at(&bytes, 0)
}

/// All pods by directory name, without those that vanish meanwhile.
pub fn list(layout: &Layout) -> Result<Vec<Found>, RecordError> {
    let pods = layout.pods();
    let entries = match fs::read_dir(&pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(FileError::at("list", &pods)(error).into()),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            !name.starts_with(TRASH_PREFIX) && !name.starts_with(RESTART_PREFIX)
        }) && path.symlink_metadata().is_ok_and(|there| there.is_dir())
    };
    paths.retain(named);
    let mut found = Vec::with_capacity(paths.len());
    for path in paths {
        found.extend(Found::read(PodDir::at(path))?);
    }
    Ok(found)
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
