//! A failed run, in a form that the monitor can send to the CLI.

use super::events::TimedEvent;
use super::limits;
pub use crate::store::sandbox::Blame;
use crate::store::sandbox::SandboxFailure;
use crate::store::text::causes;
use magikvm_proto::id::ContainerName;
use magikvm_proto::wire::ProgramProblem;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStage {
    /// This host cannot carry out the plan.
    Plan,
    /// Claiming the name, the directory and the lock.
    Reserve,
    Image,
    Prepare,
    /// From the VMM's start to the agent's first answer.
    Boot,
    /// The agent broke the contract or fell silent.
    Agent,
    Container,
    /// The user cancelled the start.
    Cancelled,
}

impl fmt::Display for RunStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::Reserve => "reserve",
            Self::Image => "image",
            Self::Prepare => "prepare",
            Self::Boot => "boot",
            Self::Agent => "agent",
            Self::Container => "container",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Why a run failed. The pod has been rolled back by the time that anybody sees this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub stage: RunStage,
    pub blame: Blame,
    /// How the sandbox ended, if that is the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<SandboxFailure>,
    /// The operating system's error number, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// A suggestion for the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The problem of a container's program, if that is the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramProblem>,
    /// Boxed, because most failures have none.
    #[serde(default)]
    pub trace: Box<Trace>,
}

/// What was known of the pod, since nothing of it is left to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trace {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<ContainerTrace>,
    /// The pod's last events.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<TimedEvent>,
    /// The last messages of the network's processes, if they may explain the failure.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network: Vec<String>,
    /// The last lines of the sandbox's console, if they may explain the failure.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

/// The last that was known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerTrace {
    pub name: ContainerName,
    /// In a few words.
    pub state: String,
    /// The last lines of its log.
    pub log: Vec<String>,
}

/// What to do about a full disk.
const NO_SPACE: &str =
    "Free space on that disk, as with `magikvm image prune`, or choose another directory with `--root DIR`.";

impl Failure {
    /// Built from an error, its chain of causes and the error number in it.
    pub fn new(stage: RunStage, blame: Blame, error: &(dyn Error + 'static)) -> Self {
        let number = |error: &(dyn Error + 'static)| {
            error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
        };
        let errno = number(error).or_else(|| causes(error).find_map(number));
        let causes = causes(error).map(ToString::to_string).collect();
        let full = [Errno::ENOSPC, Errno::EDQUOT].map(|full| full as i32);
        let is_full = errno.is_some_and(|errno| full.contains(&errno));
        let hint = limits::hint(error).or(is_full.then_some(NO_SPACE)).map(str::to_owned);
        Self { errno, causes, hint, ..Self::message(stage, blame, error.to_string()) }
    }

    /// For `map_err`: turns an error at a stage of the flow into a failed run.
    pub fn at<E: Error + 'static>(stage: RunStage, blame: Blame) -> impl Fn(E) -> Self {
        move |error| Self::new(stage, blame, &error)
    }

    pub fn message(stage: RunStage, blame: Blame, message: impl Into<String>) -> Self {
        Self {
            stage,
            blame,
            reason: None,
            errno: None,
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            program: None,
            trace: Box::default(),
        }
    }

    /// Adds how the sandbox ended, and the hint for that unless there is a hint already.
    #[must_use]
    pub fn because(mut self, reason: SandboxFailure) -> Self {
        self.reason = Some(reason);
        self.hint.get_or_insert_with(|| reason.hint().to_owned());
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_a_hint() {
        let failed = |errno: Errno| {
            Failure::new(RunStage::Reserve, Blame::Environment, &std::io::Error::from(errno)).hint
        };
        for full in [Errno::ENOSPC, Errno::EDQUOT] {
            assert!(failed(full).is_some_and(|hint| hint.starts_with("Free space")), "{full}");
        }
        assert_eq!(failed(Errno::EACCES), None);
    }
}
