//! Input of a process on exec or attach. What the process does not take stays in the stream's window.

use magikvm_proto::stream::Link;
use nix::errno::Errno;
use nix::unistd::write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The byte that a terminal takes for the end of input.
const END_OF_TRANSMISSION: &[u8] = &[4];

/// How the process learns that the host has no more input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtEnd {
    /// The descriptor is closed.
    LetGo,
    /// A terminal's end of input is written, then the descriptor is closed.
    EndOfTransmission,
}

#[derive(Debug)]
pub(super) struct Input {
    target: Option<Arc<OwnedFd>>,
    last: &'static [u8],
    is_over: bool,
}

impl Input {
    /// Writes to a non-blocking descriptor; without one all input is discarded.
    pub(super) fn new(target: Option<Arc<OwnedFd>>, at_end: AtEnd) -> Self {
        let last = match at_end {
            AtEnd::LetGo => &[],
            AtEnd::EndOfTransmission => END_OF_TRANSMISSION,
        };
        Self { target, last, is_over: false }
    }

    /// The descriptor to poll for room; nothing when there is nothing to write.
    pub(super) fn waits_for(&self, link: &Link) -> Option<&OwnedFd> {
        let ends = link.is_delivered() && !self.last.is_empty();
        self.target.as_deref().filter(|_| !link.inbox().is_empty() || ends)
    }

    /// Throws away what still arrives, because nobody reads any more. Only this says that nobody has a terminal open: it takes no input then,
    /// and polling for it would return at once for ever.
    pub(super) fn close(&mut self) {
        self.target = None;
    }

    /// Writes what the target takes. Returns whether the input has now ended and was written completely.
    pub(super) fn feed(&mut self, link: &mut Link) -> bool {
        if self.is_over {
            return false;
        }
        while let Some(target) = self.target.as_deref() {
            let ends = link.inbox().is_empty();
            let bytes = if ends { self.last } else { link.inbox() };
            if bytes.is_empty() || (ends && !link.is_delivered()) {
                break;
            }
            match write(target, bytes) {
                Ok(count) if ends => self.last = &self.last[count..],
                Ok(count) => link.delivered(count),
                Err(Errno::EAGAIN) => return false,
                Err(Errno::EINTR) => {}
                // The process has closed its input.
                Err(_) => self.target = None,
            }
        }
        if self.target.is_none() {
            link.discard();
        }
        self.is_over = link.is_delivered();
        if self.is_over {
            self.target = None;
        }
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::stream::{STDIN, Side, Traffic, WINDOW_TO_GUEST};
    use nix::fcntl::OFlag;
    use nix::unistd::{pipe2, read};

    fn links() -> (Link, Link) {
        (Link::new(Side::Host, Traffic::PROCESS), Link::new(Side::Guest, Traffic::PROCESS))
    }

    fn carry(from: &mut Link, to: &mut Link) {
        let bytes = from.outbox().to_vec();
        from.sent(bytes.len());
        to.receive(&bytes).unwrap();
    }

    fn pipe() -> (OwnedFd, Option<Arc<OwnedFd>>) {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        (reader, Some(Arc::new(writer)))
    }

    fn taken(reader: &OwnedFd) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = vec![0; 65536];
        while let Ok(count @ 1..) = read(reader, &mut buffer) {
            all.extend_from_slice(&buffer[..count]);
        }
        all
    }

    #[test]
    fn what_a_process_does_not_take_stays_within_the_window() {
        let ((mut host, mut guest), (reader, writer)) = (links(), pipe());
        let mut input = Input::new(writer, AtEnd::LetGo);
        let mut sent = 0;
        while host.room() > 0 {
            let bytes = vec![7; host.room()];
            host.send(STDIN, &bytes);
            sent += bytes.len();
            carry(&mut host, &mut guest);
            assert!(!input.feed(&mut guest));
            carry(&mut guest, &mut host);
        }
        assert!(guest.inbox().len() <= WINDOW_TO_GUEST as usize);
        assert!(input.waits_for(&guest).is_some());
        let mut arrived = 0;
        host.end();
        carry(&mut host, &mut guest);
        while !input.feed(&mut guest) {
            arrived += taken(&reader).len();
        }
        assert_eq!(arrived + taken(&reader).len(), sent);
        assert_eq!(read(&reader, &mut [0]), Ok(0), "the pipe is closed");
        assert!(!input.feed(&mut guest), "it ends once");
    }

    #[test]
    fn a_terminal_is_told_the_end_after_all_input() {
        let ((mut host, mut guest), (reader, writer)) = (links(), pipe());
        let mut input = Input::new(writer, AtEnd::EndOfTransmission);
        host.send(STDIN, b"exit\n");
        host.end();
        carry(&mut host, &mut guest);
        assert!(input.feed(&mut guest));
        assert_eq!(taken(&reader), b"exit\n\x04");
        assert!(input.waits_for(&guest).is_none());
    }

    #[test]
    fn input_that_nobody_wants_makes_room_again() {
        let (reader, writer) = pipe();
        drop(reader);
        for (writer, is_there) in [(None, false), (writer, true)] {
            let mut input = Input::new(writer, AtEnd::LetGo);
            let (mut host, mut guest) = links();
            for _ in 0..100 {
                let bytes = vec![7; host.room()];
                assert!(!bytes.is_empty(), "{is_there}");
                host.send(STDIN, &bytes);
                carry(&mut host, &mut guest);
                input.feed(&mut guest);
                carry(&mut guest, &mut host);
            }
        }
    }
}
