//! What a pod that fails to start leaves behind: the last lines of its containers' logs, their states and its last events. All of it goes into
//! the failure, because the pod is rolled back. Every length is bounded, since the guest writes most of it.

use crate::pod::events::{HostEvent, PodEvent, TimedEvent};
use crate::pod::failure::{ContainerTrace, Failure};
use crate::pod::logs::LogReader;
use crate::store::layout::PodDir;
use crate::store::record::PodState;
use crate::store::regular::{self, Access};
use crate::store::text::harmless;
use magikvm_proto::state::{ContainerState, WaitingReason};
use magikvm_proto::text::cut;
use serde::Serialize;
use std::io::{Read, Seek, SeekFrom};

/// Lines of each container's log.
const LOG_LINES: usize = 10;
/// Bytes of one line.
const MAX_LINE: usize = 512;
const EVENTS: usize = 20;
/// Bytes of one event in the file.
const MAX_EVENT: usize = 1024;
/// Bytes at the end of the events' file that are read.
const EVENT_BYTES: u64 = 64 << 10;
/// Bytes of all events, and of the logs of all containers, as they are sent: the whole failure has to fit into one line of
/// [`magikvm_proto::limits::MAX_LINE_LEN`].
const MAX_EVENTS: usize = 4 << 10;
const MAX_LOGS: usize = 12 << 10;

/// Adds what is known to a failure.
pub(super) fn add(failure: &mut Failure, dir: &PodDir, state: &PodState) {
    failure.trace.events = events(dir);
    let room = MAX_LOGS / state.containers.len().max(1);
    failure.trace.containers = state
        .containers
        .iter()
        .map(|status| ContainerTrace {
            name: status.name.clone(),
            state: describe(&status.state),
            log: last_within(log(LogReader::new(status.name.clone(), dir.container_log(&status.name))), room),
        })
        .collect();
}

/// A container's state in a few words.
fn describe(state: &ContainerState) -> String {
    match state {
        ContainerState::Waiting {
            reason: WaitingReason::PodInitializing | WaitingReason::ContainerCreating,
            ..
        } => "not started".to_owned(),
        ContainerState::Waiting { reason, .. } => reason.to_string(),
        ContainerState::Running { .. } => "started".to_owned(),
        ContainerState::Terminated(run) => format!("{} (exit code {})", run.reason, run.exit.code),
    }
}

/// The last items whose JSON has at most `room` bytes together.
fn last_within<T: Serialize>(mut items: Vec<T>, mut room: usize) -> Vec<T> {
    let fits = |item: &T| {
        let size = serde_json::to_vec(item).map_or(usize::MAX, |json| json.len() + 1);
        room = room.checked_sub(size)?;
        Some(())
    };
    let kept = items.iter().rev().map_while(fits).count();
    items.split_off(items.len() - kept)
}

fn log(mut reader: LogReader) -> Vec<String> {
    let mut bytes = Vec::new();
    if reader.tail(LOG_LINES).is_err() {
        return Vec::new();
    }
    while let Ok(Some(entry)) = reader.next_entry()
        && bytes.len() < LOG_LINES * (64 << 10)
    {
        bytes.extend_from_slice(&entry.content);
    }
    let text = String::from_utf8_lossy(&bytes);
    text.lines().take(LOG_LINES).map(|line| harmless(cut(line, MAX_LINE), &['\t'])).collect()
}

fn events(dir: &PodDir) -> Vec<TimedEvent> {
    let mut bytes = Vec::new();
    let Ok(mut file) = regular::open(&dir.events(), Access::Read) else { return Vec::new() };
    let read = file.metadata().and_then(|there| {
        let length = there.len();
        file.seek(SeekFrom::Start(length.saturating_sub(EVENT_BYTES)))?;
        file.take(EVENT_BYTES).read_to_end(&mut bytes)
    });
    if read.is_err() {
        return Vec::new();
    }
    // The first line may be cut, and is then not an event. The message of the failure has the long text of the event that it comes from.
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| line.len() <= MAX_EVENT);
    let events = lines.filter_map(|line| serde_json::from_slice::<TimedEvent>(line).ok());
    // Images that are there explain no failure.
    let events: Vec<TimedEvent> =
        events.filter(|event| !matches!(event.what, PodEvent::Host(HostEvent::Pulled { .. }))).collect();
    last_within(events[events.len().saturating_sub(EVENTS)..].to_vec(), MAX_EVENTS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::logs::LogOptions;
    use crate::pod::events::{ClockReason, EventLog};
    use crate::pod::failure::{Blame, RunStage};
    use crate::pod::logs::{LogLimits, LogStream, LogWriter};
    use crate::pod::step::{Machine, StartWaits};
    use magikvm_proto::lifecycle::Role;

    #[test]
    fn a_failure_carries_the_ends_of_logs_and_events_and_no_more() {
        let base = tempfile::tempdir().unwrap();
        let dir = PodDir::at(base.path().to_owned());
        std::fs::create_dir(dir.log()).unwrap();
        let names = ["web".parse().unwrap(), "quiet".parse().unwrap()];
        let mut writer =
            LogWriter::open(&dir.container_log(&names[0]), LogLimits::of(LogOptions::default(), 2)).unwrap();
        for number in 0..100 {
            writer
                .write(LogStream::Stderr, format!("{number}\x1b{}\n", "x".repeat(20_000)).as_bytes())
                .unwrap();
        }
        let log = EventLog::open(&dir).unwrap();
        for offset_ms in 0..2000 {
            log.write(PodEvent::Host(HostEvent::Clock { after: ClockReason::Pause, offset_ms }));
        }
        log.write(PodEvent::Host(HostEvent::Resumed));
        let mut failure = Failure::message(RunStage::Agent, Blame::Workload, "x");
        let waits = StartWaits { first_boot_ms: 1, ready_ms: 1 };
        add(&mut failure, &dir, &Machine::new(names.map(|name| (name, Role::Main)), waits, 0).state);
        assert_eq!(failure.trace.events.len(), EVENTS);
        assert_eq!(failure.trace.events.last().unwrap().what, PodEvent::Host(HostEvent::Resumed));
        let [web, quiet] = failure.trace.containers.as_slice() else { panic!("{failure:?}") };
        assert_eq!((web.log.len(), quiet.log.len()), (LOG_LINES, 0));
        assert!(web.log[9].starts_with("99\u{fffd}xxx") && web.log[9].len() < 600, "{:?}", web.log[9]);
        assert_eq!((web.state.as_str(), quiet.state.as_str()), ("not started", "not started"));
    }

    #[test]
    fn the_last_items_that_fit_are_kept() {
        let of = |room| last_within(vec!["aaaa", "b", "cc"], room);
        assert_eq!(of(0), [""; 0]);
        assert_eq!(of(5), ["cc"]);
        assert_eq!(of(9), ["b", "cc"]);
        assert_eq!(of(100), ["aaaa", "b", "cc"]);
        // Ten lines of sixteen containers at their worst, and twenty events, fit with a message into one line of the wire.
        let lines = vec!["\"".repeat(MAX_LINE); LOG_LINES];
        let logs = vec![last_within(lines, MAX_LOGS / 16); 16];
        assert!(serde_json::to_vec(&logs).unwrap().len() <= MAX_LOGS + 100);
    }
}
