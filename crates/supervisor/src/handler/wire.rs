//! A TCP connection on which nothing waits longer than an attempt may take. Owns: where a handler connects to, and the words for what
//! goes wrong, which are those of Go's `net` package.

use super::{LOOPBACK, Outcome};
use crate::sync::{self, Bell, Ready};
use crate::sys;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What ends an attempt, whatever it is doing.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    /// `None`: too far away to be told.
    deadline: Option<Instant>,
    pub(super) timeout: Duration,
    /// Rung when nobody is interested any more.
    bell: Arc<Bell>,
}

/// Why an attempt has ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("it was cancelled")]
    Cancelled,
    #[error("{during}i/o timeout")]
    TimedOut {
        /// What was being done, with a colon and a space behind it; empty if that is clear.
        during: String,
    },
    /// The other side does not speak TLS.
    #[error("tls: first record does not look like a TLS handshake")]
    NotTls,
    /// In words.
    #[error("{0}")]
    Failed(String),
}

impl Limit {
    pub(super) fn new(timeout: Duration, bell: Arc<Bell>) -> Self {
        Self { deadline: Instant::now().checked_add(timeout), timeout, bell }
    }

    /// Waits for a descriptor.
    pub(super) fn wait(&self, fd: BorrowedFd<'_>, flags: PollFlags) -> Result<Ready, Broken> {
        let waited = sync::wait([(self.bell.as_fd(), PollFlags::POLLIN), (fd, flags)], self.deadline);
        let [bell, found] = waited.map_err(|error| Broken::Failed(words(&error)))?;
        match () {
            () if bell.read => Err(Broken::Cancelled),
            () if found != Ready::default() => Ok(found),
            () => Err(Broken::TimedOut { during: String::new() }),
        }
    }

    /// The bell, for one who waits for more than one descriptor.
    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Waits for this time. `None` if it was cancelled.
    pub(super) fn sleep(&self, time: Duration) -> Option<Outcome> {
        let end = Instant::now().checked_add(time);
        let last = match (end, self.deadline) {
            (Some(end), Some(deadline)) => Some(end.min(deadline)),
            (end, deadline) => end.or(deadline),
        };
        match sync::wait([(self.bell.as_fd(), PollFlags::POLLIN)], last) {
            Ok([bell]) if bell.read => None,
            Ok(_) if time <= self.timeout => Some(Outcome::Success),
            Ok(_) => Some(Outcome::Failure(format!("it did not end within {:?}", self.timeout))),
            Err(error) => Some(Outcome::Error(error.to_string())),
        }
    }
}

/// A host to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Where {
    /// As it stands in a URL, but without brackets.
    pub(super) name: String,
    /// Its addresses, tried in this order.
    pub(super) addresses: Vec<IpAddr>,
}

impl Where {
    /// The host that a handler names, or the pod. Names are not resolved, except that of loopback.
    pub(super) fn of(host: Option<&str>, pod: &[IpAddr]) -> Self {
        let Some(host) = host else {
            let name = pod.first().map(IpAddr::to_string).unwrap_or_default();
            return Self { name, addresses: pod.to_vec() };
        };
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            Err(_) if host.eq_ignore_ascii_case("localhost") => LOOPBACK.to_vec(),
            Err(_) => Vec::new(),
        };
        Self { name: host.to_owned(), addresses }
    }

    /// As Go's `net.JoinHostPort`.
    pub(super) fn with_port(&self, port: u16) -> String {
        if self.name.contains(':') {
            format!("[{}]:{port}", self.name)
        } else {
            format!("{}:{port}", self.name)
        }
    }
}

/// An error of the system as Go prints it.
pub(super) fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => {
            let text = Errno::from_raw(number).desc();
            let mut letters = text.chars();
            letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
        }
        None => error.to_string(),
    }
}

/// A connection. Its reads and writes end with the attempt; [`Broken`] is in their errors.
pub(super) struct Wire {
    stream: TcpStream,
    peer: SocketAddr,
    limit: Limit,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Wire {
    /// Connects to the first address that answers. The error is that of the first one.
    pub(super) fn connect(place: &Where, port: u16, limit: &Limit) -> Result<Self, Broken> {
        let mut first = None;
        for &address in &place.addresses {
            match Self::connect_to(SocketAddr::new(address, port), limit) {
                Err(broken @ Broken::Failed(_)) => drop(first.get_or_insert(broken)),
                other => return other,
            }
        }
        let unknown = || Broken::Failed(format!("dial tcp: lookup {}: no names are resolved", place.name));
        Err(first.unwrap_or_else(unknown))
    }

    fn connect_to(peer: SocketAddr, limit: &Limit) -> Result<Self, Broken> {
        let failed =
            |error: &io::Error| Broken::Failed(format!("dial tcp {peer}: connect: {}", words(error)));
        let socket = sys::tcp_connect(peer).map_err(|error| failed(&error))?;
        limit.wait(socket.as_fd(), PollFlags::POLLOUT).map_err(|broken| match broken {
            Broken::TimedOut { .. } => Broken::TimedOut { during: format!("dial tcp {peer}: ") },
            other => other,
        })?;
        match getsockopt(&socket, sockopt::SocketError) {
            Ok(0) => {}
            Ok(number) => return Err(failed(&io::Error::from_raw_os_error(number))),
            Err(errno) => return Err(failed(&errno.into())),
        }
        Ok(Self { stream: TcpStream::from(socket), peer, limit: limit.clone() })
    }

    /// Repeats an operation until it does not have to wait.
    fn patiently<T>(
        &mut self,
        flags: PollFlags,
        verb: &str,
        mut operation: impl FnMut(&mut TcpStream) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match operation(&mut self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.limit.wait(self.stream.as_fd(), flags).map_err(io::Error::other)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let own = self.stream.local_addr().map(|own| own.to_string()).unwrap_or_default();
                    let text = format!("{verb} tcp {own}->{}: {verb}: {}", self.peer, words(&error));
                    return Err(io::Error::other(Broken::Failed(text)));
                }
                done => return done,
            }
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.patiently(PollFlags::POLLIN, "read", |stream| stream.read(buffer))
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(PollFlags::POLLOUT, "write", |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What an error of a [`Wire`], or of a stream above it, means.
pub(super) fn broken(error: &io::Error) -> Broken {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Broken>()) {
        Some(broken) => broken.clone(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => Broken::Failed("EOF".to_owned()),
        None => Broken::Failed(words(error)),
    }
}
