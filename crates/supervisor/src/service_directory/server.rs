//! The connections of the service directory, all served by one thread. The other ends are hostile: each socket has at most [`MAX_CLIENTS`]
//! connections, each of which lasts at most [`TIME`] and carries one request. Must not know: what is answered.

use super::answer::{MAX_HEAD, Pod, respond};
use crate::extension::Ending;
use crate::sync::{lock, poll_until, ready};
use nix::poll::{PollFd, PollFlags};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Connections of one socket at a time. Others wait.
pub(super) const MAX_CLIENTS: usize = 8;
/// How long a connection may last.
pub(super) const TIME: Duration = Duration::from_secs(5);
/// How long nothing is accepted after the system has refused a connection, for example because it has no memory for one.
const REST: Duration = Duration::from_millis(200);

pub(super) struct Server {
    doors: Vec<UnixListener>,
    pod: Arc<Mutex<Pod>>,
    clients: Vec<Client>,
    /// When connections are accepted again.
    rests_until: Option<Instant>,
}

struct Client {
    /// The index of its socket.
    door: usize,
    stream: UnixStream,
    /// When it is cut.
    until: Instant,
    traffic: Traffic,
}

enum Traffic {
    /// What has come of its request.
    Request(Vec<u8>),
    /// What is left of its answer.
    Answer { bytes: Vec<u8>, sent: usize },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Goes,
    Ended,
}

impl Server {
    /// The sockets must be non-blocking.
    pub(super) fn new(doors: Vec<UnixListener>, pod: Arc<Mutex<Pod>>) -> Self {
        Self { doors, pod, clients: Vec::new(), rests_until: None }
    }

    /// Serves until the end of the extension.
    pub(super) fn serve(mut self, ending: &Ending) -> io::Result<()> {
        while self.turn(ending)? == Next::Goes {}
        Ok(())
    }

    /// Waits until there is something to do, and does it.
    fn turn(&mut self, ending: &Ending) -> io::Result<Next> {
        let now = Instant::now();
        self.rests_until = self.rests_until.filter(|&until| until > now);
        let open: Vec<usize> = (0..self.doors.len()).filter(|&door| self.has_room(door)).collect();
        let mut polled = vec![PollFd::new(ending.as_fd(), PollFlags::POLLIN)];
        polled.extend(open.iter().map(|&door| PollFd::new(self.doors[door].as_fd(), PollFlags::POLLIN)));
        polled
            .extend(self.clients.iter().map(|client| PollFd::new(client.stream.as_fd(), client.interest())));
        let times = self.clients.iter().map(|client| client.until);
        poll_until(&mut polled, times.chain(self.rests_until).min())?;
        let mut found = polled.iter().map(ready);
        if found.next().is_some_and(|ending| ending.read) {
            return Ok(Next::Ended);
        }
        let waiting: Vec<usize> =
            open.iter().zip(found.by_ref()).filter(|(_, door)| door.read).map(|(&door, _)| door).collect();
        let active: Vec<bool> = found.map(|client| client.read || client.write || client.hang_up).collect();
        let (pod, now) = (&self.pod, Instant::now());
        let mut active = active.into_iter();
        self.clients.retain_mut(|client| {
            let is_active = active.next().unwrap_or(false);
            now < client.until && (!is_active || client.proceed(pod).is_ok_and(|next| next == Next::Goes))
        });
        waiting.into_iter().for_each(|door| self.accept(door));
        Ok(Next::Goes)
    }

    fn has_room(&self, door: usize) -> bool {
        let taken = self.clients.iter().filter(|client| client.door == door).count();
        self.rests_until.is_none() && taken < MAX_CLIENTS
    }

    fn accept(&mut self, door: usize) {
        let accepted = self.doors[door].accept().and_then(|(stream, _)| {
            stream.set_nonblocking(true)?;
            Ok(stream)
        });
        match accepted {
            Ok(stream) => self.clients.push(Client {
                door,
                stream,
                until: Instant::now() + TIME,
                traffic: Traffic::Request(Vec::new()),
            }),
            Err(error) if is_passing(&error) => {}
            Err(_) => self.rests_until = Some(Instant::now() + REST),
        }
    }
}

/// Whether nothing is wrong with the system.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}

impl Client {
    fn interest(&self) -> PollFlags {
        match self.traffic {
            Traffic::Request(_) => PollFlags::POLLIN,
            Traffic::Answer { .. } => PollFlags::POLLOUT,
        }
    }

    /// Reads or writes what is possible now. An error is the end, too.
    fn proceed(&mut self, pod: &Mutex<Pod>) -> io::Result<Next> {
        let next = self.step(pod);
        match next {
            Err(error) if is_passing(&error) => Ok(Next::Goes),
            other => other,
        }
    }

    fn step(&mut self, pod: &Mutex<Pod>) -> io::Result<Next> {
        if let Traffic::Request(request) = &mut self.traffic {
            let mut piece = [0; MAX_HEAD];
            let room = MAX_HEAD - request.len();
            let count = self.stream.read(&mut piece[..room])?;
            request.extend_from_slice(&piece[..count]);
            match respond(request, &lock(pod)) {
                Some(bytes) => self.traffic = Traffic::Answer { bytes, sent: 0 },
                None if count == 0 => return Ok(Next::Ended),
                None => return Ok(Next::Goes),
            }
        }
        if let Traffic::Answer { bytes, sent } = &mut self.traffic {
            while *sent < bytes.len() {
                match self.stream.write(&bytes[*sent..])? {
                    0 => return Ok(Next::Ended),
                    count => *sent += count,
                }
            }
        }
        self.stream.shutdown(Shutdown::Both)?;
        Ok(Next::Ended)
    }
}
