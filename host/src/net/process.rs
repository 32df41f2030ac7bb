//! The filter's process. It has no network and no files, only three descriptors. It reads its rules from standard input, and then carries
//! frames between the VMM and passt as long as both exist.
#![allow(unsafe_code, reason = "taking descriptors by their numbers is an unsafe call")]

use super::filter::{Filter, Sink};
use super::packet::MAX_FRAME;
use super::rules::Rules;
use crate::store::text::ignore;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The hidden verb of the filter.
pub const NET_VERB: &str = "__net";
/// Its descriptors: the VMM's end, passt's end, and where refusals are reported.
pub(super) const FDS: [i32; 3] = [4, 5, 6];
const MAX_RULES: u64 = 1 << 20;
/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// Bytes that may wait to be written to one side before the other side must wait.
const MAX_WAITING: usize = 1 << 20;
/// Length of the field with a frame's length.
const HEADER: usize = 4;

/// Why the filter cannot continue.
#[derive(Debug, thiserror::Error)]
enum PumpError {
    #[error("cannot read the rules")]
    Rules(#[source] io::Error),
    #[error("the rules are invalid")]
    Json(#[source] serde_json::Error),
    #[error("cannot use a descriptor")]
    Descriptor(#[source] Errno),
    #[error("{side} sent a frame of {length} bytes, at most {MAX_FRAME} are possible")]
    Frame { side: &'static str, length: usize },
}

/// The main function of the filter. Returns only on failure, with an exit code.
pub fn main() -> i32 {
    let error = match run() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let told = writeln!(io::stderr(), "magikvm's network filter: {}", crate::store::text::chain(&error));
    ignore(told, "nobody listens");
    1
}

fn run() -> Result<std::convert::Infallible, PumpError> {
    let mut bytes = Vec::new();
    io::stdin().take(MAX_RULES).read_to_end(&mut bytes).map_err(PumpError::Rules)?;
    let rules: Rules = serde_json::from_slice(&bytes).map_err(PumpError::Json)?;
    // SAFETY: the descriptors were given to this process for this purpose, and nothing else in it uses their numbers.
    let [vmm, passt, reports] = FDS.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    for fd in [&vmm, &passt, &reports] {
        fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(PumpError::Descriptor)?;
    }
    let pump = Pump {
        filter: Filter::new(rules),
        vmm: Side::new("the VMM", vmm),
        passt: Side::new("passt", passt),
        reports: File::from(reports),
        sink: Sink::default(),
    };
    pump.run()
}

/// One of the two connections.
struct Side {
    name: &'static str,
    socket: OwnedFd,
    /// Bytes read that are not yet complete frames.
    input: Vec<u8>,
    /// Bytes to be written, from `written` on.
    output: Vec<u8>,
    written: usize,
}

impl Side {
    fn new(name: &'static str, socket: OwnedFd) -> Self {
        Self { name, socket, input: Vec::with_capacity(2 * CHUNK), output: Vec::new(), written: 0 }
    }

    fn waiting(&self) -> usize {
        self.output.len() - self.written
    }

    /// Reads available data, at most a chunk. False: the other end is gone.
    fn read(&mut self, chunk: &mut [u8]) -> bool {
        match recv(self.socket.as_raw_fd(), chunk, MsgFlags::empty()) {
            Ok(0) => false,
            Ok(length) => {
                self.input.extend(&chunk[..length]);
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    /// Writes as much as is accepted. False: the other end is gone.
    fn write(&mut self) -> bool {
        while self.waiting() > 0 {
            match send(self.socket.as_raw_fd(), &self.output[self.written..], no_signal()) {
                Ok(length) => self.written += length,
                Err(Errno::EAGAIN) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
        self.output.clear();
        self.written = 0;
        true
    }

    /// Queues these frames.
    fn add(&mut self, frames: &mut Vec<u8>) {
        if self.written > MAX_WAITING {
            self.output.drain(..self.written);
            self.written = 0;
        }
        self.output.append(frames);
    }
}

fn no_signal() -> MsgFlags {
    #[cfg(target_os = "linux")]
    return MsgFlags::MSG_NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    return MsgFlags::empty();
}

/// Finds the complete frames at the beginning of these bytes: calls `each` with every one, and returns their total length.
fn frames(side: &'static str, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<usize, PumpError> {
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER) {
        let number = header.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
        let length = usize::try_from(number).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(PumpError::Frame { side, length });
        }
        let Some(frame) = bytes.get(at + HEADER..at + HEADER + length) else { break };
        each(frame);
        at += HEADER + length;
    }
    Ok(at)
}

struct Pump {
    filter: Filter,
    vmm: Side,
    passt: Side,
    reports: File,
    sink: Sink,
}

impl Pump {
    fn run(mut self) -> Result<std::convert::Infallible, PumpError> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let [vmm, passt] = self.wait().map_err(PumpError::Descriptor)?;
            let now = Instant::now();
            let mut are_there = true;
            if vmm.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                are_there &= self.vmm.read(&mut chunk);
                let (filter, sink) = (&mut self.filter, &mut self.sink);
                let done =
                    frames(self.vmm.name, &self.vmm.input, |frame| filter.from_guest(frame, now, sink))?;
                self.vmm.input.drain(..done);
            }
            if passt.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                are_there &= self.passt.read(&mut chunk);
                let (filter, sink) = (&mut self.filter, &mut self.sink);
                let done =
                    frames(self.passt.name, &self.passt.input, |frame| filter.from_passt(frame, now, sink))?;
                self.passt.input.drain(..done);
            }
            self.passt.add(&mut self.sink.to_passt);
            // Frames for a guest that does not read are dropped; passt is then not read any more.
            if self.vmm.waiting() > 2 * MAX_WAITING {
                self.sink.to_guest.clear();
            }
            self.vmm.add(&mut self.sink.to_guest);
            are_there &= self.passt.write();
            are_there &= self.vmm.write();
            self.tell(now);
            if !are_there {
                // The end of either side is the end of the pod. The monitor must see their end and not this process's.
                loop {
                    poll(&mut [], PollTimeout::NONE).map_err(PumpError::Descriptor)?;
                }
            }
        }
    }

    /// Waits for something to do; returns the events of each side.
    fn wait(&self) -> nix::Result<[PollFlags; 2]> {
        let wanted = |side: &Side, other: &Side| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, other.waiting() < MAX_WAITING);
            flags.set(PollFlags::POLLOUT, side.waiting() > 0);
            flags
        };
        let mut fds = [
            PollFd::new(self.vmm.socket.as_fd(), wanted(&self.vmm, &self.passt)),
            PollFd::new(self.passt.socket.as_fd(), wanted(&self.passt, &self.vmm)),
        ];
        let timeout = match self.filter.due() {
            None => PollTimeout::NONE,
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let [vmm, passt] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok([vmm, passt])
    }

    fn tell(&mut self, now: Instant) {
        for refused in self.filter.refused(now) {
            let Ok(mut line) = serde_json::to_vec(&refused) else { continue };
            line.push(b'\n');
            ignore(self.reports.write_all(&line), "the monitor is gone, or has been told enough");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_wherever_they_are_cut() {
        let mut bytes = Vec::new();
        for length in [0usize, 1, 60, 1514] {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
            bytes.extend(vec![7; length]);
        }
        for cut in 0..=bytes.len() {
            let mut seen = Vec::new();
            let done = frames("x", &bytes[..cut], |frame| seen.push(frame.len())).unwrap();
            frames("x", &bytes[done..], |frame| seen.push(frame.len())).unwrap();
            assert_eq!(seen, [0, 1, 60, 1514], "cut at {cut}");
        }
        assert!(frames("x", &[0, 1, 0, 0], |_| {}).is_err());
    }
}
