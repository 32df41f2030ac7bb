//! A run that failed, in a form that survives the way from the monitor to the person who asked.

pub use crate::store::sandbox::Blame;
use crate::store::sandbox::SandboxFailure;
use crate::store::text::causes;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStage {
    /// The plan can't be carried out here.
    Plan,
    /// The name, the directory or the lock.
    Reserve,
    Image,
    /// Making the pod's file system and disk.
    Prepare,
    /// From the start of the VMM to the agent's first answer.
    Boot,
    /// The agent broke the contract or fell silent.
    Agent,
    /// A container could not be created or started.
    Container,
    /// The user changed his mind.
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

/// Why a run failed. By the time anybody sees it, nothing of the pod is left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub stage: RunStage,
    pub blame: Blame,
    /// What became of the sandbox, where it is about that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<SandboxFailure>,
    /// The operating system's number, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    pub message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The last lines of the VM's console, where they may tell more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

impl Failure {
    /// From an error, its chain of causes and the number in it.
    pub fn new(stage: RunStage, blame: Blame, error: &(dyn Error + 'static)) -> Self {
        let number = |error: &(dyn Error + 'static)| {
            error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
        };
        let errno = number(error).or_else(|| causes(error).find_map(number));
        let causes = causes(error).map(ToString::to_string).collect();
        Self { errno, causes, ..Self::message(stage, blame, error.to_string()) }
    }

    /// For `map_err`: makes an error at a place of the flow a failed run.
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
            console: Vec::new(),
        }
    }

    /// With what became of the sandbox, and what to do about that unless something better is known.
    #[must_use]
    pub fn because(mut self, reason: SandboxFailure) -> Self {
        self.reason = Some(reason);
        self.hint.get_or_insert_with(|| reason.hint().to_owned());
        self
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
