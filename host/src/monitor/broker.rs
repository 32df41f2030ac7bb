//! Lends connections to the guest to clients (`exec`, `attach`, `port-forward`). Not one byte of a session passes through here: the client
//! gets the descriptor of a connection, and the monitor keeps another one of the same connection, and the socket on which the client has asked.
//! When that socket ends, the client has gone or has no more use for the connection. The monitor then ends the connection in an order that
//! every vsock device understands: it says that nothing more follows, and takes what still arrives until the device closes its end.
//!
//! A client that is killed can't do that. If it dies with bytes that it has not read, its socket ends with an error, which
//! `vhost-device-vsock` 0.3 takes for nothing, so the guest would never hear of it; if it dies before the device has said OK, that device
//! ends. A client that is only stopped keeps its socket, and with it its session, however long.

use super::life::Life;
use super::message::{Message, spawn};
use crate::agent::{Connector, Destination, Handshake, LoanRequest, MAX_LOAN_REQUEST};
use crate::os::{self, Interest, Poller};
use crate::store::atomic::FileError;
use crate::store::layout::PodDir;
use crate::store::text::ignore;
use magikvm_proto::limits::{MAX_FORWARDS, MAX_SESSIONS};
use magikvm_proto::wire::{Done, Refusal, RefusalCode, Reply};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// Time for a client to send its request.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// Time for the guest to close a connection whose client has gone. It ends the session at once; only a guest that hangs takes longer.
const END_WAIT: Duration = Duration::from_secs(10);
/// Pause before a VMM that had no room for another connection is asked again, and after a failed accept.
const RETRY: Duration = Duration::from_millis(5);
/// Clients at a time. Those beyond all that may be lent are being refused; more have to wait.
const MAX_CLIENTS: usize = 2 * (MAX_SESSIONS + MAX_FORWARDS) + 64;
/// Longest answer of the VMM to the request for a port (`OK 1234567890\n`).
const MAX_HANDSHAKE: usize = 64;
/// Bytes read at once of a connection that ends.
const SCRATCH: usize = 16 << 10;

const LISTENER: u64 = 0;
/// Keys of clients start here: two for each, its own socket first.
const CLIENTS: u64 = 2;

/// Listens in the pod's directory.
pub(super) fn listen(
    dir: &PodDir,
    guest: Connector,
    life: Arc<Life>,
    outbox: &SyncSender<Message>,
) -> Result<(), FileError> {
    let path = dir.broker_sock();
    let failed = || FileError::at("listen on", &path);
    let listener = os::bind_unix(&path).map_err(failed())?;
    let mut broker = Broker::new(listener, guest, life).map_err(failed())?;
    spawn("broker", outbox, move || ignore(broker.run(), "the kernel has no memory for it"))
        .map_err(|error| failed()(error.into()))?;
    Ok(())
}

#[derive(Debug)]
enum Stage {
    /// Its request has not arrived completely.
    Asks(Vec<u8>),
    /// The VMM has no room for another connection now.
    Waits,
    /// The VMM connects to the guest, and has said this so far. This goes on to its end even if the client has left.
    Connects(UnixStream, Vec<u8>),
    Lent(UnixStream),
    /// The client has gone; the guest has to close the connection.
    Ends(UnixStream),
}

#[derive(Debug)]
struct Client {
    /// Nothing when it has gone.
    socket: Option<UnixStream>,
    to: Option<Destination>,
    stage: Stage,
    deadline: Option<Instant>,
    /// The interests at its socket and at the connection to the guest.
    watched: [Interest; 2],
}

impl Client {
    fn guest(&self) -> Option<BorrowedFd<'_>> {
        match &self.stage {
            Stage::Asks(_) | Stage::Waits => None,
            Stage::Connects(guest, _) | Stage::Lent(guest) | Stage::Ends(guest) => Some(guest.as_fd()),
        }
    }
}

#[derive(Debug)]
struct Broker {
    poller: Poller,
    listener: UnixListener,
    listens: bool,
    accept_again: Option<Instant>,
    guest: Connector,
    life: Arc<Life>,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    scratch: Vec<u8>,
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn refusal(code: RefusalCode, message: impl Into<String>) -> Reply<Done> {
    Reply::Error(Refusal::new(code, message))
}

/// Sends an answer, which a new socket has room for.
fn answer(socket: &UnixStream, reply: &Reply<Done>, lent: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply).map_err(io::Error::other)?;
    line.push(b'\n');
    let sent = os::send_with(socket.as_fd(), &line, lent)?;
    if sent == line.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

impl Broker {
    fn new(listener: UnixListener, guest: Connector, life: Arc<Life>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut poller = Poller::new()?;
        poller.set(listener.as_fd(), LISTENER, Interest::NONE, Interest::READ)?;
        Ok(Self {
            poller,
            listener,
            listens: true,
            accept_again: None,
            guest,
            life,
            clients: Vec::new(),
            free: Vec::new(),
            scratch: vec![0; SCRATCH],
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        loop {
            let deadlines = self.clients.iter().flatten().filter_map(|client| client.deadline);
            let deadline = deadlines.chain(self.accept_again).min();
            let limit = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            self.poller.wait(limit, &mut found)?;
            for &(key, ready) in &found {
                match key {
                    LISTENER => self.accept(),
                    _ if ready.read => self.on_ready(key),
                    _ => {}
                }
            }
            self.on_time();
            self.accept_again = self.accept_again.filter(|at| *at > Instant::now());
            self.listen(self.count() < MAX_CLIENTS && self.accept_again.is_none())?;
        }
    }

    fn count(&self) -> usize {
        self.clients.len() - self.free.len()
    }

    fn listen(&mut self, listens: bool) -> io::Result<()> {
        if self.listens != listens {
            let interest = |listens| if listens { Interest::READ } else { Interest::NONE };
            self.poller.set(self.listener.as_fd(), LISTENER, interest(self.listens), interest(listens))?;
            self.listens = listens;
        }
        Ok(())
    }

    fn accept(&mut self) {
        while self.count() < MAX_CLIENTS {
            let accepted = self.listener.accept().and_then(|(socket, _)| {
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            match accepted {
                Ok(socket) => {
                    let client = Client {
                        socket: Some(socket),
                        to: None,
                        stage: Stage::Asks(Vec::new()),
                        deadline: Some(Instant::now() + REQUEST_WAIT),
                        watched: [Interest::NONE; 2],
                    };
                    let index = self.free.pop().unwrap_or_else(|| {
                        self.clients.push(None);
                        self.clients.len() - 1
                    });
                    self.clients[index] = Some(client);
                    self.watch(index, [Interest::READ, Interest::NONE]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Too many open files, mostly. Others may close theirs.
                Err(_) => {
                    self.accept_again = Some(Instant::now() + RETRY);
                    return;
                }
            }
        }
    }

    fn on_ready(&mut self, key: u64) {
        let index = usize::try_from((key - CLIENTS) >> 1).unwrap_or(usize::MAX);
        let of_guest = key & 1 == 1;
        // It may have ended by an earlier event of the same turn.
        let Some(Some(client)) = self.clients.get_mut(index) else { return };
        match (&mut client.stage, of_guest) {
            (Stage::Asks(_), false) => self.on_request(index),
            (Stage::Connects(..), true) => self.on_handshake(index),
            (Stage::Ends(guest), true) => {
                // Once for each turn, so that a guest that never stops delays nobody.
                let read = guest.read(&mut self.scratch);
                if !read.as_ref().is_ok_and(|&count| count > 0)
                    && !read.is_err_and(|error| is_nothing(&error))
                {
                    self.remove(index);
                }
            }
            (_, false) => self.on_client(index),
            (Stage::Asks(_) | Stage::Waits | Stage::Lent(_), true) => {}
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        for index in 0..self.clients.len() {
            let Some(client) = &mut self.clients[index] else { continue };
            if client.deadline.is_none_or(|at| at > now) {
                continue;
            }
            client.deadline = None;
            match client.stage {
                Stage::Waits => self.connect(index),
                Stage::Asks(_) => {
                    self.refuse(index, RefusalCode::Invalid, "the request did not arrive in time")
                }
                // A VM that stands still closes nothing until it goes on.
                Stage::Ends(_) if self.life.stands() => client.deadline = Some(now + END_WAIT),
                // The guest hangs.
                Stage::Ends(_) => self.remove(index),
                Stage::Connects(..) | Stage::Lent(_) => {}
            }
        }
    }

    fn on_request(&mut self, index: usize) {
        let Some(Some(Client { socket: Some(socket), stage: Stage::Asks(line), .. })) =
            self.clients.get_mut(index)
        else {
            return;
        };
        let mut buffer = [0; MAX_LOAN_REQUEST];
        match socket.read(&mut buffer) {
            Ok(count @ 1..) => line.extend_from_slice(&buffer[..count]),
            Err(error) if is_nothing(&error) => return,
            Ok(0) | Err(_) => return self.remove(index),
        }
        if !line.ends_with(b"\n") && line.len() < MAX_LOAN_REQUEST {
            return;
        }
        match serde_json::from_slice(line) {
            Ok(LoanRequest::Connect { to }) => self.on_loan(index, to),
            Err(error) => {
                self.refuse(index, RefusalCode::Invalid, format!("invalid request: {error}"));
            }
        }
    }

    fn on_loan(&mut self, index: usize, to: Destination) {
        // A device may keep a connection for seconds after the guest has closed it (libkrun). Such connections do not count, within reason.
        let all = self.clients.iter().flatten().filter(|client| client.to == Some(to));
        let (ends, taken): (Vec<_>, Vec<_>) = all.partition(|client| matches!(client.stage, Stage::Ends(_)));
        let (ends, taken) = (ends.len(), taken.len());
        let (most, what) = match to {
            Destination::Agent => (MAX_SESSIONS, "sessions of exec and attach"),
            Destination::Forward => (MAX_FORWARDS, "forwarded connections"),
        };
        if taken >= most || ends + taken >= 2 * most {
            let message =
                format!("the pod already has {most} {what}, which is the most it can have at a time");
            return self.refuse(index, RefusalCode::Busy, message);
        }
        if let Some(Some(client)) = self.clients.get_mut(index) {
            client.to = Some(to);
            client.deadline = None;
            client.stage = Stage::Waits;
            self.connect(index);
        }
    }

    /// Connects to the VMM's socket and asks for the guest's port.
    fn connect(&mut self, index: usize) {
        let Some(Some(client)) = self.clients.get_mut(index) else { return };
        let guest = match client.to {
            Some(Destination::Forward) => self.guest.forwards(),
            Some(Destination::Agent) | None => self.guest.clone(),
        };
        match os::connect_unix_at_once(&guest.socket) {
            Ok(stream) => {
                let asked = match guest.handshake {
                    Handshake::Port(port) => (&stream).write_all(format!("CONNECT {port}\n").as_bytes()),
                    Handshake::Direct | Handshake::Broker(_) => Ok(()),
                };
                match (asked, guest.handshake) {
                    (Err(error), _) => self.unreachable(index, &error),
                    (Ok(()), Handshake::Port(_)) => {
                        client.stage = Stage::Connects(stream, Vec::new());
                        self.watch(index, [Interest::READ, Interest::READ]);
                    }
                    (Ok(()), Handshake::Direct | Handshake::Broker(_)) => self.lend(index, stream),
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                client.deadline = Some(Instant::now() + RETRY);
            }
            Err(error) => self.unreachable(index, &error),
        }
    }

    fn unreachable(&mut self, index: usize, error: &io::Error) {
        self.refuse(index, RefusalCode::Conflict, format!("the pod's supervisor cannot be reached: {error}"));
    }

    fn on_handshake(&mut self, index: usize) {
        let Some(Some(client)) = self.clients.get_mut(index) else { return };
        let Stage::Connects(guest, line) = &mut client.stage else { return };
        let mut buffer = [0; MAX_HANDSHAKE];
        match guest.read(&mut buffer) {
            Ok(count @ 1..) => line.extend_from_slice(&buffer[..count]),
            Err(error) if is_nothing(&error) => return,
            Ok(0) => return self.unreachable(index, &ErrorKind::ConnectionRefused.into()),
            Err(error) => return self.unreachable(index, &error),
        }
        // Nothing follows before the guest was asked.
        if line.starts_with(b"OK ") && line.ends_with(b"\n") {
            self.watch(index, [Interest::READ, Interest::NONE]);
            let Some(Some(client)) = self.clients.get_mut(index) else { return };
            if let Stage::Connects(guest, _) = std::mem::replace(&mut client.stage, Stage::Waits) {
                self.lend(index, guest);
            }
        } else if line.len() >= MAX_HANDSHAKE || line.ends_with(b"\n") {
            self.unreachable(index, &ErrorKind::InvalidData.into());
        }
    }

    /// Gives a connection to its client, if it is still there.
    fn lend(&mut self, index: usize, guest: UnixStream) {
        let Some(Some(client)) = self.clients.get_mut(index) else { return };
        let is_lent = client.socket.as_ref().is_some_and(|socket| {
            // Both descriptors share this mode, and the client's reads may block.
            guest.set_nonblocking(false).is_ok()
                && answer(socket, &Reply::Ok(Done {}), Some(guest.as_fd())).is_ok()
        });
        client.stage = Stage::Lent(guest);
        if !is_lent {
            self.recall(index);
        }
    }

    /// The client has sent more than its request, or its end.
    fn on_client(&mut self, index: usize) {
        let Some(Some(client)) = self.clients.get_mut(index) else { return };
        let Some(socket) = &mut client.socket else { return };
        if socket.read(&mut [0]).is_err_and(|error| is_nothing(&error)) {
            return;
        }
        match client.stage {
            Stage::Asks(_) | Stage::Waits => self.remove(index),
            Stage::Lent(_) => self.recall(index),
            Stage::Connects(..) => {
                let guest = client.watched[1];
                self.watch(index, [Interest::NONE, guest]);
                if let Some(Some(client)) = self.clients.get_mut(index) {
                    client.socket = None;
                }
            }
            Stage::Ends(_) => {}
        }
    }

    /// Ends the connection of a client that has gone.
    fn recall(&mut self, index: usize) {
        self.watch(index, [Interest::NONE; 2]);
        let Some(Some(client)) = self.clients.get_mut(index) else { return };
        client.socket = None;
        if let Stage::Lent(guest) = std::mem::replace(&mut client.stage, Stage::Waits) {
            ignore(guest.shutdown(Shutdown::Write), "the guest has closed it");
            ignore(guest.set_nonblocking(true), "the kernel changes a flag of its own");
            client.stage = Stage::Ends(guest);
            client.deadline = Some(Instant::now() + END_WAIT);
            self.watch(index, [Interest::NONE, Interest::READ]);
        }
    }

    fn refuse(&mut self, index: usize, code: RefusalCode, message: impl Into<String>) {
        if let Some(Some(Client { socket: Some(socket), .. })) = self.clients.get(index) {
            ignore(answer(socket, &refusal(code, message), None), "the client has gone");
        }
        self.remove(index);
    }

    fn remove(&mut self, index: usize) {
        self.watch(index, [Interest::NONE; 2]);
        if self.clients.get_mut(index).and_then(Option::take).is_some() {
            self.free.push(index);
        }
    }

    /// Changes the interests at both sockets of a client.
    fn watch(&mut self, index: usize, wanted: [Interest; 2]) {
        let Some(Some(client)) = self.clients.get(index) else { return };
        let [of_client, of_guest] = client.watched;
        let key = CLIENTS + (u64::try_from(index).unwrap_or(0) << 1);
        let mut set = Ok(());
        if let Some(socket) = &client.socket {
            set = self.poller.set(socket.as_fd(), key, of_client, wanted[0]);
        }
        if let Some(guest) = client.guest() {
            set = set.and(self.poller.set(guest, key | 1, of_guest, wanted[1]));
        }
        match set {
            Ok(()) => {
                if let Some(Some(client)) = self.clients.get_mut(index) {
                    client.watched = wanted;
                }
            }
            Err(_) => {
                // The kernel is out of memory. What cannot be watched cannot go on.
                self.clients[index] = None;
                self.free.push(index);
            }
        }
    }
}

#[cfg(test)]
mod tests;
