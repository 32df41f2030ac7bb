//! Output of containers that has no room in its log: it is told once for each container, and passed to the client of a run in the foreground, which
//! shows it. Must not know: why there is no room.

use super::link::Link;
use crate::pod::events::{EventLog, HostEvent, PodEvent};
use crate::pod::launch::FromMonitor;
use crate::pod::logs::Unwritten;
use crate::store::text::chain;
use magikvm_proto::id::ContainerName;
use std::time::{Duration, Instant};

/// How long a client that does not read is waited for. Containers wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Overflow {
    pub(super) link: Link,
    pub(super) events: EventLog,
    /// The containers, in the order of the plan.
    pub(super) names: Vec<ContainerName>,
    /// Those of which this was told.
    pub(super) told: Vec<usize>,
    /// The client has not read for so long that it is not waited for any more, until it reads again.
    pub(super) is_stalled: bool,
}

impl Overflow {
    /// Takes what the log of this container, counted as in the plan, does not have.
    pub(super) fn take(&mut self, index: usize, lost: &Unwritten) {
        let Some(container) = self.names.get(index).cloned() else { return };
        if !self.told.contains(&index) {
            self.told.push(index);
            let message = warning(&container, lost);
            self.events.write(PodEvent::Host(HostEvent::Warning { message: message.clone() }));
            self.send(&FromMonitor::Warning { message });
        }
        for entries in FromMonitor::parts(&lost.entries) {
            self.send(&FromMonitor::unwritten(container.clone(), entries));
        }
    }

    fn send(&mut self, message: &FromMonitor) {
        let deadline = Instant::now() + if self.is_stalled { Duration::ZERO } else { PATIENCE };
        self.is_stalled = !self.link.send_by(message, deadline);
    }
}

fn warning(container: &ContainerName, lost: &Unwritten) -> String {
    format!(
        "container {container}: output is missing in its log, which could not be written: {}. Make room on the host's disk, for example with `magikvm image prune --all`; a run in the foreground that is not stopped shows this output nevertheless",
        chain(&lost.source)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::events::EventReader;
    use crate::store::atomic::FileError;
    use crate::store::layout::PodDir;
    use magikvm_proto::codec::read_message;
    use std::io::BufReader;
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    fn lost(entries: &[u8]) -> Unwritten {
        let source = FileError::at("write", Path::new("/x"))(std::io::ErrorKind::StorageFull.into());
        Unwritten { entries: entries.to_owned(), source }
    }

    #[test]
    fn what_has_no_room_reaches_the_client_and_is_told_once_for_each_container() {
        let base = tempfile::tempdir().unwrap();
        let dir = PodDir::at(base.path().to_owned());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut overflow = Overflow {
            link: Link::new(ours),
            events: EventLog::open(&dir).unwrap(),
            names: vec!["web".parse().unwrap(), "db".parse().unwrap()],
            told: Vec::new(),
            is_stalled: false,
        };
        let entry = |n: usize| format!("2026-01-01T00:00:00.000000000Z stdout F {n}\n");
        let (first, second) = (entry(1) + &entry(2), entry(3));
        overflow.take(0, &lost(first.as_bytes()));
        overflow.take(1, &lost(b""));
        overflow.take(0, &lost(second.as_bytes()));
        // The plan has no such container.
        overflow.take(2, &lost(b""));
        drop(overflow);
        let mut reader = BufReader::new(theirs);
        let (mut warnings, mut shown) = (Vec::new(), Vec::new());
        while let Ok(Some(message)) = read_message::<FromMonitor>(&mut reader) {
            match message {
                FromMonitor::Warning { message } => warnings.push(message),
                FromMonitor::Unwritten { container, entries } => {
                    let entries = FromMonitor::entries(&entries);
                    shown.extend(entries.into_iter().map(|entry| (container.to_string(), entry.content)));
                }
                other => panic!("{other:?}"),
            }
        }
        let of_web = |n: &str| ("web".to_owned(), n.as_bytes().to_vec());
        assert_eq!(shown, [of_web("1\n"), of_web("2\n"), of_web("3\n")]);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].starts_with("container web: output is missing in its log"), "{warnings:?}");
        let mut reader = EventReader::new(dir.events());
        let mut told = 0;
        while let Some((event, _)) = reader.next_event().unwrap() {
            assert!(matches!(event.what, PodEvent::Host(HostEvent::Warning { .. })), "{event:?}");
            told += 1;
        }
        assert_eq!(told, 2);
    }

    /// A client that is stopped must not stop the pod for good.
    #[test]
    fn a_client_that_reads_nothing_is_waited_for_once() {
        let base = tempfile::tempdir().unwrap();
        let dir = PodDir::at(base.path().to_owned());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut overflow = Overflow {
            link: Link::new(ours),
            events: EventLog::open(&dir).unwrap(),
            names: vec!["web".parse().unwrap()],
            told: vec![0],
            is_stalled: false,
        };
        let entry = format!("2026-01-01T00:00:00.000000000Z stdout F {}\n", "x".repeat(8000));
        // Far more than a socket holds.
        let much = entry.repeat(500);
        let begun = Instant::now();
        overflow.take(0, &lost(much.as_bytes()));
        assert!(overflow.is_stalled && begun.elapsed() < 3 * PATIENCE, "{:?}", begun.elapsed());
        // One that has gone needs nothing.
        drop(theirs);
        overflow.take(0, &lost(much.as_bytes()));
        assert!(!overflow.is_stalled);
    }
}
