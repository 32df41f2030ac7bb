use super::*;
use crate::pod::events::{ClockReason, EventReader, collapse};
use magikvm_proto::lifecycle::ProbeKind;

fn read(dir: &PodDir) -> Vec<TimedEvent> {
    let mut reader = EventReader::new(dir.events());
    std::iter::from_fn(|| reader.next_event().unwrap()).map(|(timed, _)| timed).collect()
}

fn guest(kind: EventKind) -> PodEvent {
    PodEvent::Guest(Event { seq: 1, kind })
}

fn long(text: &str) -> PodEvent {
    guest(EventKind::PodFailed { message: text.repeat(4000 / text.len()), killed: false })
}

fn probe(message: &str) -> PodEvent {
    guest(EventKind::ProbeFailed {
        container: "web".parse().unwrap(),
        probe: ProbeKind::Readiness,
        errored: false,
        message: message.to_owned(),
    })
}

fn place() -> (tempfile::TempDir, PodDir) {
    let base = tempfile::tempdir().unwrap();
    let dir = PodDir::at(base.path().to_owned());
    (base, dir)
}

/// Writes an event at a number of milliseconds.
type WriteAt = Box<dyn Fn(&Mutex<Writer>, PodEvent, u64)>;

/// A log whose time a test sets.
fn log(dir: &PodDir) -> (Arc<Mutex<Writer>>, WriteAt) {
    let start = Instant::now();
    let write = move |writer: &Mutex<Writer>, what: PodEvent, ms: u64| {
        let time = format_time(jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap()).unwrap());
        writer.lock().unwrap().event(what, time, start + Duration::from_millis(ms));
    };
    (EventLog::open(dir).unwrap().0, Box::new(write))
}

#[test]
fn who_says_it_can_be_read_back_and_a_flood_keeps_no_host_event_out() {
    let (_base, dir) = place();
    let log = EventLog::open(&dir).unwrap();
    for _ in 0..2000 {
        log.write(long("x"));
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
    assert!(text.ends_with("\"host\":\"clock_failed\",\"after\":\"host_clock\",\"message\":\"silence\"}\n"));
    // What was lost is told.
    log.finish();
    let (mut told, mut lost) = (Vec::new(), 0);
    let events = read(&dir);
    assert_eq!(events[0].what, long("x"));
    for timed in events {
        match timed.what {
            PodEvent::Guest(_) => {}
            PodEvent::Host(HostEvent::Omitted { events }) => lost += events,
            PodEvent::Host(event) => told.push(event),
        }
    }
    assert_eq!(told, ours);
    assert!((500..1500).contains(&lost), "{lost}");
}

#[test]
fn the_beginning_and_the_newest_events_are_kept_however_long_it_goes_on() {
    let (_base, dir) = place();
    let (log, write) = log(&dir);
    let mut follower = EventReader::new(dir.events());
    let mut followed = 0;
    // Slow enough for the rate, and three times the size of the file.
    let texts = ["first", "middle", "last"].map(|text| [text].repeat(1200)).concat();
    for (number, text) in texts.iter().enumerate() {
        write(&log, long(text), u64::try_from(number).unwrap() * 2000);
        while follower.next_event().unwrap().is_some() {
            followed += 1;
        }
        assert!(std::fs::metadata(dir.events()).unwrap().len() < (4 << 20) + (64 << 10));
    }
    let events = read(&dir);
    let has = |what: &PodEvent| events.iter().filter(|timed| timed.what == *what).count();
    assert!(has(&long("first")) > 50 && has(&long("last")) > 400, "{}", events.len());
    assert_eq!(events[0].what, long("first"));
    assert_eq!(events.last().unwrap().what, long("last"));
    let lost: Vec<u64> = events
        .iter()
        .filter_map(|timed| match timed.what {
            PodEvent::Host(HostEvent::Omitted { events }) => Some(events),
            _ => None,
        })
        .collect();
    assert_eq!(lost.len(), 1, "{lost:?}");
    assert_eq!(usize::try_from(lost[0]).unwrap() + events.len() - 1, texts.len());
    // Whoever follows misses nothing and sees nothing twice, but the marks.
    assert!((texts.len()..texts.len() + 4).contains(&followed), "{followed}");
}

#[test]
fn what_repeats_is_counted_and_not_written_again() {
    let (_base, dir) = place();
    let (log, write) = log(&dir);
    for second in 0..600 {
        write(&log, probe(&format!("no {second}")), second * 1000);
    }
    log.lock().unwrap().write_counts(|_| true, Instant::now());
    let events = read(&dir);
    assert!((20..50).contains(&events.len()), "{}", events.len());
    let shown = collapse(events);
    assert_eq!(shown.len(), 4, "three, and the count");
    let last = shown.last().unwrap();
    assert_eq!(last.what, probe("no 599"));
    let repeated = last.repeated.clone().unwrap();
    assert_eq!((repeated.count, repeated.since.as_str()), (600, "1970-01-01T00:00:00.000000000Z"));
    assert_eq!(last.time, "1970-01-01T00:09:59.000000000Z");
    // Much later it is something new.
    write(&log, probe("again"), 3_000_000);
    assert_eq!(read(&dir).pop().unwrap().repeated, None);
}

#[test]
fn a_count_is_due_when_it_has_not_been_written() {
    let (_base, dir) = place();
    let (log, write) = log(&dir);
    for second in 0..5 {
        write(&log, probe("no"), second * 1000);
    }
    let mut log = log.lock().unwrap();
    let now = Instant::now();
    let due = log.due(now).expect("the fifth is not written");
    assert!(due > now, "not at once");
    log.catch_up(due);
    assert_eq!(log.due(due), None);
    assert_eq!(read(&dir).pop().unwrap().repeated.unwrap().count, 5);
}

#[test]
fn a_line_that_a_full_disk_cut_off_spoils_no_other() {
    let (_base, dir) = place();
    let log = EventLog::open(&dir).unwrap();
    log.write(PodEvent::Host(HostEvent::Paused));
    {
        let mut writer = log.writer();
        writer.file.write_all(b"{\"time\":\"20").unwrap();
        writer.is_torn = true;
    }
    log.write(PodEvent::Host(HostEvent::Resumed));
    let events: Vec<PodEvent> = read(&dir).into_iter().map(|timed| timed.what).collect();
    assert_eq!(events, [HostEvent::Paused, HostEvent::Resumed].map(PodEvent::Host));
}
