//! Waits for many sockets at once with `poll`.

use super::interest::Interest;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

#[derive(Debug)]
pub struct Poller {
    watched: BTreeMap<RawFd, (u64, Interest)>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        Ok(Self { watched: BTreeMap::new() })
    }

    /// Waits for `new` at a socket instead of `old`, the interest set last. Clear the interest before the socket is closed.
    pub fn set(&mut self, fd: BorrowedFd<'_>, key: u64, _old: Interest, new: Interest) -> io::Result<()> {
        if new == Interest::NONE {
            self.watched.remove(&fd.as_raw_fd());
        } else {
            self.watched.insert(fd.as_raw_fd(), (key, new));
        }
        Ok(())
    }

    /// Waits until a socket is ready or the limit has passed. A broken socket is ready for everything.
    #[allow(unsafe_code, reason = "poll wants descriptors that are borrowed, this holds their numbers")]
    pub fn wait(&mut self, limit: Option<Duration>, found: &mut Vec<(u64, Interest)>) -> io::Result<()> {
        found.clear();
        let timeout = match limit {
            None => PollTimeout::NONE,
            Some(limit) => {
                PollTimeout::try_from(limit + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds: Vec<PollFd<'_>> = self
            .watched
            .iter()
            .map(|(&fd, (_, interest))| {
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::POLLIN, interest.read);
                flags.set(PollFlags::POLLOUT, interest.write);
                // SAFETY: callers clear the interest before they close a socket, which removes its number from the list.
                PollFd::new(unsafe { BorrowedFd::borrow_raw(fd) }, flags)
            })
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        for (polled, (key, _)) in fds.iter().zip(self.watched.values()) {
            let flags = polled.revents().unwrap_or(PollFlags::POLLERR);
            let broken = flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL);
            let read = broken || flags.contains(PollFlags::POLLIN);
            let write = broken || flags.contains(PollFlags::POLLOUT);
            if read || write {
                found.push((*key, Interest { read, write }));
            }
        }
        Ok(())
    }
}
