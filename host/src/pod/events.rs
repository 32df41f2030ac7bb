//! `events.jsonl`: the events of a pod, reported by the guest or by the monitor, each with the host's time. Knows the file's format,
//! not what the events are used for.

use super::logs::format_time;
use crate::process::Missing;
use crate::store::atomic::FileError;
use crate::store::layout::PodDir;
use crate::store::regular::{self, Access};
use crate::store::sandbox::SandboxFailure;
use magikvm_proto::wire::Event;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that the guest's events may fill, so that a guest cannot fill the disk.
const MAX_GUEST: u64 = 4 << 20;
/// Bytes that the monitor's events may fill in addition. The cap holds even if somebody stops and continues the VM in a loop.
const MAX_HOST: u64 = 256 << 10;

/// Longest line of the file: a message of the guest with its escapes.
pub const MAX_LINE: usize = 64 << 10;
/// Bytes for events about refused packets and broken connections: the monitor writes them, but the guest and the pod's clients decide how
/// many there are.
const MAX_REFUSED: u64 = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedEvent {
    pub time: String,
    #[serde(flatten)]
    pub what: PodEvent,
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
    Paused,
    /// All processes of the VM run again.
    Resumed,
    /// The monitor told the guest the time.
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
    /// A process of the VM runs without some isolation layers, because the host does not offer them.
    Jail {
        process: String,
        missing: Vec<Missing>,
    },
    /// The VM has ended, and not as it should have.
    Broken {
        reason: SandboxFailure,
        message: String,
    },
    /// The monitor could not tell the guest the time.
    ClockFailed {
        after: ClockReason,
        message: String,
    },
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

/// The log of one pod, shared by several writers.
#[derive(Debug, Clone)]
pub struct EventLog(Arc<Mutex<Writer>>);

#[derive(Debug)]
struct Writer {
    file: File,
    by_guest: u64,
    by_host: u64,
    by_network: u64,
}

impl EventLog {
    pub fn open(dir: &PodDir) -> Result<Self, FileError> {
        let file = regular::open(&dir.events(), Access::Append)?;
        Ok(Self(Arc::new(Mutex::new(Writer { file, by_guest: 0, by_host: 0, by_network: 0 }))))
    }

    /// Appends an event. An event beyond the cap or beyond the room on the disk is lost.
    pub fn write(&self, what: PodEvent) {
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Writer { file, by_guest, by_host, by_network } = &mut *writer;
        let (written, max) = match what {
            PodEvent::Guest(_) => (by_guest, MAX_GUEST),
            PodEvent::Host(HostEvent::Refused(_) | HostEvent::Connection { .. }) => (by_network, MAX_REFUSED),
            PodEvent::Host(_) => (by_host, MAX_HOST),
        };
        if *written > max {
            return;
        }
        let timed = TimedEvent { time: format_time(jiff::Timestamp::now()), what };
        let Ok(mut line) = serde_json::to_vec(&timed) else { return };
        line.push(b'\n');
        if file.write_all(&line).is_ok() {
            *written += u64::try_from(line.len()).unwrap_or(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::wire::EventKind;

    #[test]
    fn who_says_it_can_be_read_back_and_a_flood_keeps_no_host_event_out() {
        let base = tempfile::tempdir().unwrap();
        let dir = PodDir::at(base.path().to_owned());
        let log = EventLog::open(&dir).unwrap();
        let guest =
            PodEvent::Guest(Event { seq: 1, kind: EventKind::PodFailed { message: "x".repeat(4000) } });
        for _ in 0..2000 {
            log.write(guest.clone());
        }
        let ours = [
            HostEvent::Paused,
            HostEvent::Resumed,
            HostEvent::Clock { after: ClockReason::Pause, offset_ms: i64::MIN },
            HostEvent::ClockFailed { after: ClockReason::HostClock, message: "silence".to_owned() },
        ];
        for event in &ours {
            log.write(PodEvent::Host(event.clone()));
        }
        let text = std::fs::read_to_string(dir.events()).unwrap();
        assert!(text.len() < 5 << 20, "{}", text.len());
        let mut events = text.lines().map(|line| serde_json::from_str::<TimedEvent>(line).unwrap().what);
        assert_eq!(events.next(), Some(guest));
        let last: Vec<PodEvent> = events.skip_while(|event| matches!(event, PodEvent::Guest(_))).collect();
        assert_eq!(last, ours.map(PodEvent::Host));
        assert!(
            text.ends_with("\"host\":\"clock_failed\",\"after\":\"host_clock\",\"message\":\"silence\"}\n")
        );
    }
}
