//! Messages of the wire: newline-delimited JSON on vsock port 1024.
//!
//! A connection carries requests, each one line `{"action":…}`, each answered by one line `{"status":"ok",…}` or
//! `{"status":"error","code":…,"message":…}`. After an `ok` to `exec`, `attach`, `logs` or `events` the connection is a stream: both sides
//! send the frames of [`crate::stream`] until the end.

use crate::id::{ContainerName, PodId};
use crate::limits::{MAX_EXEC_ARG_LEN, MAX_EXEC_ARGS, MAX_MESSAGE_LEN};
pub use crate::state::{ContainerStatus, ExitStatus};
use crate::text::cut;
use serde::{Deserialize, Serialize};

/// What the host asks of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", rename_all_fields = "snake_case")]
pub enum Request {
    /// First request of a connection that wants to know whom it talks to. Answered by [`Hello`].
    Hello {
        /// The host's [`crate::GENERATION`].
        generation: u32,
    },
    /// Is anybody there? Answered by [`Done`].
    Ping,
    /// State of every container. Answered by [`Status`].
    Status,
    /// Sends a signal to process 1 of one container, or of all. Answered by [`Done`].
    Signal {
        /// Which container; all running ones when absent.
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
    /// Guest to host only: the channels of [`crate::stream::log_channel`], and the end once the guest has no more to say. Nothing is lost: a
    /// container whose output nobody takes stops in its write. One reader at a time; a second one is refused with `busy`.
    Logs,
    /// Live output of one container from now on, and its input. Answered by [`Attached`]; the connection becomes a stream, as that of
    /// [`Request::Exec`] is. A reader too slow for the output loses some; [`StreamMessage::Dropped`] stands where it is missing.
    Attach {
        container: ContainerName,
        /// Whether the caller will send input. Refused with `conflict` when the container has no open stdin.
        stdin: bool,
    },
    /// Resource use. Answered by [`Stats`].
    Stats,
    /// Events from sequence number `since` on, then live. Answered by [`Done`]; the connection becomes a stream of [`Event`] lines.
    Events {
        /// First sequence number wanted; 0 for all that are still kept.
        since: u64,
    },
    /// What time it is. A guest whose clock is off by more than [`crate::budget::CLOCK_TOLERANCE_MS`] sets it. Sent after whatever may have
    /// held the guest's clock up or moved the host's. Answered by [`ClockSet`].
    Clock {
        /// The host's time when it sent this, in nanoseconds since 1970.
        realtime_ns: u64,
    },
    /// Stops the pod: TERM to every container at once, KILL to those that are left after the grace period; hands over the last
    /// output and ends. A later request can shorten the grace period, never lengthen it. Answered by [`Done`] at once.
    Shutdown {
        /// From TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
}

/// The further process of [`Request::Exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    pub container: ContainerName,
    /// Program and arguments, 1 to 256 of at most 4096 bytes.
    pub args: Vec<String>,
    /// Variables beside the container's own, `NAME=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Working directory; the container's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Terminal of this size; three pipes when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<WindowSize>,
    /// Whether the caller will send input; end of file at once otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// Killed after this many milliseconds (the `exit` then says `timed_out`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

impl ExecRequest {
    /// Checks the caps of the wire; the message names what is too large.
    pub fn check(&self) -> Result<(), String> {
        if self.args.is_empty() {
            return Err("exec needs a program".to_owned());
        }
        if self.args.len() > MAX_EXEC_ARGS {
            return Err(format!(
                "exec has {} arguments, at most {MAX_EXEC_ARGS} are possible",
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
        Ok(())
    }
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub cols: u16,
}

/// Answer to any request: the wanted `T`, or why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Reply<T> {
    /// Done; `T`'s fields stand beside `status`.
    Ok(T),
    Error(Refusal),
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: RefusalCode,
    /// For people; at most 4096 bytes count.
    pub message: String,
}

impl Refusal {
    /// A refusal whose message is cut to what the wire allows.
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
    /// Not a request of this generation, or over a limit.
    Invalid,
    /// No such container, program or process.
    NotFound,
    /// Not in this state (the container is not running, has no stdin…).
    Conflict,
    /// Too many of these at once.
    Busy,
    Internal,
    /// A code this side does not know.
    #[serde(other)]
    Unknown,
}

/// Answer that has nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {}

/// Answer to [`Request::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The guest's [`crate::GENERATION`].
    pub generation: u32,
    pub version: String,
    /// The pod it runs; absent while it has not read its plan.
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
    /// Process id in the guest's first PID namespace.
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
    /// Every container of the plan, in its order.
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

/// Resource use of one container (its cgroup).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    pub name: ContainerName,
    /// Processor time since its start, in microseconds.
    pub cpu_usec: u64,
    /// Memory now, in bytes.
    pub memory_bytes: u64,
    /// Highest memory, in bytes.
    pub memory_peak_bytes: u64,
    /// Its limit, in bytes; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    pub pids: u64,
}

/// Resource use of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestStats {
    /// Since boot, in milliseconds.
    pub uptime_ms: u64,
    /// Memory the kernel manages, in bytes.
    pub memory_total_bytes: u64,
    /// Memory that could be had, in bytes.
    pub memory_available_bytes: u64,
    /// Proportional set size of vminit and its helpers, in bytes.
    pub init_pss_bytes: u64,
}

/// Something that happened in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// 1, 2, 3… without gaps, unless the guest had to forget old ones.
    pub seq: u64,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Kinds of [`Event`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A container exists and waits for its start. No container starts before all are created.
    ContainerCreated { container: ContainerName },
    ContainerStarted {
        container: ContainerName,
        /// Process id in the guest's first PID namespace.
        pid: i32,
        /// How often it was started again before.
        restart_count: u32,
    },
    /// Its process has ended and was reaped.
    ContainerExited {
        container: ContainerName,
        exit: ExitStatus,
        /// It will be started again after this many milliseconds; absent when it will not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restart_in_ms: Option<u64>,
    },
    /// A container could not be created or started. During the first start the pod has failed; nothing of it runs.
    ContainerFailed {
        container: ContainerName,
        message: String,
        /// It will be tried again after this many milliseconds (a restart); absent when it will not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        restart_in_ms: Option<u64>,
    },
    /// All containers were started.
    PodStarted,
    /// The pod as a whole could not be started: its plan or a file system is unusable.
    PodFailed { message: String },
    /// The supervisor stops the pod.
    ShuttingDown,
    /// The pod is over, and the supervisor ends without being asked: every container has ended for good, and each end was told before.
    /// Only the end of a process that could not be killed is missing.
    PodEnded,
}

/// What the guest says on the stream of exec or attach, in order with the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum StreamMessage {
    /// The process has ended. All of its output came before; only the end of the direction follows.
    Exit(ExitStatus),
    /// The caller was too slow, and bytes of an output were lost here (attach only).
    Dropped {
        channel: u16,
        /// How many bytes.
        bytes: u64,
    },
}

/// What the host says on the stream of exec or attach, whatever of its data still waits.
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
