//! QEMU's monitor (QMP), for one purpose: QEMU stops the VM when the host's disk has no room for a write to the scratch disk, and nobody would
//! learn of it. QEMU keeps that write and repeats it when the VM goes on, so the guest loses nothing.
//!
//! What QEMU sends is as hostile as its guest: lines have a limit, and the state changes at most once a second.

use crate::store::text::ignore;
use serde_json::Value;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The descriptor of the monitor in QEMU's process.
pub(super) const QMP_FD: i32 = 10;
/// Longest line of QEMU that is read. Those that matter have a few hundred bytes.
const MAX_LINE: usize = 16 << 10;
/// How often the room of a full disk is looked at. No system reports it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The VM also goes on after this time although no room is seen: the measured disk need not be what is full (a quota).
const TRY_EVERY: Duration = Duration::from_secs(30);
/// The VM goes on when the disk has this many bytes.
const ROOM: u64 = 1 << 20;
/// A VM that has gone on for this long has repeated its write.
const SETTLED: Duration = Duration::from_secs(1);
const WRITE_WAIT: Duration = Duration::from_secs(5);

/// Whether the host's disk has room for the VM's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskRoom {
    /// It has none, and the VM stands still.
    None,
    /// It has some again, and the VM has gone on.
    Enough,
}

/// The connection to the monitor of one VM.
#[derive(Debug)]
pub struct DiskWatch {
    socket: UnixStream,
    dir: PathBuf,
}

/// The connection, and its end for QEMU. `dir` is on the disk that has to have room.
pub(super) fn channel(dir: &Path) -> io::Result<(DiskWatch, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_write_timeout(Some(WRITE_WAIT))?;
    // The socket keeps it until QEMU reads it.
    (&ours).write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    Ok((DiskWatch { socket: ours, dir: dir.to_owned() }, theirs.into()))
}

impl DiskWatch {
    /// The directory whose disk has to have room.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lets the VM go on whenever there is room again, and reports both. Returns when QEMU has ended.
    pub fn follow(mut self, mut tell: impl FnMut(DiskRoom)) {
        let (mut lines, mut phase) = (Lines::default(), Phase::Runs);
        let mut buffer = [0; 4096];
        loop {
            let wait = if phase == Phase::Runs { None } else { Some(LOOK_EVERY) };
            if self.socket.set_read_timeout(wait).is_err() {
                return;
            }
            let read = match self.socket.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => read,
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) =>
                {
                    0
                }
                Err(_) => return,
            };
            lines.push(buffer.get(..read).unwrap_or_default(), &mut |line| {
                if let Some(said) = Said::of(line)
                    && phase.hear(said, Instant::now())
                {
                    tell(DiskRoom::None);
                }
            });
            match phase.look(Instant::now(), || free_bytes(&self.dir) >= ROOM) {
                Some(Step::Continue) => {
                    let asked = (&self.socket).write_all(b"{\"execute\":\"cont\"}\n");
                    ignore(asked, "it has ended, or is asked again");
                }
                Some(Step::TellEnough) => tell(DiskRoom::Enough),
                None => {}
            }
        }
    }
}

/// Free bytes of the disk that a directory is on; 0 if that is unknown.
fn free_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |room| room.f_bavail.saturating_mul(room.f_frsize))
}

/// What QEMU said that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// A write found no room, and the VM is stopped.
    NoRoom,
    /// The VM goes on.
    Resumed,
}

impl Said {
    fn of(line: &[u8]) -> Option<Self> {
        let message: Value = serde_json::from_slice(line).ok()?;
        match message.get("event")?.as_str()? {
            "BLOCK_IO_ERROR" => {
                let data = message.get("data")?;
                (data.get("action")? == "stop" && data.get("nospace")? == true).then_some(Self::NoRoom)
            }
            "RESUME" => Some(Self::Resumed),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Runs,
    /// The VM stands since then.
    Full(Instant),
    /// It was asked to go on at the first time, and did at the second.
    Tried(Instant, Option<Instant>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Let the VM go on.
    Continue,
    TellEnough,
}

impl Phase {
    /// Whether the VM stands still from now on.
    fn hear(&mut self, said: Said, now: Instant) -> bool {
        let before = *self;
        *self = match (said, before) {
            (Said::NoRoom, _) => Self::Full(now),
            (Said::Resumed, Self::Runs) => Self::Runs,
            (Said::Resumed, Self::Full(_)) => Self::Tried(now, Some(now)),
            (Said::Resumed, Self::Tried(asked, _)) => Self::Tried(asked, Some(now)),
        };
        said == Said::NoRoom && before == Self::Runs
    }

    fn look(&mut self, now: Instant, has_room: impl FnOnce() -> bool) -> Option<Step> {
        match *self {
            Self::Full(since) if now.saturating_duration_since(since) >= LOOK_EVERY => {
                let long = now.saturating_duration_since(since) >= TRY_EVERY;
                (long || has_room()).then(|| {
                    *self = Self::Tried(now, None);
                    Step::Continue
                })
            }
            Self::Tried(_, Some(resumed)) if now.saturating_duration_since(resumed) >= SETTLED => {
                *self = Self::Runs;
                Some(Step::TellEnough)
            }
            // The request was lost, or QEMU is stopped.
            Self::Tried(asked, None) if now.saturating_duration_since(asked) >= TRY_EVERY => {
                *self = Self::Full(asked);
                None
            }
            Self::Runs | Self::Full(_) | Self::Tried(..) => None,
        }
    }
}

/// Puts lines together. One that is too long is dropped.
#[derive(Debug, Default)]
struct Lines {
    part: Vec<u8>,
    skips: bool,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.skips |= self.part.len() + piece.len() > MAX_LINE;
            if !self.skips {
                self.part.extend_from_slice(piece);
            }
            if piece.ends_with(b"\n") {
                if !self.skips {
                    each(&self.part);
                }
                self.part.clear();
                self.skips = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel as queue;

    /// As QEMU 7.2 says it.
    const FULL: &str = r##"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_IO_ERROR", "data": {"device": "scratch", "nospace": true, "node-name": "#block1", "reason": "No space left on device", "operation": "write", "action": "stop"}}"##;
    const RESUMED: &str = r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}"#;

    #[test]
    fn only_what_stops_the_vm_counts() {
        assert_eq!(Said::of(FULL.as_bytes()), Some(Said::NoRoom));
        assert_eq!(Said::of(RESUMED.as_bytes()), Some(Said::Resumed));
        for other in [
            FULL.replace("stop", "report"),
            FULL.replace("true", "false"),
            r#"{"return": {}}"#.to_owned(),
            "{".to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(Said::of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_vm_goes_on_when_there_is_room_and_is_told_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut phase = Phase::Runs;
        assert!(phase.hear(Said::NoRoom, at(0)));
        assert!(!phase.hear(Said::NoRoom, at(1)), "told already");
        assert_eq!(phase.look(at(500), || true), None, "not at once");
        assert_eq!(phase.look(at(2000), || false), None);
        assert_eq!(phase.look(at(2000), || true), Some(Step::Continue));
        // There was too little.
        assert!(!phase.hear(Said::Resumed, at(2010)) && !phase.hear(Said::NoRoom, at(2011)));
        assert_eq!(phase.look(at(3500), || true), Some(Step::Continue));
        assert_eq!(phase.look(at(9000), || true), None, "it has not gone on");
        assert!(!phase.hear(Said::Resumed, at(9000)));
        assert_eq!(phase.look(at(10_000), || true), Some(Step::TellEnough));
        assert_eq!(phase, Phase::Runs);
        // Without room that can be seen it is tried now and then.
        assert!(phase.hear(Said::NoRoom, at(20_000)));
        assert_eq!(phase.look(at(51_000), || false), Some(Step::Continue));
    }

    #[test]
    fn a_flood_is_survived_and_a_late_answer_is_heard() {
        let dir = tempfile::tempdir().unwrap();
        let (watch, theirs) = channel(dir.path()).unwrap();
        let mut qemu = UnixStream::from(theirs);
        let (told, hears) = queue();
        let thread = std::thread::spawn(move || watch.follow(|room| told.send(room).unwrap()));
        qemu.write_all(&vec![b'x'; MAX_LINE * 4]).unwrap();
        qemu.write_all(format!("\n{{\n{FULL}\n").as_bytes()).unwrap();
        assert_eq!(hears.recv().unwrap(), DiskRoom::None);
        let mut asked = io::BufReader::new(qemu.try_clone().unwrap());
        let mut line = String::new();
        while !line.contains("cont") {
            line.clear();
            assert_ne!(io::BufRead::read_line(&mut asked, &mut line).unwrap(), 0);
        }
        qemu.write_all(format!("{RESUMED}\n").as_bytes()).unwrap();
        assert_eq!(hears.recv().unwrap(), DiskRoom::Enough);
        drop((qemu, asked));
        thread.join().unwrap();
    }
}
