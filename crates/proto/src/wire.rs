//! Messages of the wire: newline-delimited JSON on vsock port 1024.
//!
//! A connection carries requests. Each is one line `{"action":…}`, answered by one line `{"status":"ok",…}` or
//! `{"status":"error","code":…,"message":…}`. After an `ok` to `exec`, `attach`, `logs` or `events` the connection is a stream: both sides
//! send the frames of [`crate::stream`] until the end.

use crate::files::{FileTask, MAX_PATH};
use crate::id::{ContainerName, PodId};
use crate::lifecycle::{HookKind, ProbeKind};
use crate::limits::{MAX_EXEC_ARG_LEN, MAX_EXEC_ARGS, MAX_MESSAGE_LEN, MAX_NAME_LEN};
pub use crate::state::{ContainerStatus, ExitStatus};
use crate::text::cut;
use serde::{Deserialize, Serialize};

/// A request of the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", rename_all_fields = "snake_case")]
pub enum Request {
    /// First request of a connection, to learn the guest's version. Answered by [`Hello`].
    Hello {
        /// The host's [`crate::GENERATION`].
        generation: u32,
    },
    /// Checks that the agent answers. Answered by [`Done`].
    Ping,
    /// State of every container. Answered by [`Status`].
    Status,
    /// Sends a signal to PID 1 of one container, or of all. Answered by [`Done`].
    Signal {
        /// The container; all running ones when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        container: Option<ContainerName>,
        /// Linux signal number, 1 to 64.
        signal: i32,
    },
    /// Runs another process in a running container. Answered by [`ExecStarted`]; the connection becomes a stream.
    /// Host to guest: the process's input, and urgent messages ([`UrgentMessage`]). The end of the host's direction is the end of the input.
    /// Guest to host: the process's two outputs, and after them [`StreamMessage::Exit`] and the end.
    /// Closing the connection kills the process.
    Exec(ExecRequest),
    /// Output of all containers from the oldest byte that no earlier reader took. Answered by [`Done`]; the connection becomes a stream.
    /// Guest to host only: the channels of [`crate::stream::log_channel`], [`StreamMessage::Run`], and the end once the guest has no more to send. Nothing is lost: a
    /// container whose output is not taken blocks in its write. One reader at a time; a second one is refused with `busy`.
    Logs,
    /// Live output of one container from now on, and its input. Answered by [`Attached`]; the connection becomes a stream like that of
    /// [`Request::Exec`]. A reader that is too slow loses output; [`StreamMessage::Dropped`] stands where it is missing.
    Attach {
        container: ContainerName,
        /// Whether the caller will send input. Refused with `conflict` when the container has no open stdin.
        stdin: bool,
    },
    /// Resource use. Answered by [`Stats`].
    Stats,
    /// Events from sequence number `since` on, then live. Answered by [`Done`]; the connection becomes a stream of [`Event`] lines.
    Events {
        /// First sequence number wanted; 0 for all events that are still kept.
        since: u64,
    },
    /// Tells the time. A guest whose clock is off by more than [`crate::budget::CLOCK_TOLERANCE_MS`] sets it. Sent after anything that may have
    /// stopped the guest's clock or changed the host's. Answered by [`ClockSet`].
    Clock {
        /// The host's time at sending, in nanoseconds since 1970.
        realtime_ns: u64,
    },
    /// Stops the pod: the preStop hook and TERM to every main container at once, then sidecars in reverse order, KILL to those that remain
    /// after the grace period; hands over the last output and ends. A later request can shorten the grace period, never lengthen it. Answered by [`Done`] at once.
    Shutdown {
        /// From TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
}

/// The capability of an agent that runs an exec as another user, or without a program.
pub const EXEC_USER: &str = "exec_user";

/// The additional process of [`Request::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    pub container: ContainerName,
    /// Program and arguments, at most 256 of at most 4096 bytes. With a terminal there may be none: the user's shell is run then.
    pub args: Vec<String>,
    /// `USER[:GROUP]`, names or numbers, instead of the container's user. Agents that know this list [`EXEC_USER`] in `hello`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Variables in addition to the container's, `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Working directory; that of the container when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Terminal of this size; three pipes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<WindowSize>,
    /// Whether the caller will send input; otherwise the process reads end of file immediately.
    #[serde(default)]
    pub stdin: bool,
    /// It is killed after this many milliseconds (the `exit` then says `timed_out`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Instead of a program, of which there is none then: the new process copies files itself, with everything that binds a program. It says on
    /// its standard error what was left out, and its exit code is not 0 then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<FileTask>,
}

impl ExecRequest {
    /// Checks the caps of the wire; the message names the offending value.
    pub fn check(&self) -> Result<(), String> {
        if let Some(task) = &self.files {
            if !self.args.is_empty() || self.terminal.is_some() {
                return Err("an exec that copies files has neither a program nor a terminal".to_owned());
            }
            let path = task.path();
            if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
                return Err(format!("a path in a container has 1 to {MAX_PATH} bytes and no NUL"));
            }
        } else if self.args.is_empty() && self.terminal.is_none() {
            return Err("exec needs a program".to_owned());
        }
        if self.args.len() > MAX_EXEC_ARGS {
            return Err(format!(
                "exec has {} arguments, at most {MAX_EXEC_ARGS} are allowed",
                self.args.len()
            ));
        }
        if let Some(index) =
            self.args.iter().position(|arg| arg.len() > MAX_EXEC_ARG_LEN || arg.contains('\0'))
        {
            return Err(format!(
                "argument {index} of exec is longer than {MAX_EXEC_ARG_LEN} bytes or contains NUL"
            ));
        }
        if self.user.as_ref().is_some_and(|user| user.len() > MAX_NAME_LEN) {
            return Err(format!("the user of exec is longer than {MAX_NAME_LEN} bytes"));
        }
        Ok(())
    }
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub cols: u16,
}

/// Answer to any request: the wanted `T`, or a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Reply<T> {
    /// Success; the fields of `T` stand beside `status`.
    Ok(T),
    Error(Refusal),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: RefusalCode,
    /// For people; only the first 4096 bytes count.
    pub message: String,
}

impl Refusal {
    /// A refusal whose message is cut to the wire's limit.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(cut(&message, MAX_MESSAGE_LEN).len());
        Self { code, message }
    }
}

/// Kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// Not a request of this generation, or a limit is exceeded.
    Invalid,
    /// No such container, program or process.
    NotFound,
    /// The program is there and may not or cannot be executed.
    NotExecutable,
    /// Not possible in the present state (the container is not running, has no stdin…).
    Conflict,
    /// Too many of these at once.
    Busy,
    Internal,
    /// A code that this side does not know.
    #[serde(other)]
    Unknown,
}

/// Answer without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}

/// Answer to [`Request::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The guest's [`crate::GENERATION`].
    pub generation: u32,
    pub version: String,
    /// The pod that the guest runs; absent until it has read its plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodId>,
    pub capabilities: Vec<String>,
}

/// Answer to [`Request::Clock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSet {
    /// How far the guest's clock was ahead of the host's (negative: behind it), in milliseconds.
    pub offset_ms: i64,
}

/// Answer to [`Request::Exec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStarted {
    /// Process id in the guest's root PID namespace.
    pub pid: i32,
}

/// Answer to [`Request::Attach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Whether the container has a terminal.
    pub terminal: bool,
}

/// Answer to [`Request::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Every container in the order of the plan.
    pub containers: Vec<ContainerStatus>,
    /// Sequence number of the newest event.
    pub last_event: u64,
}

/// Answer to [`Request::Stats`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Every container that has a cgroup now.
    pub containers: Vec<ContainerStats>,
    /// The VM as a whole.
    pub guest: GuestStats,
}

/// Resource use of one container, as counted by its cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    pub name: ContainerName,
    /// Processor time since its start, in microseconds.
    pub cpu_usec: u64,
    /// Current memory, in bytes.
    pub memory_bytes: u64,
    /// Peak memory, in bytes.
    pub memory_peak_bytes: u64,
    /// Memory limit, in bytes; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    pub pids: u64,
}

/// Resource use of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestStats {
    /// Uptime in milliseconds.
    pub uptime_ms: u64,
    /// Memory managed by the kernel, in bytes.
    pub memory_total_bytes: u64,
    /// Available memory, in bytes.
    pub memory_available_bytes: u64,
    /// Proportional set size of vminit and its helpers, in bytes.
    pub init_pss_bytes: u64,
}

/// An event in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// 1, 2, 3… without gaps, unless the guest had to drop old events.
    pub seq: u64,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Kinds of [`Event`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A container exists and waits for its start. No main container starts before all of them are created.
    ContainerCreated { container: ContainerName },
    ContainerStarted {
        container: ContainerName,
        /// Process id in the guest's root PID namespace.
        pid: i32,
        /// How often it was restarted.
        restart_count: u32,
        /// Its postStart hook runs, and it counts as running after its next [`EventKind::ContainerCondition`].
        #[serde(default, skip_serializing_if = "is_false")]
        post_start: bool,
        /// It is started and ready at once: it has neither a hook nor a probe to wait for.
        #[serde(default, skip_serializing_if = "is_false")]
        ready: bool,
    },
    /// Whether it is started and ready has changed. When its end begins it is not ready, which is not reported again.
    ContainerCondition { container: ContainerName, started: bool, ready: bool },
    /// A probe of it has failed. Failures in a row are reported until they reach the threshold, and then fewer and fewer of them.
    ProbeFailed {
        container: ContainerName,
        probe: ProbeKind,
        /// It could not be carried out, which does not count as a failure.
        #[serde(default, skip_serializing_if = "is_false")]
        errored: bool,
        message: String,
    },
    /// A hook of it has failed.
    HookFailed { container: ContainerName, hook: HookKind, message: String },
    /// Its end begins.
    ContainerKilling {
        container: ContainerName,
        #[serde(flatten)]
        reason: KillReason,
    },
    /// Its process has ended and was reaped.
    ContainerExited {
        container: ContainerName,
        exit: ExitStatus,
        /// Its termination message, at most [`MAX_MESSAGE_LEN`] bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// It will restart after this many milliseconds; absent if it will not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restart_in_ms: Option<u64>,
    },
    /// A container could not be created or started. During the first start this fails the whole pod; nothing of it runs.
    ContainerFailed {
        container: ContainerName,
        message: String,
        /// The problem of its program, if that is the reason.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<ProgramProblem>,
        /// It will be tried again after this many milliseconds (a restart); absent if it will not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restart_in_ms: Option<u64>,
    },
    /// An extension of the supervisor has failed, or has missed a deadline, and is not used any more. The pod goes on.
    ExtensionFailed {
        /// The extension's name.
        extension: String,
        message: String,
    },
    /// All containers were started, and the init containers are through.
    PodStarted,
    /// The pod has reached its longest life (`activeDeadlineSeconds`) and is stopped.
    DeadlineExceeded,
    /// The pod as a whole could not be started, because its plan or a file system is unusable, or it can't go on, because a process has ended that
    /// the supervisor can't work without. In the second case the supervisor stops the pod.
    PodFailed {
        message: String,
        /// That process was killed.
        #[serde(default, skip_serializing_if = "is_false")]
        killed: bool,
    },
    /// The supervisor is stopping the pod.
    ShuttingDown,
    /// The pod is over, and the supervisor ends by itself: every container has ended for good, and each end was reported before,
    /// except that of a process that could not be killed.
    PodEnded,
}

/// Why a container is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case", rename_all_fields = "snake_case")]
pub enum KillReason {
    /// The pod stops.
    Stop,
    /// Its startup or liveness probe has failed.
    Probe {
        probe: ProbeKind,
        /// Whether it restarts then.
        #[serde(default, skip_serializing_if = "is_false")]
        restarts: bool,
    },
    /// Its postStart hook has failed.
    PostStart,
    /// A reason that this side does not know.
    #[serde(other)]
    Unknown,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_false(value: &bool) -> bool {
    !*value
}

/// Why a program does not run. Shells have an exit code for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramProblem {
    /// The container has no such program.
    Missing,
    /// The program is there and may not or cannot be executed.
    NotExecutable,
    /// A problem that this side does not know.
    #[serde(other)]
    Unknown,
}

/// A message of the guest on the stream of exec or attach, in order with the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum StreamMessage {
    /// The process has ended. All of its output came before; only the end of the direction follows.
    Exit(ExitStatus),
    /// The caller was too slow, and bytes of an output were lost here (attach only).
    Dropped {
        channel: u16,
        /// Number of lost bytes.
        bytes: u64,
    },
    /// The output of this container that follows is that of this run of it (logs only). Before the first one it is that of run 0.
    Run {
        /// Its index in the plan.
        container: u16,
        /// How often it was restarted before.
        run: u32,
    },
}

/// An urgent message of the host on the stream of exec or attach. It overtakes waiting data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "urgent", rename_all = "snake_case")]
pub enum UrgentMessage {
    /// The terminal has a new size.
    Resize(WindowSize),
    /// A signal for the process (exec only).
    Signal {
        /// Linux signal number, 1 to 64.
        signal: i32,
    },
}
