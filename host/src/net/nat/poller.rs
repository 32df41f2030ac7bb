//! Waits for many sockets at once: by epoll on Linux, by kqueue elsewhere. Level-triggered. A socket without any interest is not registered,
//! because the kernel would report its end again and again.

use nix::errno::Errno;
use std::os::fd::AsFd;
use std::time::Duration;

/// Events taken at once.
const BATCH: usize = 64;

/// What a socket is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Interest {
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Interest {
    pub(super) const NONE: Self = Self { read: false, write: false };
    pub(super) const READ: Self = Self { read: true, write: false };
    pub(super) const WRITE: Self = Self { read: false, write: true };
}

/// What has happened at a socket. Its end and its errors count as both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) token: u64,
    pub(super) read: bool,
    pub(super) write: bool,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(super) struct Poller(nix::sys::epoll::Epoll);

#[cfg(target_os = "linux")]
impl Poller {
    pub(super) fn new() -> nix::Result<Self> {
        use nix::sys::epoll::{Epoll, EpollCreateFlags};
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Self)
    }

    /// Changes what a socket is watched for.
    pub(super) fn set(&self, fd: impl AsFd, token: u64, was: Interest, is: Interest) -> nix::Result<()> {
        use nix::sys::epoll::{EpollEvent, EpollFlags};
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, is.read);
        flags.set(EpollFlags::EPOLLOUT, is.write);
        let mut event = EpollEvent::new(flags, token);
        match (was, is) {
            _ if was == is => Ok(()),
            (Interest::NONE, _) => self.0.add(fd, event),
            (_, Interest::NONE) => self.0.delete(fd),
            _ => self.0.modify(fd, &mut event),
        }
    }

    /// Waits until something happens or the time is over.
    pub(super) fn wait(&self, ready: &mut Vec<Ready>, time: Option<Duration>) -> nix::Result<()> {
        use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
        ready.clear();
        let mut events = [EpollEvent::empty(); BATCH];
        let time = match time {
            None => EpollTimeout::NONE,
            // Rounded up, because waking too early means waking twice.
            Some(time) => {
                EpollTimeout::try_from(time.as_micros().div_ceil(1000)).unwrap_or(EpollTimeout::MAX)
            }
        };
        let count = match self.0.wait(&mut events, time) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        ready.extend(events[..count].iter().map(|event| {
            let ended = event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
            Ready {
                token: event.data(),
                read: ended || event.events().contains(EpollFlags::EPOLLIN),
                write: ended || event.events().contains(EpollFlags::EPOLLOUT),
            }
        }));
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) struct Poller(nix::sys::event::Kqueue);

#[cfg(not(target_os = "linux"))]
impl Poller {
    pub(super) fn new() -> nix::Result<Self> {
        nix::sys::event::Kqueue::new().map(Self)
    }

    /// Changes what a socket is watched for.
    pub(super) fn set(&self, fd: impl AsFd, token: u64, was: Interest, is: Interest) -> nix::Result<()> {
        use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent};
        use std::os::fd::AsRawFd;
        let number = usize::try_from(fd.as_fd().as_raw_fd()).map_err(|_| Errno::EBADF)?;
        let data = isize::try_from(token).map_err(|_| Errno::EINVAL)?;
        let change = |filter, was: bool, is: bool| {
            let flags = if is { EvFlags::EV_ADD } else { EvFlags::EV_DELETE };
            (was != is).then(|| KEvent::new(number, filter, flags, FilterFlag::empty(), 0, data))
        };
        let changes: Vec<KEvent> = [
            change(EventFilter::EVFILT_READ, was.read, is.read),
            change(EventFilter::EVFILT_WRITE, was.write, is.write),
        ]
        .into_iter()
        .flatten()
        .collect();
        self.0.kevent(&changes, &mut [], None).map(drop)
    }

    /// Waits until something happens or the time is over.
    pub(super) fn wait(&self, ready: &mut Vec<Ready>, time: Option<Duration>) -> nix::Result<()> {
        use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent};
        use nix::sys::time::{TimeSpec, TimeValLike};
        ready.clear();
        let empty = KEvent::new(0, EventFilter::EVFILT_READ, EvFlags::empty(), FilterFlag::empty(), 0, 0);
        let mut events = [empty; BATCH];
        let time = time.map(|time| {
            *TimeSpec::microseconds(i64::try_from(time.as_micros()).unwrap_or(i64::MAX)).as_ref()
        });
        let count = match self.0.kevent(&[], &mut events, time) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        ready.extend(events[..count].iter().map(|event| {
            let ended = event.flags().intersects(EvFlags::EV_EOF | EvFlags::EV_ERROR);
            Ready {
                token: u64::try_from(event.udata()).unwrap_or(0),
                read: ended || matches!(event.filter(), Ok(EventFilter::EVFILT_READ)),
                write: ended || matches!(event.filter(), Ok(EventFilter::EVFILT_WRITE)),
            }
        }));
        Ok(())
    }
}
