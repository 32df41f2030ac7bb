//! Accepts connections to ports of the host and carries each to the guest as a separate connection to the guest's forwarding port
//! (`magikvm_proto::forward`). One thread waits for all of them: none blocks another, and the thread sleeps while none is active.

mod dial;
mod error;
#[cfg(any(test, feature = "testing"))]
#[cfg(test)]
mod peer;

pub use error::ForwardError;

use super::ports::Door;
use crate::agent::{Connector, GuestStream};
use crate::os::{Interest, Poller};
use crate::store::text::ignore;
use dial::{Dial, Progress};
use magikvm_proto::limits::MAX_FORWARDS;
use magikvm_proto::stream::{Link, Local, Ready, Verdict, pump};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections to one port of the pod that may be dialled at a time; others wait. A server has a small backlog and lets other clients
/// retry after a second; a server that accepts nothing blocks only its own port.
const MAX_DIALS: usize = 8;
/// Pause before a VMM that had no room for another connection is asked again.
const RETRY: Duration = Duration::from_millis(2);
/// How long the guest may take to close a connection that both sides have ended.
const LINGER: Duration = Duration::from_secs(10);
/// How long to deliver the last data of a pod that has ended.
const DRAIN: Duration = Duration::from_millis(500);
/// Pause after a failed accept, so that a lasting failure (too many open files) does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes read at once.
const SCRATCH: usize = 64 << 10;

const WAKER: u64 = 0;
const DOORS: u64 = 1;
/// Keys of connections start here: two for each connection, the guest's first.
const CONNECTIONS: u64 = 1 << 32;

/// Reports for the user.
#[derive(Debug)]
pub enum News {
    Accepted {
        /// The address of the host that received it.
        address: SocketAddr,
    },
    /// A connection was reset because it could not be carried any further.
    Failed { port: u16, error: ForwardError },
}

/// A running relay. Dropping it closes its ports and resets its connections.
#[derive(Debug)]
pub struct Relay {
    waker: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts accepting. `tell` must not block.
    pub fn start(
        doors: Vec<Door>,
        guest: Connector,
        tell: impl FnMut(News) + Send + 'static,
    ) -> io::Result<Self> {
        let (waker, wakes) = UnixStream::pair()?;
        let mut worker = Worker::new(doors, guest, Box::new(tell), wakes)?;
        let thread = std::thread::Builder::new().name("ports".to_owned()).spawn(move || worker.run())?;
        Ok(Self { waker, thread: Some(thread) })
    }

    /// For use after the end of the guest: accepts no more, and delivers data in transit if the clients take it at once.
    pub fn drain(mut self) {
        if (&self.waker).write_all(b"d").is_ok() {
            self.join();
        }
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            ignore(thread.join(), "it panicked, and its sockets are closed");
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        ignore(self.waker.shutdown(Shutdown::Both), "its thread has ended");
        self.join();
    }
}

/// A client's connection to a port of the host.
#[derive(Debug)]
struct Client(TcpStream);

impl Client {
    /// Resets the connection, since an orderly end would look as if the data were complete.
    fn reset(self) {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        ignore(setsockopt(&self.0, sockopt::Linger, &at_once), "it has gone already");
    }
}

impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Local for Client {
    fn end_output(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

/// The stage of a connection.
#[derive(Debug)]
enum ConnectionStage {
    /// Waits until the guest has room for it.
    Waits(Client),
    /// The guest was asked. The dial goes on to its end even if the client has left.
    Dials(Dial, Option<Client>),
    /// Bytes flow in both directions.
    Open { client: Client, guest: GuestStream, link: Box<Link> },
    /// Both sides have ended; the guest closes it.
    Lingers(GuestStream),
}

#[derive(Debug)]
struct Connection {
    stage: ConnectionStage,
    door: usize,
    /// When to check the connection even if nothing happens.
    deadline: Option<Instant>,
    /// The interests at the guest's end and at the client's.
    watched: [Interest; 2],
}

/// The host's ports that lead to the pod.
struct Worker {
    poller: Poller,
    doors: Vec<Door>,
    listens: bool,
    guest: Connector,
    tell: Box<dyn FnMut(News) + Send>,
    /// Its end ends the thread; a byte on it asks the thread to end after delivering the data it has.
    wakes: UnixStream,
    draining: Option<Instant>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// For each door: the waiting connections in order, and how many are being dialled.
    waiting: Vec<VecDeque<usize>>,
    dials: Vec<usize>,
    retry: Option<Instant>,
    accept_again: Option<Instant>,
    scratch: Vec<u8>,
}

impl Worker {
    fn new(
        doors: Vec<Door>,
        guest: Connector,
        tell: Box<dyn FnMut(News) + Send>,
        wakes: UnixStream,
    ) -> io::Result<Self> {
        let mut poller = Poller::new()?;
        poller.set(wakes.as_fd(), WAKER, Interest::NONE, Interest::READ)?;
        let mut worker = Self {
            poller,
            waiting: doors.iter().map(|_| VecDeque::new()).collect(),
            dials: vec![0; doors.len()],
            doors,
            listens: false,
            guest,
            tell,
            wakes,
            draining: None,
            connections: Vec::new(),
            free: Vec::new(),
            retry: None,
            accept_again: None,
            scratch: vec![0; SCRATCH],
        };
        worker.listen(true)?;
        Ok(worker)
    }

    /// Starts or stops accepting. Clients that connect meanwhile wait in the kernel.
    fn listen(&mut self, listens: bool) -> io::Result<()> {
        if self.listens != listens {
            let (old, new) = match listens {
                true => (Interest::NONE, Interest::READ),
                false => (Interest::READ, Interest::NONE),
            };
            for (key, door) in (DOORS..).zip(&self.doors) {
                self.poller.set(door.listener.as_fd(), key, old, new)?;
            }
            self.listens = listens;
        }
        Ok(())
    }

    /// Carries connections until it is told to end, and resets the remaining ones.
    fn run(&mut self) {
        ignore(self.carry(), "the kernel has no memory for it");
        for connection in self.connections.drain(..).flatten() {
            match connection.stage {
                ConnectionStage::Waits(client)
                | ConnectionStage::Dials(_, Some(client))
                | ConnectionStage::Open { client, .. } => {
                    client.reset();
                }
                ConnectionStage::Dials(_, None) | ConnectionStage::Lingers(_) => {}
            }
        }
    }

    fn carry(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        loop {
            let limit = self.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(limit, &mut found)?;
            for &(key, ready) in &found {
                match key {
                    WAKER => match self.wakes.read(&mut [0]) {
                        Ok(1..) => self.draining = Some(Instant::now() + DRAIN),
                        Ok(0) | Err(_) => return Ok(()),
                    },
                    DOORS..CONNECTIONS => self.accept(usize::try_from(key - DOORS).unwrap_or(0)),
                    _ => self.on_event(key, ready),
                }
            }
            self.on_time();
            for door in 0..self.doors.len() {
                self.dial(door);
            }
            let has_room = self.connections.len() - self.free.len() < MAX_FORWARDS;
            self.listen(has_room && self.accept_again.is_none() && self.draining.is_none())?;
            if self.draining.is_some_and(|until| until <= Instant::now() || !self.has_open()) {
                return Ok(());
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let of_connections = self.connections.iter().flatten().filter_map(|connection| connection.deadline);
        of_connections.chain(self.draining).chain(self.retry).chain(self.accept_again).min()
    }

    fn has_open(&self) -> bool {
        self.connections
            .iter()
            .flatten()
            .any(|connection| matches!(connection.stage, ConnectionStage::Open { .. }))
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.accept_again = self.accept_again.filter(|at| *at > now);
        self.retry = self.retry.filter(|at| *at > now);
        for index in 0..self.connections.len() {
            let is_late = |connection: &Connection| connection.deadline.is_some_and(|at| at <= now);
            if self.connections[index].as_ref().is_some_and(is_late) {
                self.on_late(index);
            }
        }
    }

    fn on_late(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        connection.deadline = None;
        let ConnectionStage::Dials(dial, client) = &mut connection.stage else { return self.end(index) };
        let client = client.take();
        let may_be_closed = dial.may_be_closed();
        let door = connection.door;
        if let Some(client) = client {
            self.failed(door, client, ForwardError::Timeout);
        }
        if may_be_closed {
            self.end(index);
        }
    }

    fn failed(&mut self, door: usize, client: Client, error: ForwardError) {
        client.reset();
        (self.tell)(News::Failed { port: self.doors[door].port, error });
    }

    fn accept(&mut self, door: usize) {
        while self.connections.len() - self.free.len() < MAX_FORWARDS {
            let accepted = self.doors[door].listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                // Small packets are not delayed: their sender waits for them.
                stream.set_nodelay(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => {
                    let stage = ConnectionStage::Waits(Client(stream));
                    let index =
                        self.add(Connection { stage, door, deadline: None, watched: [Interest::NONE; 2] });
                    self.waiting[door].push_back(index);
                    (self.tell)(News::Accepted { address: self.doors[door].address });
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    // The client has left.
                    ErrorKind::ConnectionAborted
                    | ErrorKind::ConnectionReset
                    | ErrorKind::InvalidInput
                    | ErrorKind::Interrupted => {}
                    _ => {
                        self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    fn add(&mut self, connection: Connection) -> usize {
        if let Some(index) = self.free.pop() {
            self.connections[index] = Some(connection);
            return index;
        }
        self.connections.push(Some(connection));
        self.connections.len() - 1
    }

    /// Dials for waiting connections, as many as may be dialled at a time.
    fn dial(&mut self, door: usize) {
        while self.dials[door] < MAX_DIALS && self.retry.is_none() {
            let Some(index) = self.waiting[door].pop_front() else { return };
            let Some(mut connection) = self.connections[index].take() else { continue };
            let ConnectionStage::Waits(client) = connection.stage else {
                self.connections[index] = Some(connection);
                continue;
            };
            match Dial::start(&self.guest, self.doors[door].port) {
                Ok((dial, deadline)) => {
                    self.dials[door] += 1;
                    connection.stage = ConnectionStage::Dials(dial, Some(client));
                    connection.deadline = Some(deadline);
                    self.connections[index] = Some(connection);
                    self.watch(index, [Interest::READ, Interest::NONE]);
                }
                Err(ForwardError::Unreachable(error)) if error.kind() == ErrorKind::WouldBlock => {
                    connection.stage = ConnectionStage::Waits(client);
                    self.connections[index] = Some(connection);
                    self.waiting[door].push_front(index);
                    self.retry = Some(Instant::now() + RETRY);
                }
                Err(error) => {
                    self.free.push(index);
                    self.failed(door, client, error);
                }
            }
        }
    }

    fn on_event(&mut self, key: u64, ready: Interest) {
        let of_client = key & 1 == 1;
        let index = usize::try_from((key - CONNECTIONS) >> 1).unwrap_or(usize::MAX);
        // It may have ended by an earlier event of the same turn.
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        match &mut connection.stage {
            ConnectionStage::Waits(_) => {}
            ConnectionStage::Dials(..) => self.on_answer(index),
            ConnectionStage::Open { .. } => {
                let ready = match of_client {
                    true => Ready { local: (ready.read, ready.write), ..Ready::default() },
                    false => Ready { peer: (ready.read, ready.write), ..Ready::default() },
                };
                self.move_bytes(index, ready);
            }
            ConnectionStage::Lingers(guest) => {
                // What still arrives only permits sending more.
                match guest.read(&mut self.scratch) {
                    Ok(1..) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Ok(0) | Err(_) => self.end(index),
                }
            }
        }
    }

    fn on_answer(&mut self, index: usize) {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        let ConnectionStage::Dials(dial, client) = &mut connection.stage else { return };
        let door = connection.door;
        match dial.go_on() {
            Progress::Waits => {}
            Progress::Lent(lent) => self.on_lent(index, lent),
            Progress::Failed(error) => {
                let client = client.take();
                self.end(index);
                if let Some(client) = client {
                    self.failed(door, client, error);
                }
            }
            Progress::Agreed(link) => match client.take() {
                None => self.end(index),
                Some(client) => self.open(index, client, link),
            },
        }
    }

    /// Asks the guest on a connection that the monitor has lent.
    fn on_lent(&mut self, index: usize, lent: GuestStream) {
        self.watch(index, [Interest::NONE; 2]);
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        let ConnectionStage::Dials(dial, client) = &mut connection.stage else { return };
        match dial.take_over(lent) {
            Ok(()) => self.watch(index, [Interest::READ, Interest::NONE]),
            Err(error) => {
                let (door, client) = (connection.door, client.take());
                self.end(index);
                if let Some(client) = client {
                    self.failed(door, client, error);
                }
            }
        }
    }

    fn open(&mut self, index: usize, client: Client, link: Box<Link>) {
        let Some(connection) = self.connections.get_mut(index).and_then(Option::take) else { return };
        let ConnectionStage::Dials(dial, _) = connection.stage else { return };
        self.dials[connection.door] -= 1;
        // Only a guest can have agreed.
        let Some(guest) = dial.into_stream() else { return self.free.push(index) };
        let stage = ConnectionStage::Open { client, guest, link };
        self.connections[index] = Some(Connection { stage, deadline: None, ..connection });
        // The client has usually sent data by now, and what the guest sent with its answer must be forwarded too.
        self.move_bytes(index, Ready { local: (true, true), ..Ready::default() });
    }

    fn move_bytes(&mut self, index: usize, ready: Ready) {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        let ConnectionStage::Open { client, guest, link } = &mut connection.stage else { return };
        let verdict = pump(link, guest, client, ready, &mut self.scratch);
        let interest = |(read, write)| Interest { read, write };
        match verdict {
            Verdict::Waits(wanted) => self.watch(index, [interest(wanted.peer), interest(wanted.local)]),
            Verdict::Finished => self.linger(index, None),
            Verdict::Reset(_) => self.linger(index, Some(None)),
            Verdict::Cut => self.linger(index, Some(Some(ForwardError::Cut))),
            Verdict::Violated(violation) => {
                self.linger(index, Some(Some(ForwardError::Violation(violation))));
                self.end(index);
            }
        }
    }

    /// Closes the client's end, with a reset if there is a reason for one, and waits until the guest closes its end.
    fn linger(&mut self, index: usize, reset: Option<Option<ForwardError>>) {
        self.watch(index, [Interest::READ, Interest::NONE]);
        let Some(mut connection) = self.connections.get_mut(index).and_then(Option::take) else { return };
        let door = connection.door;
        if let ConnectionStage::Open { client, guest, .. } = connection.stage {
            connection.stage = ConnectionStage::Lingers(guest);
            connection.deadline = Some(Instant::now() + LINGER);
            self.connections[index] = Some(connection);
            match reset {
                None => drop(client),
                Some(None) => client.reset(),
                Some(Some(error)) => self.failed(door, client, error),
            }
        } else {
            self.connections[index] = Some(connection);
        }
    }

    /// Changes the interests at the two ends of a connection.
    fn watch(&mut self, index: usize, wanted: [Interest; 2]) {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        let (guest, client) = match &connection.stage {
            ConnectionStage::Waits(_) => return,
            ConnectionStage::Dials(dial, _) => (dial.as_fd(), None),
            ConnectionStage::Open { client, guest, .. } => (guest.as_fd(), Some(client.0.as_fd())),
            ConnectionStage::Lingers(guest) => (guest.as_fd(), None),
        };
        let key = CONNECTIONS + (u64::try_from(index).unwrap_or(0) << 1);
        let [guest_watched, client_watched] = &mut connection.watched;
        let mut set = self.poller.set(guest, key, *guest_watched, wanted[0]);
        *guest_watched = wanted[0];
        if let Some(client) = client {
            set = set.and(self.poller.set(client, key | 1, *client_watched, wanted[1]));
            *client_watched = wanted[1];
        }
        if set.is_err() {
            // The kernel is out of memory. A connection that cannot be watched cannot continue.
            self.connections[index] = None;
            self.free.push(index);
        }
    }

    /// Closes what is left of a connection.
    fn end(&mut self, index: usize) {
        self.watch(index, [Interest::NONE; 2]);
        if let Some(connection) = self.connections.get_mut(index).and_then(Option::take) {
            if matches!(connection.stage, ConnectionStage::Dials(..)) {
                self.dials[connection.door] -= 1;
            }
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests;
