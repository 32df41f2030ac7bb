//! Moves bytes of a forwarded port between a local connection and its peer, as far as that needs no waiting.

use super::{HEADER_LEN, Link, MAX_DATA, Side, Violation};
use std::io::{self, ErrorKind, Read, Write};

/// How often one side is read in a row. A busy connection is then scheduled again, so that others have their turn.
const TURNS: usize = 8;

/// A non-blocking TCP connection.
pub trait Local: Read + Write {
    /// Ends the direction that is written.
    fn end_output(&mut self) -> io::Result<()>;
}

/// The ends that are ready to be read, or that the caller must watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// From or to the peer.
    pub peer: (bool, bool),
    /// From or to the local side.
    pub local: (bool, bool),
}

/// What happens to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on when one of these is ready (to be read, to be written).
    Waits(Ready),
    /// Both sides have ended, and everything was sent.
    Finished,
    /// It was reset; the peer knows.
    Reset(Side),
    /// The peer closed the connection before the end.
    Cut,
    /// The peer violated the protocol.
    Violated(Violation),
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Does what is possible now. `ready` says which sides can be read; writing is always tried.
pub fn pump(
    link: &mut Link,
    peer: &mut (impl Read + Write),
    local: &mut impl Local,
    ready: Ready,
    scratch: &mut [u8],
) -> Verdict {
    let verdict = turn(link, peer, local, ready, scratch);
    link.rest();
    verdict
}

fn turn(
    link: &mut Link,
    peer: &mut (impl Read + Write),
    local: &mut impl Local,
    ready: Ready,
    scratch: &mut [u8],
) -> Verdict {
    if ready.peer.0 && link.is_peer_gone().is_none() {
        for _ in 0..TURNS {
            match peer.read(scratch) {
                Ok(0) => link.lose_peer(),
                Ok(count) => match link.receive(&scratch[..count]) {
                    Ok(()) if count == scratch.len() => continue,
                    Ok(()) => {}
                    Err(violation) => return Verdict::Violated(violation),
                },
                Err(error) if is_transient(&error) => {}
                Err(_) => link.lose_peer(),
            }
            break;
        }
    }
    deliver(link, local);
    if ready.local.0 {
        for _ in 0..TURNS {
            let room = link.room().min(scratch.len());
            if room == 0 {
                break;
            }
            match local.read(&mut scratch[..room]) {
                Ok(0) => link.end(),
                Ok(count) => {
                    link.send(0, &scratch[..count]);
                    flush(link, peer);
                    if count == room {
                        continue;
                    }
                }
                Err(error) if is_transient(&error) => {}
                Err(_) => link.abort(),
            }
            break;
        }
    }
    flush(link, peer);
    verdict(link)
}

/// Hands on what the peer has sent. A local side that takes no more may still send.
fn deliver(link: &mut Link, local: &mut impl Local) {
    while !link.inbox().is_empty() {
        match local.write(link.inbox()) {
            Ok(count @ 1..) => link.delivered(count),
            Err(error) if is_transient(&error) => return,
            Ok(0) | Err(_) => link.discard(),
        }
    }
    if link.take_end() && local.end_output().is_err() {
        // The connection was reset; reading from it reports that.
    }
}

/// Sends what waits for the peer, in pieces of one packet each.
fn flush(link: &mut Link, peer: &mut impl Write) {
    while !link.outbox().is_empty() {
        let piece = &link.outbox()[..link.outbox().len().min(HEADER_LEN + MAX_DATA)];
        match peer.write(piece) {
            Ok(count @ 1..) => link.sent(count),
            Err(error) if is_transient(&error) => return,
            Ok(0) | Err(_) => link.lose_peer(),
        }
    }
}

fn verdict(link: &Link) -> Verdict {
    let gone = link.is_peer_gone();
    match link.reset_by() {
        Some(by) if by != link.side() || link.outbox().is_empty() => return Verdict::Reset(by),
        None if link.is_finished() => return Verdict::Finished,
        _ if gone == Some(false) => return Verdict::Cut,
        _ => {}
    }
    let outbox = !link.outbox().is_empty();
    Verdict::Waits(Ready {
        peer: (gone.is_none(), outbox),
        local: (link.room() > 0, !link.inbox().is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Traffic;

    /// One side of a connection: what can be read from it, how much it takes, what it has taken.
    #[derive(Debug, Default)]
    struct Mock {
        says: Vec<u8>,
        ended: bool,
        takes: usize,
        taken: Vec<u8>,
        was_ended: bool,
        breaks: bool,
    }

    impl Read for Mock {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.says.is_empty() && !self.ended {
                return Err(ErrorKind::WouldBlock.into());
            }
            let count = buffer.len().min(self.says.len());
            buffer[..count].copy_from_slice(&self.says[..count]);
            self.says.drain(..count);
            Ok(count)
        }
    }

    impl Write for Mock {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.breaks {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let count = bytes.len().min(self.takes);
            self.takes -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Local for Mock {
        fn end_output(&mut self) -> io::Result<()> {
            self.was_ended = true;
            Ok(())
        }
    }

    const ALL: Ready = Ready { peer: (true, true), local: (true, true) };

    fn turn_of(link: &mut Link, peer: &mut Mock, local: &mut Mock) -> Verdict {
        pump(link, peer, local, ALL, &mut [0; 1024])
    }

    #[test]
    fn what_a_peer_has_said_before_it_closes_is_handed_on_however_slowly() {
        let mut link = Link::new(Side::Host, Traffic::PORT);
        let mut peer = Mock { takes: 1000, ..Mock::default() };
        let mut local = Mock { ended: true, ..Mock::default() };
        assert!(matches!(turn_of(&mut link, &mut peer, &mut local), Verdict::Waits(_)));
        peer.says = [&[0, 0, 0, 6][..], b"answer", &[1, 0, 0, 0]].concat();
        peer.ended = true;
        peer.breaks = true;
        // The next read reports that it is closed.
        assert!(matches!(turn_of(&mut link, &mut peer, &mut local), Verdict::Waits(_)));
        for _ in 0..6 {
            let wanted = Ready { peer: (false, false), local: (false, true) };
            assert_eq!(turn_of(&mut link, &mut peer, &mut local), Verdict::Waits(wanted));
            assert!(!local.was_ended);
            local.takes = 1;
        }
        assert_eq!(turn_of(&mut link, &mut peer, &mut local), Verdict::Finished);
        assert!(local.was_ended && local.taken == b"answer");
    }

    #[test]
    fn a_peer_that_closes_before_it_has_heard_or_said_all_cuts() {
        let mut link = Link::new(Side::Host, Traffic::PORT);
        let mut peer = Mock { takes: 1000, ended: true, ..Mock::default() };
        let mut local = Mock { takes: 1000, ..Mock::default() };
        assert_eq!(turn_of(&mut link, &mut peer, &mut local), Verdict::Cut);
        let mut link = Link::new(Side::Host, Traffic::PORT);
        peer.says = vec![1, 0, 0, 0];
        assert!(matches!(turn_of(&mut link, &mut peer, &mut local), Verdict::Waits(_)));
        assert_eq!(turn_of(&mut link, &mut peer, &mut local), Verdict::Cut);
    }

    #[test]
    fn a_local_side_that_takes_no_more_may_still_speak() {
        let mut link = Link::new(Side::Guest, Traffic::PORT);
        let mut peer = Mock { takes: 1000, says: vec![0, 0, 0, 1, b'x'], ..Mock::default() };
        let mut local = Mock { breaks: true, says: b"no".to_vec(), ..Mock::default() };
        assert!(matches!(turn_of(&mut link, &mut peer, &mut local), Verdict::Waits(_)));
        assert_eq!(peer.taken, [0, 0, 0, 2, b'n', b'o']);
    }

    #[test]
    fn a_window_is_sent_and_no_more() {
        let mut link = Link::new(Side::Guest, Traffic::PORT);
        let mut peer = Mock { takes: usize::MAX, ..Mock::default() };
        let mut local = Mock { says: vec![7; 300_000], ..Mock::default() };
        let Verdict::Waits(wanted) = pump(&mut link, &mut peer, &mut local, ALL, &mut [0; 32 << 10]) else {
            panic!("it waits for room")
        };
        assert!(!wanted.local.0, "{wanted:?}");
        assert!(peer.taken.len() < 128 << 10 && peer.taken.len() > 100 << 10, "{}", peer.taken.len());
    }
}
