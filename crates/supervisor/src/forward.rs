//! Forwarded connections: connections to [`Door::Forward`] go to a port of the pod. One thread serves all of them. Owns: the
//! connections. Must not know: containers.

use crate::interface::{Door, Home};
use crate::sync::thread;
use crate::sys;
use magikvm_proto::forward::{ForwardRequest, MAX_REQUEST_LEN};
use magikvm_proto::limits::{FORWARD_TIMEOUT_SECS, MAX_FORWARDS};
use magikvm_proto::stream::{Link, Local, Ready, Side, Traffic, Verdict, pump};
use magikvm_proto::wire::{Done, Refusal, RefusalCode, Reply};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limit for setting up a connection.
const SETUP_TIMEOUT: Duration = Duration::from_secs(FORWARD_TIMEOUT_SECS);
/// How often deadlines are checked while there are any; a failed accept is retried after the same time.
const TICK_MS: u16 = 1000;
/// Most bytes of one read.
const SCRATCH: usize = 32 << 10;
/// Descriptors that the supervisor may have open in addition to those of connections.
const OTHER_FILES: u64 = 1024;
/// Marks epoll events of the listening socket.
const LISTENER: u64 = u64::MAX;

/// A connection to the pod's port.
struct Port(TcpStream);

impl Read for Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Local for Port {
    fn end_output(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

/// The stage of a connection.
enum Stage {
    Asked(Vec<u8>),
    /// The pod's port is being connected to, at the first of these addresses.
    Connecting {
        port: TcpStream,
        address: SocketAddr,
    },
    /// Bytes flow in both directions.
    Open {
        port: Port,
        link: Box<Link>,
    },
}

/// One connection of the host.
struct Connection {
    /// Used through the traits of a file.
    host: File,
    stage: Stage,
    /// Deadline for the setup.
    deadline: Option<Instant>,
    /// The events of both ends that are watched now: readable, writable.
    watched: [(bool, bool); 2],
}

/// What happens to a connection after a step.
enum Next {
    Goes,
    Ends,
}

struct Server {
    epoll: Epoll,
    home: Arc<dyn Home>,
    listens: bool,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// How many have a deadline.
    young: usize,
    scratch: Vec<u8>,
}

pub(crate) fn start(home: Arc<dyn Home>) -> io::Result<()> {
    allow_files(home.as_ref());
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(home.listener(Door::Forward), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    thread("forward", move || {
        let mut server = Server {
            epoll,
            home,
            listens: true,
            connections: Vec::new(),
            free: Vec::new(),
            young: 0,
            scratch: vec![0; SCRATCH],
        };
        loop {
            if let Err(error) = server.turn() {
                server.home.note(&format!("forward: {error}"));
                std::thread::sleep(Duration::from_millis(TICK_MS.into()));
            }
        }
    })
}

/// Two for each connection. Container processes are made by other processes and do not inherit the limit.
fn allow_files(home: &dyn Home) {
    let wanted = 2 * u64::try_from(MAX_FORWARDS).unwrap_or(0) + OTHER_FILES;
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted).min(hard), hard));
    if let Err(error) = raised {
        home.note(&format!("forward: {error}"));
    }
}

impl Server {
    fn turn(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        let waits = self.young > 0 || !self.listens;
        let timeout = if waits { EpollTimeout::from(TICK_MS) } else { EpollTimeout::NONE };
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            let found = event.events();
            let broken = found.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
            let ready = (
                found.contains(EpollFlags::EPOLLIN) || broken,
                found.contains(EpollFlags::EPOLLOUT) || broken,
            );
            match event.data() {
                LISTENER => self.accept()?,
                key => self.on_event(usize::try_from(key >> 1).unwrap_or(usize::MAX), key & 1 == 1, ready),
            }
        }
        if waits {
            self.tick()?;
        }
        Ok(())
    }

    /// Refuses those whose setup took too long.
    fn tick(&mut self) -> io::Result<()> {
        let now = Instant::now();
        for index in 0..self.connections.len() {
            let late = self.connections[index]
                .as_ref()
                .is_some_and(|connection| connection.deadline.is_some_and(|at| at <= now));
            if late {
                self.refuse(index, RefusalCode::Conflict, "the port did not answer in time");
            }
        }
        if !self.listens {
            self.epoll
                .add(self.home.listener(Door::Forward), EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
            self.listens = true;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.home.accept(Door::Forward) {
                Ok(None) => {}
                Ok(Some(socket)) => self.admit(socket)?,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(()),
                    // The peer has already gone.
                    ErrorKind::NotConnected | ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        self.home.note(&format!("forward: {error}"));
                        self.listens = false;
                        return Ok(self.epoll.delete(self.home.listener(Door::Forward))?);
                    }
                },
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd) -> io::Result<()> {
        let mut host = File::from(socket);
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.connections.len() < MAX_FORWARDS => {
                self.connections.push(None);
                self.connections.len() - 1
            }
            None => {
                let message = format!("the pod already forwards {MAX_FORWARDS} connections");
                answer(&mut host, &Reply::Error(Refusal::new(RefusalCode::Busy, message)));
                return Ok(());
            }
        };
        let mut connection = Connection {
            host,
            stage: Stage::Asked(Vec::new()),
            deadline: Some(Instant::now() + SETUP_TIMEOUT),
            watched: [(false, false); 2],
        };
        let watched = connection.watch(&self.epoll, index, Ready { peer: (true, false), ..Ready::default() });
        match watched {
            Ok(()) => {
                self.young += 1;
                self.connections[index] = Some(connection);
            }
            Err(_) => self.free.push(index),
        }
        watched
    }

    fn on_event(&mut self, index: usize, of_port: bool, ready: (bool, bool)) {
        // An earlier event of the same round may have ended it.
        let Some(Some(connection)) = self.connections.get_mut(index) else { return };
        let was_young = connection.deadline.is_some();
        let next = match connection.stage {
            Stage::Asked(_) => connection.read_request(&self.epoll, index),
            Stage::Connecting { .. } if of_port => connection.on_connected(&self.epoll, index),
            // The host has gone, or sent data before the answer.
            Stage::Connecting { .. } => Ok(Next::Ends),
            Stage::Open { .. } => {
                let ready = match of_port {
                    true => Ready { local: ready, ..Ready::default() },
                    false => Ready { peer: ready, ..Ready::default() },
                };
                connection.move_bytes(&self.epoll, index, ready, &mut self.scratch)
            }
        };
        if was_young && connection.deadline.is_none() {
            self.young -= 1;
        }
        match next {
            Ok(Next::Goes) => {}
            Ok(Next::Ends) => self.end(index),
            Err(refusal) => self.refuse(index, refusal.code, refusal.message),
        }
    }

    fn refuse(&mut self, index: usize, code: RefusalCode, message: impl Into<String>) {
        if let Some(Some(connection)) = self.connections.get_mut(index) {
            answer(&mut connection.host, &Reply::Error(Refusal::new(code, message)));
        }
        self.end(index);
    }

    /// Closing its descriptors removes them from the epoll.
    fn end(&mut self, index: usize) {
        if let Some(connection) = self.connections[index].take() {
            if connection.deadline.is_some() {
                self.young -= 1;
            }
            self.free.push(index);
        }
    }
}

/// The host has sent one line and waits, so the socket has room for the answer.
fn answer(host: &mut File, reply: &Reply<Done>) -> bool {
    let Ok(mut line) = serde_json::to_vec(reply) else { return false };
    line.push(b'\n');
    host.write(&line).is_ok_and(|written| written == line.len())
}

fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal::new(code, message)
}

impl Connection {
    /// Changes the watched events. An end without any is not watched at all, because epoll would report again and
    /// again that it is closed.
    fn watch(&mut self, epoll: &Epoll, index: usize, wanted: Ready) -> io::Result<()> {
        let key = u64::try_from(index).unwrap_or(u64::MAX >> 2) << 1;
        let port = match &self.stage {
            Stage::Asked(_) => None,
            Stage::Connecting { port, .. } | Stage::Open { port: Port(port), .. } => Some(port.as_fd()),
        };
        let ends = [(Some(self.host.as_fd()), wanted.peer), (port, wanted.local)];
        for ((number, (fd, wanted)), watched) in (0..).zip(ends).zip(&mut self.watched) {
            let Some(fd) = fd else { continue };
            if wanted == *watched {
                continue;
            }
            let mut flags = EpollFlags::empty();
            flags.set(EpollFlags::EPOLLIN, wanted.0);
            flags.set(EpollFlags::EPOLLOUT, wanted.1);
            let mut event = EpollEvent::new(flags, key | number);
            match (*watched, wanted) {
                ((false, false), _) => epoll.add(fd, event)?,
                (_, (false, false)) => epoll.delete(fd)?,
                _ => epoll.modify(fd, &mut event)?,
            }
            *watched = wanted;
        }
        Ok(())
    }

    fn read_request(&mut self, epoll: &Epoll, index: usize) -> Result<Next, Refusal> {
        let Stage::Asked(line) = &mut self.stage else { return Ok(Next::Goes) };
        let mut buffer = [0; MAX_REQUEST_LEN];
        match self.host.read(&mut buffer) {
            Ok(0) => return Ok(Next::Ends),
            Ok(count) => line.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Next::Goes),
            Err(_) => return Ok(Next::Ends),
        }
        let invalid = |message: &str| refusal(RefusalCode::Invalid, message);
        match line.iter().position(|&byte| byte == b'\n') {
            Some(end) if end + 1 != line.len() => {
                return Err(invalid("more than one line before the answer"));
            }
            Some(_) => {}
            None if line.len() >= MAX_REQUEST_LEN => return Err(invalid("the line is too long")),
            None => return Ok(Next::Goes),
        }
        let request = serde_json::from_slice(line)
            .map_err(|error| refusal(RefusalCode::Invalid, format!("invalid request: {error}")))?;
        let ForwardRequest::Forward { port } = request;
        if port == 0 {
            return Err(invalid("port 0 is not allowed"));
        }
        self.connect(epoll, index, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    fn connect(&mut self, epoll: &Epoll, index: usize, address: SocketAddr) -> Result<Next, Refusal> {
        let failed = |error: io::Error| refusal(RefusalCode::Internal, format!("cannot connect: {error}"));
        self.watched[1] = (false, false);
        match sys::tcp_connect(address) {
            Ok(port) => {
                self.stage = Stage::Connecting { port: TcpStream::from(port), address };
                self.watch(epoll, index, Ready { peer: (true, false), local: (false, true) })
                    .map_err(failed)?;
                Ok(Next::Goes)
            }
            Err(error) => self.not_connected(epoll, index, address, &error),
        }
    }

    fn not_connected(
        &mut self,
        epoll: &Epoll,
        index: usize,
        address: SocketAddr,
        error: &io::Error,
    ) -> Result<Next, Refusal> {
        let refused = error.kind() == ErrorKind::ConnectionRefused;
        match address {
            SocketAddr::V4(_) if refused => {
                self.connect(epoll, index, SocketAddr::from((Ipv6Addr::LOCALHOST, address.port())))
            }
            _ if refused || matches!(address, SocketAddr::V6(_)) => {
                let message = format!("nothing in the pod listens on port {}", address.port());
                Err(refusal(RefusalCode::NotFound, message))
            }
            _ => Err(refusal(RefusalCode::Internal, format!("cannot connect to {address}: {error}"))),
        }
    }

    fn on_connected(&mut self, epoll: &Epoll, index: usize) -> Result<Next, Refusal> {
        let Stage::Connecting { port, address } = &self.stage else { return Ok(Next::Goes) };
        let address = *address;
        let failed = |error: io::Error| refusal(RefusalCode::Internal, error.to_string());
        if let Some(error) = port.take_error().map_err(failed)? {
            return self.not_connected(epoll, index, address, &error);
        }
        if !answer(&mut self.host, &Reply::Ok(Done {})) {
            return Ok(Next::Ends);
        }
        if let Stage::Connecting { port, .. } = std::mem::replace(&mut self.stage, Stage::Asked(Vec::new())) {
            // Small writes are sent at once, because the sender waited for them.
            port.set_nodelay(true).ok();
            self.stage =
                Stage::Open { port: Port(port), link: Box::new(Link::new(Side::Guest, Traffic::PORT)) };
        }
        self.deadline = None;
        // The port may send first, and may already have sent.
        let wanted = Ready { peer: (true, false), local: (true, false) };
        self.watch(epoll, index, wanted).map_err(failed)?;
        Ok(Next::Goes)
    }

    fn move_bytes(
        &mut self,
        epoll: &Epoll,
        index: usize,
        ready: Ready,
        scratch: &mut [u8],
    ) -> Result<Next, Refusal> {
        let Stage::Open { port, link } = &mut self.stage else { return Ok(Next::Goes) };
        match pump(link, &mut self.host, port, ready, scratch) {
            Verdict::Waits(wanted) => match self.watch(epoll, index, wanted) {
                Ok(()) => Ok(Next::Goes),
                Err(_) => Ok(Next::Ends),
            },
            Verdict::Finished => Ok(Next::Ends),
            Verdict::Reset(_) | Verdict::Cut | Verdict::Violated(_) => {
                // The peer must not take this for an orderly end.
                sys::reset_on_close(&port.0);
                Ok(Next::Ends)
            }
        }
    }
}
