//! Fetches an image's layers into the store, several at once, each verified while it streams in. Layers in the store are not fetched
//! again, and layers that another process fetches are waited for. Must not know where the layers come from.

use super::arrival::Arrival;
use super::blobs::{Blobs, HeldBlob};
use super::cancel::{Cancel, Stopped};
use super::digest::{Digest, Hasher};
use super::lock::BuildLock;
use super::open::{Layer, LayerPlace};
use super::progress::{LayerState, Progress};
use super::registry::RegistryError;
use magikvm_platform::atomic::{FileError, Staged};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Layers fetched at the same time.
const AT_ONCE: usize = 4;
/// Bytes copied at once.
const CHUNK: usize = 256 << 10;
/// Bytes between two reports of progress.
const REPORT_EVERY: u64 = 256 << 10;

/// Why a layer could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// Its source cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// A file of the store failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The content differs from the announcement.
    #[error("the received data has the digest {found}, not {expected}")]
    Digest { expected: Digest, found: Digest },
    /// The size differs from the announcement.
    #[error("received {found} bytes, but {expected} were announced")]
    Size { expected: u64, found: u64 },
    /// The registry failed.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Receives a layer's bytes, in order, each once.
pub(super) type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + Send + 'a;

pub(super) trait Fetch: Sync {
    /// Passes the stored bytes of a layer (`number` counts from 0) to the sink, which fails when it cannot take more.
    fn fetch(
        &self,
        number: usize,
        layer: &Layer,
        sink: &mut Sink<'_>,
        report: &(dyn Fn(LayerState) + Sync),
    ) -> Result<(), TransferError>;

    /// Tells that the fetched bytes have another digest than `wanted`; the error to report, if the source knows more about it.
    fn disown(&self, _wanted: &Digest, _found: &Digest) -> Option<TransferError> {
        None
    }

    /// Whether a place that sent wrong bytes was passed over since the last call, so that another attempt may get the right ones.
    fn take_passed_over(&self) -> bool {
        false
    }

    /// Whether several places may send a layer, so that it is worth knowing who sent wrong bytes.
    fn has_other_places(&self) -> bool {
        false
    }
}

/// Layers in files of the host.
impl Fetch for Vec<LayerPlace> {
    fn fetch(
        &self,
        number: usize,
        layer: &Layer,
        sink: &mut Sink<'_>,
        _report: &(dyn Fn(LayerState) + Sync),
    ) -> Result<(), TransferError> {
        let part = &self[number];
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        while at < layer.size {
            let want = usize::try_from(layer.size - at).unwrap_or(CHUNK).min(CHUNK);
            match part.file.read_at(&mut buffer[..want], part.offset + at).map_err(TransferError::Read)? {
                0 => return Err(TransferError::Size { expected: layer.size, found: at }),
                got => {
                    sink(&buffer[..got]).map_err(TransferError::Read)?;
                    at += got as u64;
                }
            }
        }
        Ok(())
    }
}

/// The transfer of one image's layers.
pub(super) struct Transfer<'a> {
    pub(super) blobs: &'a Blobs,
    pub(super) fetch: &'a dyn Fetch,
    pub(super) layers: &'a [Layer],
    pub(super) arrivals: &'a [Arc<Arrival>],
    /// Cancelled with the image; cancelling it ends the other layers when one has failed.
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
}

/// A layer that could not be fetched: its number from 0, and the reason.
pub(super) type Failed = (usize, TransferError);

impl Transfer<'_> {
    /// Fetches all layers. Call it in a separate thread: readers of the arrivals need not wait for its end.
    pub(super) fn run(&self) -> Result<Vec<HeldBlob>, Failed> {
        let next = AtomicUsize::new(0);
        let held = Mutex::new(Vec::new());
        let failed: Mutex<Option<Failed>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(self.layers.len()) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.layers.len() {
                            break;
                        }
                        match self.bring(number) {
                            Ok(blob) => {
                                held.lock().unwrap_or_else(PoisonError::into_inner).push((number, blob))
                            }
                            Err(error) => {
                                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                                // The first failure cancels the others, whose errors mean nothing.
                                if failed.is_none() {
                                    *failed = Some((number, error));
                                }
                                drop(failed);
                                self.cancel.cancel();
                            }
                        }
                    }
                });
            }
        });
        if let Some(failed) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(failed);
        }
        let mut held = held.into_inner().unwrap_or_else(PoisonError::into_inner);
        held.sort_by_key(|(number, _)| *number);
        Ok(held.into_iter().map(|(_, blob)| blob).collect())
    }

    fn bring(&self, number: usize) -> Result<HeldBlob, TransferError> {
        let (layer, arriving) = (&self.layers[number], self.arrivals[number].writer());
        let report = |state| (self.progress)(Progress::Layer { number, state });
        self.cancel.check()?;
        let Some(digest) = layer.digest else {
            // Its name follows only from its content.
            return self.fetch(number, layer, arriving, &report);
        };
        if let Some(held) = self.there(&digest, layer)? {
            report(LayerState::Here);
            arriving.complete(Arc::clone(&held.file), held.size);
            return Ok(held);
        }
        let _lock = BuildLock::wait(
            self.blobs.lock_path(&digest),
            &mut || report(LayerState::Waiting),
            self.cancel,
        )??;
        // The previous holder of the lock may have fetched it; an image may also contain a layer twice.
        if let Some(held) = self.there(&digest, layer)? {
            report(LayerState::Here);
            arriving.complete(Arc::clone(&held.file), held.size);
            return Ok(held);
        }
        self.fetch(number, layer, arriving, &report)
    }

    fn there(&self, digest: &Digest, layer: &Layer) -> Result<Option<HeldBlob>, TransferError> {
        let held = self.blobs.hold_verified(digest, &mut || self.cancel.check().is_ok())?;
        self.cancel.check()?;
        match held {
            Some(held) if held.size != layer.size => {
                Err(TransferError::Size { expected: layer.size, found: held.size })
            }
            held => Ok(held),
        }
    }

    fn fetch(
        &self,
        number: usize,
        layer: &Layer,
        arriving: super::arrival::Arriving<'_>,
        report: &(dyn Fn(LayerState) + Sync),
    ) -> Result<HeldBlob, TransferError> {
        let mut staged = Staged::new(&self.blobs.dir().join("layer"))?;
        let path: PathBuf = staged.temporary_path().to_owned();
        let mut file = staged.file().try_clone().map_err(FileError::at("open", &path))?;
        arriving.begin(Arc::new(file.try_clone().map_err(FileError::at("open", &path))?));
        let (mut hasher, mut done, mut reported) = (Hasher::default(), 0, 0);
        let mut unwritten = None;
        report(LayerState::Fetching { done_bytes: 0 });
        let fetched = self.fetch.fetch(
            number,
            layer,
            &mut |bytes| {
                if let Err(stopped) = self.cancel.check() {
                    return Err(io::Error::other(stopped));
                }
                if let Err(error) = file.write_all(bytes) {
                    let kind = error.kind();
                    unwritten = Some(error);
                    return Err(kind.into());
                }
                hasher.update(bytes);
                done += bytes.len() as u64;
                arriving.advance(done);
                if done >= reported + REPORT_EVERY {
                    reported = done;
                    report(LayerState::Fetching { done_bytes: done });
                }
                Ok(())
            },
            report,
        );
        // These errors explain more than the ones wrapped around them.
        if let Some(error) = unwritten {
            return Err(FileError::at("write", &path)(error).into());
        }
        self.cancel.check()?;
        fetched?;
        if done != layer.size {
            return Err(TransferError::Size { expected: layer.size, found: done });
        }
        let digest = hasher.finish();
        if let Some(expected) = layer.digest
            && expected != digest
        {
            let disowned = self.fetch.disown(&expected, &digest);
            return Err(disowned.unwrap_or(TransferError::Digest { expected, found: digest }));
        }
        report(LayerState::Saving);
        let held = self.blobs.keep(staged, &digest)?;
        arriving.complete(Arc::clone(&held.file), held.size);
        report(LayerState::Done);
        Ok(held)
    }
}
