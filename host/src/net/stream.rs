//! One end of a stream of frames, each after its length in 4 bytes (big endian). The VMM, the filter, passt and our NAT exchange frames
//! in this form. An interface of the kernel gives and takes single frames instead, and is made to look like such a stream.

use super::packet::MAX_FRAME;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recv, send};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of the buffer for input: several of the largest frames. Pages of it that were never written take no memory.
const INPUT: usize = 512 << 10;
/// A stream at rest gives back buffers of which it has used more than this.
const KEPT: usize = 64 << 10;
/// Bytes already written that stay at the beginning of the output until the rest is moved there.
const MAX_WRITTEN: usize = 128 << 10;
/// Length of the field with a frame's length.
const HEADER: usize = 4;

/// The other side sent a frame that is longer than any frame can be.
#[derive(Debug, thiserror::Error)]
#[error("{side} sent a frame of {length} bytes, at most {MAX_FRAME} are possible")]
pub(super) struct TooLong {
    side: &'static str,
    length: usize,
}

/// Appends a frame after its length.
pub(super) fn push(into: &mut Vec<u8>, frame: &[u8]) {
    let length = u32::try_from(frame.len()).unwrap_or(0);
    into.extend(length.to_be_bytes());
    into.extend(frame);
}

/// What carries the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Carries {
    /// A stream socket.
    Stream,
    /// An interface: each read and each write is a frame.
    Frames,
}

pub(super) struct FrameStream {
    name: &'static str,
    socket: OwnedFd,
    carries: Carries,
    /// Bytes that were read and are not yet complete frames, up to `filled`.
    input: Vec<u8>,
    filled: usize,
    /// The most that `filled` has been since the buffer was allocated.
    used: usize,
    /// Bytes to be written, from `written` on.
    pub(super) output: Vec<u8>,
    written: usize,
}

impl FrameStream {
    /// Takes an end of a stream and makes it non-blocking. `name` names the other end in messages.
    pub(super) fn new(name: &'static str, socket: OwnedFd) -> nix::Result<Self> {
        Self::of(name, socket, Carries::Stream)
    }

    pub(super) fn of(name: &'static str, socket: OwnedFd, carries: Carries) -> nix::Result<Self> {
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let input = vec![0; INPUT];
        Ok(Self { name, socket, carries, input, filled: 0, used: 0, output: Vec::new(), written: 0 })
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.output.len() - self.written
    }

    /// Reads available data, at most what fits. False: the other end is gone.
    pub(super) fn read(&mut self) -> bool {
        if self.carries == Carries::Frames {
            return self.read_frames();
        }
        match recv(self.socket.as_raw_fd(), &mut self.input[self.filled..], MsgFlags::empty()) {
            Ok(0) => false,
            Ok(length) => {
                self.filled += length;
                self.used = self.used.max(self.filled);
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    fn read_frames(&mut self) -> bool {
        while self.input.len() - self.filled >= HEADER + MAX_FRAME {
            let (header, rest) = self.input[self.filled..].split_at_mut(HEADER);
            match nix::unistd::read(&self.socket, &mut rest[..MAX_FRAME]) {
                Ok(0) => return false,
                Ok(length) => {
                    header.copy_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
                    self.filled += HEADER + length;
                    self.used = self.used.max(self.filled);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Calls `each` with every complete frame that was read, and with the output.
    pub(super) fn frames(&mut self, mut each: impl FnMut(&[u8], &mut Vec<u8>)) -> Result<(), TooLong> {
        let output = &mut self.output;
        let done = frames(self.name, &self.input[..self.filled], |frame| each(frame, output))?;
        self.input.copy_within(done..self.filled, 0);
        self.filled -= done;
        Ok(())
    }

    /// Writes as much as is accepted. False: the other end is gone.
    pub(super) fn write(&mut self) -> bool {
        if self.carries == Carries::Frames {
            return self.write_frames();
        }
        while self.waiting() > 0 {
            match send(self.socket.as_raw_fd(), &self.output[self.written..], no_signal()) {
                Ok(length) => self.written += length,
                Err(Errno::EAGAIN) => {
                    if self.written > MAX_WRITTEN {
                        self.output.drain(..self.written);
                        self.written = 0;
                    }
                    return true;
                }
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        self.output.clear();
        self.written = 0;
        true
    }

    /// An interface that is down, or that has no room, refuses frames, which are then lost, as on any network.
    fn write_frames(&mut self) -> bool {
        let mut is_there = true;
        let waiting = &self.output[self.written..];
        let done = frames(self.name, waiting, |frame| {
            let mut sent = Err(Errno::EINTR);
            while sent == Err(Errno::EINTR) {
                sent = nix::unistd::write(&self.socket, frame);
            }
            let lost = [Errno::EIO, Errno::EAGAIN, Errno::EINVAL, Errno::ENOBUFS, Errno::ENOMEM];
            is_there &= sent.is_ok() || sent.is_err_and(|errno| lost.contains(&errno));
        });
        debug_assert!(done.is_ok_and(|length| length == waiting.len()), "frames of this process are whole");
        self.output.clear();
        self.written = 0;
        is_there
    }

    /// Gives the memory of large buffers back, if nothing is in them.
    pub(super) fn rest(&mut self) {
        if self.output.is_empty() && self.output.capacity() > KEPT {
            self.output = Vec::new();
        }
        if self.filled == 0 && self.used > KEPT {
            self.input = vec![0; INPUT];
            self.used = 0;
        }
    }
}

impl AsFd for FrameStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The flags of a `send` that must not end the process.
pub(super) fn no_signal() -> MsgFlags {
    #[cfg(target_os = "linux")]
    return MsgFlags::MSG_NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    return MsgFlags::empty();
}

/// Finds the complete frames at the beginning of these bytes: calls `each` with every one, and returns their total length.
fn frames(side: &'static str, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<usize, TooLong> {
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER) {
        let number = header.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        let length = usize::try_from(number).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(TooLong { side, length });
        }
        let Some(frame) = bytes.get(at + HEADER..at + HEADER + length) else { break };
        each(frame);
        at += HEADER + length;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    #[test]
    fn frames_are_found_wherever_they_are_cut() {
        let mut bytes = Vec::new();
        for length in [0usize, 1, 60, 1514] {
            push(&mut bytes, &vec![7; length]);
        }
        for cut in 0..=bytes.len() {
            let mut seen = Vec::new();
            let done = frames("x", &bytes[..cut], |frame| seen.push(frame.len())).unwrap();
            frames("x", &bytes[done..], |frame| seen.push(frame.len())).unwrap();
            assert_eq!(seen, [0, 1, 60, 1514], "cut at {cut}");
        }
        assert!(frames("x", &[0, 1, 0, 0], |_| {}).is_err());
    }

    #[test]
    fn large_frames_pass_through_small_buffers_and_memory_is_given_back() {
        let (one, two) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap();
        let (mut one, mut two) = (FrameStream::new("a", one).unwrap(), FrameStream::new("b", two).unwrap());
        for number in 0..100u8 {
            push(&mut one.output, &vec![number; MAX_FRAME]);
        }
        let mut seen = Vec::new();
        while seen.len() < 100 {
            assert!(one.write() && two.read());
            two.frames(|frame, _| seen.push((frame[0], frame.len()))).unwrap();
        }
        let wanted: Vec<_> = (0..100).map(|number| (number, MAX_FRAME)).collect();
        assert_eq!((seen, one.waiting(), two.filled), (wanted, 0, 0));
        one.rest();
        two.rest();
        assert_eq!((one.output.capacity(), two.used), (0, 0));
        drop(one);
        assert!(!two.read());
    }

    #[test]
    fn single_frames_look_like_a_stream() {
        let kind = SockType::Datagram;
        let (interface, kernel) = socketpair(AddressFamily::Unix, kind, None, SockFlag::empty()).unwrap();
        let mut side = FrameStream::of("x", interface, Carries::Frames).unwrap();
        for length in [60, 1514, 9000] {
            send(kernel.as_raw_fd(), &vec![7; length], no_signal()).unwrap();
        }
        assert!(side.read());
        let mut seen = Vec::new();
        side.frames(|frame, output| {
            seen.push(frame.len());
            push(output, frame);
        })
        .unwrap();
        assert_eq!((seen, side.filled), (vec![60, 1514, 9000], 0));
        assert!(side.write());
        assert_eq!(side.waiting(), 0);
        let mut frame = [0; 16384];
        for length in [60, 1514, 9000] {
            assert_eq!(recv(kernel.as_raw_fd(), &mut frame, MsgFlags::empty()), Ok(length));
        }
        drop(kernel);
        push(&mut side.output, &[7; 60]);
        assert!(!side.write(), "the other end is gone");
    }
}
