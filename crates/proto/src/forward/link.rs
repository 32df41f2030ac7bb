//! One end of a forwarded connection, without any input or output.

use super::{FRAME_COST, HEADER_LEN, MAX_DATA, WINDOW_TO_GUEST, WINDOW_TO_HOST};
use std::collections::VecDeque;

const DATA: u8 = 0;
const END: u8 = 1;
const WINDOW: u8 = 2;
const RESET: u8 = 3;

/// Less than this is not sent until there is room for more: the next leave to send comes soon and is large.
const LEAST_ROOM: usize = 4096;

/// Which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The host's.
    Host,
    /// The guest's.
    Guest,
}

/// What no honest peer sends. After any of these the connection is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A kind of frame that there is not.
    #[error("a frame of the unknown kind {0}")]
    Kind(u8),
    /// A number that the kind of frame cannot have.
    #[error("a frame of kind {kind} with the number {number}")]
    Number {
        /// The kind.
        kind: u8,
        /// The number.
        number: u32,
    },
    /// Data for which there is no room.
    #[error("more data than there is room for")]
    Window,
    /// Leave to send more than can be on its way.
    #[error("room that there cannot be")]
    Room,
    /// Something after the end of its direction.
    #[error("data after their end")]
    AfterEnd,
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

    /// A connection on which nothing happens holds no memory.
    fn rest(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

/// What one end knows of a connection. Holds at most a window of data and one frame, and no memory while nothing waits.
#[derive(Debug)]
pub struct Link {
    /// The beginning of a frame.
    header: [u8; HEADER_LEN],
    header_len: usize,
    /// Bytes of the present data frame that have not come yet.
    to_come: usize,
    /// Bytes of each data frame that are not delivered yet, and what it costs.
    frames: VecDeque<(usize, u32)>,
    inbox: Buffer,
    outbox: Buffer,
    /// What the peer may still send.
    window: u32,
    /// All that it may have on its way.
    full_window: u32,
    /// Delivered, and not told to the peer.
    owed: u32,
    /// What may still be sent to the peer.
    credit: u32,
    full_credit: u32,
    peer_ended: bool,
    peer_gone: bool,
    /// The local side was told of that.
    output_ended: bool,
    local_ended: bool,
    /// How much is to be sent until the peer knows of that.
    end_left: usize,
    discards: bool,
    reset: Option<Side>,
    side: Side,
}

fn cost(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_add(FRAME_COST)
}

fn header(kind: u8, number: u32) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = number.to_be_bytes();
    [kind, a, b, c]
}

impl Link {
    /// Of a connection that was just agreed upon.
    pub fn new(side: Side) -> Self {
        let (full_window, full_credit) = match side {
            Side::Host => (WINDOW_TO_HOST, WINDOW_TO_GUEST),
            Side::Guest => (WINDOW_TO_GUEST, WINDOW_TO_HOST),
        };
        Self {
            header: [0; HEADER_LEN],
            header_len: 0,
            to_come: 0,
            frames: VecDeque::new(),
            inbox: Buffer::default(),
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
        }
    }

    /// Takes bytes of the peer, whatever they are.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while !bytes.is_empty() && self.reset.is_none() {
            if self.to_come > 0 {
                let (data, rest) = bytes.split_at(self.to_come.min(bytes.len()));
                self.to_come -= data.len();
                bytes = rest;
                self.inbox.push(data);
                if self.discards {
                    self.delivered(self.inbox.as_slice().len());
                }
                continue;
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
                let len = usize::try_from(number).map_err(|_| wrong)?;
                if len == 0 || len > MAX_DATA {
                    return Err(wrong);
                }
                if self.peer_ended {
                    return Err(Violation::AfterEnd);
                }
                self.window = self.window.checked_sub(cost(len)).ok_or(Violation::Window)?;
                self.frames.push_back((len, cost(len)));
                self.to_come = len;
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
                self.frames.clear();
            }
            END | WINDOW | RESET => return Err(wrong),
            _ => return Err(Violation::Kind(kind)),
        }
        Ok(())
    }

    fn peer(&self) -> Side {
        match self.side {
            Side::Host => Side::Guest,
            Side::Guest => Side::Host,
        }
    }

    /// What is to be handed on to the local side.
    pub fn inbox(&self) -> &[u8] {
        self.inbox.as_slice()
    }

    /// So many bytes of [`Self::inbox`] were handed on.
    pub fn delivered(&mut self, mut bytes: usize) {
        self.inbox.take(bytes);
        while bytes > 0 {
            let Some((left, cost)) = self.frames.front_mut() else { break };
            let now = bytes.min(*left);
            *left -= now;
            bytes -= now;
            if *left == 0 {
                self.owed += *cost;
                self.frames.pop_front();
            }
        }
        let is_of_use = self.reset.is_none() && !self.peer_ended && !self.peer_gone;
        if self.owed >= self.full_window / 4 && is_of_use {
            self.outbox.push(&header(WINDOW, self.owed));
            self.window += self.owed;
            self.owed = 0;
        }
    }

    /// The local side takes no more: what comes for it is dropped from now on.
    pub fn discard(&mut self) {
        self.discards = true;
        self.delivered(self.inbox.as_slice().len());
    }

    /// How much may be read from the local side now; nothing while something else waits to be sent.
    pub fn room(&self) -> usize {
        if self.local_ended || self.reset.is_some() || !self.outbox.is_empty() {
            return 0;
        }
        let room = usize::try_from(self.credit.saturating_sub(FRAME_COST)).unwrap_or(0).min(MAX_DATA);
        if room < LEAST_ROOM { 0 } else { room }
    }

    /// Sends what was read from the local side: at most [`Self::room`] bytes; nothing at all is no frame.
    pub fn send(&mut self, bytes: &[u8]) {
        if let Ok(number @ 1..) = u32::try_from(bytes.len()) {
            debug_assert!(bytes.len() <= MAX_DATA && cost(bytes.len()) <= self.credit);
            self.credit = self.credit.saturating_sub(cost(bytes.len()));
            self.outbox.push(&header(DATA, number));
            self.outbox.push(bytes);
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

    /// What is to be sent to the peer.
    pub fn outbox(&self) -> &[u8] {
        self.outbox.as_slice()
    }

    /// So many bytes of [`Self::outbox`] were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.outbox.take(bytes);
        self.end_left = self.end_left.saturating_sub(bytes);
    }

    /// The peer has closed its end, and takes nothing more.
    pub fn lose_peer(&mut self) {
        self.peer_gone = true;
        self.outbox = Buffer::default();
    }

    /// Whether the peer has gone, and if so, whether it had said and heard all.
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

    /// Whether the local side is to be told now that nothing more comes for it: once, when all was handed on.
    pub fn take_end(&mut self) -> bool {
        let now = self.is_delivered() && self.reset.is_none() && !self.output_ended;
        self.output_ended |= now;
        now
    }

    /// Whether both directions have ended and all was handed on and sent.
    pub fn is_finished(&self) -> bool {
        self.is_delivered() && self.is_end_sent()
    }

    /// Who reset the connection.
    pub fn reset_by(&self) -> Option<Side> {
        self.reset
    }

    /// Which end this is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Gives back memory that is not needed now.
    pub fn rest(&mut self) {
        self.inbox.rest();
        self.outbox.rest();
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that one end wants to send.
    fn take(from: &mut Link) -> Vec<u8> {
        let bytes = from.outbox().to_vec();
        from.sent(bytes.len());
        bytes
    }

    #[test]
    fn both_directions_end_by_themselves() {
        let (mut host, mut guest) = (Link::new(Side::Host), Link::new(Side::Guest));
        host.send(b"question");
        guest.receive(&take(&mut host)).unwrap();
        host.end();
        guest.receive(&take(&mut host)).unwrap();
        assert_eq!(guest.inbox(), b"question");
        assert!(!guest.is_delivered());
        guest.delivered(8);
        assert!(guest.is_delivered() && !guest.is_finished());
        guest.send(b"answer");
        host.receive(&take(&mut guest)).unwrap();
        guest.end();
        host.receive(&take(&mut guest)).unwrap();
        host.delivered(6);
        assert!(host.is_finished() && guest.is_finished());
    }

    #[test]
    fn who_is_not_read_from_sends_a_window_and_no_more() {
        let (mut host, mut guest) = (Link::new(Side::Host), Link::new(Side::Guest));
        let mut sent = 0;
        while guest.room() > 0 {
            let bytes = vec![7; guest.room()];
            guest.send(&bytes);
            sent += bytes.len();
            host.receive(&take(&mut guest)).unwrap();
        }
        assert!(sent < 128 << 10 && sent > 100 << 10, "{sent}");
        assert_eq!((host.inbox().len(), host.outbox().len()), (sent, 0));
        host.delivered(sent);
        guest.receive(&take(&mut host)).unwrap();
        assert!(guest.room() > 0);
    }

    #[test]
    fn small_frames_fill_the_window_by_their_number() {
        let mut guest = Link::new(Side::Guest);
        let mut frames = 0;
        while guest.room() > 0 {
            guest.send(b"x");
            guest.sent(5);
            frames += 1;
        }
        assert!((100..=128).contains(&frames), "{frames}");
    }

    #[test]
    fn what_no_honest_peer_sends_is_refused() {
        let refused = |bytes: &[u8]| Link::new(Side::Host).receive(bytes).unwrap_err();
        assert_eq!(refused(&[9, 0, 0, 0]), Violation::Kind(9));
        assert_eq!(refused(&[DATA, 0, 0, 0]), Violation::Number { kind: DATA, number: 0 });
        assert_eq!(refused(&[DATA, 0, 0x40, 0]), Violation::Number { kind: DATA, number: 16384 });
        assert_eq!(refused(&[END, 0, 0, 1]), Violation::Number { kind: END, number: 1 });
        assert_eq!(refused(&[WINDOW, 0, 0, 0]), Violation::Number { kind: WINDOW, number: 0 });
        assert_eq!(refused(&[WINDOW, 0, 0, 1]), Violation::Room);
        assert_eq!(refused(&[RESET, 1, 0, 0]), Violation::Number { kind: RESET, number: 65536 });
        assert_eq!(refused(&[END, 0, 0, 0, DATA, 0, 0, 1]), Violation::AfterEnd);
        assert_eq!(refused(&[END, 0, 0, 0, END, 0, 0, 0]), Violation::AfterEnd);
        let flood: Vec<u8> = (0..200).flat_map(|_| [DATA, 0, 0, 1, b'x']).collect();
        assert_eq!(refused(&flood), Violation::Window);
    }

    #[test]
    fn after_a_reset_nothing_counts_and_nothing_waits() {
        let mut host = Link::new(Side::Host);
        host.receive(&[DATA, 0, 0, 2, b'a', b'b', RESET, 0, 0, 0, 9, 9, 9, 9]).unwrap();
        assert_eq!((host.reset_by(), host.inbox(), host.room()), (Some(Side::Guest), &b""[..], 0));
        host.end();
        host.abort();
        assert!(host.outbox().is_empty());
    }

    /// What one end does next.
    #[derive(Debug, Clone)]
    enum Act {
        Read(usize),
        Write(usize),
        Carry(usize),
    }

    fn act() -> impl Strategy<Value = (bool, Act)> {
        let act = prop_oneof![
            (1usize..40_000).prop_map(Act::Read),
            (1usize..40_000).prop_map(Act::Write),
            (1usize..40_000).prop_map(Act::Carry),
        ];
        (any::<bool>(), act)
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused_within_bounds(
            pieces in proptest::collection::vec(proptest::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..40), 0..40),
        ) {
            let mut link = Link::new(Side::Host);
            for piece in pieces {
                if link.receive(&piece).is_err() {
                    break;
                }
                prop_assert!(link.inbox().len() <= WINDOW_TO_HOST as usize);
                prop_assert!(link.outbox().len() <= 64);
            }
        }

        #[test]
        fn what_is_sent_arrives_whatever_comes_in_which_pieces(acts in proptest::collection::vec(act(), 0..200)) {
            let mut ends = [Link::new(Side::Host), Link::new(Side::Guest)];
            let mut sent = [Vec::new(), Vec::new()];
            let mut arrived = [Vec::new(), Vec::new()];
            let mut next = 0u8;
            let everything = (0..2000usize).flat_map(|_| [Act::Carry(1 << 20), Act::Write(1 << 20)]).flat_map(|act| [(false, act.clone()), (true, act)]);
            for (number, (which, act)) in acts.iter().cloned().chain(everything).enumerate() {
                let (me, other) = (usize::from(which), usize::from(!which));
                if number == acts.len() {
                    ends.iter_mut().for_each(Link::end);
                }
                match act {
                    Act::Read(most) => {
                        let bytes: Vec<u8> = (0..most.min(ends[me].room())).map(|_| { next = next.wrapping_add(1); next }).collect();
                        ends[me].send(&bytes);
                        sent[me].extend(bytes);
                    }
                    Act::Write(most) => {
                        let count = most.min(ends[me].inbox().len());
                        arrived[me].extend_from_slice(&ends[me].inbox()[..count]);
                        ends[me].delivered(count);
                    }
                    Act::Carry(most) => {
                        let bytes = ends[me].outbox()[..most.min(ends[me].outbox().len())].to_vec();
                        ends[me].sent(bytes.len());
                        ends[other].receive(&bytes).unwrap();
                    }
                }
                prop_assert!(ends[me].inbox().len() <= WINDOW_TO_HOST as usize);
                prop_assert!(ends[me].outbox().len() <= MAX_DATA + 64);
                if ends.iter().all(Link::is_finished) {
                    break;
                }
            }
            prop_assert!(ends.iter().all(Link::is_finished));
            prop_assert_eq!(&sent[0], &arrived[1]);
            prop_assert_eq!(&sent[1], &arrived[0]);
        }
    }
}
