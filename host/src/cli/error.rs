//! How a failed verb looks and what it exits with: what failed, the chain of causes, a hint with a command to type.

use super::ui::{self, harmless};
use crate::agent::AgentError;
use crate::pod::control::ControlError;
use crate::pod::events::TimedEvent;
use crate::pod::failure::{Blame, ContainerTrace, Failure, RunStage, Trace};
use crate::pod::interface::PodError;
use crate::pod::limits;
use crate::store::sandbox::SandboxFailure;
use crate::store::thread::ThreadError;
use crate::store::undo::UndoError;
use magikvm_proto::id::PodId;
use magikvm_proto::text::cut;
use magikvm_proto::wire::{ProgramProblem, RefusalCode};
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
    program: Option<ProgramProblem>,
    trace: Box<Trace>,
}

/// Bytes of an event's line. The message of the failure is often in its last event, too.
const MAX_EVENT: usize = 512;

/// Exit code of our failures where the other codes are a workload's.
pub(super) const OURS: u8 = 125;
/// Exit codes of shells for a program that does not run.
pub(super) const NOT_EXECUTABLE: u8 = 126;
pub(super) const NO_PROGRAM: u8 = 127;

impl CliError {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            stage: None,
            reason: None,
            causes: Vec::new(),
            hint: None,
            program: None,
            trace: Box::default(),
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

    /// With one more cause.
    #[must_use]
    pub(super) fn caused_by(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// With what to do about it.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// With what became of the VM, and what to do about that.
    #[must_use]
    pub(super) fn because(self, reason: SandboxFailure) -> Self {
        Self { reason: Some(reason), ..self }.hint(reason.hint())
    }

    /// A failed run.
    pub(super) fn of_failure(failure: Failure) -> Self {
        let kind = match failure.blame {
            Blame::User | Blame::Workload => Kind::User,
            Blame::Environment => Kind::Environment,
            Blame::Internal => Kind::Internal,
        };
        let Failure { message, stage, reason, causes, hint, program, trace, .. } = failure;
        Self { kind, message, stage: Some(stage), reason, causes, hint, program, trace }
    }

    /// Whether a run was given up because the user wanted that.
    pub(super) fn is_cancelled(&self) -> bool {
        self.stage == Some(RunStage::Cancelled)
    }

    /// With this exit code.
    #[must_use]
    pub(super) fn code(self, code: u8) -> Self {
        Self { kind: Kind::Code(code), ..self }
    }

    /// As a foreground run reports it, whose other exit codes are the workload's.
    #[must_use]
    pub(super) fn in_foreground(self) -> Self {
        match (self.kind, self.program) {
            (Kind::Code(_), _) => self,
            (_, Some(ProgramProblem::Missing)) => self.code(NO_PROGRAM),
            (_, Some(ProgramProblem::NotExecutable)) => self.code(NOT_EXECUTABLE),
            (_, Some(ProgramProblem::Unknown) | None) => self.code(OURS),
        }
    }

    /// Prints it and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        ui::error_bytes(self.text().as_bytes());
        ExitCode::from(match self.kind {
            Kind::User => 1,
            Kind::Environment => 3,
            Kind::Internal => 70,
            Kind::Code(code) => code,
        })
    }

    pub(super) fn text(&self) -> String {
        let stage = self.stage.map_or(String::new(), |stage| format!(" (stage: {stage})"));
        let mut text = format!("Error: {}{stage}\n", harmless(&self.message));
        if let Some(reason) = self.reason {
            text.push_str(&format!("Reason: {reason}\n"));
        }
        for cause in &self.causes {
            text.push_str(&format!("Caused by: {}\n", harmless(cause)));
        }
        show(&self.trace, &mut text);
        if let Some(hint) = &self.hint {
            text.push_str(&format!("Hint: {}\n", harmless(hint)));
        }
        text
    }
}

/// How to get rid of what a removal could not remove.
fn remedy(pod: &PodId, left: &UndoError) -> String {
    match left {
        UndoError::File(file) => {
            let path = file.path.display();
            format!(
                "Remove it with `rm -rf '{path}'`; if the pod is still there, repeat `magikvm rm -f {pod}`."
            )
        }
        UndoError::StillAlive { pid, .. } | UndoError::Kill { pid, .. } => {
            format!("End the process with `kill -KILL {pid}`, then repeat `magikvm rm -f {pod}`.")
        }
        #[cfg(target_os = "linux")]
        UndoError::Detach { .. } => {
            format!("Mend what the plugin complains about, then repeat `magikvm rm -f {pod}`.")
        }
        UndoError::Journal { .. } | UndoError::Outside(_) => format!("Repeat `magikvm rm -f {pod}`."),
    }
}

/// Adds what is known of a pod that failed to start and is gone.
fn show(trace: &Trace, text: &mut String) {
    for ContainerTrace { name, state, log } in &trace.containers {
        if log.is_empty() {
            text.push_str(&format!("Container {name}: {state}.\n"));
            continue;
        }
        text.push_str(&format!("Container {name}: {state}. The last lines of its log:\n"));
        push_lines(text, log);
    }
    if !trace.events.is_empty() {
        text.push_str("The pod's events:\n");
        let line = |event: &TimedEvent| cut(&super::events::line(event), MAX_EVENT).to_owned();
        let lines: Vec<String> = trace.events.iter().map(line).collect();
        push_lines(text, &lines);
    }
    if !trace.network.is_empty() {
        text.push_str("The network's messages, last lines:\n");
        push_lines(text, &trace.network);
    }
    if !trace.console.is_empty() {
        text.push_str("The pod's console, last lines:\n");
        push_lines(text, &trace.console);
    }
}

fn push_lines(text: &mut String, lines: &[String]) {
    for line in lines {
        text.push_str(&format!("  {}\n", harmless(line)));
    }
}

impl From<PodError> for CliError {
    fn from(error: PodError) -> Self {
        let hint = match &error {
            PodError::NotFound { elsewhere, .. } if elsewhere.is_empty() => {
                Some("List the pods with `magikvm ps`.".to_owned())
            }
            PodError::NotFound { pod, elsewhere } => {
                let names: Vec<String> = elsewhere.iter().map(|other| format!("`{other}`")).collect();
                let (name, others) = (&pod.name, names.join(" or "));
                Some(format!("There is a pod {name} in another namespace. Name it {others}."))
            }
            PodError::ChooseContainer { .. } | PodError::NoContainer { .. } => {
                Some("Choose one of them with `-c NAME`.".to_owned())
            }
            PodError::NoPrevious { .. } => {
                Some("It has not been restarted. Leave `--previous` out to see the log of its only run.".to_owned())
            }
            PodError::Running(id) => {
                Some(format!("Stop it first with `magikvm stop {id}`, or use `magikvm rm -f {id}`."))
            }
            PodError::Damaged { pod, .. } => Some(format!("Remove the pod with `magikvm rm -f {pod}`.")),
            PodError::Undo { pod, source } => Some(remedy(pod, source)),
            PodError::Stuck { lock, .. } => {
                Some(format!("Find the process with `fuser {}`, end it, and try again.", lock.display()))
            }
            PodError::Lost(id) => Some(format!("Remove what is left of it with `magikvm rm {id}`.")),
            PodError::Paused(id) => Some(format!("Resume it with `magikvm resume {id}`.")),
            PodError::DiskFull(_) => Some(
                "Make room on the host's disk, for example with `magikvm image prune --all`; the pod then goes on by itself.".to_owned(),
            ),
            PodError::Starting(id) => Some(format!(
                "Try again when `magikvm ps` shows that all its containers run, or end it with `magikvm rm -f {id}`."
            )),
            PodError::NotRunning(id) => {
                Some(format!("See how it ended with `magikvm inspect {id}` and `magikvm logs {id}`."))
            }
            PodError::Unanswered(_) => {
                Some("See with `magikvm ps` whether the pod still runs, and with `magikvm events` what happened to it.".to_owned())
            }
            PodError::Agent(AgentError::Refused(refusal)) => match refusal.code {
                RefusalCode::Conflict => {
                    Some("See the state of the pod's containers with `magikvm inspect`.".to_owned())
                }
                RefusalCode::Busy => Some("End another session of this pod, and try again.".to_owned()),
                _ => None,
            },
            PodError::Control { source: ControlError::Refused(_), .. }
            | PodError::Record(_)
            | PodError::File(_) => None,
            PodError::Control { pod, .. } => {
                Some(format!("See with `magikvm ps` whether the pod still runs, or end it with `magikvm rm -f {pod}`."))
            }
            PodError::Agent(AgentError::Generation { .. }) => {
                Some("Rebuild the guest image with `magikvm-image build`, or without a VM install `magikvm-containers` of this version, and run the pod again.".to_owned())
            }
            PodError::Agent(_) => Some(
                "See with `magikvm ps` whether the pod still runs, and with `magikvm events` what happened to it."
                    .to_owned(),
            ),
        };
        let kind = match &error {
            PodError::Control { source: ControlError::Refused(_), .. } => Kind::User,
            PodError::Agent(AgentError::Refused(_)) => Kind::User,
            PodError::DiskFull(_)
            | PodError::Record(_)
            | PodError::File(_)
            | PodError::Damaged { .. }
            | PodError::Undo { .. } => Kind::Environment,
            PodError::Unanswered(_)
            | PodError::Stuck { .. }
            | PodError::Control { .. }
            | PodError::Agent(_) => Kind::Internal,
            PodError::NotFound { .. }
            | PodError::ChooseContainer { .. }
            | PodError::NoContainer { .. }
            | PodError::NoPrevious { .. }
            | PodError::Running(_)
            | PodError::Lost(_)
            | PodError::Paused(_)
            | PodError::Starting(_)
            | PodError::NotRunning(_) => Kind::User,
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
