//! Downloads the bytes of a blob in order, each once, however often the connection breaks.
//!
//! Knows how far the download is and how to resume it; the receiver hashes the bytes.

use super::DownloadEvent;
use super::endpoint::Endpoint;
use super::error::RegistryError;
use super::foreign::shown;
use super::retry::Timing;
use crate::digest::Digest;
use std::cell::Cell;
use std::io;

/// The progress of a blob.
#[derive(Debug)]
pub(super) struct Transfer {
    have: Cell<u64>,
}

/// The receiver of the bytes.
pub(super) type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + Send + 'a;

impl Transfer {
    pub(super) fn nothing_yet() -> Self {
        Self { have: Cell::new(0) }
    }

    /// Bytes received so far.
    pub(super) fn have(&self) -> u64 {
        self.have.get()
    }

    /// Retries until an attempt succeeds or fails for good, or too many in a row brought nothing new.
    pub(super) async fn retrying<T>(
        &self,
        timing: &Timing,
        attempts: u32,
        event: &(dyn Fn(DownloadEvent<'_>) + Sync),
        mut attempt: impl AsyncFnMut() -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut failures = 0;
        loop {
            let before = self.have.get();
            let problem = match attempt().await {
                Err(problem) if problem.is_transient() => problem,
                done => return done,
            };
            failures = if self.have.get() > before { 1 } else { failures + 1 };
            // A host that never answered is usually a mistyped name, and the user is waiting.
            let at_first = self.have.get() == 0 && problem.is_nobody();
            if failures >= if at_first { attempts.min(2) } else { attempts } {
                return Err(problem);
            }
            let wait = timing.wait(failures, problem.retry_after());
            event(DownloadEvent::Retrying { problem: &problem, have: self.have.get(), wait });
            tokio::time::sleep(wait).await;
        }
    }

    /// Fetches the rest of the blob from this endpoint, in several attempts.
    pub(super) async fn from(
        &self,
        endpoint: &Endpoint,
        attempts: u32,
        digest: &Digest,
        size: u64,
        sink: &mut Sink<'_>,
        event: &(dyn Fn(DownloadEvent<'_>) + Sync),
    ) -> Result<(), RegistryError> {
        let attempt = async || self.once(endpoint, digest, size, sink).await;
        self.retrying(&endpoint.timing, attempts, event, attempt).await
    }

    async fn once(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        size: u64,
        sink: &mut Sink<'_>,
    ) -> Result<(), RegistryError> {
        if self.have.get() >= size {
            return Ok(());
        }
        let (mut response, span) = endpoint.blob(digest, self.have.get(), size).await?;
        let url = shown(response.url());
        let mut at = span.start;
        while let Some(chunk) = match endpoint.transport.chunk(&mut response).await {
            // All bytes have arrived, so a faulty end of the connection does no harm.
            Err(_) if self.have.get() == size => None,
            chunk => chunk?,
        } {
            let chunk = chunk.as_ref();
            let end = at.saturating_add(chunk.len() as u64);
            if end > span.end {
                return Err(RegistryError::TooLong { url, size });
            }
            // A server without ranges starts over; the bytes received before are skipped.
            let known = usize::try_from(self.have.get().saturating_sub(at)).unwrap_or(usize::MAX);
            let fresh = chunk.get(known..).unwrap_or_default();
            if !fresh.is_empty() {
                sink(fresh).map_err(|source| RegistryError::Sink { digest: *digest, source })?;
                self.have.set(end);
            }
            at = end;
        }
        match self.have.get() {
            got if got < size => Err(RegistryError::Short { url, got, size }),
            _ => Ok(()),
        }
    }
}
