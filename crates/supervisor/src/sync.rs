//! Small tools for threads: locks that survive a panic of another thread, bells that wake a poll, threads with small
//! stacks.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stack of most threads, in bytes. Their deepest work is JSON of one wire line.
const STACK: usize = 128 << 10;

/// Locks. A panic ends the supervisor, except in the code of an extension, which runs while no lock of the supervisor is held. So a poisoned lock is as
/// good as any other.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that is never joined.
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread_with_stack(name, STACK, work)
}

/// As [`thread`], with a stack of this many bytes, of which those that are never used take no memory.
pub fn thread_with_stack(name: &str, stack: usize, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(stack).spawn(work).map(drop)
}

#[derive(Debug)]
pub struct Bell(EventFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Makes its descriptor readable.
    pub fn ring(&self) {
        // This fails only after 2^64 - 2 unread rings, when the descriptor is readable anyway.
        self.0.write(1).ok();
    }

    pub fn hush(&self) {
        self.0.read().ok();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The other side has closed or will send no more (POLLRDHUP of poll(2), which nix does not define).
pub const HANG_UP: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// What a poll found at one descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is something to read, or the end of the stream.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
    /// The other side is gone.
    pub hang_up: bool,
}

/// Polls until something happens or the deadline passes.
pub fn wait<const N: usize>(
    fds: [(BorrowedFd<'_>, PollFlags); N],
    deadline: Option<Instant>,
) -> io::Result<[Ready; N]> {
    let mut polled = fds.map(|(fd, flags)| PollFd::new(fd, flags));
    poll_until(&mut polled, deadline)?;
    Ok(polled.map(|fd| ready(&fd)))
}

/// What [`poll_until`] found at one descriptor.
pub fn ready(fd: &PollFd<'_>) -> Ready {
    // Events that nix does not define are those of HANG_UP, and nix then hides the others. Every operation is worth a try.
    let Some(found) = fd.revents() else { return Ready { read: true, write: true, hang_up: true } };
    Ready {
        read: found.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR),
        write: found.intersects(PollFlags::POLLOUT | PollFlags::POLLERR),
        hang_up: found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL),
    }
}

/// Polls until something happens or the deadline passes.
pub fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let timeout = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            // Rounded up, so that the deadline has passed when the poll reports a timeout.
            Some(left) => {
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(fds, timeout) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
