//! Layer blobs as verified, unpacked streams. Decompression runs in a separate thread with a few buffers between it and the reader, so
//! memory use does not grow with the layer. The stored bytes are checked by `transfer`.

use super::arrival::{Arrival, Missing};
use super::digest::{Digest, Hasher};
use super::document::Compression;
use super::open::LayerContent;
use super::tar::{BLOCK, Skip, is_header};
use magikvm_proto::raised;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::Scope;

/// Bytes of one buffer between the threads, and the number of buffers that may wait.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;
/// Window of zstd frames, as a power of two: 64 MiB. Larger ones would take more memory than they are worth.
pub(super) const ZSTD_WINDOW_LOG: u32 = 26;

/// What is wrong with a blob.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// It cannot be read.
    #[error("cannot read the blob")]
    Read(#[source] io::Error),
    /// It cannot be decompressed.
    #[error("the blob is not {format} data, or is damaged")]
    Decompress {
        format: &'static str,
        #[source]
        source: io::Error,
    },
    /// It is compressed in a format that images do not have.
    #[error("the blob is compressed with {format}; layers are compressed with gzip or zstd, or not at all")]
    Format { format: &'static str },
    /// It did not arrive in the store.
    #[error("the blob is missing")]
    Missing(#[from] Missing),
    /// The unpacked layer differs from the configuration.
    #[error("the unpacked layer has the digest {found}, but the image's configuration says {expected}")]
    DiffId { expected: Digest, found: Digest },
    /// The unpacked layer would be too large.
    #[error("the layer is larger than {limit} bytes when unpacked ({remedy})")]
    TooLarge { limit: u64, remedy: String },
    /// The thread could not be started.
    #[error("cannot start a thread that unpacks the layer")]
    Thread(#[source] io::Error),
    /// The unpacking thread ended without a result.
    #[error("the decompression of the layer stopped")]
    Stopped,
}

/// A layer that is in the store or arriving.
#[derive(Debug, Clone)]
pub(super) struct LayerBlob {
    pub(super) arrival: Arc<Arrival>,
    pub(super) length: u64,
    /// The compression that its media type states. Its first bytes decide.
    pub(super) compression: Compression,
    pub(super) diff_id: Digest,
    pub(super) content: LayerContent,
}

/// The compression according to a blob's first bytes.
pub(super) fn sniff(start: &[u8]) -> Compression {
    match start {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        // A frame, or a skippable one in front of it.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

/// The compression of a layer whose media type states `stated`. Media types and bytes differ in images of some tools, and other runtimes
/// look at the bytes; both digests are checked anyway.
fn compression(stated: Compression, start: &[u8]) -> Result<Compression, BlobError> {
    match sniff(start) {
        // A file name may begin with any bytes.
        _ if stated == Compression::None && is_header(start) => Ok(stated),
        Compression::None if start.is_empty() || is_header(start) => Ok(Compression::None),
        Compression::None => match start {
            [b'B', b'Z', b'h', ..] => Err(BlobError::Format { format: "bzip2" }),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(BlobError::Format { format: "xz" }),
            // What is wrong with it is said for the stated format.
            _ => Ok(stated),
        },
        found => Ok(found),
    }
}

/// The available stored bytes, counted.
struct Stored {
    blob: LayerBlob,
    at: u64,
    done: Arc<AtomicU64>,
    missing: Arc<OnceLock<Missing>>,
}

impl Read for Stored {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.at == self.blob.length {
            return Ok(0);
        }
        let (file, there) = self.blob.arrival.wait(self.at).map_err(|missing| {
            // The layers between this and the reader pass on only I/O errors.
            self.missing.get_or_init(|| missing);
            io::Error::other(missing)
        })?;
        let left = usize::try_from(there.min(self.blob.length) - self.at).unwrap_or(usize::MAX);
        let want = left.min(buffer.len());
        let got = file.read_at(&mut buffer[..want], self.at)?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        self.done.store(self.at, Ordering::Relaxed);
        Ok(got)
    }
}

/// The stored bytes behind those that were looked at.
type Whole = io::Chain<Cursor<Vec<u8>>, Stored>;

enum Decoder {
    None(Whole),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Whole>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Whole>>),
}

impl Decoder {
    fn new(mut stored: Stored) -> Result<Self, BlobError> {
        let mut start = Vec::with_capacity(BLOCK);
        stored.by_ref().take(BLOCK as u64).read_to_end(&mut start).map_err(BlobError::Read)?;
        let compression = match stored.blob.content {
            // The file is what is stored, whatever that is.
            LayerContent::File(_) => Compression::None,
            _ => compression(stored.blob.compression, &start)?,
        };
        let stored = Cursor::new(start).chain(stored);
        let buffered = |stored| BufReader::with_capacity(CHUNK, stored);
        Ok(match compression {
            Compression::None => Self::None(stored),
            Compression::Gzip => Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(buffered(stored)))),
            Compression::Zstd => {
                let broken = |source| BlobError::Decompress { format: "zstd", source };
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(buffered(stored)).map_err(broken)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
                Self::Zstd(decoder)
            }
        })
    }

    /// Fills the buffer as far as data is available.
    fn fill(&mut self, buffer: &mut Vec<u8>) -> Result<(), BlobError> {
        buffer.clear();
        let (reader, format): (&mut dyn Read, _) = match self {
            Self::None(stored) => (stored, None),
            Self::Gzip(decoder) => (decoder, Some("gzip")),
            Self::Zstd(decoder) => (decoder, Some("zstd")),
        };
        reader.take(CHUNK as u64).read_to_end(buffer).map_err(|source| match format {
            Some(format) => BlobError::Decompress { format, source },
            None => BlobError::Read(source),
        })?;
        Ok(())
    }
}

/// The thread: unpacks the blob and checks the stored bytes. It ends early when nobody reads any more.
fn unpack(
    blob: LayerBlob,
    done: Arc<AtomicU64>,
    full: &SyncSender<Result<Vec<u8>, BlobError>>,
    empty: &Receiver<Vec<u8>>,
) {
    let arrival = Arc::clone(&blob.arrival);
    let missing = Arc::new(OnceLock::new());
    let result = (|| {
        let mut decoder = Decoder::new(Stored { blob, at: 0, done, missing: Arc::clone(&missing) })?;
        let mut total = 0;
        loop {
            let mut buffer = empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
            decoder.fill(&mut buffer)?;
            if buffer.is_empty() {
                break;
            }
            total += buffer.len() as u64;
            let limit = raised::in_force().layer_bytes;
            if total > limit {
                return Err(BlobError::TooLarge { limit, remedy: raised::remedy("layer-mib") });
            }
            if full.send(Ok(buffer)).is_err() {
                return Ok(());
            }
        }
        // A decoder stops at the end of its data, but the whole blob is checked.
        Ok(arrival.wait_complete()?)
    })();
    let result = result.map_err(|error| missing.get().map_or(error, |missing| BlobError::Missing(*missing)));
    // An empty buffer marks the end, after all checks. It is fine if nobody receives it.
    drop(full.send(result.map(|()| Vec::new())));
}

/// A layer's unpacked bytes.
pub(super) struct LayerStream {
    full: Receiver<Result<Vec<u8>, BlobError>>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    hasher: Hasher,
    /// Unless only the stored bytes have a known digest.
    diff_id: Option<Digest>,
    done: Arc<AtomicU64>,
    error: Option<BlobError>,
}

impl LayerStream {
    /// Starts unpacking in a thread of the scope. Dropping the stream ends the thread.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        blob: LayerBlob,
    ) -> Result<Self, BlobError> {
        let (full_in, full) = sync_channel(CHUNKS);
        let (empty, empty_out) = channel();
        let done = Arc::new(AtomicU64::new(0));
        let diff_id = (blob.content != LayerContent::Archive).then_some(blob.diff_id);
        let counter = Arc::clone(&done);
        std::thread::Builder::new()
            .name("unpack".to_owned())
            .spawn_scoped(scope, move || unpack(blob, counter, &full_in, &empty_out))
            .map_err(BlobError::Thread)?;
        let (chunk, hasher) = (Vec::new(), Hasher::default());
        Ok(Self { full, empty, chunk, at: 0, ended: false, hasher, diff_id, done, error: None })
    }

    /// Number of stored bytes read so far.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// The error behind a failed read.
    pub(super) fn take_error(&mut self) -> Option<BlobError> {
        self.error.take()
    }

    /// Reads the rest behind the archive and checks both digests.
    pub(super) fn finish(mut self) -> Result<(), BlobError> {
        loop {
            match self.fill_buf() {
                Ok([]) => break,
                Ok(chunk) => {
                    let length = chunk.len();
                    self.consume(length);
                }
                Err(error) => return Err(self.error.take().unwrap_or(BlobError::Read(error))),
            }
        }
        let found = self.hasher.finish();
        match self.diff_id {
            Some(expected) if expected != found => Err(BlobError::DiffId { expected, found }),
            _ => Ok(()),
        }
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.fill_buf()?.read(buffer)?;
        self.consume(got);
        Ok(got)
    }
}

impl BufRead for LayerStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() && !self.ended {
            let used = std::mem::take(&mut self.chunk);
            self.at = 0;
            if used.capacity() > 0 {
                // The thread may have ended and then needs no buffer.
                drop(self.empty.send(used));
            }
            match self.full.recv().unwrap_or(Err(BlobError::Stopped)) {
                Ok(chunk) => {
                    self.ended = chunk.is_empty();
                    self.hasher.update(&chunk);
                    self.chunk = chunk;
                }
                Err(error) => {
                    self.ended = true;
                    self.error = Some(error);
                    return Err(io::Error::other("the layer could not be unpacked"));
                }
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.chunk.len());
    }
}

impl Skip for LayerStream {}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tar of one empty file with this name.
    fn tar(name: &[u8]) -> Vec<u8> {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_cksum();
        [header.as_bytes().as_slice(), &[0; 1024]].concat()
    }

    #[test]
    fn the_bytes_decide_what_a_layer_is() {
        use Compression::{Gzip, None, Zstd};
        let (gzip, zstd) = ([0x1f, 0x8b, 8, 0], [0x28, 0xb5, 0x2f, 0xfd]);
        let skippable = [0x5a, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
        for stated in [None, Gzip, Zstd] {
            let of = |start: &[u8]| compression(stated, start).unwrap();
            assert_eq!((of(&gzip), of(&zstd), of(&skippable)), (Gzip, Zstd, Zstd));
            assert_eq!((of(&tar(b"etc/passwd")), of(b""), of(&[0; 1024])), (None, None, None));
            assert_eq!(of(b"something else"), stated);
            assert!(matches!(compression(stated, b"BZh91AY"), Err(BlobError::Format { format: "bzip2" })));
        }
        // A tar whose first file has such a name.
        assert_eq!(compression(None, &tar(&gzip)).unwrap(), None);
    }
}
