//! The pod's output between the containers and the one `logs` reader: bounded, lossless, in order.
//!
//! When it is full, the pump stops reading and the containers block in their writes. A chunk that a reader took but
//! could not deliver returns to the front for the next reader.

use super::{Channel, Chunk, MAX_CHUNK};
use crate::sync::{Bell, lock};
use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Most bytes held for all containers of the pod.
pub(crate) const CAPACITY: usize = 256 << 10;
/// With less room than this a read is not worthwhile.
const LEAST_ROOM: usize = 4096;

#[derive(Debug)]
pub(crate) struct LogBuffer {
    inner: Mutex<Inner>,
    /// Rings for something to read, or for the end.
    reader: Bell,
    room: Bell,
    done: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    chunks: VecDeque<Chunk>,
    /// Bytes in `chunks` and in the chunk that the reader holds.
    held: usize,
    reading: bool,
    full: bool,
    closed: bool,
    finished: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Bytes; [`Reader::delivered`] or [`Reader::put_back`] must follow.
    Chunk(Chunk),
    Nothing,
    End,
}

impl LogBuffer {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { inner: Mutex::default(), reader: Bell::new()?, room: Bell::new()?, done: Condvar::new() })
    }

    /// How much may be pushed now, at most one chunk; `None` when the buffer is full (then [`Self::room_bell`] rings once
    /// there is room).
    pub(crate) fn room(&self) -> Option<usize> {
        let mut inner = lock(&self.inner);
        let room = CAPACITY.saturating_sub(inner.held).min(MAX_CHUNK);
        inner.full = room < LEAST_ROOM;
        (!inner.full).then_some(room)
    }

    /// Rings when a full buffer has room again.
    pub(crate) fn room_bell(&self) -> &Bell {
        &self.room
    }

    /// Adds bytes that [`Self::room`] allowed.
    pub(crate) fn push(&self, container: usize, run: u32, channel: Channel, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut inner = lock(&self.inner);
        inner.held += bytes.len();
        // Small writes share a frame, or the headers would outweigh them.
        let joinable = |last: &&mut Chunk| {
            (last.container, last.run) == (container, run)
                && last.channel == channel
                && last.bytes.len() + bytes.len() <= MAX_CHUNK
        };
        match inner.chunks.back_mut().filter(joinable) {
            Some(last) => last.bytes.extend_from_slice(bytes),
            None => inner.chunks.push_back(Chunk { container, run, channel, bytes: bytes.to_vec() }),
        }
        self.reader.ring();
    }

    /// The right to read, for one reader at a time; `None` while another reader has it.
    pub(crate) fn reader(&self) -> Option<Reader<'_>> {
        let mut inner = lock(&self.inner);
        if inner.reading {
            return None;
        }
        inner.reading = true;
        self.reader.ring();
        Some(Reader { buffer: self })
    }

    /// No more will be pushed.
    pub(crate) fn close(&self) {
        lock(&self.inner).closed = true;
        self.reader.ring();
    }

    /// Waits until the reader has delivered everything, until there is nothing to deliver and no reader, or until the
    /// deadline.
    pub(crate) fn wait_finished(&self, deadline: Instant) {
        let mut inner = lock(&self.inner);
        while !(inner.finished || (!inner.reading && inner.held == 0)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.done.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The right to take output. Dropping it lets another reader continue.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    buffer: &'a LogBuffer,
}

impl Reader<'_> {
    /// Rings when something may be waiting.
    pub(crate) fn bell(&self) -> &Bell {
        &self.buffer.reader
    }

    /// Takes the oldest chunk.
    pub(crate) fn take(&self) -> Taken {
        let mut inner = lock(&self.buffer.inner);
        match inner.chunks.pop_front() {
            Some(chunk) => Taken::Chunk(chunk),
            None if inner.closed => Taken::End,
            None => Taken::Nothing,
        }
    }

    /// Records that the chunk of this many bytes was delivered.
    pub(crate) fn delivered(&self, len: usize) {
        let mut inner = lock(&self.buffer.inner);
        inner.held = inner.held.saturating_sub(len);
        if inner.full && CAPACITY - inner.held.min(CAPACITY) >= LEAST_ROOM {
            inner.full = false;
            self.buffer.room.ring();
        }
    }

    /// Returns a chunk that could not be delivered; the next reader gets it.
    pub(crate) fn put_back(&self, chunk: Chunk) {
        lock(&self.buffer.inner).chunks.push_front(chunk);
    }

    /// Records that the host has received the end.
    pub(crate) fn finished(&self) {
        lock(&self.buffer.inner).finished = true;
        self.buffer.done.notify_all();
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        lock(&self.buffer.inner).reading = false;
        self.buffer.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn a_full_buffer_says_so_until_bytes_are_delivered() {
        let buffer = LogBuffer::new().unwrap();
        while let Some(room) = buffer.room() {
            buffer.push(0, 0, Channel::Stdout, &vec![b'x'; room]);
        }
        assert!(lock(&buffer.inner).held <= CAPACITY);
        let reader = buffer.reader().unwrap();
        let Taken::Chunk(chunk) = reader.take() else { panic!("nothing to take") };
        assert_eq!(buffer.room(), None, "bytes in the reader's hand still count");
        reader.delivered(chunk.bytes.len());
        assert!(buffer.room().is_some());
    }

    #[test]
    fn there_is_one_reader_and_the_next_one_gets_what_it_could_not_deliver() {
        let buffer = LogBuffer::new().unwrap();
        buffer.push(3, 0, Channel::Stderr, b"first");
        let reader = buffer.reader().unwrap();
        assert!(buffer.reader().is_none());
        let Taken::Chunk(chunk) = reader.take() else { panic!("nothing to take") };
        buffer.push(3, 1, Channel::Stderr, b"second");
        reader.put_back(chunk.clone());
        drop(reader);
        let reader = buffer.reader().unwrap();
        assert_eq!(reader.take(), Taken::Chunk(chunk));
        assert!(matches!(reader.take(), Taken::Chunk(chunk) if chunk.bytes == b"second"));
        assert_eq!(reader.take(), Taken::Nothing);
        buffer.close();
        assert_eq!(reader.take(), Taken::End);
    }

    #[test]
    fn waiting_ends_at_once_with_nothing_to_wait_for_and_at_the_deadline_otherwise() {
        let buffer = LogBuffer::new().unwrap();
        buffer.wait_finished(Instant::now() + Duration::from_secs(60));
        buffer.push(0, 0, Channel::Stdout, b"unread");
        buffer.wait_finished(Instant::now() + Duration::from_millis(10));
        let reader = buffer.reader().unwrap();
        reader.finished();
        buffer.wait_finished(Instant::now() + Duration::from_secs(60));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_order_is_kept(
            steps in prop::collection::vec((0..3usize, any::<bool>(), 0..9000usize, 0..4u8), 1..120)
        ) {
            let buffer = LogBuffer::new().unwrap();
            let mut sent = vec![Vec::new(); 6];
            let mut received = vec![Vec::new(); 6];
            let mut next = 0u8;
            for (container, error, len, action) in steps {
                if action == 0 {
                    let reader = buffer.reader().unwrap();
                    if let Taken::Chunk(chunk) = reader.take() {
                        if len % 3 == 0 {
                            reader.put_back(chunk);
                        } else {
                            reader.delivered(chunk.bytes.len());
                            received[chunk.container * 2 + usize::from(chunk.channel == Channel::Stderr)].extend(chunk.bytes);
                        }
                    }
                } else if let Some(room) = buffer.room() {
                    let bytes: Vec<u8> = (0..len.min(room)).map(|_| { next = next.wrapping_add(1); next }).collect();
                    buffer.push(container, 0, if error { Channel::Stderr } else { Channel::Stdout }, &bytes);
                    sent[container * 2 + usize::from(error)].extend(bytes);
                }
                prop_assert!(lock(&buffer.inner).held <= CAPACITY);
            }
            let reader = buffer.reader().unwrap();
            while let Taken::Chunk(chunk) = reader.take() {
                prop_assert!(chunk.bytes.len() <= MAX_CHUNK);
                reader.delivered(chunk.bytes.len());
                received[chunk.container * 2 + usize::from(chunk.channel == Channel::Stderr)].extend(chunk.bytes);
            }
            prop_assert_eq!(sent, received);
            prop_assert_eq!(lock(&buffer.inner).held, 0);
        }
    }
}
