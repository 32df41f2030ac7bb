//! Copies of a container's live output for attached callers. A slow caller loses output and learns how much; it
//! never slows the container.

use super::Channel;
use crate::sync::{Bell, lock};
use magikvm_proto::wire::ExitStatus;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, Weak};

/// Most bytes that wait for one caller.
pub(crate) const QUEUE: usize = 256 << 10;

/// All callers attached to one container.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<Vec<Weak<Subscriber>>>);

#[derive(Debug)]
pub(crate) struct Subscriber {
    queue: Mutex<Queue>,
    bell: Bell,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    held: usize,
    lost: [u64; 2],
    exit: Option<ExitStatus>,
}

/// Output that waits for a caller.
#[derive(Debug)]
struct Piece {
    channel: Channel,
    /// Bytes of this output lost right before it.
    dropped: u64,
    bytes: Vec<u8>,
    /// How many of them were taken.
    taken: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Piece {
        channel: Channel,
        bytes: Vec<u8>,
    },
    /// The caller missed this many bytes of an output here.
    Dropped {
        channel: Channel,
        bytes: u64,
    },
    Nothing,
    /// The container's process has ended; nothing follows.
    Exit(ExitStatus),
}

impl Hub {
    /// Adds a caller, which gets all output from now on.
    pub(crate) fn subscribe(&self) -> io::Result<Arc<Subscriber>> {
        let subscriber = Arc::new(Subscriber { queue: Mutex::default(), bell: Bell::new()? });
        lock(&self.0).push(Arc::downgrade(&subscriber));
        Ok(subscriber)
    }

    fn each(&self, act: impl Fn(&Subscriber)) {
        lock(&self.0).retain(|subscriber| subscriber.upgrade().map(|subscriber| act(&subscriber)).is_some());
    }

    pub(crate) fn publish(&self, channel: Channel, bytes: &[u8]) {
        self.each(|subscriber| subscriber.push(channel, bytes));
    }

    /// The container's process has ended.
    pub(crate) fn finish(&self, exit: ExitStatus) {
        self.each(|subscriber| {
            lock(&subscriber.queue).exit = Some(exit);
            subscriber.bell.ring();
        });
        lock(&self.0).clear();
    }
}

impl Subscriber {
    /// Rings when something may be waiting.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    fn push(&self, channel: Channel, bytes: &[u8]) {
        let mut queue = lock(&self.queue);
        let lost = usize::from(channel.number());
        if queue.held + bytes.len() > QUEUE {
            queue.lost[lost] += bytes.len() as u64;
            return;
        }
        let dropped = std::mem::take(&mut queue.lost[lost]);
        queue.held += bytes.len();
        queue.pieces.push_back(Piece { channel, dropped, bytes: bytes.to_vec(), taken: 0 });
        self.bell.ring();
    }

    /// Whether [`Self::next`] would return something.
    pub(crate) fn has_more(&self) -> bool {
        let queue = lock(&self.queue);
        !queue.pieces.is_empty() || queue.exit.is_some()
    }

    /// Takes the next item; of output, at most `limit` bytes.
    pub(crate) fn next(&self, limit: usize) -> Next {
        let mut queue = lock(&self.queue);
        let Some(piece) = queue.pieces.front_mut() else { return queue.end() };
        let channel = piece.channel;
        if piece.dropped > 0 {
            return Next::Dropped { channel, bytes: std::mem::take(&mut piece.dropped) };
        }
        let rest = &piece.bytes[piece.taken..];
        let bytes = rest[..limit.min(rest.len())].to_vec();
        piece.taken += bytes.len();
        // A partly taken chunk still occupies the memory of the whole.
        if piece.taken == piece.bytes.len() {
            queue.held -= piece.bytes.len();
            queue.pieces.pop_front();
        }
        Next::Piece { channel, bytes }
    }
}

impl Queue {
    /// What follows all output.
    fn end(&mut self) -> Next {
        let Some(exit) = self.exit else { return Next::Nothing };
        for channel in [Channel::Stdout, Channel::Stderr] {
            let bytes = std::mem::take(&mut self.lost[usize::from(channel.number())]);
            if bytes > 0 {
                return Next::Dropped { channel, bytes };
            }
        }
        Next::Exit(exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(channel: Channel, bytes: &[u8]) -> Next {
        Next::Piece { channel, bytes: bytes.to_vec() }
    }

    #[test]
    fn a_slow_caller_is_told_what_it_missed() {
        let hub = Hub::default();
        let subscriber = hub.subscribe().unwrap();
        hub.publish(Channel::Stdout, &vec![b'a'; QUEUE]);
        hub.publish(Channel::Stdout, b"lost");
        hub.publish(Channel::Stderr, b"gone!");
        assert_eq!(subscriber.next(1000), piece(Channel::Stdout, &[b'a'; 1000]));
        hub.publish(Channel::Stderr, b"gone");
        assert_eq!(subscriber.next(QUEUE), piece(Channel::Stdout, &[b'a'; QUEUE - 1000]));
        hub.publish(Channel::Stderr, b"e");
        hub.publish(Channel::Stdout, b"o");
        assert_eq!(subscriber.next(100), Next::Dropped { channel: Channel::Stderr, bytes: 9 });
        assert_eq!(subscriber.next(100), piece(Channel::Stderr, b"e"));
        assert_eq!(subscriber.next(100), Next::Dropped { channel: Channel::Stdout, bytes: 4 });
        assert_eq!(subscriber.next(100), piece(Channel::Stdout, b"o"));
        assert_eq!(subscriber.next(100), Next::Nothing);
    }

    #[test]
    fn what_was_missed_at_the_end_is_told_before_the_exit() {
        let hub = Hub::default();
        let subscriber = hub.subscribe().unwrap();
        hub.publish(Channel::Stdout, &[b'a'; QUEUE]);
        hub.publish(Channel::Stderr, b"lost");
        hub.finish(ExitStatus::exited(0));
        assert_eq!(subscriber.next(QUEUE), piece(Channel::Stdout, &[b'a'; QUEUE]));
        assert_eq!(subscriber.next(1), Next::Dropped { channel: Channel::Stderr, bytes: 4 });
        assert_eq!(subscriber.next(1), Next::Exit(ExitStatus::exited(0)));
    }

    #[test]
    fn the_exit_comes_last_and_only_to_those_who_were_there() {
        let hub = Hub::default();
        let early = hub.subscribe().unwrap();
        hub.publish(Channel::Stdout, b"bye");
        hub.finish(ExitStatus::exited(3));
        let late = hub.subscribe().unwrap();
        assert_eq!(early.next(100), piece(Channel::Stdout, b"bye"));
        assert_eq!(early.next(100), Next::Exit(ExitStatus::exited(3)));
        assert_eq!(late.next(100), Next::Nothing);
    }
}
