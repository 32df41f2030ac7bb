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
//! A pod that is `Starting` and is cancelled, fails or loses its sandbox is `Ended` at once, and the run is rolled back. Whether the sandbox
//! stands still is beside these stages: it may in any of them that has a sandbox.
//!
//! The supervisor alone decides which container starts again and when the pod is over (`PodEnded`); the host shows what it says, and sees to it
//! that the sandbox is gone in time. While the pod starts, a deadline bounds the supervisor's silence, not the length of the start: every sign
//! of progress arms it anew. What counts is that a container was created or started for the first time, so that a supervisor which repeats
//! itself puts nothing off.
//!
//! The happy path: `AgentUp` arms the deadline; `ContainerCreated` and `ContainerStarted` of each container arm it anew; `PodStarted` disarms
//! it and gives `Ready`; `ContainerExited` is shown; `PodEnded` arms the deadline of the end; `SandboxGone` gives `End`.
//!
//! Owns: what the host does with a sandbox and when. Must not know: what a sandbox is made of, clocks, threads and files.

mod containers;
mod ending;
mod pausing;
mod pulling;

use super::events::{ClockReason, HostEvent};
use super::failure::Failure;
use super::pull::{FromPuller, PullerEnd};
use crate::image::{Progress, Reference};
use crate::process::Motion;
use crate::store::record::{PodState, SCHEMA, Stage};
use crate::store::sandbox::SandboxEnd;
use magikvm_proto::id::ContainerName;
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::state::ContainerStatus;
use magikvm_proto::text;
use magikvm_proto::wire::Event;

/// What happens to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A process pulls the pod's images from now on.
    PullBegun,
    /// That process says something.
    Puller(FromPuller),
    /// That process has ended. Its last word, if it had one, came before.
    PullerGone(PullerEnd),
    /// The agent answered for the first time.
    AgentUp,
    /// The supervisor in the sandbox says that something happened.
    Guest(Event),
    /// The connection for events is gone or carried nonsense, although the sandbox lives.
    AgentLost { why: String },
    /// The sandbox is gone, and all it had to say was read.
    SandboxGone { end: SandboxEnd },
    /// A user wants it to end.
    Stop {
        /// From TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
    /// The user who started it changed their mind before it ran.
    Cancel,
    /// The armed deadline has passed.
    Deadline,
    /// A user wants it to pause or to go on.
    Request(PauseRequest),
    /// Processes of the sandbox were stopped or go on, whoever did that.
    Motion(Motion),
    /// The host's clock was set, or the host was suspended.
    HostClockJumped,
}

/// What a user may want of a running pod's sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseRequest {
    /// That it stands still.
    Pause,
    /// That it goes on.
    Resume,
}

/// How a puller is made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndPuller {
    /// It removes what is half-done, says so and ends.
    Ask,
    /// It ends at once; the next one removes what it has left.
    Kill,
}

/// What is to be done about it, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Tell whoever waits how far an image is.
    ShowProgress { image: Reference, progress: Progress },
    /// Make the process that pulls end.
    EndPuller(EndPuller),
    /// All images are there; the flow goes on.
    Pulled,
    /// Tell whoever waits that the pod runs.
    Ready,
    /// The run has failed; roll everything back.
    Fail(Box<Failure>),
    /// Ask the agent to end the pod.
    Shutdown {
        /// From TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
    /// End the sandbox at once.
    Kill,
    /// Make the sandbox stand still.
    Pause,
    /// Let the sandbox go on.
    Resume,
    /// Tell the guest what time it is.
    TellTime(ClockReason),
    /// Write this down among the pod's events.
    Note(HostEvent),
    /// Deliver `Deadline` after so many milliseconds, in place of any earlier one.
    Arm {
        /// Milliseconds.
        after_ms: u64,
    },
    /// The deadline is of no interest any more.
    Disarm,
    /// The pod has ended; keep its record, take away the rest.
    End,
}

/// How far the start of a container is, in the supervisor's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum StartProgress {
    None,
    Created,
    Started,
}

/// A pod's state, with what the machine needs beside what is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    pub state: PodState,
    /// Whether the process that pulls was asked to end.
    pull_given_up: bool,
    agent_up: bool,
    /// How long the start may be without progress, in milliseconds.
    ready_wait_ms: u64,
    /// How far the start of each container is.
    progress: Vec<StartProgress>,
    /// When the grace period ends, once the supervisor was asked to end; milliseconds since 1970.
    kill_ms: Option<u64>,
    /// What the sandbox's processes do.
    motion: Motion,
    /// What a user wanted of them last.
    request: Option<PauseRequest>,
}

impl Machine {
    /// A pod that is being started. Arm [`magikvm_proto::budget::HOST_BOOT_WAIT_MS`] when its sandbox is. From its agent's first answer on,
    /// the start may be without progress for `ready_wait_ms` milliseconds.
    pub fn new(containers: &[ContainerName], ready_wait_ms: u64) -> Self {
        let state = PodState {
            schema: SCHEMA,
            stage: Stage::Starting,
            started_ms: None,
            paused_ms: None,
            ended_ms: None,
            broken: None,
            pod_ips: Vec::new(),
            host_ip: None,
            containers: containers.iter().cloned().map(ContainerStatus::creating).collect(),
            annotations: Default::default(),
            processes: Vec::new(),
            ports: Vec::new(),
            agent: None,
        };
        Self {
            state,
            pull_given_up: false,
            agent_up: false,
            ready_wait_ms,
            progress: vec![StartProgress::None; containers.len()],
            kill_ms: None,
            motion: Motion::Running,
            request: None,
        }
    }

    /// Takes one input at a time (milliseconds since 1970) and says what to do.
    pub fn step(&mut self, input: Input, now_ms: u64) -> Vec<Effect> {
        if self.state.stage == Stage::Ended {
            return Vec::new();
        }
        match input {
            Input::PullBegun => self.pull_begun(),
            Input::Puller(said) => self.puller(said),
            Input::PullerGone(end) => self.puller_gone(&end),
            Input::AgentUp => self.agent_up(),
            Input::Guest(event) => self.guest(event.kind, now_ms),
            Input::AgentLost { why } => self.agent_lost(&why),
            Input::SandboxGone { end } => self.sandbox_gone(&end, now_ms),
            Input::Stop { grace_ms } => self.stop(grace_ms, now_ms),
            Input::Cancel => self.cancel(),
            Input::Deadline => self.deadline(),
            Input::Request(request) => self.request(request),
            Input::Motion(motion) => self.motion(motion, now_ms),
            Input::HostClockJumped => self.tell_time(ClockReason::HostClock),
        }
    }

    fn agent_up(&mut self) -> Vec<Effect> {
        self.agent_up = true;
        match self.state.stage {
            Stage::Starting => vec![Effect::Arm { after_ms: self.ready_wait_ms }],
            _ => Vec::new(),
        }
    }
}

/// What the other end of the wire said or made us say, short enough to be kept and passed on.
fn cut(message: &str) -> &str {
    text::cut(message, MAX_MESSAGE_LEN)
}

#[cfg(test)]
mod tests;
