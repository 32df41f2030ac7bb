//! The filter's process. It has no network and no files, only three descriptors. It reads its rules from standard input, and then carries
//! frames between the VMM and the carrier (the NAT or passt) as long as both exist.
#![allow(unsafe_code, reason = "taking descriptors by their numbers is an unsafe call")]

use super::filter::{Filter, Sink};
use super::rules::Rules;
use super::stream::{Carries, FrameStream, TooLong};
use crate::process::{SettingsError, serve};
use crate::store::text::ignore;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The hidden verb of the filter.
pub const NET_VERB: &str = "__net";
/// Its descriptors: the VMM's end, the carrier's end, and where refusals are reported.
pub(super) const FDS: [i32; 3] = [4, 5, 6];
/// Bytes that may wait to be written to one side before the other side must wait.
const MAX_WAITING: usize = 1 << 20;

/// Why the filter cannot continue.
#[derive(Debug, thiserror::Error)]
enum PumpError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("cannot use a descriptor")]
    Descriptor(#[source] Errno),
    #[error(transparent)]
    Frame(#[from] TooLong),
}

/// The main function of the filter. Returns only on failure, with an exit code.
pub fn main() -> i32 {
    serve("magikvm's network filter", run)
}

/// What the monitor writes to the filter's standard input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) rules: Rules,
    /// What the guest's side is.
    pub(super) guest: Carries,
}

fn run(Settings { rules, guest }: Settings) -> Result<(), PumpError> {
    // SAFETY: the descriptors were given to this process for this purpose, and nothing else in it uses their numbers.
    let [vmm, carrier, reports] = FDS.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    fcntl(&reports, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(PumpError::Descriptor)?;
    let pump = Pump {
        filter: Filter::new(rules),
        vmm: FrameStream::of("the VMM", vmm, guest).map_err(PumpError::Descriptor)?,
        carrier: FrameStream::new("the carrier", carrier).map_err(PumpError::Descriptor)?,
        reports: File::from(reports),
        sink: Sink::default(),
    };
    pump.run()
}

struct Pump {
    filter: Filter,
    vmm: FrameStream,
    carrier: FrameStream,
    reports: File,
    sink: Sink,
}

impl Pump {
    fn run(mut self) -> Result<(), PumpError> {
        loop {
            let [vmm, carrier] = self.wait().map_err(PumpError::Descriptor)?;
            let now = Instant::now();
            let mut are_there = true;
            if vmm.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                are_there &= self.vmm.read();
                let (filter, sink) = (&mut self.filter, &mut self.sink);
                self.vmm.frames(|frame, _| filter.from_guest(frame, now, sink))?;
            }
            if carrier.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                are_there &= self.carrier.read();
                let (filter, sink) = (&mut self.filter, &mut self.sink);
                self.carrier.frames(|frame, _| filter.from_carrier(frame, now, sink))?;
            }
            self.carrier.output.append(&mut self.sink.to_carrier);
            // Frames for a guest that does not read are dropped; the carrier is then not read any more.
            if self.vmm.waiting() > 2 * MAX_WAITING {
                self.sink.to_guest.clear();
            }
            self.vmm.output.append(&mut self.sink.to_guest);
            are_there &= self.carrier.write();
            are_there &= self.vmm.write();
            self.tell(now);
            if !are_there {
                return Ok(());
            }
        }
    }

    /// Waits for something to do; returns the events of each side.
    fn wait(&self) -> nix::Result<[PollFlags; 2]> {
        let wanted = |side: &FrameStream, other: &FrameStream| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, other.waiting() < MAX_WAITING);
            flags.set(PollFlags::POLLOUT, side.waiting() > 0);
            flags
        };
        let mut fds = [
            PollFd::new(self.vmm.as_fd(), wanted(&self.vmm, &self.carrier)),
            PollFd::new(self.carrier.as_fd(), wanted(&self.carrier, &self.vmm)),
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
        let [vmm, carrier] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        Ok([vmm, carrier])
    }

    fn tell(&mut self, now: Instant) {
        for refused in self.filter.refused(now) {
            let Ok(mut line) = serde_json::to_vec(&refused) else { continue };
            line.push(b'\n');
            ignore(self.reports.write_all(&line), "the monitor is gone, or has been told enough");
        }
    }
}
