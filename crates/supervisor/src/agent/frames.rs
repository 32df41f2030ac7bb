//! Frames on a connection that must never wait: parsed from whatever has arrived, sent as far as the socket takes
//! them.

use super::connection::Connection;
use magikvm_proto::codec::{CodecError, read_frame, write_frame};
use magikvm_proto::limits::{MAX_FRAME_LEN, MAX_LINE_LEN};
use magikvm_proto::wire::FrameHeader;
use nix::errno::Errno;
use nix::unistd::write;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The most input held for one frame that is not complete yet.
pub(super) const MAX_INPUT: usize = MAX_LINE_LEN + MAX_FRAME_LEN;

/// Takes one whole frame from the front of `input`; `None` when there is none yet.
pub(super) fn parse(input: &mut Vec<u8>) -> Result<Option<(FrameHeader, Vec<u8>)>, CodecError> {
    let mut rest = input.as_slice();
    let mut payload = Vec::new();
    match read_frame(&mut rest, &mut payload) {
        Ok(Some(header)) => {
            let used = input.len() - rest.len();
            input.drain(..used);
            Ok(Some((header, payload)))
        }
        Ok(None) | Err(CodecError::Truncated) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is still to be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Whether everything was sent.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.len() == self.sent
    }

    /// Adds one frame.
    pub(super) fn push(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<(), CodecError> {
        if self.is_empty() {
            self.bytes.clear();
            self.sent = 0;
        }
        write_frame(&mut self.bytes, header, payload)
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self, connection: &mut Connection) -> io::Result<()> {
        while !self.is_empty() {
            let written = connection.write_some(&self.bytes[self.sent..])?;
            if written == 0 {
                break;
            }
            self.sent += written;
        }
        Ok(())
    }
}

/// Input on its way to a process, which may be slow to take it.
#[derive(Debug)]
pub(super) struct Sink {
    target: Option<Arc<OwnedFd>>,
    waiting: Vec<u8>,
    ends: bool,
}

impl Sink {
    /// Into a non-blocking descriptor; without one everything is thrown away.
    pub(super) fn new(target: Option<Arc<OwnedFd>>) -> Self {
        Self { target, waiting: Vec::new(), ends: false }
    }

    /// Where to wait for room; nothing when there is nothing to write.
    pub(super) fn waits_for(&self) -> Option<&OwnedFd> {
        self.target.as_deref().filter(|_| !self.waiting.is_empty())
    }

    /// Adds input.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.target.is_some() && !self.ends {
            self.waiting.extend_from_slice(bytes);
        }
    }

    /// No more comes: once all is written the target is let go.
    pub(super) fn end(&mut self) {
        self.ends = true;
    }

    /// Writes what the target takes.
    pub(super) fn flush(&mut self) {
        while let Some(target) = self.target.as_deref()
            && !self.waiting.is_empty()
        {
            match write(target, &self.waiting) {
                Ok(len) => drop(self.waiting.drain(..len)),
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // Nobody reads any more; what they did not want is gone.
                Err(_) => {
                    self.waiting.clear();
                    self.target = None;
                }
            }
        }
        if self.ends {
            self.target = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::wire::Stream;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_are_the_same_however_the_bytes_arrive(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6), cut in 1..200usize,
        ) {
            let mut wire = Vec::new();
            for payload in &payloads {
                write_frame(&mut wire, &FrameHeader::data(Stream::Stdin, payload.len()), payload).unwrap();
            }
            let mut input = Vec::new();
            let mut parsed = Vec::new();
            for piece in wire.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some((_, payload)) = parse(&mut input).unwrap() {
                    parsed.push(payload);
                }
            }
            prop_assert!(input.is_empty());
            prop_assert_eq!(parsed, payloads);
        }
    }

    #[test]
    fn junk_is_an_error_at_once() {
        assert!(parse(&mut b"hello\n".to_vec()).is_err());
        assert!(parse(&mut vec![b'x'; MAX_LINE_LEN]).is_err());
        assert!(parse(&mut b"{\"stream\":\"stdin\",\"len\":99999999}\n".to_vec()).is_err());
    }
}
