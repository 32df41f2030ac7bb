//! UDP: flows that the guest began, each over a connected socket of the host, and published ports, which are bound sockets of the host.

use super::super::frames::{self, Unreachable};
use super::super::packet::{Body, Packet};
use super::super::stream::no_signal;
use super::super::{GATEWAY_4, GATEWAY_6, GUEST_4, GUEST_6};
use super::outside::{Failure, failure};
use super::poller::{Interest, Poller};
use super::{Kind, MAX_INBOUND, MAX_UDP, Token, Work};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, recv, recvfrom, send, sendto};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a flow may be silent: one without an answer, one with answers, and a DNS query.
const UNANSWERED: Duration = Duration::from_secs(60);
const ANSWERED: Duration = Duration::from_secs(180);
const DNS: Duration = Duration::from_secs(20);
const DNS_PORT: u16 = 53;
/// How often silent flows are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// The longest UDP packet.
const MAX_DATA: usize = 65_507;
/// Packets that are read from a socket before others have their turn.
const BATCH: usize = 32;

/// The guest's port and the peer, as the guest sees it. Its own address follows from the peer's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: u16,
    peer: SocketAddr,
}

impl Key {
    fn guest(self) -> SocketAddr {
        let own = if self.peer.is_ipv4() { IpAddr::V4(GUEST_4) } else { IpAddr::V6(GUEST_6) };
        SocketAddr::new(own, self.guest)
    }
}

struct Flow {
    key: Key,
    socket: OwnedFd,
    is_answered: bool,
    active: Instant,
}

impl Flow {
    fn is_over(&self, now: Instant) -> bool {
        let patience = match (self.key.peer.port(), self.is_answered) {
            (DNS_PORT, _) => DNS,
            (_, true) => ANSWERED,
            (_, false) => UNANSWERED,
        };
        now >= self.active + patience
    }
}

/// A published port.
struct Published {
    socket: OwnedFd,
    guest: u16,
}

/// A peer that has sent something to a published port.
struct Inbound {
    port: usize,
    /// The peer's address in the host's world.
    real: SocketAddr,
    active: Instant,
}

/// The UDP flows of a guest.
pub(super) struct Flows {
    flows: HashMap<u64, Flow>,
    ids: HashMap<Key, u64>,
    published: Vec<Published>,
    inbound: HashMap<Key, Inbound>,
    sweep: Option<Instant>,
    last: u64,
    /// Where packets are read to.
    space: Vec<u8>,
}

impl Flows {
    pub(super) fn new(published: Vec<(OwnedFd, u16)>, poller: &Poller) -> nix::Result<Self> {
        for ((socket, _), id) in published.iter().zip(0..) {
            poller.set(socket, Token::Published(id).number(), Interest::NONE, Interest::READ)?;
        }
        Ok(Self {
            flows: HashMap::new(),
            ids: HashMap::new(),
            published: published.into_iter().map(|(socket, guest)| Published { socket, guest }).collect(),
            inbound: HashMap::new(),
            sweep: None,
            last: 0,
            space: vec![0; MAX_DATA + 1],
        })
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.sweep
    }

    /// A packet of the guest.
    pub(super) fn guest_sent(&mut self, packet: &Packet<'_>, work: &mut Work<'_>) {
        let Body::Udp { source, destination, data } = packet.body else { return };
        let key = Key { guest: source, peer: SocketAddr::new(packet.destination, destination) };
        if self.answer_inbound(key, data, work.now) {
            return;
        }
        let id = match self.ids.get(&key) {
            Some(&id) => id,
            None => match self.open(key, work) {
                Ok(id) => id,
                Err(errno) => return work.fail(packet, errno),
            },
        };
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.active = work.now;
        let mut sent = send(flow.socket.as_raw_fd(), data, no_signal());
        if sent == Err(Errno::ECONNREFUSED) {
            // That was the answer to an earlier packet, and this one was not sent.
            refuse(key, work);
            sent = send(flow.socket.as_raw_fd(), data, no_signal());
        }
        if let Err(errno) = sent
            && errno != Errno::ECONNREFUSED
        {
            work.fail(packet, errno);
        }
    }

    fn open(&mut self, key: Key, work: &mut Work<'_>) -> nix::Result<u64> {
        if self.flows.len() >= MAX_UDP {
            self.give_one_up(work);
        }
        let socket = match work.outside.open(Kind::Udp, key.peer) {
            Err(Errno::EMFILE | Errno::ENFILE) if !self.flows.is_empty() => {
                self.give_one_up(work);
                work.outside.open(Kind::Udp, key.peer)?
            }
            opened => opened?,
        };
        self.last += 1;
        work.poller.set(&socket, Token::Udp(self.last).number(), Interest::NONE, Interest::READ)?;
        self.flows.insert(self.last, Flow { key, socket, is_answered: false, active: work.now });
        self.ids.insert(key, self.last);
        self.sweep.get_or_insert(work.now + SWEEP);
        Ok(self.last)
    }

    /// Ends the flow that has been silent for the longest time; one that was never answered first.
    fn give_one_up(&mut self, work: &Work<'_>) {
        let oldest = self.flows.iter().min_by_key(|(_, flow)| (flow.is_answered, flow.active));
        if let Some((&id, _)) = oldest {
            self.remove(id, work);
        }
    }

    fn remove(&mut self, id: u64, work: &Work<'_>) {
        if let Some(flow) = self.flows.remove(&id) {
            self.ids.remove(&flow.key);
            let token = Token::Udp(id).number();
            let forgotten = work.poller.set(&flow.socket, token, Interest::READ, Interest::NONE);
            crate::store::text::ignore(forgotten, "closing does it too");
        }
    }

    /// The socket of a flow is readable, or has an error.
    pub(super) fn host_is_ready(&mut self, id: u64, work: &mut Work<'_>) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let key = flow.key;
        let guest = key.guest();
        for _ in 0..BATCH {
            match recv(flow.socket.as_raw_fd(), &mut self.space, MsgFlags::empty()) {
                Ok(length) => {
                    (flow.is_answered, flow.active) = (true, work.now);
                    let from = (key.peer.ip(), key.peer.port());
                    let data = &self.space[..length.min(MAX_DATA)];
                    work.answer(&frames::udp(true, from, (guest.ip(), guest.port()), data));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => match failure(errno) {
                    Failure::Unreachable(why) => work.answer(&frames::undelivered(guest, key.peer, why)),
                    Failure::Refused => refuse(key, work),
                    Failure::Silent => {}
                },
            }
        }
    }

    /// A published port is readable.
    pub(super) fn published_is_ready(&mut self, id: u64, work: &mut Work<'_>) {
        let Ok(port) = usize::try_from(id) else { return };
        let Some(published) = self.published.get(port) else { return };
        for _ in 0..BATCH {
            let got = recvfrom::<SockaddrStorage>(published.socket.as_raw_fd(), &mut self.space);
            let (length, from) = match got {
                Ok((length, from)) => (length, from),
                Err(Errno::EAGAIN) => break,
                // An error of an earlier answer concerns only its peer.
                Err(_) => continue,
            };
            let Some(real) = from.and_then(|from| address(&from)) else { continue };
            let key = Key { guest: published.guest, peer: as_the_guest_sees(real) };
            if self.inbound.len() >= MAX_INBOUND && !self.inbound.contains_key(&key) {
                let oldest = self.inbound.iter().min_by_key(|(_, inbound)| inbound.active);
                if let Some(oldest) = oldest.map(|(key, _)| *key) {
                    self.inbound.remove(&oldest);
                }
            }
            self.inbound.insert(key, Inbound { port, real, active: work.now });
            self.sweep.get_or_insert(work.now + SWEEP);
            let guest = key.guest();
            let data = &self.space[..length.min(MAX_DATA)];
            let from = (key.peer.ip(), key.peer.port());
            work.answer(&frames::udp(true, from, (guest.ip(), guest.port()), data));
        }
    }

    /// Sends an answer through the published port that the peer's packet came through. False: it is not one.
    fn answer_inbound(&mut self, key: Key, data: &[u8], now: Instant) -> bool {
        let Some(inbound) = self.inbound.get_mut(&key) else { return false };
        let Some(published) = self.published.get(inbound.port) else { return false };
        inbound.active = now;
        let to = SockaddrStorage::from(inbound.real);
        let sent = sendto(published.socket.as_raw_fd(), data, &to, no_signal());
        crate::store::text::ignore(sent, "packets may get lost");
        true
    }

    /// Ends flows that have been silent for too long.
    pub(super) fn tick(&mut self, work: &mut Work<'_>) {
        if self.sweep.is_none_or(|sweep| sweep > work.now) {
            return;
        }
        let over: Vec<u64> =
            self.flows.iter().filter(|(_, flow)| flow.is_over(work.now)).map(|(id, _)| *id).collect();
        for id in over {
            self.remove(id, work);
        }
        self.inbound.retain(|_, inbound| work.now < inbound.active + ANSWERED);
        let is_empty = self.flows.is_empty() && self.inbound.is_empty();
        self.sweep = (!is_empty).then(|| work.now + SWEEP);
    }
}

fn refuse(key: Key, work: &mut Work<'_>) {
    work.answer(&frames::undelivered(key.guest(), key.peer, Unreachable::Port));
}

fn address(from: &SockaddrStorage) -> Option<SocketAddr> {
    let four = from.as_sockaddr_in().map(|four| SocketAddr::V4(SocketAddrV4::from(*four)));
    four.or_else(|| from.as_sockaddr_in6().map(|six| SocketAddr::V6(SocketAddrV6::from(*six))))
}

/// The address under which the guest knows a peer: the host's loopback is behind the gateway.
fn as_the_guest_sees(real: SocketAddr) -> SocketAddr {
    let ip = match real.ip().to_canonical() {
        ip if !ip.is_loopback() => ip,
        IpAddr::V4(_) => GATEWAY_4.into(),
        IpAddr::V6(_) => GATEWAY_6.into(),
    };
    SocketAddr::new(ip, real.port())
}
