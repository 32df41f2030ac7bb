//! `events.jsonl`: the events of a pod, reported by the guest or by the monitor, each with the host's time. Knows the file's format, its writer
//! ([`EventLog`]) and its reader ([`EventReader`]), not what the events are used for.

mod log;
mod reader;

pub use log::{EventLog, MAX_LINE, key};
pub use reader::{EventReader, collapse};

use crate::image::Reference;
use crate::process::Missing;
use crate::store::record::FailedReason;
use crate::store::sandbox::SandboxFailure;
use magikvm_proto::lifecycle::{HookKind, ProbeKind};
use magikvm_proto::wire::{Event, EventKind, KillReason};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    pub time: String,
    #[serde(flatten)]
    pub what: PodEvent,
    /// For an event that has come several times: the line replaces earlier ones of the same event and the same `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<Repeated>,
}

/// How often an event has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeated {
    pub count: u32,
    /// When it came for the first time.
    pub since: String,
}

/// An event and its reporter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PodEvent {
    Guest(Event),
    Host(HostEvent),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "host", rename_all = "snake_case")]
pub enum HostEvent {
    /// An image is there that the pod needs.
    Pulled {
        /// The container or the volume that it is for, as `container web`.
        what: String,
        image: Reference,
        /// How long its pull took, unless it was there before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        took_ms: Option<u64>,
        size_bytes: u64,
    },
    Paused,
    /// All processes of the pod run again.
    Resumed,
    /// The host's disk has no room for what the VM writes, and the VM stands still.
    DiskFull {
        /// A directory on that disk.
        dir: PathBuf,
    },
    /// The VM has gone on.
    DiskHasRoom,
    /// The sandbox's agent was silent, and the sandbox is started once more.
    Rebooted {
        /// Milliseconds without an answer.
        silent_ms: u64,
    },
    /// The monitor told the pod's supervisor the time.
    Clock {
        after: ClockReason,
        /// By how much the guest says its clock was ahead, in milliseconds. The guest sets its clock if the difference exceeds
        /// [`magikvm_proto::budget::CLOCK_TOLERANCE_MS`] in either direction.
        offset_ms: i64,
    },
    /// Something that the user should know about the pod.
    Warning {
        message: String,
    },
    /// The pod's network filter refused a packet.
    Refused(crate::net::report::Refused),
    /// A connection to a published port could not be carried to the pod and was reset.
    Connection {
        /// The port of the pod.
        port: u16,
        message: String,
    },
    /// A process of the sandbox runs without some isolation layers, because the host does not offer them.
    Jail {
        process: String,
        missing: Vec<Missing>,
    },
    /// The sandbox has ended, and not as it should have.
    Broken {
        reason: SandboxFailure,
        message: String,
    },
    /// Events at this place are not kept.
    Omitted {
        events: u64,
    },
    /// The monitor could not tell the guest the time.
    ClockFailed {
        after: ClockReason,
        message: String,
    },
}

/// What the kubelet says of an image that is there.
pub fn pulled(image: &Reference, took_ms: Option<u64>, size_bytes: u64) -> String {
    match took_ms {
        None => format!("Container image \"{image}\" already present on machine"),
        Some(ms) => {
            let took = format!("{}.{:03}s", ms / 1000, ms % 1000);
            format!(
                "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {size_bytes} bytes."
            )
        }
    }
}

/// Reason and message of an event of the guest in the kubelet's words; `None` for those that the kubelet has no event for. `pod` is what the
/// kubelet calls it: `NAME_NAMESPACE(UID)`.
pub fn kubelet(kind: &EventKind, pod: &str) -> Option<(&'static str, String)> {
    Some(match kind {
        EventKind::ContainerCreated { container } => ("Created", format!("Created container: {container}")),
        EventKind::ContainerStarted { container, .. } => {
            ("Started", format!("Started container {container}"))
        }
        EventKind::ContainerExited { container, restart_in_ms: Some(wait_ms), .. } if *wait_ms > 0 => {
            ("BackOff", format!("Back-off restarting failed container {container} in pod {pod}"))
        }
        EventKind::ContainerFailed { message, .. } => ("Failed", format!("Error: {message}")),
        EventKind::ProbeFailed { probe, errored, message, .. } => {
            let probe = match probe {
                ProbeKind::Startup => "Startup",
                ProbeKind::Liveness => "Liveness",
                ProbeKind::Readiness => "Readiness",
            };
            let how = if *errored { "errored and resulted in unknown state" } else { "failed" };
            ("Unhealthy", format!("{probe} probe {how}: {message}"))
        }
        EventKind::HookFailed { hook: HookKind::PostStart, message, .. } => {
            ("FailedPostStartHook", format!("PostStartHook failed: {message}"))
        }
        EventKind::HookFailed { hook: HookKind::PreStop, message, .. } => {
            ("FailedPreStopHook", format!("PreStopHook failed: {message}"))
        }
        EventKind::ContainerKilling { container, reason } => (
            "Killing",
            match reason {
                KillReason::Probe { probe, restarts } => {
                    let then = if *restarts { ", will be restarted" } else { "" };
                    format!("Container {container} failed {probe} probe{then}")
                }
                KillReason::PostStart => "FailedPostStartHook".to_owned(),
                KillReason::Stop | KillReason::Unknown => format!("Stopping container {container}"),
            },
        ),
        EventKind::ExtensionFailed { extension, message } => {
            ("ExtensionFailed", format!("Extension {extension} {message}"))
        }
        EventKind::DeadlineExceeded => {
            ("DeadlineExceeded", FailedReason::DeadlineExceeded.message().to_owned())
        }
        EventKind::ContainerExited { .. }
        | EventKind::ContainerCondition { .. }
        | EventKind::PodStarted
        | EventKind::PodFailed { .. }
        | EventKind::ShuttingDown
        | EventKind::PodEnded => return None,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockReason {
    /// The guest starts, and its initial time may be as coarse as a second.
    Start,
    Pause,
    /// The host's clock was set, or the host was suspended.
    HostClock,
}
