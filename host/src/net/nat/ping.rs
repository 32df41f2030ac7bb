//! `ping`: the guest's echo requests, over the host's sockets for them (`net.ipv4.ping_group_range`). Where the host does not permit such
//! sockets, the guest is told that the network prohibits it.

use super::super::frames;
use super::super::packet::{Body, Packet};
use super::super::stream::no_signal;
use super::outside::{Failure, failure};
use super::poller::Interest;
use super::{Kind, MAX_PINGS, Token, Work};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long one may be silent.
const IDLE: Duration = Duration::from_secs(30);
const SWEEP: Duration = Duration::from_secs(5);
/// Type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// Headers of an IP packet and of an ICMP message, and data, fit into this.
const SPACE: usize = 65_536;
const BATCH: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    peer: IpAddr,
    identifier: [u8; 2],
}

struct Ping {
    key: Key,
    socket: OwnedFd,
    /// The last request, which an error is about.
    asked: Box<[u8]>,
    active: Instant,
}

/// The pings of a guest.
#[derive(Default)]
pub(super) struct Pings {
    pings: HashMap<u64, Ping>,
    ids: HashMap<Key, u64>,
    sweep: Option<Instant>,
    last: u64,
}

impl Pings {
    pub(super) fn len(&self) -> usize {
        self.pings.len()
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.sweep
    }

    /// A packet of the guest.
    pub(super) fn guest_sent(&mut self, packet: &Packet<'_>, work: &mut Work<'_>) {
        let message = if packet.source.is_ipv4() { packet.bytes.get(20..) } else { packet.bytes.get(40..) };
        let (Body::Echo, Some(message)) = (packet.body, message.filter(|message| message.len() >= HEADER))
        else {
            return;
        };
        if !is_request(message[0], packet.source) || message[1] != 0 {
            return;
        }
        let key =
            Key { guest: packet.source, peer: packet.destination, identifier: [message[4], message[5]] };
        let id = match self.ids.get(&key) {
            Some(&id) => id,
            None => match self.open(key, work) {
                Ok(id) => id,
                Err(errno) => return work.fail(packet, errno),
            },
        };
        let Some(ping) = self.pings.get_mut(&id) else { return };
        ping.active = work.now;
        ping.asked = packet.bytes[..packet.bytes.len().min(128)].into();
        if let Err(errno) = send(ping.socket.as_raw_fd(), message, no_signal()) {
            work.fail(packet, errno);
        }
    }

    fn open(&mut self, key: Key, work: &mut Work<'_>) -> nix::Result<u64> {
        if self.pings.len() >= MAX_PINGS
            && let Some((&id, _)) = self.pings.iter().min_by_key(|(_, ping)| ping.active)
        {
            self.remove(id, work);
        }
        let socket = work.outside.open(Kind::Ping, SocketAddr::new(key.peer, 0))?;
        self.last += 1;
        work.poller.set(&socket, Token::Ping(self.last).number(), Interest::NONE, Interest::READ)?;
        let ping = Ping { key, socket, asked: Box::default(), active: work.now };
        self.pings.insert(self.last, ping);
        self.ids.insert(key, self.last);
        self.sweep.get_or_insert(work.now + SWEEP);
        Ok(self.last)
    }

    fn remove(&mut self, id: u64, work: &Work<'_>) {
        if let Some(ping) = self.pings.remove(&id) {
            self.ids.remove(&ping.key);
            let token = Token::Ping(id).number();
            let forgotten = work.poller.set(&ping.socket, token, Interest::READ, Interest::NONE);
            crate::store::text::ignore(forgotten, "closing does it too");
        }
    }

    /// The socket of a ping is readable, or has an error.
    pub(super) fn host_is_ready(&mut self, id: u64, work: &mut Work<'_>) {
        let Some(ping) = self.pings.get_mut(&id) else { return };
        let Key { guest, peer, identifier } = ping.key;
        let mut space = vec![0; SPACE];
        for _ in 0..BATCH {
            match recv(ping.socket.as_raw_fd(), &mut space, MsgFlags::empty()) {
                Ok(length) => {
                    ping.active = work.now;
                    let Some(mut message) = reply(&space[..length], peer) else { continue };
                    message[2..4].copy_from_slice(&[0, 0]);
                    message[4..6].copy_from_slice(&identifier);
                    work.answer(&frames::control(peer, guest, message));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => {
                    let why = match failure(errno) {
                        Failure::Unreachable(why) => why,
                        Failure::Refused => frames::Unreachable::Host,
                        Failure::Silent => continue,
                    };
                    work.answer(&frames::unreachable(guest, &ping.asked, why));
                }
            }
        }
    }

    /// Ends those that have been silent for too long.
    pub(super) fn tick(&mut self, work: &mut Work<'_>) {
        if self.sweep.is_none_or(|sweep| sweep > work.now) {
            return;
        }
        let is_over = |ping: &Ping| work.now >= ping.active + IDLE;
        let over: Vec<u64> = self.pings.iter().filter(|(_, ping)| is_over(ping)).map(|(id, _)| *id).collect();
        for id in over {
            self.remove(id, work);
        }
        self.sweep = (!self.pings.is_empty()).then(|| work.now + SWEEP);
    }
}

fn is_request(kind: u8, family: IpAddr) -> bool {
    kind == if family.is_ipv4() { 8 } else { 128 }
}

/// The echo reply in what a socket has received. Some systems put the IP header before it.
fn reply(received: &[u8], peer: IpAddr) -> Option<Vec<u8>> {
    let message = match received.first()? {
        first if cfg!(not(target_os = "linux")) && peer.is_ipv4() && first >> 4 == 4 => {
            received.get(usize::from(first & 15) * 4..)?
        }
        _ => received,
    };
    let wanted = if peer.is_ipv4() { 0 } else { 129 };
    (message.len() >= HEADER && message[0] == wanted).then(|| message.to_vec())
}
