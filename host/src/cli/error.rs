//! How a failed verb looks and what it exits with: what failed, the chain of causes, a hint with a command to type.

use super::ui::{self, harmless};
use crate::agent::AgentError;
use crate::pod::control::ControlError;
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::interface::PodError;
use crate::pod::limits;
use crate::store::sandbox::SandboxFailure;
use crate::store::thread::ThreadError;
use crate::store::undo::UndoError;
use magikvm_proto::id::PodId;
use std::error::Error;
use std::process::ExitCode;

/// Whose fault; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// 1.
    User,
    /// 3.
    Environment,
    /// 70.
    Internal,
    Code(u8),
}

#[derive(Debug)]
pub(super) struct CliError {
    kind: Kind,
    message: String,
    stage: Option<RunStage>,
    reason: Option<SandboxFailure>,
    causes: Vec<String>,
    hint: Option<String>,
    console: Vec<String>,
}

impl CliError {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            stage: None,
            reason: None,
            causes: Vec::new(),
            hint: None,
            console: Vec::new(),
        }
    }

    /// From an error and its causes.
    pub(super) fn of(kind: Kind, error: &(dyn Error + 'static)) -> Self {
        let mut causes: Vec<String> = crate::store::text::causes(error).map(ToString::to_string).collect();
        // Wrappers that only pass on repeat their cause.
        causes.dedup();
        causes.retain(|cause| *cause != error.to_string());
        let hint = limits::hint(error).map(str::to_owned);
        Self { causes, hint, ..Self::new(kind, error.to_string()) }
    }

    /// With what to do about it.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With what became of the sandbox, and what to do about that.
    #[must_use]
    pub(super) fn because(self, reason: SandboxFailure) -> Self {
        Self { reason: Some(reason), ..self }.hint(reason.hint())
    }

    /// A failed run; `internal` is the code for what is not the user's fault.
    pub(super) fn of_failure(failure: Failure, internal: Kind) -> Self {
        let kind = match failure.blame {
            Blame::User => Kind::User,
            // In a foreground run, other codes are the containers' as soon as there is a sandbox.
            Blame::Environment if failure.reason.is_some() => match internal {
                Kind::Code(_) => internal,
                _ => Kind::Environment,
            },
            Blame::Environment => Kind::Environment,
            Blame::Workload if internal == Kind::Internal => Kind::User,
            Blame::Internal | Blame::Workload => internal,
        };
        let Failure { message, stage, reason, causes, hint, console, .. } = failure;
        Self { kind, message, stage: Some(stage), reason, causes, hint, console }
    }

    /// Prints it and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        let stage = self.stage.map_or(String::new(), |stage| format!(" (stage: {stage})"));
        let mut text = format!("Error: {}{stage}\n", harmless(&self.message));
        if let Some(reason) = self.reason {
            text.push_str(&format!("Reason: {reason}\n"));
        }
        for cause in &self.causes {
            text.push_str(&format!("Caused by: {}\n", harmless(cause)));
        }
        if !self.console.is_empty() {
            text.push_str("The VM's console, last lines:\n");
            for line in &self.console {
                text.push_str(&format!("  {}\n", harmless(line)));
            }
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("Hint: {}\n", harmless(hint)));
        }
        ui::error_bytes(text.as_bytes());
        ExitCode::from(match self.kind {
            Kind::User => 1,
            Kind::Environment => 3,
            Kind::Internal => 70,
            Kind::Code(code) => code,
        })
    }
}

/// How to get rid of what a removal could not remove.
fn remedy(pod: &PodId, left: &UndoError) -> String {
    match left {
        UndoError::File(file) => {
            let path = file.path.display();
            format!(
                "remove it with `rm -rf '{path}'`; if the pod is still there, repeat `magikvm rm -f {pod}`."
            )
        }
        UndoError::StillAlive { pid, .. } | UndoError::Kill { pid, .. } => {
            format!("end the process with `kill -KILL {pid}`, then repeat `magikvm rm -f {pod}`.")
        }
        UndoError::Journal { .. } | UndoError::Outside(_) => format!("repeat `magikvm rm -f {pod}`."),
    }
}

impl From<PodError> for CliError {
    fn from(error: PodError) -> Self {
        let (kind, hint) = match &error {
            PodError::NotFound(_) => (Kind::User, Some("magikvm ps lists the pods there are".to_owned())),
            PodError::ChooseContainer { .. } => (Kind::User, Some("choose one with -c NAME".to_owned())),
            PodError::Running(id) => {
                (Kind::User, Some(format!("stop it first: magikvm stop {id}; or magikvm rm -f {id}")))
            }
            PodError::Damaged { pod, .. } => {
                (Kind::Environment, Some(format!("remove the pod with `magikvm rm -f {pod}`.")))
            }
            PodError::Undo { pod, source } => (Kind::Environment, Some(remedy(pod, source))),
            PodError::Stuck { lock, .. } => (
                Kind::Internal,
                Some(format!("find the process with `fuser {}`, end it, and try again.", lock.display())),
            ),
            PodError::Lost(id) => (Kind::User, Some(format!("remove what is left of it: magikvm rm {id}"))),
            PodError::Paused(id) => (Kind::User, Some(format!("let it go on: magikvm resume {id}"))),
            PodError::Starting(_) => {
                (Kind::User, Some("try again when all its containers run: magikvm ps".to_owned()))
            }
            PodError::Control { source: ControlError::Refused(_), .. } => (Kind::User, None),
            PodError::NotRunning(_) | PodError::NoContainer { .. } => (Kind::User, None),
            PodError::Agent(AgentError::Refused(_)) => (Kind::User, None),
            PodError::Record(_) | PodError::File(_) => (Kind::Environment, None),
            PodError::Control { .. } | PodError::Agent(_) => (Kind::Internal, None),
        };
        let plain = Self::of(kind, &error);
        Self { hint: hint.or(plain.hint.clone()), ..plain }
    }
}

impl From<ThreadError> for CliError {
    fn from(error: ThreadError) -> Self {
        Self::of(Kind::Environment, &error)
    }
}

impl From<AgentError> for CliError {
    fn from(error: AgentError) -> Self {
        PodError::Agent(error).into()
    }
}
