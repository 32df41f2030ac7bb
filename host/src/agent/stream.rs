//! A connection to the agent that has become a stream, shared by any number of threads.
//!
//! Any thread that waits for data from the guest reads the connection for all of them. So input continues to flow while the thread that
//! shows the output is blocked, and the other way round. Received data that nobody has taken stays within the window: a reader that stops
//! reading stops the guest's sender and nothing else.

use super::lent::GuestStream;
use super::timed::DeadlineExtension;
use magikvm_proto::limits::{MAX_LINE_LEN, REQUEST_TIMEOUT_SECS};
use magikvm_proto::stream::{HEADER_LEN, Incoming, Link, MAX_DATA, Side, Traffic, Violation};
use magikvm_proto::wire::{StreamMessage, UrgentMessage};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A frame that has begun must be complete, and bytes must be accepted, within this time. Only time spent waiting counts, since this
/// program may have been stopped or may be busy with received data.
const TIME: Duration = Duration::from_secs(REQUEST_TIMEOUT_SECS);
/// Longest single wait while a deadline runs. Being stopped meanwhile costs at most this much of the deadline.
const SLICE: Duration = Duration::from_secs(1);
/// Bytes read at once.
const READ: usize = 16 << 10;

/// Why a stream cannot be used any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    /// The connection ended before the guest had sent everything.
    #[error("the pod's agent closed the connection")]
    Closed,
    #[error("the connection to the pod's agent failed")]
    Io(#[source] Arc<io::Error>),
    /// The guest stopped in the middle of a frame, or accepts nothing.
    #[error("the pod's agent made no progress within {} s", TIME.as_secs())]
    Late,
    /// The guest violates the framing.
    #[error("the pod's agent violated the stream protocol")]
    Violation(#[source] Violation),
    /// The guest sent a frame that is not a valid message.
    #[error("the pod's agent sent something that is not a message")]
    Message(#[source] Arc<serde_json::Error>),
    /// The guest sent a line without an end.
    #[error("a line is longer than {MAX_LINE_LEN} bytes")]
    LineTooLong,
}

/// Something received from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Bytes of a channel.
    Data {
        channel: u16,
        /// At least one byte, at most as many as fit in one frame.
        bytes: Vec<u8>,
    },
    /// A message, in order with the data.
    Message(StreamMessage),
}

/// The stream. Dropping it closes the connection.
#[derive(Debug)]
pub struct AgentStream {
    socket: GuestStream,
    state: Mutex<State>,
    /// Signalled when something was received or sent.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    link: Link,
    /// Bytes that the caller was given last.
    in_hand: usize,
    /// A thread is reading the connection.
    reads: bool,
    /// A thread is sending the outbox.
    sends: bool,
    broken: Option<StreamError>,
    /// The frame to be completed, and how long it was waited for.
    late: (Option<u64>, Duration),
    /// Longest time for that.
    time: Duration,
    extension: Option<DeadlineExtension>,
}

type Locked<'a> = MutexGuard<'a, State>;

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn broken_by(error: io::Error) -> StreamError {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => StreamError::Closed,
        _ => StreamError::Io(Arc::new(error)),
    }
}

impl State {
    /// Why nothing can be sent any more.
    fn check(&self) -> Result<(), StreamError> {
        match &self.broken {
            Some(error) => Err(error.clone()),
            None if !self.link.can_be_told() || self.link.reset_by().is_some() => Err(StreamError::Closed),
            None => Ok(()),
        }
    }

    /// How long to wait for the other end now.
    fn time_left(&mut self) -> Option<Duration> {
        let frame = self.link.open_frame();
        if self.late.0 != frame {
            self.late = (frame, Duration::ZERO);
        }
        frame.map(|_| self.time.saturating_sub(self.late.1).min(SLICE))
    }

    /// Whether this wait exceeds the limit.
    fn is_late(&mut self, waited: &mut Duration) -> bool {
        if *waited < self.time {
            return false;
        }
        *waited = Duration::ZERO;
        !self.extension.as_mut().is_some_and(DeadlineExtension::is_excused)
    }

    fn on_read(&mut self, read: io::Result<usize>, buffer: &[u8], waited: Duration) {
        self.late.1 += waited;
        match read {
            Ok(0) => self.break_by(StreamError::Closed),
            Ok(count) => {
                if let Err(violation) = self.link.receive(&buffer[..count]) {
                    self.break_by(StreamError::Violation(violation));
                }
            }
            Err(error) if is_nothing(&error) => {
                let mut waited = self.late.1;
                if self.link.open_frame().is_some() && self.is_late(&mut waited) {
                    self.break_by(StreamError::Late);
                }
                self.late.1 = waited;
            }
            Err(error) => self.break_by(broken_by(error)),
        }
    }

    /// The first reason stays: what follows it is a consequence.
    fn break_by(&mut self, error: StreamError) {
        self.broken.get_or_insert(error);
    }
}

impl AgentStream {
    /// Makes a stream of a connection, with the bytes that were read behind the answer.
    pub(crate) fn new(
        socket: GuestStream,
        side: Side,
        traffic: Traffic,
        rest: &[u8],
        extension: Option<DeadlineExtension>,
    ) -> io::Result<Self> {
        socket.socket().set_nonblocking(true)?;
        let mut link = Link::new(side, traffic);
        let broken = link.receive(rest).err().map(StreamError::Violation);
        let late = (None, Duration::ZERO);
        let state =
            State { link, in_hand: 0, reads: false, sends: false, broken, late, time: TIME, extension };
        Ok(Self { socket, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> Locked<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_others<'a>(&'a self, state: Locked<'a>) -> Locked<'a> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the connection up to the limit. Returns the time it waited.
    fn poll(&self, flags: PollFlags, limit: Option<Duration>) -> Duration {
        let timeout = limit.map_or(PollTimeout::NONE, |limit| {
            PollTimeout::try_from(limit + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        });
        let begun = Instant::now();
        if poll(&mut [PollFd::new(self.socket.as_fd(), flags)], timeout).is_err() {
            // Interrupted or out of memory; the connection is checked in any case.
        }
        limit.map_or(Duration::ZERO, |limit| begun.elapsed().min(limit))
    }

    /// Waits until something was received, by this thread or by another one.
    fn progress<'a>(&'a self, mut state: Locked<'a>) -> Locked<'a> {
        if state.reads {
            return self.wait_for_others(state);
        }
        state.reads = true;
        let limit = state.time_left();
        drop(state);
        let waited = self.poll(PollFlags::POLLIN, limit);
        let mut buffer = [0; READ];
        let read = self.socket.socket().read(&mut buffer);
        let mut state = self.lock();
        state.reads = false;
        state.on_read(read, &buffer, waited);
        self.changed.notify_all();
        state
    }

    /// Sends the outbox unless another thread already does.
    fn flush<'a>(&'a self, mut state: Locked<'a>) -> Locked<'a> {
        if state.sends {
            return state;
        }
        state.sends = true;
        let mut waited = Duration::ZERO;
        while !state.link.outbox().is_empty() && state.broken.is_none() {
            let outbox = state.link.outbox();
            let piece = outbox[..outbox.len().min(HEADER_LEN + MAX_DATA)].to_vec();
            drop(state);
            let written = self.socket.socket().write(&piece);
            if written.as_ref().is_err_and(is_nothing) {
                waited += self.poll(PollFlags::POLLOUT, Some(SLICE));
            }
            state = self.lock();
            match written {
                Ok(count @ 1..) => {
                    state.link.sent(count);
                    waited = Duration::ZERO;
                }
                Err(error) if is_nothing(&error) => {
                    if state.is_late(&mut waited) {
                        state.break_by(StreamError::Late);
                        // It wakes the thread that reads, which nothing else would.
                        self.close();
                    }
                }
                // What it has said before may still be read.
                Ok(_) | Err(_) => state.link.deafen_peer(),
            }
        }
        state.sends = false;
        self.changed.notify_all();
        state
    }

    /// The next data or message of the guest; `None` once it has said that nothing more follows. What was returned last counts as
    /// consumed: the guest may send as much again.
    pub fn next(&self) -> Result<Option<Received>, StreamError> {
        let mut state = self.lock();
        let handed_on = std::mem::take(&mut state.in_hand);
        state.link.delivered(handed_on);
        let mut state = self.flush(state);
        loop {
            let (received, count) = match state.link.next() {
                Some(Incoming::Data { channel, bytes }) => {
                    let bytes = bytes[..bytes.len().min(MAX_DATA)].to_vec();
                    let count = bytes.len();
                    (Ok(Some(Received::Data { channel, bytes })), count)
                }
                Some(Incoming::Message(bytes)) => {
                    let message = serde_json::from_slice(bytes);
                    let message = message.map_err(|error| StreamError::Message(Arc::new(error)));
                    (message.map(Received::Message).map(Some), bytes.len())
                }
                None if state.link.is_delivered() => (Ok(None), 0),
                None => {
                    if state.link.reset_by().is_some() {
                        return Err(StreamError::Closed);
                    }
                    if let Some(error) = &state.broken {
                        return Err(error.clone());
                    }
                    state = self.progress(state);
                    continue;
                }
            };
            state.in_hand = count;
            return received;
        }
    }

    /// Waits until the condition holds or cannot hold any more.
    fn wait_until(&self, is_so: impl Fn(&Link) -> bool) -> Result<Locked<'_>, StreamError> {
        let mut state = self.lock();
        loop {
            state.check()?;
            if is_so(&state.link) {
                return Ok(state);
            }
            // Another thread is sending the outbox. Waiting for the guest meanwhile might take for ever.
            state = match state.link.outbox().is_empty() {
                true => self.progress(state),
                false => self.wait_for_others(state),
            };
        }
    }

    /// Sends bytes of a channel as the other end has room for them.
    pub fn send(&self, channel: u16, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let mut state = self.wait_until(|link| link.room() > 0)?;
            let (piece, rest) = bytes.split_at(state.link.room().min(bytes.len()));
            state.link.send(channel, piece);
            bytes = rest;
            drop(self.flush(state));
        }
        Ok(())
    }

    /// Sends a message that does not wait until the other end has read the data before it.
    pub fn send_urgent(&self, message: &UrgentMessage) -> Result<(), StreamError> {
        let message = serde_json::to_vec(message).map_err(|error| StreamError::Message(Arc::new(error)))?;
        let mut state = self.wait_until(Link::has_room_for_urgent)?;
        state.link.send_urgent(&message);
        drop(self.flush(state));
        Ok(())
    }

    /// Sends a message in order with the data, as guests do.
    #[cfg(test)]
    pub(crate) fn say(&self, message: &StreamMessage) -> Result<(), StreamError> {
        let message = serde_json::to_vec(message).map_err(|error| StreamError::Message(Arc::new(error)))?;
        let mut state = self.wait_until(|link| link.room() > 0)?;
        state.link.send_message(&message);
        drop(self.flush(state));
        Ok(())
    }

    /// Says that nothing more will be sent.
    pub fn end(&self) {
        let mut state = self.lock();
        state.link.end();
        drop(self.flush(state));
    }

    /// Ends the connection, which wakes a thread that waits for it.
    pub fn close(&self) {
        if self.socket.socket().shutdown(Shutdown::Both).is_err() {
            // It was closed from the other side.
        }
    }
}

#[cfg(test)]
mod tests;
