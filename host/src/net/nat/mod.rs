//! The NAT of a pod: it carries the packets of one guest over ordinary sockets of the host. It speaks frames with the filter on one side,
//! as passt does, and owns nothing of the host but its sockets.
//!
//! ```text
//! guest ── VMM ── filter ── [frames] NAT ── a socket for each connection, flow or ping ── the host's network
//! ```
//!
//! - TCP ([`tcp`]): a SYN makes the NAT connect first. When the host's connection stands, smoltcp accepts the guest's; then bytes are copied
//!   in both directions, each only as far as the other side takes them.
//! - UDP ([`udp`]): one *connected* socket for each pair of guest port and peer, at a port that the kernel chooses. The kernel lets only that
//!   peer's packets in, and no port of the host is taken because the guest uses its number. Published ports have sockets of their own.
//! - `ping` ([`ping`]): one socket for each pair of identifier and peer, where the host permits such sockets.
//!
//! Owns: the tables of flows and their caps. Must not know: which destinations a pod may reach, which the filter has decided already, and
//! processes. Everything that the guest sends is hostile: it can exhaust the caps of its own NAT, and nothing else.

mod device;
pub(super) mod handover;
mod outside;
mod ping;
mod poller;
#[cfg(feature = "vmm")]
pub mod process;
mod splice;
mod tcp;
mod udp;

pub use outside::{Host, Kind, NatConfig, Outside};

use super::frames::{self, Unreachable};
use super::packet::{self, Body, Frame, Packet};
use super::stream::push;
use super::{DNS_4, DNS_6, GATEWAY_4, GATEWAY_6, GUEST_4, GUEST_6};
use nix::errno::Errno;
use outside::{Failure, failure};
use poller::{Poller, Ready};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// TCP connections at once. A web server's worker or a crawler has some hundreds; each costs a descriptor of the host and, while data waits,
/// its buffers.
const MAX_TCP: usize = 1024;
/// Of these, connections that the other side has not accepted yet. Further SYNs are dropped, and the guest's kernel repeats them.
const MAX_CONNECTING: usize = 256;
/// UDP flows at once. A DNS query is one for a few seconds.
const MAX_UDP: usize = 1024;
/// Peers of published UDP ports that are remembered, so that answers reach them through the port.
const MAX_INBOUND: usize = 1024;
/// Pings at once.
const MAX_PINGS: usize = 64;
/// Output from which on nothing more is read from the host's sockets.
const OUTPUT_FULL: usize = 512 << 10;
/// Output from which on packets to the guest are dropped, as a network does.
const OUTPUT_MOST: usize = 2 << 20;

/// What a descriptor of the poller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Wire,
    Tcp(u64),
    Udp(u64),
    Published(u64),
    Ping(u64),
}

impl Token {
    const KINDS: u64 = 8;

    fn number(self) -> u64 {
        match self {
            Self::Wire => 0,
            Self::Tcp(id) => id * Self::KINDS + 1,
            Self::Udp(id) => id * Self::KINDS + 2,
            Self::Published(id) => id * Self::KINDS + 3,
            Self::Ping(id) => id * Self::KINDS + 4,
        }
    }

    fn of(number: u64) -> Self {
        let id = number / Self::KINDS;
        match number % Self::KINDS {
            1 => Self::Tcp(id),
            2 => Self::Udp(id),
            3 => Self::Published(id),
            4 => Self::Ping(id),
            _ => Self::Wire,
        }
    }
}

/// What the tables need to do their work.
struct Work<'a> {
    poller: &'a Poller,
    outside: &'a mut dyn Outside,
    /// Frames to the guest.
    out: &'a mut Vec<u8>,
    now: Instant,
}

impl Work<'_> {
    /// Sends a frame to the guest.
    fn answer(&mut self, frame: &[u8]) {
        if self.out.len() < OUTPUT_MOST {
            push(self.out, frame);
        }
    }

    fn is_full(&self) -> bool {
        self.out.len() >= OUTPUT_FULL
    }

    /// Tells the guest that its packet failed.
    fn fail(&mut self, packet: &Packet<'_>, errno: Errno) {
        let frame = match failure(errno) {
            Failure::Silent => None,
            // A refusal of TCP is a reset.
            Failure::Refused => match packet.body {
                Body::Tcp { .. } => frames::refusal(packet),
                _ => Some(frames::unreachable(packet.source, packet.bytes, Unreachable::Port)),
            },
            Failure::Unreachable(why) => Some(frames::unreachable(packet.source, packet.bytes, why)),
        };
        if let Some(frame) = frame {
            self.answer(&frame);
        }
    }
}

/// The NAT of one pod. Frames in, frames out; the time is an argument, and so is the way to make sockets.
pub struct Nat<O> {
    poller: Poller,
    outside: O,
    tcp: tcp::Connections,
    udp: udp::Flows,
    ping: ping::Pings,
}

impl<O: Outside> Nat<O> {
    /// `published` are bound UDP sockets with the guest's port of each.
    pub fn new(outside: O, published: Vec<(OwnedFd, u16)>, now: Instant) -> nix::Result<Self> {
        let poller = Poller::new()?;
        let udp = udp::Flows::new(published, &poller)?;
        Ok(Self { poller, outside, tcp: tcp::Connections::new(now), udp, ping: ping::Pings::default() })
    }

    /// A frame of the guest. The answers to it are appended to `out`.
    pub fn from_guest(&mut self, frame: &[u8], now: Instant, out: &mut Vec<u8>) {
        let mut work = Work { poller: &self.poller, outside: &mut self.outside, out, now };
        match packet::of_guest(frame) {
            Ok(Frame::Who { from, target, .. }) => {
                let is_ours = [GATEWAY_4, DNS_4].map(IpAddr::from).contains(&target)
                    || [GATEWAY_6, DNS_6].map(IpAddr::from).contains(&target);
                if let Some(answer) = frames::neighbour(from, target).filter(|_| is_ours) {
                    work.answer(&answer);
                }
            }
            Ok(Frame::Packet(packet)) if is_guest(packet.source) => match packet.body {
                Body::Tcp { .. } => self.tcp.guest_sent(&packet, &mut work),
                Body::Udp { .. } => self.udp.guest_sent(&packet, &mut work),
                Body::Echo => self.ping.guest_sent(&packet, &mut work),
                Body::Control | Body::Other(_) => {}
            },
            Ok(Frame::Packet(_) | Frame::Chatter) | Err(_) => {}
        }
    }

    /// Something has happened at a socket.
    fn host_is_ready(&mut self, ready: Ready, now: Instant, out: &mut Vec<u8>) {
        let mut work = Work { poller: &self.poller, outside: &mut self.outside, out, now };
        match Token::of(ready.token) {
            Token::Wire => {}
            Token::Tcp(id) => self.tcp.host_is_ready(id, ready, &mut work),
            Token::Udp(id) => self.udp.host_is_ready(id, &mut work),
            Token::Published(id) => self.udp.published_is_ready(id, &mut work),
            Token::Ping(id) => self.ping.host_is_ready(id, &mut work),
        }
    }

    /// Does what time demands.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<u8>) {
        let mut work = Work { poller: &self.poller, outside: &mut self.outside, out, now };
        self.tcp.tick(&mut work);
        self.udp.tick(&mut work);
        self.ping.tick(&mut work);
    }

    /// When [`Self::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        [self.tcp.due(), self.udp.due(), self.ping.due()].into_iter().flatten().min()
    }

    /// Handles what is ready at the host's sockets now, without waiting, and the time. For tests: the process also waits.
    pub fn turn(&mut self, now: Instant, out: &mut Vec<u8>) -> nix::Result<usize> {
        let mut ready = Vec::new();
        self.poller.wait(&mut ready, Some(std::time::Duration::ZERO))?;
        for &one in &ready {
            self.host_is_ready(one, now, out);
        }
        self.tick(now, out);
        Ok(ready.len())
    }

    /// Connections, flows and pings that exist.
    pub fn counts(&self) -> [usize; 3] {
        [self.tcp.len(), self.udp.len(), self.ping.len()]
    }

    fn is_idle(&self) -> bool {
        self.counts() == [0; 3]
    }
}

fn is_guest(address: IpAddr) -> bool {
    address == GUEST_4 || address == GUEST_6
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
