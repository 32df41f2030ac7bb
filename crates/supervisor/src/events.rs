//! The ordered log of events for any number of readers. Owns: sequence numbers. Must not know: connections.

use crate::sync::{Bell, lock};
use magikvm_proto::wire::{Event, EventKind};
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Instant;

/// Events kept for late readers: a container that restarts for ever must not exhaust the memory.
const KEPT: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct EventLog {
    inner: Mutex<Inner>,
    progress: Condvar,
}

/// One reader of the log.
#[derive(Debug)]
pub(crate) struct Subscription {
    bell: Bell,
    /// Number of the newest event that it has delivered.
    seen: Mutex<u64>,
}

impl Subscription {
    /// Rings at every new event.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }
}

#[derive(Debug, Default)]
struct Inner {
    kept: VecDeque<Event>,
    last: u64,
    readers: Vec<Weak<Subscription>>,
    /// Number of the newest event that any reader has delivered.
    heard: u64,
    closing: bool,
}

impl EventLog {
    /// Adds an event and wakes every reader.
    pub(crate) fn add(&self, kind: EventKind) {
        let mut inner = lock(&self.inner);
        inner.last += 1;
        let seq = inner.last;
        if inner.kept.len() == KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back(Event { seq, kind });
        inner.readers.retain(|reader| reader.upgrade().map(|reader| reader.bell.ring()).is_some());
    }

    /// Number of the newest event; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        lock(&self.inner).last
    }

    /// Adds a reader, which is woken at every event as long as it lives.
    pub(crate) fn subscribe(&self) -> io::Result<Arc<Subscription>> {
        let reader = Arc::new(Subscription { bell: Bell::new()?, seen: Mutex::new(0) });
        lock(&self.inner).readers.push(Arc::downgrade(&reader));
        Ok(reader)
    }

    /// Records that the reader has delivered every event up to this one.
    pub(crate) fn seen(&self, reader: &Subscription, seq: u64) {
        *lock(&reader.seen) = seq;
        let mut inner = lock(&self.inner);
        inner.heard = inner.heard.max(seq);
        drop(inner);
        self.progress.notify_all();
    }

    /// Whether the VM is about to end, so that a reader must make sure that its last bytes have left.
    pub(crate) fn closing(&self) -> bool {
        lock(&self.inner).closing
    }

    /// Waits until some reader has delivered everything, or until the deadline. There may be no reader yet, because the containers
    /// were faster than the host.
    /// Returns whether everything was delivered.
    pub(crate) fn wait_heard(&self, deadline: Instant) -> bool {
        let mut inner = lock(&self.inner);
        inner.closing = true;
        while inner.heard < inner.last {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            inner = self.progress.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Waits until every reader has delivered everything, or until the deadline.
    pub(crate) fn close(&self, deadline: Instant) {
        let mut inner = lock(&self.inner);
        inner.closing = true;
        loop {
            let last = inner.last;
            let behind = |reader: Arc<Subscription>| *lock(&reader.seen) < last;
            let waiting = inner.readers.iter().filter_map(Weak::upgrade).any(behind);
            let left = deadline.saturating_duration_since(Instant::now());
            if !waiting || left.is_zero() {
                return;
            }
            inner = self.progress.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// At most `limit` events from number `since` on that are still kept.
    pub(crate) fn from(&self, since: u64, limit: usize) -> Vec<Event> {
        let inner = lock(&self.inner);
        let start = inner.kept.partition_point(|event| event.seq < since);
        inner.kept.iter().skip(start).take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_gaps_and_old_events_are_forgotten() {
        let log = EventLog::default();
        for _ in 0..KEPT + 10 {
            log.add(EventKind::PodStarted);
        }
        assert_eq!(log.last(), KEPT as u64 + 10);
        let seqs: Vec<u64> = log.from(0, usize::MAX).iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (11..=KEPT as u64 + 10).collect::<Vec<_>>());
        assert_eq!(log.from(KEPT as u64 + 10, 5).len(), 1);
        assert!(log.from(KEPT as u64 + 11, 5).is_empty());
    }

    #[test]
    fn a_host_that_connects_late_hears_everything() {
        let log = Arc::new(EventLog::default());
        let minute = Instant::now() + std::time::Duration::from_secs(60);
        assert!(log.wait_heard(minute));
        log.add(EventKind::PodEnded);
        assert!(!log.wait_heard(Instant::now() + std::time::Duration::from_millis(5)));
        let late = Arc::clone(&log);
        let host = std::thread::spawn(move || {
            let reader = late.subscribe().unwrap();
            late.seen(&reader, late.from(0, 9).last().unwrap().seq);
        });
        assert!(log.wait_heard(minute));
        host.join().unwrap();
        assert!(Instant::now() < minute, "it was heard, and nobody waited for the deadline");
    }

    #[test]
    fn a_reader_is_waited_for_until_it_is_gone() {
        let log = EventLog::default();
        let reader = log.subscribe().unwrap();
        log.add(EventKind::PodStarted);
        assert_eq!(lock(&log.inner).readers.len(), 1);
        log.seen(&reader, 1);
        log.close(Instant::now() + std::time::Duration::from_secs(60));
        log.add(EventKind::PodStarted);
        log.close(Instant::now() + std::time::Duration::from_millis(5));
        drop(reader);
        log.close(Instant::now() + std::time::Duration::from_secs(60));
        log.add(EventKind::PodStarted);
        assert!(lock(&log.inner).readers.is_empty());
    }
}
