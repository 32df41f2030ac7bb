//! The two files that describe a pod: its definition (`pod.json`, written once) and its state (`state.json`, written only by its monitor).

use super::atomic::{self, FileError};
use super::layout::{Layout, PodDir, TRASH_PREFIX};
use super::lock::{self, LockState};
use super::sandbox::{Connector, ProcessRef, SandboxFailure, SandboxRecord};
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::state::ContainerStatus;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Schema of both files. A file of another schema can only be shown as such and removed.
pub const SCHEMA: u32 = 2;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    pub schema: u32,
    pub id: PodId,
    /// UUID, as in `metadata.uid`.
    pub uid: String,
    /// `runtimeClassName` in effect.
    pub runtime_class: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// The Pod as written in the manifest, as JSON.
    pub manifest: serde_json::Value,
    /// The containers in order, each with its image.
    pub containers: Vec<ContainerRecord>,
    pub sandbox: SandboxRecord,
    /// Grace period in seconds, unless a command overrides it.
    pub grace_secs: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub name: ContainerName,
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
    /// Milliseconds since 1970 when nothing ran any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// The failure that ended the pod, unless its containers or the user ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broken: Option<Broken>,
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
    /// Its definition; an error when its start was cut short or the file is damaged.
    pub record: Result<PodRecord, RecordError>,
    /// Its state; `None` before its monitor wrote it for the first time, and when the file is damaged.
    pub state: Option<PodState>,
    pub lock: LockState,
}

impl Found {
    /// Reads the files in a pod's directory; `None` when the directory does not exist.
    pub fn read(dir: PodDir) -> Result<Option<Self>, RecordError> {
        if !dir.path().is_dir() {
            return Ok(None);
        }
        // The lock is queried before the state is read, because a monitor writes its last state before it frees the lock.
        let lock = lock::state(&dir.lock())?;
        let record = read_json(&dir.pod_json());
        let state = match read_json(&dir.state_json()) {
            Ok(state) => Some(state),
            Err(RecordError::File(error)) if error.source.kind() == std::io::ErrorKind::NotFound => None,
            // Only the pod's existence is known. That must neither hide other pods nor keep this one from being removed.
            Err(RecordError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Some(Self { dir, record, state, lock }))
    }

    /// Whether its monitor ended without having seen the pod's end.
    pub fn is_lost(&self) -> bool {
        self.lock == LockState::Free && self.state.as_ref().is_none_or(|state| state.stage != Stage::Ended)
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let bytes = fs::read(path).map_err(FileError::at("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| RecordError::Damaged { path: path.to_owned(), source })
}

/// Writes `pod.json` or `state.json`.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RecordError> {
    let bytes =
        serde_json::to_vec(value).map_err(|source| RecordError::Damaged { path: path.to_owned(), source })?;
    atomic::write(path, &bytes, 0o600)?;
    Ok(())
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
        path.file_name().is_some_and(|name| !name.to_string_lossy().starts_with(TRASH_PREFIX))
            && path.is_dir()
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
