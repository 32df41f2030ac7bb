//! The Pod Runtime Interface: `run_pod`, `stop_pod`, `pause_pod`, `resume_pod`, `delete_pod`, and what one may ask of a pod in between. The CLI is one client of it.
#![warn(missing_docs)]

use super::control::{self, ControlError, ControlRequest};
use super::failure::Failure;
use super::launch::{self, Launched};
use super::logs::LogReader;
use super::run::RunRequest;
use crate::agent::{AgentConnection, AgentError, Connector, DeadlineExtension};
use crate::store::atomic::FileError;
use crate::store::layout::Layout;
use crate::store::lock::{self, Lock, LockState};
use crate::store::record::{self, Found, RecordError, Stage};
use crate::store::undo::{Step, Undo, UndoError};
use magikvm_proto::budget::HOST_SHUTDOWN_WAIT_MS;
use magikvm_proto::id::{ContainerName, PodId};
use std::time::{Duration, Instant};

/// How much longer than the pod may take a monitor is waited for.
const MONITOR_SLACK: Duration = Duration::from_secs(10);
/// How long the processes of a sandbox may take to be stopped or to go on.
const MOTION_WAIT: Duration = Duration::from_secs(10);
/// How long a connection to the agent may take.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No pod of that name.
    #[error("there is no pod {0}")]
    NotFound(PodId),
    /// The pod has no such container.
    #[error("pod {pod} has no container {container}; it has {}", known.join(", "))]
    NoContainer {
        /// Which pod.
        pod: PodId,
        /// The name asked for.
        container: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A container has to be chosen.
    #[error("pod {pod} has several containers: {}", known.join(", "))]
    ChooseContainer {
        /// Which pod.
        pod: PodId,
        /// The names there are.
        known: Vec<String>,
    },
    /// The verb needs a running pod.
    #[error("pod {0} is not running")]
    NotRunning(PodId),
    /// The verb needs a pod whose containers run already.
    #[error("pod {0} is being started")]
    Starting(PodId),
    /// The verb needs a guest that can answer.
    #[error("pod {0} is paused")]
    Paused(PodId),
    /// The verb needs a pod that does not run.
    #[error("pod {0} is running")]
    Running(PodId),
    /// Its monitor is gone; nobody can do this any more.
    #[error("pod {0} is lost: its monitor has ended")]
    Lost(PodId),
    /// The monitor lives but holds on to the pod.
    #[error("the monitor of pod {0} does not let go of it")]
    Stuck(PodId),
    /// The monitor.
    #[error("pod {pod} could not be {verb}")]
    Control {
        /// Which pod.
        pod: PodId,
        /// What was wanted (`stopped`).
        verb: &'static str,
        /// Why.
        #[source]
        source: ControlError,
    },
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something of the pod could not be taken away.
    #[error("pod {pod} could not be taken away")]
    Undo {
        /// Which pod.
        pod: PodId,
        /// Why.
        #[source]
        source: UndoError,
    },
}

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Refuse if the pod runs.
    No,
    /// Kill it if it runs.
    Yes,
}

/// The pods of one state root.
#[derive(Debug, Clone)]
pub struct PodRuntimeInterface {
    layout: Layout,
}

impl PodRuntimeInterface {
    /// The pods below these roots.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Starts a pod's monitor; [`Launched::await_ready`] says what came of it. All containers run, or nothing is left.
    pub fn run_pod(&self, request: &RunRequest) -> Result<Launched, Failure> {
        launch::launch(request)
    }

    /// Stops a running pod: TERM to all containers at once, grace period, KILL. Returns when it has ended.
    pub fn stop_pod(&self, id: &PodId, grace: Option<Duration>) -> Result<(), PodError> {
        let found = self.find(id)?;
        if found.is_lost() {
            return Err(PodError::Lost(id.clone()));
        }
        if found.lock == LockState::Free {
            return Ok(());
        }
        let default = found.record.as_ref().map_or(0, |record| record.grace_secs);
        let grace = grace.unwrap_or(Duration::from_secs(default));
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        match self.ask_stop(&found, grace_ms) {
            // It ended between our look and our question.
            Err(_) if self.ended(id) => Ok(()),
            Err(source) => Err(PodError::Control { pod: id.clone(), verb: "stopped", source }),
            Ok(()) => Ok(()),
        }
    }

    /// Makes a pod's sandbox stand still; returns when none of its processes runs. Again changes nothing.
    pub fn pause_pod(&self, id: &PodId) -> Result<(), PodError> {
        self.set_in_motion(id, ControlRequest::Pause, "paused")
    }

    /// Lets a pod's sandbox go on, whoever stopped it; returns when all of its processes run. The guest's clock is then set right.
    pub fn resume_pod(&self, id: &PodId) -> Result<(), PodError> {
        self.set_in_motion(id, ControlRequest::Resume, "resumed")
    }

    fn set_in_motion(&self, id: &PodId, request: ControlRequest, verb: &'static str) -> Result<(), PodError> {
        let found = self.find(id)?;
        if found.is_lost() {
            return Err(PodError::Lost(id.clone()));
        }
        match found.state.as_ref().map(|state| state.stage) {
            Some(Stage::Ended) => return Err(PodError::NotRunning(id.clone())),
            None | Some(Stage::Pulling | Stage::Starting) => return Err(PodError::Starting(id.clone())),
            Some(Stage::Running | Stage::Stopping) => {}
        }
        match control::ask(&found.dir, request, MOTION_WAIT) {
            Err(_) if self.ended(id) => Err(PodError::NotRunning(id.clone())),
            Err(source) => Err(PodError::Control { pod: id.clone(), verb, source }),
            Ok(()) => Ok(()),
        }
    }

    /// Whether processes of a pod's sandbox are stopped now.
    pub fn is_paused(&self, id: &PodId) -> bool {
        self.find(id).is_ok_and(|found| {
            found.lock == LockState::Held && found.state.is_some_and(|state| state.paused_ms.is_some())
        })
    }

    fn ask_stop(&self, found: &Found, grace_ms: u64) -> Result<(), ControlError> {
        let wait = Duration::from_millis(grace_ms.saturating_add(HOST_SHUTDOWN_WAIT_MS)) + MONITOR_SLACK;
        let deadline = Instant::now() + MONITOR_SLACK;
        loop {
            match control::ask(&found.dir, ControlRequest::Stop { grace_ms }, wait) {
                // A monitor that lives begins to listen when it has started the VM.
                Err(ControlError::Unreachable(_))
                    if Instant::now() < deadline
                        && lock::state(&found.dir.lock()).is_ok_and(|state| state == LockState::Held) =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                answer => return answer,
            }
        }
    }

    fn ended(&self, id: &PodId) -> bool {
        match self.find(id) {
            Ok(found) => found.state.is_some_and(|state| state.stage == Stage::Ended),
            Err(error) => matches!(error, PodError::NotFound(_)),
        }
    }

    /// Removes a pod with its record and logs. Delete is rollback: what the undo journal says is taken away, whoever wrote it and however far
    /// it got.
    pub fn delete_pod(&self, id: &PodId, force: Force) -> Result<(), PodError> {
        let dir = self.layout.pod(id);
        let found = Found::read(dir)?.ok_or_else(|| PodError::NotFound(id.clone()))?;
        if found.lock == LockState::Held {
            let ended = found.state.as_ref().is_some_and(|state| state.stage == Stage::Ended);
            match (force, ended) {
                (Force::No, false) => return Err(PodError::Running(id.clone())),
                (Force::No, true) => {}
                (Force::Yes, _) => self.end_by_force(&found),
            }
        }
        self.take_away(id)
    }

    /// Ends a live monitor and its pod: by asking, and if that does not help, by SIGKILL (its sandbox dies with it).
    fn end_by_force(&self, found: &Found) {
        if self.ask_stop(found, 0).is_err()
            && let Some(state) = &found.state
        {
            state.processes.iter().for_each(crate::store::sandbox::ProcessRef::kill);
        }
    }

    fn take_away(&self, id: &PodId) -> Result<(), PodError> {
        let dir = self.layout.pod(id);
        let failed = |source| PodError::Undo { pod: id.clone(), source };
        let Some(lock) = self.take_lock(id)? else { return Ok(()) };
        Undo::open(&dir).map_err(failed)?.delete().map_err(failed)?;
        // A start that was cut short before its first journal entry leaves a directory that no entry names.
        Step::RemoveDir { path: dir.path().to_owned() }.carry_out().map_err(failed)?;
        drop(lock);
        Ok(())
    }

    /// The lock of a pod whose monitor is about to end; `None` when the directory went with it.
    fn take_lock(&self, id: &PodId) -> Result<Option<Lock>, PodError> {
        let dir = self.layout.pod(id);
        let deadline = Instant::now() + MONITOR_SLACK;
        loop {
            match lock::acquire(&dir.lock()) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                Ok(None) if Instant::now() > deadline => return Err(PodError::Stuck(id.clone())),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(_) if !dir.path().exists() => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// All pods, sorted by namespace and name.
    pub fn list(&self) -> Result<Vec<Found>, PodError> {
        Ok(record::list(&self.layout)?)
    }

    /// One pod.
    pub fn find(&self, id: &PodId) -> Result<Found, PodError> {
        Found::read(self.layout.pod(id))?.ok_or_else(|| PodError::NotFound(id.clone()))
    }

    /// The container a verb means: the named one, or the only one.
    pub fn container(
        &self,
        found: &Found,
        id: &PodId,
        name: Option<&str>,
    ) -> Result<ContainerName, PodError> {
        let names = self.containers(found, name, id)?;
        match <[ContainerName; 1]>::try_from(names) {
            Ok([only]) => Ok(only),
            Err(names) => Err(PodError::ChooseContainer {
                pod: id.clone(),
                known: names.iter().map(ToString::to_string).collect(),
            }),
        }
    }

    /// The containers a verb means: the named one, or all.
    pub fn containers(
        &self,
        found: &Found,
        name: Option<&str>,
        id: &PodId,
    ) -> Result<Vec<ContainerName>, PodError> {
        let Ok(record) = &found.record else { return Err(PodError::Lost(id.clone())) };
        let all = || record.containers.iter().map(|container| container.name.clone());
        let Some(name) = name else { return Ok(all().collect()) };
        let chosen: Vec<ContainerName> = all().filter(|known| known.as_str() == name).collect();
        if chosen.is_empty() {
            let known = all().map(|known| known.to_string()).collect();
            return Err(PodError::NoContainer { pod: id.clone(), container: name.to_owned(), known });
        }
        Ok(chosen)
    }

    /// For a connection that is to outlast pauses of its pod.
    pub fn deadline_extension(&self, id: &PodId) -> DeadlineExtension {
        let (pods, id) = (self.clone(), id.clone());
        DeadlineExtension::new(move || pods.is_paused(&id))
    }

    /// A connection to the agent of a running pod that is not paused.
    pub fn agent(&self, found: &Found, id: &PodId) -> Result<AgentConnection, PodError> {
        Ok(self.connector(found, id)?.connect(CONNECT_WAIT)?)
    }

    fn connector<'f>(&self, found: &'f Found, id: &PodId) -> Result<&'f Connector, PodError> {
        if found.is_lost() {
            return Err(PodError::Lost(id.clone()));
        }
        let state =
            found.state.as_ref().filter(|state| state.stage != Stage::Ended && found.lock == LockState::Held);
        if state.is_some_and(|state| state.paused_ms.is_some()) {
            return Err(PodError::Paused(id.clone()));
        }
        state.and_then(|state| state.agent.as_ref()).ok_or_else(|| PodError::NotRunning(id.clone()))
    }

    /// How connections to the ports of a running pod that is not paused are made; [`crate::net::relay::Relay`] makes them.
    pub fn forward(&self, found: &Found, id: &PodId) -> Result<Connector, PodError> {
        Ok(self.connector(found, id)?.forwards())
    }

    /// Readers of the logs of these containers.
    pub fn logs(&self, found: &Found, containers: Vec<ContainerName>) -> Vec<LogReader> {
        containers
            .into_iter()
            .map(|name| {
                let path = found.dir.container_log(&name);
                LogReader::new(name, path)
            })
            .collect()
    }
}
