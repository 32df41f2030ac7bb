//! A connection that has become a stream. It is always read when bytes arrive; only what is sent waits for the host.

use super::connection::{Connection, Filled};
use crate::sync::{self, Ready};
use magikvm_proto::stream::{HEADER_LEN, Link, MAX_DATA, Side, Traffic, Violation};
use magikvm_proto::wire::StreamMessage;
use nix::poll::{PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Most bytes of one read.
const READ: usize = 16 << 10;
/// How often the connection is read before others have their turn.
const TURNS: usize = 8;
/// How long the host may take to close a connection that is complete. A running host closes it at once; one that was stopped finds the last
/// bytes in its socket.
const LINGER: Duration = Duration::from_secs(2);

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the host violated the stream protocol")]
    Violation(#[from] Violation),
    #[error("a message cannot be written")]
    Message(#[source] serde_json::Error),
    #[error("a message cannot be read")]
    Urgent(#[source] serde_json::Error),
    #[error("the host is gone")]
    Gone,
}

#[derive(Debug)]
pub(super) struct Stream {
    connection: Connection,
    link: Link,
}

impl Stream {
    /// Turns a connection into a stream, after the answer that made it one.
    pub(super) fn new(mut connection: Connection, traffic: Traffic) -> Result<Self, Broken> {
        let mut link = Link::new(Side::Guest, traffic);
        link.receive(&std::mem::take(connection.input()))?;
        Ok(Self { connection, link })
    }

    /// The link: what was received, and what may be sent.
    pub(super) fn link(&mut self) -> &mut Link {
        &mut self.link
    }

    /// The poll events of the connection.
    pub(super) fn interest(&self) -> PollFlags {
        let mut flags = PollFlags::POLLIN | sync::HANG_UP;
        flags.set(PollFlags::POLLOUT, !self.link.outbox().is_empty());
        flags
    }

    /// Receives what has arrived and sends what waits, without waiting.
    pub(super) fn turn(&mut self, ready: Ready) -> Result<(), Broken> {
        if ready.read || ready.hang_up {
            for _ in 0..TURNS {
                let filled = self.connection.fill(READ)?;
                self.link.receive(self.connection.input())?;
                let full = self.connection.input().len() == READ;
                self.connection.input().clear();
                match filled {
                    Filled::Some if full => {}
                    Filled::Some | Filled::Nothing => break,
                    Filled::End => return Err(Broken::Gone),
                }
            }
        }
        self.flush()
    }

    /// Sends what waits, as far as the connection takes it, in pieces of one packet each.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        while !self.link.outbox().is_empty() {
            let outbox = self.link.outbox();
            let written = self.connection.write_some(&outbox[..outbox.len().min(HEADER_LEN + MAX_DATA)])?;
            if written == 0 {
                return Ok(());
            }
            self.link.sent(written);
        }
        self.link.rest();
        Ok(())
    }

    /// Waits for the host or for a bell; the stream has had its turn then.
    pub(super) fn wait(&mut self, bell: Option<BorrowedFd<'_>>) -> Result<(), Broken> {
        let mut fds = vec![PollFd::new(self.connection.as_fd(), self.interest())];
        fds.extend(bell.map(|bell| PollFd::new(bell, PollFlags::POLLIN)));
        sync::poll_until(&mut fds, None)?;
        let ready = sync::ready(&fds[0]);
        self.turn(ready)
    }

    /// Waits until a frame with this many bytes may be sent.
    pub(super) fn wait_for_room(&mut self, bytes: usize) -> Result<(), Broken> {
        self.flush()?;
        while !self.link.has_room_for(bytes) {
            self.wait(None)?;
        }
        Ok(())
    }

    /// Sends a message. The caller has checked that there is room.
    pub(super) fn say(&mut self, message: &StreamMessage) -> Result<(), Broken> {
        let message = serde_json::to_vec(message).map_err(Broken::Message)?;
        self.link.send_message(&message);
        self.flush()
    }

    /// Ends the guest's direction and waits until that is sent, as long as the host is connected.
    pub(super) fn end(&mut self) -> Result<(), Broken> {
        self.link.end();
        self.flush()?;
        while !self.link.outbox().is_empty() {
            self.wait(None)?;
        }
        Ok(())
    }

    /// Waits until the host has closed the connection, or until the deadline. When this side closes a connection, vsock devices lose what they
    /// still hold of it.
    pub(super) fn wait_closed(mut self, deadline: Instant) {
        self.connection.wait_closed(deadline);
    }

    /// Sends the last message, and gives the host time to take it.
    pub(super) fn finish(mut self, last: &StreamMessage) -> Result<(), Broken> {
        self.say(last)?;
        self.end()?;
        self.wait_closed(Instant::now() + LINGER);
        Ok(())
    }

    /// Waits until everything sent has left the guest, or until the deadline.
    pub(super) fn wait_sent(&self, deadline: Instant) {
        self.connection.wait_sent(deadline);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// Both ends of a connection; this end is a stream.
#[cfg(test)]
pub(super) fn pair(traffic: Traffic) -> (std::os::unix::net::UnixStream, Stream) {
    let (host, guest) = std::os::unix::net::UnixStream::pair().expect("a pair of sockets");
    guest.set_nonblocking(true).expect("a socket that is not waited for");
    (host, Stream::new(Connection::new(guest.into()), traffic).expect("nothing has come"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::stream::{STDIN, WINDOW_TO_HOST};
    use magikvm_proto::wire::ExitStatus;
    use std::io::{Read, Write};
    use std::net::Shutdown;

    #[test]
    fn what_no_host_sends_ends_the_stream() {
        for junk in [b"{\"stream\":\"stdin\",\"len\":3}\nabc".as_slice(), &[4, 0, 0, 1, b'x'], &[0, 0, 0, 0]]
        {
            let (mut host, mut guest) = pair(Traffic::PROCESS);
            host.write_all(junk).unwrap();
            assert!(matches!(guest.wait(None), Err(Broken::Violation(_))));
        }
        let (mut host, mut guest) = pair(Traffic::EVENTS);
        host.write_all(&[0, 0, 0, 1, b'x']).unwrap();
        assert!(matches!(guest.wait(None), Err(Broken::Violation(Violation::Misplaced(0)))));
    }

    #[test]
    fn a_host_that_goes_away_is_noticed_whatever_waits() {
        let (mut host, mut guest) = pair(Traffic::PROCESS);
        let mut link = Link::new(Side::Host, Traffic::PROCESS);
        link.send(STDIN, b"not taken by anybody");
        host.write_all(link.outbox()).unwrap();
        guest.wait(None).unwrap();
        assert_eq!(guest.link().inbox(), b"not taken by anybody");
        host.shutdown(Shutdown::Both).unwrap();
        assert!(matches!(guest.wait_for_room(usize::MAX), Err(Broken::Gone)));
    }

    #[test]
    fn a_host_that_reads_nothing_is_sent_a_window_and_told_of_the_end_later() {
        let (mut host, mut guest) = pair(Traffic::PROCESS);
        let mut sent = 0;
        while guest.link().has_room_for(MAX_DATA) {
            guest.link().send(0, &[b'y'; MAX_DATA]);
            guest.flush().unwrap();
            sent += MAX_DATA;
        }
        assert!(sent < WINDOW_TO_HOST as usize && guest.link().outbox().is_empty(), "{sent}");
        let reader = std::thread::spawn(move || {
            let mut link = Link::new(Side::Host, Traffic::PROCESS);
            let mut buffer = [0; 4096];
            while !link.is_delivered() {
                let count = host.read(&mut buffer).unwrap();
                link.receive(&buffer[..count]).unwrap();
                link.delivered(link.inbox().len());
                host.write_all(link.outbox()).unwrap();
                link.sent(link.outbox().len());
            }
        });
        guest.wait_for_room(MAX_DATA).unwrap();
        guest.finish(&StreamMessage::Exit(ExitStatus::exited(0))).unwrap();
        reader.join().unwrap();
    }
}
