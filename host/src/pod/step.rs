//! The pod's state machine on the host: `(state, input) -> (state, effects)`, pure. The monitor feeds it and carries the effects out.
//!
//! ```text
//!              pull begun
//!   Starting ------------> Pulling        images there: back to Starting
//!      |   <--------------    |
//!      |                      | cancelled, stopped, or a pull that failed
//!      | all containers ran   |
//!      v                      v
//!   Running -------------> Stopping -----------------------> Ended
//!              stopped, the agent is lost,     sandbox gone
//!              or the supervisor says that the pod is over
//! ```
//!
//! A pod that is `Starting` and is cancelled, fails or loses its sandbox is `Ended` at once, and the run is rolled back. A paused sandbox
//! is not a stage: a sandbox can be paused in any stage that has one. A sandbox whose agent has never answered is booted once more
//! (`booting.rs`).
//!
//! The supervisor alone decides which container starts again and when the pod is over (`PodEnded`). The host shows these decisions and
//! ends the sandbox in time. While the pod starts, a deadline bounds the supervisor's silence, not the length of the start: all progress
//! arms it anew. Progress is a container that is created or started for the first time, so that a supervisor cannot gain time by
//! repeating itself. The deadline is not armed while only a workload works: an init container, a sidecar before its startup probe has
//! succeeded, a postStart hook.
//!
//! A start that ends because an init container has failed, because the user gives it up while one works, or because of the pod's deadline
//! is *failing* until the sandbox has ended, so that containers have their grace period and all of their output arrives.
//!
//! The happy path: `AgentUp` arms the deadline; `ContainerCreated` and `ContainerStarted` of each container arm it anew; `PodStarted` disarms
//! it and gives `Ready`; `ContainerExited` is shown; `PodEnded` arms the deadline of the end; `SandboxGone` gives `End`.
//!
//! Owns: what the host does with a sandbox and when. Must not know: what a sandbox consists of, clocks, threads and files.

mod booting;
mod conditions;
mod containers;
mod ending;
mod pausing;
mod pulling;

use super::events::{ClockReason, HostEvent};
use super::failure::Failure;
use super::pull::{FromPuller, Pull, PullerEnd};
use crate::image::{Progress, Reference};
use crate::process::Motion;
use crate::store::record::{PodState, SCHEMA, Stage};
use crate::store::sandbox::SandboxEnd;
use booting::Boot;
use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::state::{ContainerStatus, WaitingReason};
use magikvm_proto::text;
use magikvm_proto::wire::Event;
use std::path::PathBuf;

/// The events that the machine reacts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A puller starts to pull the pod's images.
    PullBegun,
    /// The puller sent a message.
    Puller(FromPuller),
    /// The puller has ended. Its last message, if there was one, came before.
    PullerGone(PullerEnd),
    /// A sandbox of the pod was started.
    SandboxStarted {
        /// Milliseconds since the start of the pod's first sandbox.
        since_first_ms: u64,
    },
    /// The agent answered for the first time.
    AgentUp,
    /// The supervisor reports an event.
    Guest(Event),
    /// The connection for events broke or carried invalid data, although the sandbox lives.
    AgentLost { why: String },
    /// The sandbox has ended, and all of its output was read.
    SandboxGone { end: SandboxEnd },
    /// A user stops the pod.
    Stop {
        /// Time between TERM and KILL, in milliseconds.
        grace_ms: u64,
    },
    /// The user cancelled the start.
    Cancel,
    /// The armed deadline has passed.
    Deadline,
    /// A user pauses or resumes the pod.
    Request(PauseRequest),
    /// Processes of the sandbox were stopped or continued, by anybody.
    Motion(Motion),
    /// The host's disk has no room for what the sandbox writes, so that it stands still, or has some again.
    Disk(DiskState),
    /// The host's clock was set, or the host was suspended.
    HostClockJumped,
    /// Somebody removed the pod's directory.
    DirectoryGone,
    /// The monitor cannot do its part any more.
    MonitorFailed { why: String },
}

/// The host's disk, as a sandbox that writes to it finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskState {
    /// The sandbox stands still until there is room.
    Full {
        /// A directory on that disk.
        dir: PathBuf,
    },
    HasRoom,
}

/// A user's request about a running pod's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseRequest {
    Pause,
    Resume,
}

/// How a puller is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndPuller {
    /// The puller removes what is half-done, reports that and ends.
    Ask,
    /// The puller ends at once, and the next one removes what is left.
    Kill,
}

/// The machine's commands to the event loop, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Report the progress of a pull to the client.
    ShowProgress { image: Reference, progress: Progress },
    /// End the puller.
    EndPuller(EndPuller),
    /// All images are there. Continue the flow.
    Pulled(Vec<Pull>),
    /// Report to the client that the pod runs.
    Ready,
    /// The sandbox is gone. Undo what it was made of, and start another one.
    BootAgain,
    /// Warn the client.
    Warn { message: String },
    /// The run has failed. Roll everything back.
    Fail(Box<Failure>),
    /// Ask the agent to end the pod.
    Shutdown {
        /// Time between TERM and KILL, in milliseconds.
        grace_ms: u64,
    },
    /// End the sandbox at once.
    Kill,
    /// Pause the sandbox.
    Pause,
    /// Resume the sandbox.
    Resume,
    /// Tell the guest the time.
    TellTime(ClockReason),
    /// Write this event to the pod's log.
    Note(HostEvent),
    /// Deliver `Deadline` after this time. This replaces an earlier deadline.
    Arm {
        /// Milliseconds.
        after_ms: u64,
    },
    /// Drop the deadline.
    Disarm,
    /// The pod has ended. Keep its record and remove the rest.
    End,
}

/// How far the start of a container is, as the supervisor reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum StartProgress {
    None,
    Created,
    Started,
    /// An init container has ended with 0, a sidecar was started completely.
    Through,
}

/// The start of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Start {
    progress: StartProgress,
    /// Since when its program runs, while its postStart hook does.
    hook_since: Option<u64>,
}

/// How long the start of a pod may be silent, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartWaits {
    /// The agent of the first boot. There is no second one if this is [`magikvm_proto::budget::HOST_BOOT_WAIT_MS`].
    pub first_boot_ms: u64,
    /// The start of the containers, after the agent's first answer and after each sign of progress.
    pub ready_ms: u64,
}

/// A pod's state, with the private data of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub state: PodState,
    /// Whether the puller was asked to end.
    pull_given_up: bool,
    /// Why the start is given up, if not by the client that runs the pod.
    given_up_for: Option<Failure>,
    boot: Boot,
    agent_up: bool,
    waits: StartWaits,
    /// The grace period of the pod.
    grace_ms: u64,
    /// How far the start of each container is.
    starts: Vec<Start>,
    /// No deadline is armed, because a workload works.
    waits_for_workload: bool,
    /// The start has failed, and the sandbox is ending.
    failing: Option<Box<Failure>>,
    /// End of the grace period in milliseconds since 1970, set when the supervisor was asked to end.
    kill_ms: Option<u64>,
    motion: Motion,
    /// The user's last request.
    request: Option<PauseRequest>,
}

impl Machine {
    /// A pod that is being started.
    pub fn new(
        containers: impl IntoIterator<Item = (ContainerName, Role)>,
        waits: StartWaits,
        grace_ms: u64,
    ) -> Self {
        let containers: Vec<(ContainerName, Role)> = containers.into_iter().collect();
        let reason = WaitingReason::first(containers.iter().map(|(_, role)| *role));
        let waiting = |(name, role)| ContainerStatus::waiting(name, role, reason);
        let start = Start { progress: StartProgress::None, hook_since: None };
        let starts = vec![start; containers.len()];
        let state = PodState {
            schema: SCHEMA,
            stage: Stage::Starting,
            started_ms: None,
            paused_ms: None,
            disk_full: None,
            ended_ms: None,
            broken: None,
            failed: None,
            conditions: Default::default(),
            pod_ips: Vec::new(),
            host_ip: None,
            containers: containers.into_iter().map(waiting).collect(),
            annotations: Default::default(),
            processes: Vec::new(),
            ports: Vec::new(),
            agent: None,
        };
        Self {
            state,
            pull_given_up: false,
            given_up_for: None,
            boot: Boot::First,
            agent_up: false,
            waits,
            grace_ms,
            starts,
            waits_for_workload: false,
            failing: None,
            kill_ms: None,
            motion: Motion::Running,
            request: None,
        }
    }

    /// Takes one input and the time (milliseconds since 1970), and returns what to do.
    pub fn step(&mut self, input: Input, now_ms: u64) -> Vec<Effect> {
        if self.state.stage == Stage::Ended {
            return Vec::new();
        }
        if self.boot == Boot::Killed && input.is_of_sandbox() {
            return self.last_of_first_boot(&input);
        }
        let effects = match input {
            Input::PullBegun => self.pull_begun(),
            Input::Puller(said) => self.puller(said),
            Input::PullerGone(end) => self.puller_gone(&end),
            Input::SandboxStarted { since_first_ms } => self.sandbox_started(since_first_ms),
            Input::AgentUp => self.agent_up(),
            Input::Guest(event) => self.guest(event.kind, now_ms),
            Input::AgentLost { why } => self.agent_lost(&why),
            Input::SandboxGone { end } => self.sandbox_gone(&end, now_ms),
            Input::Stop { grace_ms } => self.stop(grace_ms, now_ms),
            Input::Cancel => self.cancel(now_ms),
            Input::Deadline => self.deadline(),
            Input::Request(request) => self.request(request),
            Input::Motion(motion) => self.motion(motion, now_ms),
            Input::Disk(disk) => self.disk(disk, now_ms),
            Input::HostClockJumped => self.tell_time(ClockReason::HostClock),
            Input::DirectoryGone => self.directory_gone(),
            Input::MonitorFailed { why } => self.monitor_failed(&why),
        };
        self.observe(now_ms);
        effects
    }
}

/// Caps text that the guest controls before it is stored or passed on.
fn cut(message: &str) -> &str {
    text::cut(message, MAX_MESSAGE_LEN)
}

#[cfg(test)]
mod tests;
