//! The boots of a pod's sandbox. A guest may stand still before its agent answers, for example because an interrupt was lost. A new sandbox costs
//! seconds, and nothing that the pod did is lost with the old one, because the host has never heard of it. So a sandbox that lives but stays silent
//! is booted once more. A sandbox that dies, an agent that refuses, and processes that somebody stopped have said what is wrong: there a second
//! boot would only hide it.
//!
//! ```text
//! First ---silence---> Killed ---its processes are gone---> Second ---silence---> the run fails
//!    \---silence, but somebody stopped its processes---> Stood ---silence--->/
//! ```
//!
//! All boots together have [`HOST_BOOT_WAIT_MS`].

use super::{Effect, Input, Machine};
use crate::pod::events::HostEvent;
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::process::Motion;
use crate::store::record::Stage;
use crate::store::sandbox::SandboxFailure;
use magikvm_proto::budget::{HOST_BOOT_END_WAIT_MS, HOST_BOOT_WAIT_MS};

/// For a VM that another process has stopped: neither time nor a quieter host would help.
pub(super) const STOPPED_HINT: &str =
    "Find out which process sent SIGSTOP, and run the pod again; `magikvm pause` is for pods that run.";

/// Which sandbox of the pod is the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Boot {
    First,
    /// The first, which has more time because its processes were stopped.
    Stood,
    /// The first was killed for its silence, and its processes are not gone yet.
    Killed,
    Second,
}

impl Input {
    /// Whether it is the agent, the end or the silence of the present sandbox.
    pub(super) fn is_of_sandbox(&self) -> bool {
        match self {
            Self::AgentUp
            | Self::Guest(_)
            | Self::AgentLost { .. }
            | Self::SandboxGone { .. }
            | Self::Deadline => true,
            Self::PullBegun
            | Self::Puller(_)
            | Self::PullerGone(_)
            | Self::SandboxStarted { .. }
            | Self::Stop { .. }
            | Self::Cancel
            | Self::Motion(_)
            | Self::Disk(_)
            | Self::Request(_)
            | Self::HostClockJumped
            | Self::DirectoryGone
            | Self::MonitorFailed { .. } => false,
        }
    }
}

impl Machine {
    pub(super) fn sandbox_started(&self, since_first_ms: u64) -> Vec<Effect> {
        if self.state.stage != Stage::Starting || self.agent_up {
            return Vec::new();
        }
        let limit = match self.boot {
            Boot::First => self.waits.first_boot_ms,
            Boot::Stood | Boot::Killed | Boot::Second => HOST_BOOT_WAIT_MS,
        };
        vec![Effect::Arm { after_ms: limit.saturating_sub(since_first_ms) }]
    }

    /// Whether the present sandbox, or the one that comes, is not the first.
    pub fn boots_again(&self) -> bool {
        matches!(self.boot, Boot::Killed | Boot::Second)
    }

    pub(super) fn agent_up(&mut self) -> Vec<Effect> {
        self.agent_up = true;
        match self.state.stage {
            Stage::Starting => vec![Effect::Arm { after_ms: self.waits.ready_ms }],
            _ => Vec::new(),
        }
    }

    /// The agent has not answered in time.
    pub(super) fn agent_silent(&mut self) -> Vec<Effect> {
        match (self.boot, self.motion) {
            (Boot::First, Motion::Running) if self.waits.first_boot_ms < HOST_BOOT_WAIT_MS => {
                self.boot = Boot::Killed;
                let silent_ms = self.waits.first_boot_ms;
                let secs = silent_ms / 1000;
                let message = format!(
                    "the pod's agent did not answer within {secs} s, so its sandbox is started once more"
                );
                vec![
                    Effect::Note(HostEvent::Rebooted { silent_ms }),
                    Effect::Warn { message },
                    Effect::Kill,
                    Effect::Arm { after_ms: HOST_BOOT_END_WAIT_MS },
                ]
            }
            (Boot::First, Motion::PartlyStopped | Motion::Stopped) => {
                self.boot = Boot::Stood;
                vec![Effect::Arm { after_ms: HOST_BOOT_WAIT_MS.saturating_sub(self.waits.first_boot_ms) }]
            }
            (_, motion) => {
                let boots = if self.boot == Boot::Second { ", in two starts" } else { "" };
                self.fail(silent(boots, motion))
            }
        }
    }

    /// What still comes from the first sandbox. An answer that is late would be the answer of a sandbox that is being killed.
    pub(super) fn last_of_first_boot(&mut self, input: &Input) -> Vec<Effect> {
        match input {
            Input::SandboxGone { .. } => {
                self.boot = Boot::Second;
                self.motion = Motion::Running;
                self.state.paused_ms = None;
                self.state.disk_full = None;
                vec![Effect::Disarm, Effect::BootAgain]
            }
            Input::Deadline => {
                let message =
                    "the pod's agent did not answer, and the killed processes of its sandbox did not end";
                let failure = Failure::message(RunStage::Boot, Blame::Internal, message);
                self.fail(failure.because(SandboxFailure::AgentSilent))
            }
            _ => Vec::new(),
        }
    }
}

/// The failure of a pod whose agent never answered.
fn silent(boots: &str, motion: Motion) -> Failure {
    let limit = HOST_BOOT_WAIT_MS / 1000;
    let message = format!(
        "the pod's agent did not answer within {limit} s of its start{boots}{}",
        super::ending::stands(motion, None)
    );
    let failure = Failure::message(RunStage::Boot, Blame::Internal, message);
    let failure = match motion {
        Motion::Running => failure,
        Motion::PartlyStopped | Motion::Stopped => failure.hint(STOPPED_HINT),
    };
    failure.because(SandboxFailure::AgentSilent)
}
