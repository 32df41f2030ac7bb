//! The Pod Runtime Interface: `run_pod`, `stop_pod`, `pause_pod`, `resume_pod`, `delete_pod`, and queries about pods. The CLI is one
//! client of it.
#![warn(missing_docs)]

use super::control::{self, ControlError, ControlRequest};
use super::failure::Failure;
use super::launch::{self, Launched};
use super::limits;
use super::logs::LogReader;
use super::replace;
use super::restart;
use super::run::RunRequest;
use crate::agent::{AgentConnection, AgentError, Connector, DeadlineExtension, Destination, Handshake};
use crate::image::{Progress, Reference};
use crate::store::atomic::FileError;
use crate::store::layout::{Layout, PodDir};
use crate::store::lock::{self, Lock, LockState};
use crate::store::record::{self, Found, RecordError, Stage};
use crate::store::remove::{make_accessible, remove_tree};
use crate::store::undo::UndoError;
use magikvm_proto::budget::HOST_SHUTDOWN_WAIT_MS;
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::lifecycle::Role;
use magikvm_proto::limits::REQUEST_TIMEOUT_SECS;
use magikvm_proto::wire::{Done, Refusal, RefusalCode, Stats};
use serde::de::DeserializeOwned;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time that a monitor is waited for in addition to the pod's own time.
pub(super) const MONITOR_SLACK: Duration = Duration::from_secs(10);
/// Time for the processes of a sandbox to stop or to continue.
const MOTION_WAIT: Duration = Duration::from_secs(10);
/// Time for the monitor to ask the agent, with some for its own work.
const AGENT_WAIT: Duration = Duration::from_secs(REQUEST_TIMEOUT_SECS + 10);
/// Time for a connection to the agent.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// The reasons why a verb fails.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// There is no pod of that name.
    #[error("there is no pod {pod}")]
    NotFound {
        /// The requested pod.
        pod: PodId,
        /// Pods of the same name in other namespaces.
        elsewhere: Vec<PodId>,
    },
    /// The pod has no container of that name.
    #[error("pod {pod} has no container {container}; it has {}", known.join(", "))]
    NoContainer {
        /// The pod.
        pod: PodId,
        /// The requested name.
        container: String,
        /// The names of the pod's containers.
        known: Vec<String>,
    },
    /// The user has to choose one of several containers.
    #[error("pod {pod} has several containers: {}", known.join(", "))]
    ChooseContainer {
        /// The pod.
        pod: PodId,
        /// The names of the pod's containers.
        known: Vec<String>,
    },
    /// The container has not ended and started again.
    #[error("previous terminated container {container:?} in pod {pod} not found")]
    NoPrevious {
        /// The pod.
        pod: PodId,
        /// The container.
        container: ContainerName,
    },
    /// The verb needs a running pod.
    #[error("pod {0} is not running")]
    NotRunning(PodId),
    /// The verb needs a pod that has started.
    #[error("pod {0} is being started")]
    Starting(PodId),
    /// The verb needs a guest that can answer, and a paused one cannot.
    #[error("pod {0} is paused")]
    Paused(PodId),
    /// The verb needs a guest that can answer, and this one stands still because the host's disk is full.
    #[error("pod {0} stands still because the host's disk is full")]
    DiskFull(PodId),
    /// The verb needs a pod that does not run.
    #[error("pod {0} is running")]
    Running(PodId),
    /// A file of the pod is damaged, so that the verb cannot know what it needs.
    #[error("pod {pod} is damaged")]
    Damaged {
        /// The pod.
        pod: PodId,
        /// The file and what is wrong with it.
        #[source]
        source: Arc<RecordError>,
    },
    /// The pod's monitor has ended, so that nobody can carry out the verb.
    #[error("pod {0} is lost: its monitor has ended")]
    Lost(PodId),
    /// The monitor runs but does not release the pod.
    #[error("the monitor of pod {pod} does not release it")]
    Stuck {
        /// The pod.
        pod: PodId,
        /// The file that the monitor has locked.
        lock: PathBuf,
    },
    /// The monitor refused the request or could not be reached.
    #[error("pod {pod} could not be {verb}")]
    Control {
        /// The pod.
        pod: PodId,
        /// The requested outcome (`stopped`).
        verb: &'static str,
        /// Why.
        #[source]
        source: ControlError,
    },
    /// The agent refused the request or could not be reached.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The monitor had no answer of the agent to pass on, for this reason.
    #[error("{0}")]
    Unanswered(String),
    /// The pod's record cannot be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A part of the pod could not be removed.
    #[error("pod {pod} could not be removed")]
    Undo {
        /// The pod.
        pod: PodId,
        /// Why.
        #[source]
        source: UndoError,
    },
}

/// What to do with a pod that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Refuse.
    No,
    /// Kill it.
    Yes,
}

/// Why nothing can be done with a pod that has no monitor or no usable record.
fn lost(found: &Found, id: &PodId) -> PodError {
    match found.damage.first() {
        Some(source) => PodError::Damaged { pod: id.clone(), source: Arc::clone(source) },
        None => PodError::Lost(id.clone()),
    }
}

/// The pods of one state directory.
#[derive(Debug, Clone)]
pub struct PodRuntimeInterface {
    layout: Layout,
}

impl PodRuntimeInterface {
    /// The pods of this layout.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// The layout of the state directory.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Checks that the pod asks for nothing that was not allowed and that the limits of this process are high enough for it, and raises that of open files. To be called before `run_pod`, and
    /// before the threads of its caller are started.
    pub fn check_limits(&self, request: &RunRequest) -> Result<(), Failure> {
        super::run::check_allowed(request)?;
        limits::check(&request.plan)
    }

    /// Checks what can be checked of a run before an older pod of its name is removed: that this host can carry out the plan, that the images
    /// are in the store, and that files, volumes and ports can be used. Pulls what is missing; `progress` is called meanwhile.
    pub fn check_run(
        &self,
        request: &RunRequest,
        old: &Found,
        progress: &mut dyn FnMut(&Reference, &Progress),
    ) -> Result<(), Failure> {
        replace::check(request, &self.layout, old, progress)
    }

    /// Starts a pod's monitor. [`Launched::await_ready`] reports the outcome: all containers run, or nothing of the pod is left.
    pub fn run_pod(&self, request: &RunRequest) -> Result<Launched, Failure> {
        launch::launch(request)
    }

    /// Stops a running pod: TERM to all containers at once, grace period, KILL. Returns when the pod has ended.
    pub fn stop_pod(&self, id: &PodId, grace: Option<Duration>) -> Result<(), PodError> {
        let found = self.find(id)?;
        if found.is_lost() {
            return Err(lost(&found, id));
        }
        if found.lock == LockState::Free {
            return Ok(());
        }
        let default = found.record.as_ref().map_or(0, |record| record.grace_secs);
        let grace = grace.unwrap_or(Duration::from_secs(default));
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        match self.ask_stop(&found, grace_ms) {
            // The pod ended after the check above.
            Err(_) if self.ended(id) => Ok(()),
            Err(source) => Err(PodError::Control { pod: id.clone(), verb: "stopped", source }),
            Ok(()) => Ok(()),
        }
    }

    /// Pauses a pod's sandbox and returns when none of its processes runs. A second call changes nothing.
    pub fn pause_pod(&self, id: &PodId) -> Result<(), PodError> {
        self.set_in_motion(id, &ControlRequest::Pause, "paused")
    }

    /// Resumes a pod's sandbox, whoever stopped it, and returns when all of its processes run. The guest's clock is then corrected.
    pub fn resume_pod(&self, id: &PodId) -> Result<(), PodError> {
        self.set_in_motion(id, &ControlRequest::Resume, "resumed")
    }

    fn set_in_motion(
        &self,
        id: &PodId,
        request: &ControlRequest,
        verb: &'static str,
    ) -> Result<(), PodError> {
        let found = self.find(id)?;
        if found.is_lost() {
            return Err(lost(&found, id));
        }
        if found.is_starting() {
            return Err(PodError::Starting(id.clone()));
        }
        if found.state.as_ref().is_some_and(|state| state.stage == Stage::Ended) {
            return Err(PodError::NotRunning(id.clone()));
        }
        match control::ask(&found.dir, request, MOTION_WAIT) {
            Err(_) if self.ended(id) => Err(PodError::NotRunning(id.clone())),
            Err(source) => Err(PodError::Control { pod: id.clone(), verb, source }),
            Ok(Done {}) => Ok(()),
        }
    }

    /// Whether any process of a pod's sandbox is stopped now.
    pub fn is_paused(&self, id: &PodId) -> bool {
        self.find(id).is_ok_and(|found| {
            found.lock == LockState::Held && found.state.is_some_and(|state| state.paused_ms.is_some())
        })
    }

    pub(super) fn ask_stop(&self, found: &Found, grace_ms: u64) -> Result<(), ControlError> {
        let wait = Duration::from_millis(grace_ms.saturating_add(HOST_SHUTDOWN_WAIT_MS)) + MONITOR_SLACK;
        let deadline = Instant::now() + MONITOR_SLACK;
        loop {
            match control::ask(&found.dir, &ControlRequest::Stop { grace_ms }, wait) {
                // A live monitor begins to listen as soon as it has its lock. What is no socket will never be one.
                Err(ControlError::Unreachable(error))
                    if error.kind() != ErrorKind::InvalidData
                        && Instant::now() < deadline
                        && lock::state(&found.dir.lock()).is_ok_and(|state| state == LockState::Held) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                answer => return answer.map(|Done {}| ()),
            }
        }
    }

    fn ended(&self, id: &PodId) -> bool {
        match self.find(id) {
            Ok(found) => found.state.is_some_and(|state| state.stage == Stage::Ended),
            Err(error) => matches!(error, PodError::NotFound { .. }),
        }
    }

    /// The lock of a pod whose monitor is about to end; `None` when the monitor has removed the directory.
    pub(super) fn take_lock(&self, dir: &PodDir, id: &PodId) -> Result<Option<Lock>, PodError> {
        let deadline = Instant::now() + MONITOR_SLACK;
        loop {
            let held = match lock::wait_for(&dir.lock(), MONITOR_SLACK) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                Ok(None) => true,
                Err(_) if dir.path().symlink_metadata().is_err() => return Ok(None),
                // What is in the place of the lock guards nothing, but the monitor may hold the file that was there.
                Err(error)
                    if matches!(
                        error.source.kind(),
                        ErrorKind::InvalidData | ErrorKind::PermissionDenied
                    ) =>
                {
                    // Its owner can be kept out of the directory by its mode.
                    if error.source.kind() == ErrorKind::PermissionDenied && make_accessible(dir.path())? {
                        continue;
                    }
                    let held = Found::read(dir.clone())?.is_some_and(|found| found.lock == LockState::Held);
                    if !held {
                        remove_tree(&dir.lock())?;
                    }
                    held
                }
                Err(error) => return Err(error.into()),
            };
            if held && Instant::now() > deadline {
                return Err(PodError::Stuck { pod: id.clone(), lock: dir.lock() });
            }
            if held {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// All pods, sorted by namespace and name.
    pub fn list(&self) -> Result<Vec<Found>, PodError> {
        restart::recover(&self.layout);
        Ok(record::list(&self.layout)?)
    }

    /// Finds one pod.
    pub fn find(&self, id: &PodId) -> Result<Found, PodError> {
        if let Some(found) = Found::read(self.layout.pod(id))? {
            return Ok(found);
        }
        restart::recover(&self.layout);
        Found::read(self.layout.pod(id))?.ok_or_else(|| self.not_found(id))
    }

    fn not_found(&self, id: &PodId) -> PodError {
        let records = self.list().unwrap_or_default().into_iter().filter_map(|found| found.record);
        let elsewhere = records.map(|record| record.id).filter(|other| other.name == id.name && other != id);
        PodError::NotFound { pod: id.clone(), elsewhere: elsewhere.collect() }
    }

    /// The container that a verb applies to: the named one, or the only one.
    pub fn container(
        &self,
        found: &Found,
        id: &PodId,
        name: Option<&str>,
    ) -> Result<ContainerName, PodError> {
        let names = self.containers(found, name, id)?;
        // Init containers and sidecars have to be named.
        let names = names.into_iter().filter(|one| name.is_some() || is_main(found, one)).collect::<Vec<_>>();
        match <[ContainerName; 1]>::try_from(names) {
            Ok([only]) => Ok(only),
            Err(names) => Err(PodError::ChooseContainer {
                pod: id.clone(),
                known: names.iter().map(ToString::to_string).collect(),
            }),
        }
    }

    /// The containers that a verb applies to: the named one, or all.
    pub fn containers(
        &self,
        found: &Found,
        name: Option<&str>,
        id: &PodId,
    ) -> Result<Vec<ContainerName>, PodError> {
        let Some(record) = &found.record else {
            return Err(if found.is_starting() { PodError::Starting(id.clone()) } else { lost(found, id) });
        };
        let all = || record.containers.iter().map(|container| container.name.clone());
        let Some(name) = name else { return Ok(all().collect()) };
        let chosen: Vec<ContainerName> = all().filter(|known| known.as_str() == name).collect();
        if chosen.is_empty() {
            let known = all().map(|known| known.to_string()).collect();
            return Err(PodError::NoContainer { pod: id.clone(), container: name.to_owned(), known });
        }
        Ok(chosen)
    }

    /// A connector for connections that outlast pauses of the pod.
    pub fn deadline_extension(&self, id: &PodId) -> DeadlineExtension {
        let (pods, id) = (self.clone(), id.clone());
        DeadlineExtension::new(move || pods.is_paused(&id))
    }

    /// Connects to the agent of a running pod that is not paused, for a session.
    pub fn agent(&self, found: &Found, id: &PodId) -> Result<AgentConnection, PodError> {
        self.check_reachable(found, id)?;
        broker(found, Destination::Agent).connect(CONNECT_WAIT).map_err(|error| self.explain(id, error))
    }

    /// What a failure of a connection to the agent means, by what has become of the pod meanwhile.
    pub fn explain(&self, id: &PodId, error: AgentError) -> PodError {
        match error {
            AgentError::Refused(_) => error.into(),
            error => self.explain_by_fate(id).unwrap_or_else(|| error.into()),
        }
    }

    /// Why the agent of a pod cannot answer, if what has become of the pod says so.
    fn explain_by_fate(&self, id: &PodId) -> Option<PodError> {
        match self.find(id) {
            Err(gone @ PodError::NotFound { .. }) => Some(gone),
            Ok(found) if found.is_lost() => Some(lost(&found, id)),
            Ok(found) if found.is_starting() => Some(PodError::Starting(id.clone())),
            Ok(found) => {
                let stage = found.state.map(|state| state.stage);
                matches!(stage, Some(Stage::Stopping | Stage::Ended))
                    .then(|| PodError::NotRunning(id.clone()))
            }
            Err(_) => None,
        }
    }

    /// Sends a signal to PID 1 of a container, or of all.
    pub fn signal(
        &self,
        found: &Found,
        id: &PodId,
        container: Option<ContainerName>,
        signal: i32,
    ) -> Result<(), PodError> {
        let Done {} =
            self.ask_agent(found, id, &ControlRequest::Signal { container, signal }, "sent a signal")?;
        Ok(())
    }

    /// The resource use of a running pod.
    pub fn stats(&self, found: &Found, id: &PodId) -> Result<Stats, PodError> {
        self.ask_agent(found, id, &ControlRequest::Stats, "asked for its resource use")
    }

    /// Has the monitor ask the agent.
    fn ask_agent<T: DeserializeOwned>(
        &self,
        found: &Found,
        id: &PodId,
        request: &ControlRequest,
        verb: &'static str,
    ) -> Result<T, PodError> {
        self.check_reachable(found, id)?;
        control::ask(&found.dir, request, AGENT_WAIT).map_err(|error| match error {
            ControlError::Refused(Refusal { code: RefusalCode::Internal, message }) => {
                self.explain_by_fate(id).unwrap_or(PodError::Unanswered(message))
            }
            ControlError::Refused(refusal) => AgentError::Refused(refusal).into(),
            source => self.explain_by_fate(id).unwrap_or_else(|| PodError::Control {
                pod: id.clone(),
                verb,
                source,
            }),
        })
    }

    /// Whether the agent of a pod can be asked now. That of a pod that is being started answers once its sandbox is up, so that its init
    /// containers can be reached.
    fn check_reachable(&self, found: &Found, id: &PodId) -> Result<(), PodError> {
        if found.is_lost() {
            return Err(lost(found, id));
        }
        let is_up = |state: &record::PodState| state.agent.is_some() && state.conditions.sandbox_ready.holds;
        if found.is_starting() && !found.state.as_ref().is_some_and(is_up) {
            return Err(PodError::Starting(id.clone()));
        }
        let state =
            found.state.as_ref().filter(|state| state.stage != Stage::Ended && found.lock == LockState::Held);
        if state.is_some_and(|state| state.paused_ms.is_some()) {
            return Err(PodError::Paused(id.clone()));
        }
        if state.is_some_and(|state| state.disk_full.is_some()) {
            return Err(PodError::DiskFull(id.clone()));
        }
        match state.and_then(|state| state.agent.as_ref()) {
            Some(_) => Ok(()),
            None if found.state.is_none() => Err(lost(found, id)),
            None => Err(PodError::NotRunning(id.clone())),
        }
    }

    /// A connector for the ports of a running pod that is not paused, for [`crate::net::relay::Relay`].
    pub fn forward(&self, found: &Found, id: &PodId) -> Result<Connector, PodError> {
        self.check_reachable(found, id)?;
        if found.is_starting() {
            return Err(PodError::Starting(id.clone()));
        }
        Ok(broker(found, Destination::Forward))
    }

    /// Opens the logs of these containers.
    pub fn logs(&self, found: &Found, containers: Vec<ContainerName>) -> Vec<LogReader> {
        containers
            .into_iter()
            .map(|name| {
                let path = found.dir.container_log(&name);
                LogReader::new(name, path)
            })
            .collect()
    }

    /// Opens the logs of these containers as their last run that has ended and was followed by another one, or will be, has written them.
    /// `found` must be up to date.
    pub fn previous_logs(
        &self,
        found: &Found,
        id: &PodId,
        containers: Vec<ContainerName>,
    ) -> Result<Vec<LogReader>, PodError> {
        let statuses = found.state.as_ref().map(|state| state.containers.as_slice()).unwrap_or_default();
        let run = |name: &ContainerName| {
            let last = statuses.iter().find(|status| status.name == *name)?.last.as_ref()?;
            Some(last.run)
        };
        let runs = containers.into_iter().map(|name| match run(&name) {
            Some(run) => Ok((name, run)),
            None => Err(PodError::NoPrevious { pod: id.clone(), container: name }),
        });
        let open = |(name, run): (ContainerName, u32)| {
            let path = found.dir.container_log(&name);
            LogReader::new(name, path).of_run(run)
        };
        runs.map(|run| run.map(open)).collect()
    }
}

/// How to get a connection to the guest of a pod: its monitor makes it and lends it.
fn broker(found: &Found, to: Destination) -> Connector {
    Connector { socket: found.dir.broker_sock(), handshake: Handshake::Broker(to) }
}

fn is_main(found: &Found, container: &ContainerName) -> bool {
    let containers = found.record.as_ref().map(|record| record.containers.as_slice()).unwrap_or_default();
    containers.iter().any(|one| one.name == *container && one.role == Role::Main)
}
