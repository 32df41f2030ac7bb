//! Waits for many sockets at once with `epoll`.

use super::interest::Interest;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Largest number of events read at one time.
const BATCH: usize = 128;

#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, events: vec![EpollEvent::empty(); BATCH] })
    }

    /// Waits for `new` at a socket instead of `old`, the interest set last. Clear the interest before the socket is closed.
    pub fn set(&mut self, fd: BorrowedFd<'_>, key: u64, old: Interest, new: Interest) -> io::Result<()> {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, new.read);
        flags.set(EpollFlags::EPOLLOUT, new.write);
        let mut event = EpollEvent::new(flags, key);
        match (old, new) {
            _ if old == new => {}
            (Interest::NONE, _) => self.epoll.add(fd, event)?,
            (_, Interest::NONE) => self.epoll.delete(fd)?,
            _ => self.epoll.modify(fd, &mut event)?,
        }
        Ok(())
    }

    /// Waits until a socket is ready or the limit has passed. A broken socket is ready for everything.
    pub fn wait(&mut self, limit: Option<Duration>, found: &mut Vec<(u64, Interest)>) -> io::Result<()> {
        found.clear();
        let timeout = match limit {
            None => EpollTimeout::NONE,
            // Rounded up, so that the deadline has passed when the wait says so.
            Some(limit) => {
                EpollTimeout::try_from(limit + Duration::from_micros(999)).unwrap_or(EpollTimeout::MAX)
            }
        };
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        found.extend(self.events[..count].iter().map(|event| {
            let flags = event.events();
            let broken = flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
            let read = broken || flags.contains(EpollFlags::EPOLLIN);
            let write = broken || flags.contains(EpollFlags::EPOLLOUT);
            (event.data(), Interest { read, write })
        }));
        Ok(())
    }
}
