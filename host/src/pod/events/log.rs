//! The writer of `events.jsonl`. A guest decides how many events there are and how long they are, so their number and their bytes are bounded in
//! three ways: events that repeat are counted, each class of events may write only so fast, and of a class that has become too large only the
//! beginning and the newest events are kept.

use super::{HostEvent, PodEvent, Repeated, TimedEvent};
use crate::pod::logs::format_time;
use crate::store::atomic::{FileError, Staged};
use crate::store::layout::PodDir;
use crate::store::regular::{self, Access};
use magikvm_proto::wire::{Event, EventKind};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whose events share a part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Guest,
    Host,
    /// The monitor writes these, but the guest and the pod's clients decide how many there are.
    Network,
}

impl Class {
    fn of(what: &PodEvent) -> Self {
        match what {
            PodEvent::Guest(_) => Self::Guest,
            PodEvent::Host(HostEvent::Refused(_) | HostEvent::Connection { .. }) => Self::Network,
            PodEvent::Host(_) => Self::Host,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Guest => 0,
            Self::Host => 1,
            Self::Network => 2,
        }
    }
}

/// What a class may take.
#[derive(Debug, Clone, Copy)]
struct Budget {
    /// The file is shortened when the class has more bytes. So many may also be written at once.
    max: u64,
    /// Bytes that are kept from the beginning, and from the end.
    first: u64,
    last: u64,
    /// Bytes a second on average, beyond those that may be written at once.
    rate: u64,
}

const BUDGETS: [Budget; 3] = [
    Budget { max: 4 << 20, first: 256 << 10, last: 2 << 20, rate: 4 << 10 },
    Budget { max: 256 << 10, first: 64 << 10, last: 128 << 10, rate: 1 << 10 },
    Budget { max: 256 << 10, first: 64 << 10, last: 128 << 10, rate: 1 << 10 },
];

/// Longest line of the file: a message of the guest with its escapes.
pub const MAX_LINE: usize = 64 << 10;
/// A repeated event is written as often as this, and counted from then on.
const WRITTEN_EACH: u32 = 3;
/// How old a count in the file may be while the event repeats.
const COUNT_INTERVAL: Duration = Duration::from_secs(30);
/// An event that comes again after this time is a new one (the kubelet's aggregation interval).
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Events that are counted at a time.
const MAX_SERIES: usize = 256;
/// Fewer bytes than most events have.
const SPENT: u64 = 256;
/// Bytes that wait for room on the disk.
const MAX_WAITING: usize = 64 << 10;
/// How often it is tried again to write them.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The log of one pod, shared by several writers. A pod has one.
#[derive(Debug, Clone)]
pub struct EventLog(Arc<Mutex<Writer>>);

impl EventLog {
    pub fn open(dir: &PodDir) -> Result<Self, FileError> {
        let path = dir.events();
        let file = regular::open(&path, Access::Append)?;
        let now = Instant::now();
        let tokens = |budget: Budget| Tokens { left: budget.max, filled: now };
        let mut writer = Writer {
            path,
            file,
            is_torn: false,
            written: [0; 3],
            tokens: BUDGETS.map(tokens),
            omitted: 0,
            series: VecDeque::new(),
            waiting: VecDeque::new(),
        };
        writer.written = writer.measure()?;
        Ok(Self(Arc::new(Mutex::new(writer))))
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event, or counts it.
    pub fn write(&self, what: PodEvent) {
        let (mut writer, now) = (self.writer(), Instant::now());
        // Nothing is made of the events of a flood.
        if !is_counted(&what) && writer.is_spent(Class::of(&what), now) {
            writer.omitted += 1;
            return;
        }
        writer.event(what, format_time(jiff::Timestamp::now()), now);
    }

    /// Writes what is due: counts of repeated events, and what had no room on the disk.
    pub fn catch_up(&self) {
        self.writer().catch_up(Instant::now());
    }

    /// Writes all counts. To be called at the pod's end.
    pub fn finish(&self) {
        let (mut writer, now) = (self.writer(), Instant::now());
        writer.flush_waiting();
        writer.write_counts(|_| true, now);
        if writer.omitted > 0 {
            writer.note_omitted(format_time(jiff::Timestamp::now()), now);
        }
    }

    /// When [`EventLog::catch_up`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.writer().due(Instant::now())
    }
}

/// An event that repeats.
#[derive(Debug)]
struct Series {
    key: PodEvent,
    /// As it was the last time.
    what: PodEvent,
    count: u32,
    since: String,
    time: String,
    seen: Instant,
    /// When its count was written.
    noted: Instant,
    is_noted: bool,
}

#[derive(Debug)]
struct Tokens {
    left: u64,
    filled: Instant,
}

impl Tokens {
    /// Adds what the class has earned since the last time.
    fn fill(&mut self, budget: Budget, now: Instant) {
        let millis = now.saturating_duration_since(self.filled).as_millis();
        let more = u64::try_from(millis).unwrap_or(u64::MAX).saturating_mul(budget.rate) / 1000;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(budget.max);
            self.filled = now;
        }
    }

    /// Takes bytes from what a class may write now.
    fn take(&mut self, bytes: u64, budget: Budget, now: Instant) -> bool {
        self.fill(budget, now);
        let enough = self.left >= bytes;
        self.left -= if enough { bytes } else { 0 };
        enough
    }
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: File,
    /// The file may end in the middle of a line, because the disk was full.
    is_torn: bool,
    /// Bytes of each class in the file.
    written: [u64; 3],
    tokens: [Tokens; 3],
    /// Events that were dropped since this was last written.
    omitted: u64,
    series: VecDeque<Series>,
    /// Lines that had no room on the disk.
    waiting: VecDeque<(Class, Vec<u8>)>,
}

impl Writer {
    /// Whether a class may write next to nothing now.
    fn is_spent(&mut self, class: Class, now: Instant) -> bool {
        let tokens = &mut self.tokens[class.index()];
        tokens.fill(BUDGETS[class.index()], now);
        tokens.left < SPENT
    }

    fn event(&mut self, what: PodEvent, time: String, now: Instant) {
        self.catch_up(now);
        let Some(key) = key(&what) else { return self.line(&TimedEvent { time, what, repeated: None }, now) };
        self.series.retain(|one| now.saturating_duration_since(one.seen) < FORGOTTEN_AFTER || !one.is_noted);
        let Some(one) = self.series.iter_mut().find(|one| one.key == key) else {
            if self.series.len() >= MAX_SERIES {
                self.series.pop_front();
            }
            let since = time.clone();
            let (seen, noted) = (now, now);
            self.line(&TimedEvent { time: time.clone(), what: what.clone(), repeated: None }, now);
            self.series.push_back(Series { key, what, count: 1, since, time, seen, noted, is_noted: true });
            return;
        };
        one.count = one.count.saturating_add(1);
        (one.seen, one.time, one.what, one.is_noted) = (now, time, what, false);
        let is_due =
            one.count.is_power_of_two() || now.saturating_duration_since(one.noted) >= COUNT_INTERVAL;
        if one.count <= WRITTEN_EACH || is_due {
            let wanted = one.key.clone();
            self.write_counts(|one| one.key == wanted, now);
        }
    }

    /// Writes the counts of these series that the file does not have yet.
    fn write_counts(&mut self, wanted: impl Fn(&Series) -> bool, now: Instant) {
        let mut lines = Vec::new();
        for one in self.series.iter_mut().filter(|one| !one.is_noted && wanted(one)) {
            (one.is_noted, one.noted) = (true, now);
            let repeated =
                (one.count > WRITTEN_EACH).then(|| Repeated { count: one.count, since: one.since.clone() });
            lines.push(TimedEvent { time: one.time.clone(), what: one.what.clone(), repeated });
        }
        lines.iter().for_each(|line| self.line(line, now));
    }

    fn catch_up(&mut self, now: Instant) {
        self.flush_waiting();
        self.write_counts(|one| now.saturating_duration_since(one.noted) >= COUNT_INTERVAL, now);
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        let counts = self.series.iter().filter(|one| !one.is_noted).map(|one| one.noted + COUNT_INTERVAL);
        let retry = (!self.waiting.is_empty()).then(|| now + RETRY_INTERVAL);
        counts.chain(retry).min()
    }

    fn line(&mut self, timed: &TimedEvent, now: Instant) {
        let class = Class::of(&timed.what);
        let Ok(mut line) = serde_json::to_vec(timed) else { return };
        line.push(b'\n');
        let budget = BUDGETS[class.index()];
        if !self.tokens[class.index()].take(size(&line), budget, now) {
            self.omitted += match timed.what {
                PodEvent::Host(HostEvent::Omitted { events }) => events,
                _ => 1,
            };
            return;
        }
        if self.omitted > 0 && class != Class::Host {
            self.note_omitted(timed.time.clone(), now);
        }
        self.append(class, line);
    }

    fn note_omitted(&mut self, time: String, now: Instant) {
        let what = PodEvent::Host(HostEvent::Omitted { events: std::mem::take(&mut self.omitted) });
        self.line(&TimedEvent { time, what, repeated: None }, now);
    }

    /// Appends a line, or keeps it until the disk has room.
    fn append(&mut self, class: Class, line: Vec<u8>) {
        let max = BUDGETS[class.index()].max;
        // A file that cannot be shortened, because the disk is full, does not grow either.
        let fits = self.written[class.index()] + size(&line) <= max || self.shorten().is_ok();
        if fits && self.waiting.is_empty() && self.put(class, &line) {
            return;
        }
        let waiting: usize = self.waiting.iter().map(|(_, line)| line.len()).sum();
        if waiting + line.len() > MAX_WAITING {
            self.omitted += 1;
        } else {
            self.waiting.push_back((class, line));
        }
    }

    fn flush_waiting(&mut self) {
        while let Some((class, line)) = self.waiting.pop_front() {
            if !self.put(class, &line) {
                return self.waiting.push_front((class, line));
            }
        }
    }

    fn put(&mut self, class: Class, line: &[u8]) -> bool {
        let mut bytes = Vec::new();
        if self.is_torn {
            bytes.push(b'\n');
        }
        bytes.extend_from_slice(line);
        self.is_torn = self.file.write_all(&bytes).is_err();
        if !self.is_torn {
            self.written[class.index()] += size(line);
        }
        !self.is_torn
    }

    /// Bytes of each class in the file.
    fn measure(&self) -> Result<[u64; 3], FileError> {
        let mut written = [0; 3];
        self.each_line(&mut |class, line| {
            written[class.index()] += size(line);
            Ok(())
        })?;
        Ok(written)
    }

    /// Calls `each` with every whole line and its newline.
    fn each_line(&self, each: &mut dyn FnMut(Class, &[u8]) -> std::io::Result<()>) -> Result<(), FileError> {
        let failed = |error| FileError::at("read", &self.path)(error);
        let mut reader = BufReader::new(regular::open(&self.path, Access::Read)?);
        let mut line = Vec::new();
        while regular::read_line(&mut reader, &mut line, MAX_LINE).map_err(failed)? {
            if let Ok(timed) = serde_json::from_slice::<TimedEvent>(&line) {
                line.push(b'\n');
                each(Class::of(&timed.what), &line).map_err(failed)?;
            }
            line.clear();
        }
        Ok(())
    }

    /// Replaces the file by one that has the beginning and the newest events of each class. Readers see that it is another file.
    fn shorten(&mut self) -> Result<(), FileError> {
        let totals = self.measure()?;
        let mut staged = Staged::new(&self.path)?;
        let (mut seen, mut written, mut omitted) = ([0u64; 3], [0u64; 3], 0u64);
        let mut out = Vec::new();
        let mut time = String::new();
        let file = staged.file();
        self.each_line(&mut |class, line| {
            let (at, budget, total) =
                (&mut seen[class.index()], BUDGETS[class.index()], totals[class.index()]);
            *at += size(line);
            let is_kept = total <= budget.max / 2 || *at <= budget.first || total - *at < budget.last;
            let timed: TimedEvent = serde_json::from_slice(line)?;
            if let PodEvent::Host(HostEvent::Omitted { events }) = timed.what {
                // All marks become one, where the gap is.
                (omitted, time) = (omitted + events, timed.time);
                return Ok(());
            }
            if !is_kept {
                (omitted, time) = (omitted + 1, timed.time);
                return Ok(());
            }
            out.clear();
            if omitted > 0 && *at > budget.first {
                let what = PodEvent::Host(HostEvent::Omitted { events: std::mem::take(&mut omitted) });
                let mark = TimedEvent { time: std::mem::take(&mut time), what, repeated: None };
                let before = out.len();
                serde_json::to_writer(&mut out, &mark)?;
                out.push(b'\n');
                written[Class::Host.index()] += size(&out) - u64::try_from(before).unwrap_or(0);
            }
            written[class.index()] += size(line);
            out.extend_from_slice(line);
            file.write_all(&out)
        })?;
        staged.commit(0o600)?;
        self.file = regular::open(&self.path, Access::Append)?;
        (self.written, self.is_torn) = (written, false);
        self.omitted += omitted;
        Ok(())
    }
}

fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Whether repetitions of an event are counted.
fn is_counted(what: &PodEvent) -> bool {
    match what {
        PodEvent::Guest(Event { kind, .. }) => {
            matches!(kind, EventKind::ProbeFailed { .. } | EventKind::ContainerCondition { .. })
        }
        PodEvent::Host(event) => matches!(
            event,
            HostEvent::Connection { .. }
                | HostEvent::Paused
                | HostEvent::Resumed
                | HostEvent::DiskFull { .. }
                | HostEvent::DiskHasRoom
                | HostEvent::Warning { .. }
        ),
    }
}

/// What two events have in common if one is a repetition of the other; `None` for events that are never counted.
pub fn key(what: &PodEvent) -> Option<PodEvent> {
    if !is_counted(what) {
        return None;
    }
    let guest = |kind| Some(PodEvent::Guest(Event { seq: 0, kind }));
    match what {
        PodEvent::Guest(Event { kind, .. }) => match kind.clone() {
            EventKind::ProbeFailed { container, probe, errored, .. } => {
                guest(EventKind::ProbeFailed { container, probe, errored, message: String::new() })
            }
            kind => guest(kind),
        },
        PodEvent::Host(HostEvent::Connection { port, .. }) => {
            Some(PodEvent::Host(HostEvent::Connection { port: *port, message: String::new() }))
        }
        PodEvent::Host(_) => Some(what.clone()),
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
