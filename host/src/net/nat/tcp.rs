//! TCP connections of the guest, each spliced to one of the host's.
//!
//! ```text
//! SYN ──> Connecting ──(the host's connection stands)──> Open ──(both ends, or a reset)──> gone
//!              └──(refused: reset; unreachable: ICMP; timed out: silence)──> gone
//! ```
//!
//! smoltcp speaks TCP with the guest. Each connection has a socket set of its own, so that a packet costs the same however many connections
//! there are.

use super::super::frames;
use super::super::packet::{self, Body, Packet, flags};
use super::super::{GATEWAY_4, GATEWAY_6};
use super::device::Device;
use super::poller::{Interest, Ready};
use super::splice::{self, Blocked};
use super::{Kind, MAX_CONNECTING, MAX_TCP, Token, Work};
use crate::store::text::ignore;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{Shutdown, getsockopt, setsockopt, shutdown, sockopt};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpListenEndpoint};
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Bytes that a connection buffers in each direction, for the first connections. Only what was used takes memory.
const BUFFER: usize = 256 << 10;
/// How many connections have such buffers; more would let a guest fill the host's memory.
const WITH_LARGE_BUFFERS: usize = 64;
/// Bytes that other connections buffer in each direction, here and in the host's kernel.
const SMALL_BUFFER: usize = 64 << 10;
/// How long a connection that has ended on one side must have been silent before it may be given up for a new one.
const GIVEN_UP: Duration = Duration::from_secs(300);
/// How many of a connection's first packets are acknowledged at once: a client that sends its request in two writes waits for that.
const ACKNOWLEDGED_AT_ONCE: u8 = 16;
/// How long later acknowledgements wait for an answer to travel with.
const ACKNOWLEDGED_WITHIN: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(1);
/// The shortest time between two looks at the same timer.
const SHORTEST: Duration = Duration::from_millis(1);

/// The guest's end and the peer's, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    peer: SocketAddr,
}

struct Connection {
    key: Key,
    /// The host's socket.
    socket: OwnedFd,
    interest: Interest,
    phase: Phase,
    due: Option<Instant>,
    /// When anything happened last.
    active: Instant,
}

enum Phase {
    /// The guest's SYN waits until the host's connection stands.
    Connecting {
        syn: Box<[u8]>,
    },
    Open(Box<Open>),
}

struct Open {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The guest has ended its side.
    guest_has_ended: bool,
    /// The host's socket was told so, after the last byte.
    is_told: bool,
    /// The peer has ended its side.
    peer_has_ended: bool,
    /// The host's socket may have more bytes, for which there was no room.
    has_more: bool,
    /// The guest's packets, as far as they are counted.
    packets: u8,
}

/// How the host's socket is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Orderly,
    /// With a reset to the peer.
    Reset,
}

/// The TCP connections of a guest.
pub(super) struct Connections {
    interface: Interface,
    /// The origin of smoltcp's time.
    origin: Instant,
    connections: HashMap<u64, Connection>,
    ids: HashMap<Key, u64>,
    due: BTreeSet<(Instant, u64)>,
    connecting: usize,
    last: u64,
}

impl Connections {
    pub(super) fn new(now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        // The numbers of the first bytes must not be guessable from outside of the pod's host.
        config.random_seed = uuid::Uuid::new_v4().as_u64_pair().0;
        let mut nothing = Vec::new();
        let mut device = Device { incoming: None, out: &mut nothing };
        let mut interface = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
        // Everything is on its link, and every address is its own.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            for own in [IpAddress::Ipv4(GATEWAY_4), IpAddress::Ipv6(GATEWAY_6)] {
                assert!(addresses.push(IpCidr::new(own, 0)).is_ok(), "there is room for eight");
            }
        });
        Self {
            interface,
            origin: now,
            connections: HashMap::new(),
            ids: HashMap::new(),
            due: BTreeSet::new(),
            connecting: 0,
            last: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// A packet of the guest.
    pub(super) fn guest_sent(&mut self, packet: &Packet<'_>, work: &mut Work<'_>) {
        let Body::Tcp { source, destination, flags, .. } = packet.body else { return };
        let key = Key {
            guest: SocketAddr::new(packet.source, source),
            peer: SocketAddr::new(packet.destination, destination),
        };
        let Some(&id) = self.ids.get(&key) else {
            if flags & (flags::SYN | flags::ACK | flags::RST) == flags::SYN {
                self.open(key, packet, work);
            } else {
                refuse(packet, work);
            }
            return;
        };
        match self.connections.get(&id).map(|connection| &connection.phase) {
            Some(Phase::Connecting { .. }) if flags & flags::RST != 0 => self.remove(id, Ending::Reset, work),
            // It repeats its SYN.
            Some(Phase::Connecting { .. }) | None => {}
            Some(Phase::Open(_)) => self.advance(id, Some(packet.bytes), false, work),
        }
    }

    fn open(&mut self, key: Key, packet: &Packet<'_>, work: &mut Work<'_>) {
        if self.connecting >= MAX_CONNECTING {
            return;
        }
        if self.connections.len() >= MAX_TCP && !self.give_one_up(work) {
            refuse(packet, work);
            return;
        }
        let opened = work.outside.open(Kind::Tcp, key.peer).and_then(|socket| {
            self.last += 1;
            work.poller.set(&socket, Token::Tcp(self.last).number(), Interest::NONE, Interest::WRITE)?;
            Ok(socket)
        });
        let socket = match opened {
            Ok(socket) => socket,
            Err(errno) => return work.fail(packet, errno),
        };
        self.connecting += 1;
        self.ids.insert(key, self.last);
        let connection = Connection {
            key,
            socket,
            interest: Interest::WRITE,
            phase: Phase::Connecting { syn: packet.bytes.into() },
            due: None,
            active: work.now,
        };
        self.connections.insert(self.last, connection);
    }

    /// Ends the connection that has been silent for the longest time, among those that one side has ended. Such a connection may belong to
    /// nobody any more: a guest's kernel forgets them after a minute, and the peer may never end its side.
    fn give_one_up(&mut self, work: &mut Work<'_>) -> bool {
        let is_half = |connection: &Connection| match &connection.phase {
            Phase::Connecting { .. } => false,
            Phase::Open(open) => open.guest_has_ended || open.peer_has_ended,
        };
        let oldest = self
            .connections
            .iter()
            .filter(|(_, connection)| is_half(connection) && work.now >= connection.active + GIVEN_UP)
            .min_by_key(|(_, connection)| connection.active)
            .map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.remove(id, Ending::Reset, work);
        }
        oldest.is_some()
    }

    /// Something has happened at the host's socket.
    pub(super) fn host_is_ready(&mut self, id: u64, ready: Ready, work: &mut Work<'_>) {
        let is_large = self.connections.len() <= WITH_LARGE_BUFFERS;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Phase::Connecting { syn } = &mut connection.phase else {
            return self.advance(id, None, ready.read, work);
        };
        if !ready.write {
            return;
        }
        let outcome = match getsockopt(&connection.socket, sockopt::SocketError) {
            Ok(0) => Ok(()),
            Ok(number) => Err(Errno::from_raw(number)),
            Err(errno) => Err(errno),
        };
        let syn = std::mem::take(syn);
        match outcome {
            Ok(()) => {
                if !is_large {
                    bound(&connection.socket);
                }
                connection.phase = Phase::Open(Box::new(listening(connection.key, is_large)));
                self.connecting -= 1;
                self.advance(id, Some(&syn), false, work);
            }
            Err(errno) => {
                if let Some(packet) = packet::of_ip(&syn) {
                    work.fail(&packet, errno);
                }
                self.remove(id, Ending::Orderly, work);
            }
        }
    }

    /// Gives a packet to a connection, moves bytes in both directions, and sends what follows from that.
    fn advance(&mut self, id: u64, packet: Option<&[u8]>, is_readable: bool, work: &mut Work<'_>) {
        let at = self.time(work.now);
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Phase::Open(open) = &mut connection.phase else { return };
        connection.active = work.now;
        let mut device = Device { incoming: packet, out: work.out };
        if packet.is_some() {
            if open.packets < ACKNOWLEDGED_AT_ONCE {
                open.packets += 1;
                if open.packets == ACKNOWLEDGED_AT_ONCE {
                    let socket = open.sockets.get_mut::<Socket<'_>>(open.handle);
                    socket.set_ack_delay(Some(ACKNOWLEDGED_WITHIN));
                }
            }
            self.interface.poll(at, &mut device, &mut open.sockets);
        }
        let socket = open.sockets.get_mut::<Socket<'_>>(open.handle);
        open.guest_has_ended |= has_ended(socket.state());
        let mut failed = None;
        let mut writable = Interest::NONE;
        match splice::to_peer(socket, &connection.socket) {
            Ok(Blocked::No) => {}
            Ok(Blocked::Yes) => writable = Interest::WRITE,
            Err(errno) => failed = Some(errno),
        }
        if open.guest_has_ended && !open.is_told && !socket.can_recv() && failed.is_none() {
            ignore(shutdown(connection.socket.as_raw_fd(), Shutdown::Write), "the peer has ended it already");
            open.is_told = true;
        }
        if (is_readable || open.has_more) && !open.peer_has_ended && failed.is_none() {
            if device.out.len() < super::OUTPUT_FULL {
                match splice::to_guest(socket, &connection.socket) {
                    Ok(splice::Source::Empty) => open.has_more = false,
                    Ok(splice::Source::HasMore) => open.has_more = true,
                    Ok(splice::Source::Ended) => {
                        (open.peer_has_ended, open.has_more) = (true, false);
                        socket.close();
                    }
                    Err(errno) => failed = Some(errno),
                }
            } else {
                // It is read when the output has been written.
                open.has_more = false;
            }
        }
        if failed.is_some() {
            socket.abort();
        }
        self.interface.poll(at, &mut device, &mut open.sockets);
        let state = open.sockets.get_mut::<Socket<'_>>(open.handle).state();
        open.guest_has_ended |= has_ended(state);
        let is_over = match state {
            // The SYN was not one that can be accepted.
            State::Listen => Some(Ending::Reset),
            State::Closed | State::TimeWait if open.guest_has_ended && open.peer_has_ended => {
                open.is_told.then_some(Ending::Orderly)
            }
            State::Closed => Some(Ending::Reset),
            _ => None,
        };
        if let Some(ending) = is_over {
            return self.remove(id, ending, work);
        }
        let interest = Interest { read: !open.peer_has_ended && !open.has_more, ..writable };
        let due = self.interface.poll_at(at, &open.sockets).map(|due| {
            let since = Duration::from_micros(u64::try_from(due.total_micros()).unwrap_or(0));
            (self.origin + since).max(work.now + SHORTEST)
        });
        let token = Token::Tcp(id).number();
        let watched = work.poller.set(&connection.socket, token, connection.interest, interest);
        connection.interest = interest;
        if due != connection.due {
            if let Some(before) = connection.due {
                self.due.remove(&(before, id));
            }
            self.due.extend(due.map(|due| (due, id)));
            connection.due = due;
        }
        if watched.is_err() {
            self.remove(id, Ending::Reset, work);
        }
    }

    /// Lets connections whose time has come repeat packets or send late acknowledgements.
    pub(super) fn tick(&mut self, work: &mut Work<'_>) {
        while let Some(&(due, id)) = self.due.first().filter(|(due, _)| *due <= work.now && !work.is_full()) {
            self.due.remove(&(due, id));
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.due = None;
                let active = connection.active;
                self.advance(id, None, false, work);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.active = active;
                }
            }
        }
    }

    fn remove(&mut self, id: u64, ending: Ending, work: &Work<'_>) {
        let Some(connection) = self.connections.remove(&id) else { return };
        self.ids.remove(&connection.key);
        if let Some(due) = connection.due {
            self.due.remove(&(due, id));
        }
        if matches!(connection.phase, Phase::Connecting { .. }) {
            self.connecting -= 1;
        }
        let token = Token::Tcp(id).number();
        let forgotten = work.poller.set(&connection.socket, token, connection.interest, Interest::NONE);
        ignore(forgotten, "closing does it too");
        if ending == Ending::Reset {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            ignore(
                setsockopt(&connection.socket, sockopt::Linger, &linger),
                "the peer then sees an ordinary end",
            );
        }
    }

    fn time(&self, now: Instant) -> smoltcp::time::Instant {
        let since = now.saturating_duration_since(self.origin);
        smoltcp::time::Instant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// Whether the guest has sent its end.
fn has_ended(state: State) -> bool {
    matches!(state, State::CloseWait | State::Closing | State::LastAck | State::TimeWait)
}

fn refuse(packet: &Packet<'_>, work: &mut Work<'_>) {
    if let Some(reset) = frames::refusal(packet) {
        work.answer(&reset);
    }
}

/// smoltcp's side of a connection, which accepts the guest's SYN.
fn listening(key: Key, is_large: bool) -> Open {
    let size = if is_large { BUFFER } else { SMALL_BUFFER };
    let buffer = || SocketBuffer::new(vec![0; size]);
    let mut socket = Socket::new(buffer(), buffer());
    // The peer's kernel has decided already when to send.
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    let local = IpListenEndpoint { addr: Some(key.peer.ip().into()), port: key.peer.port() };
    ignore(socket.listen(local), "a guest that uses port 0 gets a reset");
    let mut sockets = SocketSet::new(Vec::with_capacity(1));
    let handle = sockets.add(socket);
    Open {
        sockets,
        handle,
        guest_has_ended: false,
        is_told: false,
        peer_has_ended: false,
        has_more: false,
        packets: 0,
    }
}

/// Bounds what the host's kernel buffers for a connection beyond the first ones.
fn bound(socket: &OwnedFd) {
    for set in [
        setsockopt(socket, sockopt::SndBuf, &SMALL_BUFFER),
        setsockopt(socket, sockopt::RcvBuf, &SMALL_BUFFER),
    ] {
        ignore(set, "then it has the usual size");
    }
}
