//! The state of a container: core/v1 `ContainerState` and what belongs to it. One set of types for the supervisor that decides the
//! states, the wire's `status` and the host's records. Owns: the reasons, named as in the kubelet. Must not know: who decides.
//!
//! Times are milliseconds since 1970 by the clock of the side that states them: the guest's in its status, the host's in a
//! pod's record.

use crate::id::ContainerName;
use crate::lifecycle::Role;
use crate::limits::MAX_MESSAGE_LEN;
use crate::text::cut;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Exit code of a container that could not be created or started, as the kubelet reports it with `StartError`.
pub const START_ERROR_CODE: i32 = 128;

/// One container (core/v1 `ContainerStatus`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The container's name in the pod.
    pub name: ContainerName,
    #[serde(default, skip_serializing_if = "Role::is_main")]
    pub role: Role,
    /// How often it was restarted.
    pub restart_count: u32,
    #[serde(flatten)]
    pub state: ContainerState,
    /// It runs, its postStart hook is done and its startup probe has succeeded (core/v1 `started`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub started: bool,
    /// It is started and its readiness probe succeeds, or it is an init container that has succeeded (core/v1 `ready`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub ready: bool,
    /// The previous run (core/v1 `lastState`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Terminated>,
}

impl ContainerStatus {
    /// A container that was not created yet, for this reason.
    pub fn waiting(name: ContainerName, role: Role, reason: WaitingReason) -> Self {
        let state = ContainerState::waiting(reason);
        Self { name, role, restart_count: 0, state, started: false, ready: false, last: None }
    }
}

/// What a container does now (core/v1 `ContainerState`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ContainerState {
    /// It does not run yet, or waits for its restart.
    Waiting {
        reason: WaitingReason,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
    Running {
        started_ms: u64,
    },
    /// It has ended and will not restart.
    Terminated(Terminated),
}

impl ContainerState {
    /// Waiting, without details.
    pub fn waiting(reason: WaitingReason) -> Self {
        Self::Waiting { reason, message: None }
    }

    /// Waiting for its creation.
    pub fn creating() -> Self {
        Self::waiting(WaitingReason::ContainerCreating)
    }

    /// Waiting to restart `wait_ms` milliseconds after its end. In the kubelet's words, without the names of container and pod.
    pub fn back_off(wait_ms: u64) -> Self {
        let message = format!("back-off {} restarting failed container", shown(wait_ms));
        Self::Waiting { reason: WaitingReason::CrashLoopBackOff, message: Some(message) }
    }

    /// The run that has ended, if the container will not restart.
    pub fn terminated(&self) -> Option<&Terminated> {
        match self {
            Self::Terminated(run) => Some(run),
            Self::Waiting { .. } | Self::Running { .. } => None,
        }
    }
}

/// A time as Go prints it: `10s`, `2m40s`, `1.5s`.
fn shown(ms: u64) -> String {
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let seconds = Duration::from_millis(rest).as_secs_f64();
    if minutes == 0 { format!("{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

/// Why a container does not run yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WaitingReason {
    /// Init containers or sidecars have to come before it.
    PodInitializing,
    /// It is being created.
    ContainerCreating,
    /// It has ended and will restart after a delay.
    CrashLoopBackOff,
}

impl WaitingReason {
    /// That of the containers of a pod that has not begun, which has containers of these roles.
    pub fn first(roles: impl IntoIterator<Item = Role>) -> Self {
        let initializes = roles.into_iter().any(|role| role != Role::Main);
        if initializes { Self::PodInitializing } else { Self::ContainerCreating }
    }
}

impl fmt::Display for WaitingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodInitializing => "PodInitializing",
            Self::ContainerCreating => "ContainerCreating",
            Self::CrashLoopBackOff => "CrashLoopBackOff",
        })
    }
}

/// A run that has ended (core/v1 `ContainerStateTerminated`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminated {
    /// How often the container was restarted before.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub run: u32,
    /// The exit code and the signal.
    pub exit: ExitStatus,
    /// Why it ended, as one word.
    pub reason: TerminatedReason,
    /// Details for people, at most [`MAX_MESSAGE_LEN`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When its program started; absent if it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    pub finished_ms: u64,
}

impl Terminated {
    /// A program that ran and has ended; the exit status determines the reason.
    pub fn ended(exit: ExitStatus, started_ms: Option<u64>, finished_ms: u64) -> Self {
        let reason = match exit {
            ExitStatus { oom_killed: true, .. } => TerminatedReason::OomKilled,
            ExitStatus { code: 0, .. } => TerminatedReason::Completed,
            _ => TerminatedReason::Error,
        };
        Self { run: 0, exit, reason, message: None, started_ms, finished_ms }
    }

    /// A run whose program could not be started.
    pub fn not_started(message: &str, finished_ms: u64) -> Self {
        let exit = ExitStatus::exited(START_ERROR_CODE);
        let message = Some(cut(message, MAX_MESSAGE_LEN).to_owned());
        let reason = TerminatedReason::StartError;
        Self { run: 0, exit, reason, message, started_ms: None, finished_ms }
    }

    /// A run whose end was not observed.
    pub fn unknown(message: &str, started_ms: Option<u64>, finished_ms: u64) -> Self {
        let exit = ExitStatus::signaled(9);
        let message = Some(cut(message, MAX_MESSAGE_LEN).to_owned());
        let reason = TerminatedReason::ContainerStatusUnknown;
        Self { run: 0, exit, reason, message, started_ms, finished_ms }
    }

    /// It was this run of its container.
    #[must_use]
    pub fn of_run(self, run: u32) -> Self {
        Self { run, ..self }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminatedReason {
    /// It exited with 0.
    Completed,
    /// It exited with another code, or a signal ended it.
    Error,
    /// The kernel's OOM killer killed one of its processes.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// It could not be created or started.
    StartError,
    /// The sandbox ended before the container's end was seen.
    ContainerStatusUnknown,
}

impl fmt::Display for TerminatedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::ContainerStatusUnknown => "ContainerStatusUnknown",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The kernel's OOM killer killed a process of its cgroup.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oom_killed: bool,
    /// It was killed because its timeout expired.
    #[serde(default, skip_serializing_if = "is_false")]
    pub timed_out: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_false(value: &bool) -> bool {
    !*value
}

impl ExitStatus {
    /// The status of a process that exited.
    pub fn exited(code: i32) -> Self {
        Self { code, ..Self::default() }
    }

    /// The status of a process that a signal ended.
    pub fn signaled(signal: i32) -> Self {
        Self { code: 128 + signal, signal: Some(signal), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_written_and_shown_in_the_same_words() {
        use TerminatedReason::{Completed, ContainerStatusUnknown, Error, OomKilled, StartError};
        for reason in [Completed, Error, OomKilled, StartError, ContainerStatusUnknown] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.to_string());
        }
        use WaitingReason::{ContainerCreating, CrashLoopBackOff, PodInitializing};
        for reason in [PodInitializing, ContainerCreating, CrashLoopBackOff] {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.to_string());
        }
    }

    #[test]
    fn a_wait_is_worded_as_by_the_kubelet() {
        let message = |ms| match ContainerState::back_off(ms) {
            ContainerState::Waiting { message, .. } => message.unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(message(10_000), "back-off 10s restarting failed container");
        assert_eq!(message(160_000), "back-off 2m40s restarting failed container");
        assert_eq!(message(300_000), "back-off 5m0s restarting failed container");
    }

    #[test]
    fn an_exit_status_tells_the_reason() {
        let reason = |exit| Terminated::ended(exit, Some(1), 2).reason;
        assert_eq!(reason(ExitStatus::exited(0)), TerminatedReason::Completed);
        assert_eq!(reason(ExitStatus::exited(1)), TerminatedReason::Error);
        assert_eq!(reason(ExitStatus::signaled(9)), TerminatedReason::Error);
        let oom = ExitStatus { oom_killed: true, ..ExitStatus::signaled(9) };
        assert_eq!(reason(oom), TerminatedReason::OomKilled);
    }

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let run = Terminated::not_started(&"é".repeat(MAX_MESSAGE_LEN), 1);
        assert_eq!(run.message.unwrap().len(), MAX_MESSAGE_LEN);
        let run = Terminated::unknown(&format!("x{}", "é".repeat(MAX_MESSAGE_LEN)), None, 1);
        assert_eq!(run.message.unwrap().len(), MAX_MESSAGE_LEN - 1);
    }
}
