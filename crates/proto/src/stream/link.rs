//! One end of a stream, without input and output.

use super::traffic::{Direction, Traffic};
use super::{FRAME_COST, HEADER_LEN, MAX_DATA, MAX_MESSAGE, MAX_URGENT, WINDOW_TO_GUEST, WINDOW_TO_HOST};
use std::collections::VecDeque;

const DATA: u8 = 0;
const END: u8 = 1;
const WINDOW: u8 = 2;
const RESET: u8 = 3;
const MESSAGE: u8 = 4;
const URGENT: u8 = 5;

/// Bits of a data frame's number that hold its length; the others hold its channel.
const LENGTH_BITS: u32 = 14;
const _: () = assert!(MAX_DATA < 1 << LENGTH_BITS && super::MAX_CHANNELS as u32 <= 1 << (24 - LENGTH_BITS));

/// An end with less room than this waits for more: the next window frame comes soon and is large. Where there is any room, there is
/// room for any message.
const LEAST_ROOM: usize = MAX_MESSAGE;

/// Most bytes of urgent messages that wait to be taken. Sending one costs more bytes than it occupies here, so an end that takes them
/// after each receive, and receives fewer bytes than this at once, never reaches the limit.
const MAX_URGENT_HELD: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Host,
    Guest,
}

/// A violation of the protocol. The connection can't be used after any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An unknown kind of frame.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// A number that this kind of frame cannot have.
    #[error("a frame of kind {kind} with the number {number}")]
    Number { kind: u8, number: u32 },
    /// Data that exceed the window.
    #[error("more data than the window allows")]
    Window,
    /// A window larger than anything that can be on its way.
    #[error("a window that is too large")]
    Room,
    /// A frame after the end of its direction.
    #[error("a frame after the end")]
    AfterEnd,
    /// A kind of frame that this connection does not carry in this direction.
    #[error("a frame of kind {0} that this connection does not carry")]
    Misplaced(u8),
    /// More urgent messages than can have arrived since the last ones were taken.
    #[error("too many urgent messages")]
    Urgent,
}

/// The next thing to hand on to the local side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// The bytes of a channel that have arrived.
    Data {
        channel: u16,
        bytes: &'a [u8],
    },
    Message(&'a [u8]),
}

/// What the bytes of a frame mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Data(u16),
    Message,
    Urgent,
}

/// A frame of the peer that is not handed on completely.
#[derive(Debug, Clone, Copy)]
struct Frame {
    content: Content,
    left: usize,
    cost: u32,
}

/// Bytes that wait, oldest first.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn take(&mut self, count: usize) {
        self.start = (self.start + count).min(self.bytes.len());
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// An idle connection holds no memory.
    fn rest(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

/// The state of one end of a connection. Holds at most a window of data, one frame and the urgent messages that wait to be taken, and no
/// memory while nothing waits.
#[derive(Debug)]
pub struct Link {
    /// The received beginning of a frame.
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// What the bytes of the current frame mean.
    content: Content,
    /// How many of them have not arrived yet.
    to_come: usize,
    /// How many frames have begun.
    begun: u64,
    /// Data frames and messages that are not delivered yet.
    frames: VecDeque<Frame>,
    inbox: Buffer,
    /// Urgent messages, each preceded by a byte with its length.
    urgent: Buffer,
    outbox: Buffer,
    /// What the peer may still send.
    window: u32,
    /// The peer's whole window.
    full_window: u32,
    /// Delivered, but not yet reported to the peer.
    owed: u32,
    /// What may still be sent to the peer.
    credit: u32,
    full_credit: u32,
    peer_ended: bool,
    peer_gone: bool,
    /// The local side was told about that.
    output_ended: bool,
    local_ended: bool,
    /// How many bytes must be sent until the peer knows about that.
    end_left: usize,
    discards: bool,
    reset: Option<Side>,
    side: Side,
    allowed: Direction,
}

fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_add(FRAME_COST)
}

/// Checks the length of a frame.
fn length(number: u32, most: usize) -> Option<usize> {
    usize::try_from(number).ok().filter(|len| (1..=most).contains(len))
}

fn header(kind: u8, number: u32) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = number.to_be_bytes();
    [kind, a, b, c]
}

impl Link {
    /// A connection whose request was just accepted.
    pub fn new(side: Side, traffic: Traffic) -> Self {
        let (full_window, full_credit) = match side {
            Side::Host => (WINDOW_TO_HOST, WINDOW_TO_GUEST),
            Side::Guest => (WINDOW_TO_GUEST, WINDOW_TO_HOST),
        };
        Self {
            header: [0; HEADER_LEN],
            header_len: 0,
            content: Content::Data(0),
            to_come: 0,
            begun: 0,
            frames: VecDeque::new(),
            inbox: Buffer::default(),
            urgent: Buffer::default(),
            outbox: Buffer::default(),
            window: full_window,
            full_window,
            owed: 0,
            credit: full_credit,
            full_credit,
            peer_ended: false,
            peer_gone: false,
            output_ended: false,
            local_ended: false,
            end_left: 0,
            discards: false,
            reset: None,
            side,
            allowed: traffic.to(side),
        }
    }

    /// Takes any bytes of the peer.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() && self.reset.is_none() {
            if self.to_come > 0 {
                let (data, rest) = bytes.split_at(self.to_come.min(bytes.len()));
                self.to_come -= data.len();
                bytes = rest;
                match self.content {
                    Content::Urgent => self.urgent.push(data),
                    Content::Data(_) | Content::Message => self.inbox.push(data),
                }
                if self.discards {
                    self.delivered(self.inbox.as_slice().len());
                }
                continue;
            }
            if self.header_len == 0 {
                self.begun += 1;
            }
            let (part, rest) = bytes.split_at((HEADER_LEN - self.header_len).min(bytes.len()));
            self.header[self.header_len..self.header_len + part.len()].copy_from_slice(part);
            self.header_len += part.len();
            bytes = rest;
            if self.header_len == HEADER_LEN {
                self.header_len = 0;
                let [kind, a, b, c] = self.header;
                self.frame(kind, u32::from_be_bytes([0, a, b, c]))?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, kind: u8, number: u32) -> Result<(), Violation> {
        let wrong = Violation::Number { kind, number };
        match kind {
            DATA => {
                let channel = u16::try_from(number >> LENGTH_BITS).map_err(|_| wrong)?;
                let len = length(number & ((1 << LENGTH_BITS) - 1), MAX_DATA).ok_or(wrong)?;
                if channel >= self.allowed.channels {
                    return Err(if self.allowed.channels == 0 { Violation::Misplaced(kind) } else { wrong });
                }
                self.begin(Content::Data(channel), len)?;
            }
            MESSAGE if !self.allowed.messages => return Err(Violation::Misplaced(kind)),
            MESSAGE => self.begin(Content::Message, length(number, MAX_MESSAGE).ok_or(wrong)?)?,
            URGENT if !self.allowed.urgent => return Err(Violation::Misplaced(kind)),
            URGENT => {
                let len = length(number, MAX_URGENT).ok_or(wrong)?;
                let prefix = u8::try_from(len).map_err(|_| wrong)?;
                if self.urgent.as_slice().len() + 1 + len > MAX_URGENT_HELD {
                    return Err(Violation::Urgent);
                }
                self.urgent.push(&[prefix]);
                (self.content, self.to_come) = (Content::Urgent, len);
            }
            END if number == 0 && self.peer_ended => return Err(Violation::AfterEnd),
            END if number == 0 => self.peer_ended = true,
            WINDOW if number > 0 => {
                let credit = self.credit.saturating_add(number);
                self.credit = if credit <= self.full_credit { credit } else { return Err(Violation::Room) };
            }
            RESET if number == 0 => {
                self.reset = Some(self.peer());
                self.inbox = Buffer::default();
                self.urgent = Buffer::default();
                self.frames.clear();
            }
            END | WINDOW | RESET => return Err(wrong),
            _ => return Err(Violation::Kind(kind)),
        }
        Ok(())
    }

    /// Begins a frame that the window counts.
    fn begin(&mut self, content: Content, len: usize) -> Result<(), Violation> {
        if self.peer_ended {
            return Err(Violation::AfterEnd);
        }
        self.window = self.window.checked_sub(cost(len)).ok_or(Violation::Window)?;
        self.frames.push_back(Frame { content, left: len, cost: cost(len) });
        (self.content, self.to_come) = (content, len);
        Ok(())
    }

    /// The number of the current frame, which has not arrived completely.
    pub fn open_frame(&self) -> Option<u64> {
        (self.to_come > 0 || self.header_len > 0).then_some(self.begun)
    }

    fn peer(&self) -> Side {
        match self.side {
            Side::Host => Side::Guest,
            Side::Guest => Side::Host,
        }
    }

    /// Everything that can be handed on to the local side at once, on a connection with one channel and no messages.
    pub fn inbox(&self) -> &[u8] {
        self.inbox.as_slice()
    }

    /// What to hand on to the local side next. The caller then tells [`Self::delivered`] how many bytes it handed on.
    pub fn next(&self) -> Option<Incoming<'_>> {
        let inbox = self.inbox.as_slice();
        let first = self.frames.front()?;
        match first.content {
            Content::Data(channel) => {
                let of_it = self.frames.iter().take_while(|frame| frame.content == first.content);
                let bytes = &inbox[..of_it.map(|frame| frame.left).sum::<usize>().min(inbox.len())];
                (!bytes.is_empty()).then_some(Incoming::Data { channel, bytes })
            }
            Content::Message | Content::Urgent => inbox.get(..first.left).map(Incoming::Message),
        }
    }

    /// Takes the oldest urgent message.
    pub fn take_urgent(&mut self) -> Option<Vec<u8>> {
        let (&len, rest) = self.urgent.as_slice().split_first()?;
        let message = rest.get(..usize::from(len))?.to_vec();
        self.urgent.take(1 + message.len());
        Some(message)
    }

    /// Records that this many bytes of [`Self::next`] or [`Self::inbox`] were handed on.
    pub fn delivered(&mut self, mut bytes: usize) {
        self.inbox.take(bytes);
        while bytes > 0 {
            let Some(Frame { left, cost, .. }) = self.frames.front_mut() else { break };
            let now = bytes.min(*left);
            *left -= now;
            bytes -= now;
            if *left == 0 {
                self.owed += *cost;
                self.frames.pop_front();
            }
        }
        self.grant();
    }

    /// Opens the peer's window again, if it is worth it. Only when nothing else waits, so that a peer that does not read cannot make
    /// this end accumulate window frames.
    fn grant(&mut self) {
        let is_of_use = self.reset.is_none() && !self.peer_ended && !self.peer_gone && self.outbox.is_empty();
        if self.owed >= self.full_window / 4 && is_of_use {
            self.outbox.push(&header(WINDOW, self.owed));
            self.window += self.owed;
            self.owed = 0;
        }
    }

    /// The local side takes no more: data for it are dropped from now on.
    pub fn discard(&mut self) {
        self.discards = true;
        self.delivered(self.inbox.as_slice().len());
    }

    /// How much may be read from the local side now; 0 while something else waits to be sent.
    pub fn room(&self) -> usize {
        if self.local_ended || self.reset.is_some() || !self.outbox.is_empty() {
            return 0;
        }
        let room = usize::try_from(self.credit.saturating_sub(FRAME_COST)).unwrap_or(0).min(MAX_DATA);
        if room < LEAST_ROOM { 0 } else { room }
    }

    /// Whether a frame with this many bytes may be sent now. If not, it may once the peer has handed on what it has.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        self.room() > 0 && cost(bytes) <= self.credit
    }

    /// Sends at most [`Self::room`] bytes that were read from the local side; empty data send no frame.
    pub fn send(&mut self, channel: u16, bytes: &[u8]) {
        if let Ok(len @ 1..) = u32::try_from(bytes.len()) {
            debug_assert!(bytes.len() <= MAX_DATA);
            self.send_counted(DATA, u32::from(channel) << LENGTH_BITS | len, bytes);
        }
    }

    /// Sends a message of at most [`MAX_MESSAGE`] bytes, in order with the data, if there is any [`Self::room`].
    pub fn send_message(&mut self, message: &[u8]) {
        if let Ok(len @ 1..) = u32::try_from(message.len()) {
            debug_assert!(message.len() <= MAX_MESSAGE);
            self.send_counted(MESSAGE, len, message);
        }
    }

    fn send_counted(&mut self, kind: u8, number: u32, bytes: &[u8]) {
        debug_assert!(cost(bytes.len()) <= self.credit && !self.local_ended);
        self.credit = self.credit.saturating_sub(cost(bytes.len()));
        self.outbox.push(&header(kind, number));
        self.outbox.push(bytes);
    }

    /// Whether an urgent message may be sent now: nothing else waits for the connection, and the peer is connected.
    pub fn has_room_for_urgent(&self) -> bool {
        self.outbox.is_empty() && self.reset.is_none() && !self.peer_gone
    }

    /// Sends a message of at most [`MAX_URGENT`] bytes that overtakes the data which the peer has not handed on yet.
    pub fn send_urgent(&mut self, message: &[u8]) {
        if let Ok(len @ 1..) = u32::try_from(message.len()) {
            debug_assert!(message.len() <= MAX_URGENT && self.has_room_for_urgent());
            self.outbox.push(&header(URGENT, len));
            self.outbox.push(message);
        }
    }

    /// The local side sends no more.
    pub fn end(&mut self) {
        if !self.local_ended && self.reset.is_none() {
            self.local_ended = true;
            self.outbox.push(&header(END, 0));
            self.end_left = self.outbox.as_slice().len();
        }
    }

    /// The local side was reset.
    pub fn abort(&mut self) {
        if self.reset.is_none() {
            self.reset = Some(self.side);
            self.inbox = Buffer::default();
            self.outbox.push(&header(RESET, 0));
        }
    }

    /// What must be sent to the peer.
    pub fn outbox(&self) -> &[u8] {
        self.outbox.as_slice()
    }

    /// Records that this many bytes of [`Self::outbox`] were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.outbox.take(bytes);
        self.end_left = self.end_left.saturating_sub(bytes);
        self.grant();
    }

    /// The peer has closed its end and takes nothing more.
    pub fn lose_peer(&mut self) {
        self.peer_gone = true;
        self.outbox = Buffer::default();
    }

    /// Whether the peer has gone, and if so, whether it had sent and received everything.
    pub fn is_peer_gone(&self) -> Option<bool> {
        self.peer_gone.then_some(self.peer_ended && self.is_end_sent())
    }

    fn is_end_sent(&self) -> bool {
        self.local_ended && self.end_left == 0
    }

    /// Whether the peer sends no more and all of it was handed on.
    pub fn is_delivered(&self) -> bool {
        self.peer_ended && self.inbox.is_empty()
    }

    /// Whether to tell the local side now that nothing more follows: true once, when everything was handed on.
    pub fn take_end(&mut self) -> bool {
        let now = self.is_delivered() && self.reset.is_none() && !self.output_ended;
        self.output_ended |= now;
        now
    }

    /// Whether both directions have ended and everything was handed on and sent.
    pub fn is_finished(&self) -> bool {
        self.is_delivered() && self.is_end_sent()
    }

    pub fn reset_by(&self) -> Option<Side> {
        self.reset
    }

    pub fn side(&self) -> Side {
        self.side
    }

    /// Frees memory that is not needed now.
    pub fn rest(&mut self) {
        self.inbox.rest();
        self.outbox.rest();
        self.urgent.rest();
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests;
