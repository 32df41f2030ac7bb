//! Moves bytes between a connection of the local side and its peer, as far as neither has to be waited for.

use super::{HEADER_LEN, Link, MAX_DATA, Side, Violation};
use std::io::{self, ErrorKind, Read, Write};

/// How often one side is read at one time. A connection that has much to say is told to come again, so that others come in between.
const TURNS: usize = 8;

/// A TCP connection that is never waited for.
pub trait Local: Read + Write {
    /// Says that nothing more will be written.
    fn end_output(&mut self) -> io::Result<()>;
}

/// What there is to be read, or what one wants to be told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ready {
    /// From or to the peer.
    pub peer: (bool, bool),
    /// From or to the local side.
    pub local: (bool, bool),
}

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on when something of this is ready (to be read, to be written).
    Waits(Ready),
    /// All was said by both, and sent.
    Finished,
    /// It was reset; the other end knows.
    Reset(Side),
    /// The peer went away in the middle.
    Cut,
    /// The peer sent what no honest peer sends.
    Violated(Violation),
}

fn is_patient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Does what can be done now. `ready` says from whom there is something to read; writing is always tried.
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
    let mut peer_is_there = true;
    if ready.peer.0 {
        for _ in 0..TURNS {
            match peer.read(scratch) {
                Ok(0) => peer_is_there = false,
                Ok(count) => match link.receive(&scratch[..count]) {
                    Ok(()) if count == scratch.len() => continue,
                    Ok(()) => {}
                    Err(violation) => return Verdict::Violated(violation),
                },
                Err(error) if is_patient(&error) => {}
                Err(_) => peer_is_there = false,
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
                    link.send(&scratch[..count]);
                    if flush(link, peer).is_err() {
                        peer_is_there = false;
                    }
                    if count == room && peer_is_there {
                        continue;
                    }
                }
                Err(error) if is_patient(&error) => {}
                Err(_) => link.abort(),
            }
            break;
        }
    }
    if flush(link, peer).is_err() {
        peer_is_there = false;
    }
    verdict(link, peer_is_there)
}

/// Hands on what the peer has sent. A local side that takes no more may still have something to say.
fn deliver(link: &mut Link, local: &mut impl Local) {
    while !link.inbox().is_empty() {
        match local.write(link.inbox()) {
            Ok(count @ 1..) => link.delivered(count),
            Err(error) if is_patient(&error) => return,
            Ok(0) | Err(_) => link.discard(),
        }
    }
    if link.take_end() && local.end_output().is_err() {
        // It was reset; reading from it will say so.
    }
}

/// Sends what waits for the peer, in pieces that are one packet each.
fn flush(link: &mut Link, peer: &mut impl Write) -> io::Result<()> {
    while !link.outbox().is_empty() {
        let piece = &link.outbox()[..link.outbox().len().min(HEADER_LEN + MAX_DATA)];
        match peer.write(piece) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => link.sent(count),
            Err(error) if is_patient(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn verdict(link: &Link, peer_is_there: bool) -> Verdict {
    if let Some(by) = link.reset_by() {
        if by != link.side() || link.outbox().is_empty() || !peer_is_there {
            return Verdict::Reset(by);
        }
    } else if link.is_finished() {
        return Verdict::Finished;
    }
    if !peer_is_there {
        return Verdict::Cut;
    }
    Verdict::Waits(Ready {
        peer: (true, !link.outbox().is_empty()),
        local: (link.room() > 0, !link.inbox().is_empty()),
    })
}
