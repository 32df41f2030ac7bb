//! Copies of a container's live output for attached callers. A slow caller loses some and is told how much; it
//! never slows the container.

use super::Channel;
use crate::sync::{Bell, lock};
use magikvm_proto::wire::ExitStatus;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, Weak};

/// Bytes that wait for one caller.
const QUEUE: usize = 256 << 10;

/// Everybody attached to one container.
#[derive(Debug, Default)]
pub(crate) struct Hub(Mutex<Vec<Weak<Subscriber>>>);

/// One attached caller.
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

/// Output for an attached caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which output.
    pub(crate) channel: Channel,
    /// Bytes of this output lost right before it.
    pub(crate) dropped: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

/// What a caller finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Output.
    Piece(Piece),
    /// Nothing now.
    Nothing,
    /// The container's process has ended; nothing follows.
    Exit(ExitStatus),
}

impl Hub {
    /// A new caller, who gets everything from now on.
    pub(crate) fn subscribe(&self) -> io::Result<Arc<Subscriber>> {
        let subscriber = Arc::new(Subscriber { queue: Mutex::default(), bell: Bell::new()? });
        lock(&self.0).push(Arc::downgrade(&subscriber));
        Ok(subscriber)
    }

    fn each(&self, act: impl Fn(&Subscriber)) {
        lock(&self.0).retain(|subscriber| subscriber.upgrade().map(|subscriber| act(&subscriber)).is_some());
    }

    /// Output for everybody.
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
    /// Rings when there may be something.
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    fn push(&self, channel: Channel, bytes: &[u8]) {
        let mut queue = lock(&self.queue);
        let lost = match channel {
            Channel::Stdout => 0,
            Channel::Stderr => 1,
        };
        if queue.held + bytes.len() > QUEUE {
            queue.lost[lost] += bytes.len() as u64;
            return;
        }
        let dropped = std::mem::take(&mut queue.lost[lost]);
        queue.held += bytes.len();
        queue.pieces.push_back(Piece { channel, dropped, bytes: bytes.to_vec() });
        self.bell.ring();
    }

    /// Whether [`Self::next`] would give something.
    pub(crate) fn has_more(&self) -> bool {
        let queue = lock(&self.queue);
        !queue.pieces.is_empty() || queue.exit.is_some()
    }

    /// Takes what is next.
    pub(crate) fn next(&self) -> Next {
        let mut queue = lock(&self.queue);
        match (queue.pieces.pop_front(), queue.exit) {
            (Some(piece), _) => {
                queue.held -= piece.bytes.len();
                Next::Piece(piece)
            }
            (None, Some(exit)) => Next::Exit(exit),
            (None, None) => Next::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(next: Next) -> Piece {
        match next {
            Next::Piece(piece) => piece,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_slow_caller_is_told_what_it_missed() {
        let hub = Hub::default();
        let subscriber = hub.subscribe().unwrap();
        hub.publish(Channel::Stdout, &vec![b'a'; QUEUE]);
        hub.publish(Channel::Stdout, b"lost");
        hub.publish(Channel::Stderr, b"gone!");
        assert_eq!(piece(subscriber.next()).bytes.len(), QUEUE);
        hub.publish(Channel::Stderr, b"e");
        hub.publish(Channel::Stdout, b"o");
        assert_eq!(
            piece(subscriber.next()),
            Piece { channel: Channel::Stderr, dropped: 5, bytes: b"e".to_vec() }
        );
        assert_eq!(
            piece(subscriber.next()),
            Piece { channel: Channel::Stdout, dropped: 4, bytes: b"o".to_vec() }
        );
        assert_eq!(subscriber.next(), Next::Nothing);
    }

    #[test]
    fn the_exit_comes_last_and_only_to_those_who_were_there() {
        let hub = Hub::default();
        let early = hub.subscribe().unwrap();
        hub.publish(Channel::Stdout, b"bye");
        hub.finish(ExitStatus::exited(3));
        let late = hub.subscribe().unwrap();
        assert_eq!(piece(early.next()).bytes, b"bye");
        assert_eq!(early.next(), Next::Exit(ExitStatus::exited(3)));
        assert_eq!(late.next(), Next::Nothing);
    }
}
