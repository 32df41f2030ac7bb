//! A blob on its way into the store: one thread writes it while others read the available part, so that a layer is unpacked while it is
//! downloaded.

use super::cancel::{Cancel, Stopped};
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a waiting reader checks for a cancellation.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why a reader gets no more data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// Its writer failed; the writer reports why.
    #[error("it did not arrive")]
    Failed,
    /// The whole work was cancelled.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    bytes: u64,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Failed,
}

#[derive(Debug)]
pub(super) struct Arrival {
    state: Mutex<State>,
    changed: Condvar,
    cancel: Cancel,
}

impl Arrival {
    /// Nothing is there yet.
    pub(super) fn new(cancel: Cancel) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), cancel }
    }

    /// The writer's side. The blob fails if this is dropped without [`Arriving::complete`].
    pub(super) fn writer(&self) -> Arriving<'_> {
        Arriving(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A writer that panicked has failed, which its drop reports.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until there are more than `at` bytes, or all. Returns the file and its current number of bytes.
    pub(super) fn wait(&self, at: u64) -> Result<(Arc<File>, u64), Missing> {
        self.wait_for(|state| state.bytes > at)
    }

    /// Waits until everything is there and checked.
    pub(super) fn wait_complete(&self) -> Result<(), Missing> {
        self.wait_for(|_| false).map(drop)
    }

    fn wait_for(&self, enough: impl Fn(&State) -> bool) -> Result<(Arc<File>, u64), Missing> {
        let mut state = self.state();
        loop {
            self.cancel.check()?;
            match (&state.file, state.end) {
                (_, Some(End::Failed)) => return Err(Missing::Failed),
                (Some(file), end) if end == Some(End::Complete) || enough(&state) => {
                    return Ok((Arc::clone(file), state.bytes));
                }
                _ => {}
            }
            let waited = self.changed.wait_timeout(state, LOOK_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The writer's side of an [`Arrival`].
#[derive(Debug)]
pub(super) struct Arriving<'a>(&'a Arrival);

impl Arriving<'_> {
    /// The file of the blob.
    pub(super) fn begin(&self, file: Arc<File>) {
        self.0.change(|state| state.file = Some(file));
    }

    /// Sets the number of bytes in the file.
    pub(super) fn advance(&self, bytes: u64) {
        self.0.change(|state| state.bytes = bytes);
    }

    /// Reports that the file is complete with `bytes` bytes and verified.
    pub(super) fn complete(self, file: Arc<File>, bytes: u64) {
        self.0.change(|state| *state = State { file: Some(file), bytes, end: Some(End::Complete) });
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.end = state.end.or(Some(End::Failed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_what_is_there_and_waits_for_the_rest() {
        let arrival = Arrival::new(Cancel::new());
        let file = Arc::new(tempfile::tempfile().unwrap());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let first = arrival.wait(0).unwrap().1;
                (first, arrival.wait(first).unwrap().1, arrival.wait_complete())
            });
            let writer = arrival.writer();
            writer.begin(Arc::clone(&file));
            writer.advance(3);
            while arrival.state.lock().unwrap().bytes < 3 {}
            writer.complete(Arc::clone(&file), 5);
            let (first, second, end) = reader.join().unwrap();
            assert!(first == 3 || first == 5);
            assert_eq!((second, end), (5, Ok(())));
        });
    }

    #[test]
    fn a_writer_that_goes_away_and_a_cancelled_work_end_the_wait() {
        let cancel = Cancel::new();
        let arrival = Arrival::new(cancel.clone());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| arrival.wait(0).err());
            drop(arrival.writer());
            assert_eq!(waiting.join().unwrap(), Some(Missing::Failed));
        });
        let arrival = Arrival::new(cancel.clone());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| arrival.wait_complete());
            cancel.cancel();
            assert_eq!(waiting.join().unwrap(), Err(Missing::Stopped(Stopped::Cancelled)));
        });
    }
}
