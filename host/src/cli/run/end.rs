//! What the thread that shows a pod's logs is told: the pod's end, and output that the logs do not have. That thread sleeps until the pod's files
//! change, and for neither of these they do.

use crate::pod::logs::Entry;
use crate::store::text::ignore;
use magikvm_proto::id::ContainerName;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes of output that are kept while the terminal does not take them.
const MAX_KEPT: usize = 8 << 20;

/// What tells of a pod's end cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a pipe")]
pub(super) struct NoPipe {
    pub(super) source: io::Error,
}

/// Whether output waits for its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Waits,
    None,
}

/// An entry that the log of a container does not have.
pub(super) type Output = (ContainerName, Entry);

#[derive(Debug)]
pub(super) struct End {
    has_come: AtomicBool,
    /// Can be read when there is output, and once the other end of the pipe is closed.
    bell: PipeReader,
    kept: Mutex<Kept>,
    /// There is room again.
    taken: Condvar,
}

#[derive(Debug)]
struct Kept {
    ringer: Option<PipeWriter>,
    /// The bell has been rung and not been heard.
    is_rung: bool,
    output: Vec<Output>,
    bytes: usize,
    /// Nobody shows it any more.
    is_closed: bool,
}

impl End {
    pub(super) fn new() -> io::Result<Self> {
        let (bell, ringer) = io::pipe()?;
        let output = Vec::new();
        let kept = Kept { ringer: Some(ringer), is_rung: false, output, bytes: 0, is_closed: false };
        Ok(Self { has_come: AtomicBool::new(false), bell, kept: Mutex::new(kept), taken: Condvar::new() })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that the end has come. Nothing is added afterwards.
    pub(super) fn tell(&self) {
        self.has_come.store(true, Ordering::Release);
        self.kept().ringer = None;
    }

    pub(super) fn has_come(&self) -> bool {
        self.has_come.load(Ordering::Acquire)
    }

    /// Can be read once there is something to look at.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Adds output that the log of a container does not have.
    pub(super) fn add(&self, container: &ContainerName, entries: Vec<Entry>, patience: Patience) {
        let mut kept = self.kept();
        while patience == Patience::Waits && kept.bytes > MAX_KEPT && !kept.is_closed {
            kept = self.taken.wait(kept).unwrap_or_else(PoisonError::into_inner);
        }
        if kept.is_closed {
            return;
        }
        for entry in entries {
            kept.bytes += entry.content.len();
            kept.output.push((container.clone(), entry));
        }
        if !kept.is_rung
            && let Some(ringer) = &mut kept.ringer
        {
            kept.is_rung = ringer.write_all(b"!").is_ok();
        }
    }

    /// Takes the output of these containers, in its order.
    pub(super) fn take(&self, wanted: &dyn Fn(&ContainerName) -> bool) -> Vec<Output> {
        let mut kept = self.kept();
        if std::mem::take(&mut kept.is_rung) {
            // Does not wait: this byte is in the pipe.
            ignore((&self.bell).read(&mut [0]), "the end is looked for anyway");
        }
        if kept.output.is_empty() {
            return Vec::new();
        }
        let all = std::mem::take(&mut kept.output).into_iter();
        let (taken, left): (Vec<Output>, Vec<Output>) = all.partition(|(name, _)| wanted(name));
        kept.output = left;
        kept.bytes = kept.output.iter().map(|(_, entry)| entry.content.len()).sum();
        self.taken.notify_all();
        taken
    }

    /// Nobody shows any more output.
    pub(super) fn close(&self) {
        self.kept().is_closed = true;
        self.taken.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::DirChanges;
    use crate::pod::logs::decode;
    use std::time::{Duration, Instant};

    #[test]
    fn who_waits_for_changes_hears_of_the_end_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (changes, end) = (DirChanges::of(&[dir.path()]).unwrap(), End::new().unwrap());
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| changes.wait(60_000, Some(end.bell())));
            assert!(!end.has_come());
            end.tell();
            waiter.join().unwrap();
        });
        assert!(end.has_come() && begun.elapsed() < Duration::from_secs(30));
    }

    fn entry(content: &str) -> Entry {
        decode(format!("2026-01-01T00:00:00.000000000Z stdout F {content}").as_bytes()).unwrap()
    }

    #[test]
    fn output_without_a_log_rings_and_waits_for_whoever_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        let (changes, end) = (DirChanges::of(&[dir.path()]).unwrap(), End::new().unwrap());
        let (web, setup): (ContainerName, ContainerName) = ("web".parse().unwrap(), "setup".parse().unwrap());
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| changes.wait(60_000, Some(end.bell())));
            end.add(&web, vec![entry("1"), entry("2")], Patience::Waits);
            waiter.join().unwrap();
        });
        assert!(begun.elapsed() < Duration::from_secs(30));
        end.add(&setup, vec![entry("first")], Patience::Waits);
        // That of a main container is shown when its turn comes.
        assert_eq!(end.take(&|name| *name == setup), [(setup.clone(), entry("first"))]);
        let of_web = |content: &str| (web.clone(), entry(content));
        assert_eq!(end.take(&|_| true), [of_web("1"), of_web("2")]);
        assert!(end.take(&|_| true).is_empty());

        // More than is kept waits, unless the thread that would show it has not begun or has gone.
        let much = entry(&"x".repeat(MAX_KEPT + 1));
        end.add(&web, vec![much.clone()], Patience::Waits);
        end.add(&web, vec![entry("not waiting")], Patience::None);
        std::thread::scope(|scope| {
            let adds = scope.spawn(|| end.add(&web, vec![entry("last")], Patience::Waits));
            let mut taken = 0;
            while taken < 3 {
                taken += end.take(&|_| true).len();
            }
            adds.join().unwrap();
        });
        end.add(&web, vec![much], Patience::Waits);
        std::thread::scope(|scope| {
            let adds = scope.spawn(|| end.add(&web, vec![entry("nobody")], Patience::Waits));
            end.close();
            adds.join().unwrap();
        });
    }
}
