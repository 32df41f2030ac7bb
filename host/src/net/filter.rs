//! What may pass between a guest and its carrier, our NAT or passt. Everything the guest sends is checked; of what the carrier sends, only
//! DNS answers are checked.
//! Pure: frames in, frames out, with the time as an argument.

use super::frames;
use super::names::{Asked, Resolver};
use super::packet::{self, Body, Frame, Malformed, Packet, flags};
use super::place::{self, Place};
use super::report::{Refusals, Refused};
use super::rules::Rules;
use super::stream::push;
use super::{DNS_4, DNS_6, GUEST_MAC, family};
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Connections that are remembered.
const MAX_FLOWS: usize = 8192;
/// How long a connection may be silent: slightly longer than the keepalive of an idle TCP connection; one that is closing; UDP.
const TCP_IDLE: Duration = Duration::from_secs(3 * 3600);
const TCP_ENDING: Duration = Duration::from_secs(300);
const UDP_IDLE: Duration = Duration::from_secs(180);
const DNS_PORT: u16 = 53;
const NOBODY: [u8; 6] = [0; 6];

/// Frames in transit, each after its length (4 bytes, big endian).
#[derive(Debug, Default)]
pub struct Sink {
    pub to_guest: Vec<u8>,
    pub to_carrier: Vec<u8>,
}

/// Why a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Its destination is closed to this pod.
    Place(Place),
    /// The allow list does not contain it.
    NotAllowed,
    /// The pod's name server answers DNS queries only.
    NotDns {
        by_tcp: bool,
    },
    Protocol(u8),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(place) => place.fmt(f),
            Self::NotAllowed => f.write_str("not in egress-allow"),
            Self::NotDns { by_tcp: false } => f.write_str("the pod's name server answers UDP port 53 only"),
            Self::NotDns { by_tcp: true } => f.write_str("the pod's name server answers port 53 only"),
            Self::Protocol(number) => write!(f, "IP protocol {number}"),
        }
    }
}

/// The decision about a packet.
enum PacketVerdict {
    Pass,
    Resolve,
    Refuse(Why),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flow {
    is_tcp: bool,
    other: IpAddr,
    other_port: u16,
    own_port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Life {
    until: Instant,
    is_ending: bool,
}

#[derive(Debug, Default)]
struct Flows(HashMap<Flow, Life>);

impl Flows {
    /// Whether the flow is known; if so, its silence begins anew.
    fn touch(&mut self, flow: Flow, ends: bool, now: Instant) -> bool {
        let Some(life) = self.0.get_mut(&flow).filter(|life| life.until > now) else { return false };
        life.is_ending |= ends;
        life.until = now + idle(flow, life.is_ending);
        true
    }

    /// Adds a flow, unless the table is full.
    fn insert(&mut self, flow: Flow, now: Instant) {
        if self.0.len() >= MAX_FLOWS && !self.0.contains_key(&flow) {
            self.0.retain(|_, life| life.until > now);
            if self.0.len() >= MAX_FLOWS {
                return;
            }
        }
        self.0.insert(flow, Life { until: now + idle(flow, false), is_ending: false });
    }
}

fn idle(flow: Flow, is_ending: bool) -> Duration {
    match (flow.is_tcp, is_ending) {
        (true, false) => TCP_IDLE,
        (true, true) => TCP_ENDING,
        (false, _) => UDP_IDLE,
    }
}

/// The filter of one pod.
#[derive(Debug)]
pub struct Filter {
    rules: Rules,
    resolver: Option<Resolver>,
    /// Flows that the guest began, if there is an allow list.
    begun: Flows,
    /// Flows that arrived through published ports.
    came_in: Flows,
    refusals: Refusals,
}

impl Filter {
    pub fn new(rules: Rules) -> Self {
        let resolver = rules.allow.clone().map(Resolver::new);
        Self {
            rules,
            resolver,
            begun: Flows::default(),
            came_in: Flows::default(),
            refusals: Refusals::default(),
        }
    }

    /// The refusals to report now.
    pub fn refused(&mut self, now: Instant) -> Vec<Refused> {
        self.refusals.take(now)
    }

    /// When the next report is due at the latest.
    pub fn due(&self) -> Option<Instant> {
        self.refusals.due()
    }

    /// A frame from the guest.
    pub fn from_guest(&mut self, frame: &[u8], now: Instant, sink: &mut Sink) {
        match packet::of_guest(frame) {
            Err(malformed) => {
                let why = match malformed {
                    Malformed::Length => "its lengths are wrong",
                    Malformed::Options => "IP options or extension headers",
                    Malformed::Fragment => "a fragment",
                    Malformed::Foreign => "not from the pod's interface, or neither IP nor ARP",
                };
                self.refusals.note("frame", "anybody".to_owned(), why.to_owned(), now);
            }
            Ok(Frame::Chatter) => {}
            Ok(Frame::Who { from, target, length }) => {
                let [_, gateway, dns] = family(target);
                let is_own = self.rules.guest.contains(&from) || is_link_local(from);
                if is_own && (target == gateway || target == dns) {
                    push(&mut sink.to_carrier, &frame[..length.min(frame.len())]);
                }
            }
            Ok(Frame::Packet(packet)) => self.packet(&packet, frame, now, sink),
        }
    }

    fn packet(&mut self, packet: &Packet<'_>, frame: &[u8], now: Instant, sink: &mut Sink) {
        if packet.body == Body::Control {
            return;
        }
        if !self.rules.guest.contains(&packet.source) {
            // An answer would have nowhere to go.
            if !is_link_local(packet.source) {
                self.note(packet, "not from the pod's address", now);
            }
            return;
        }
        match self.verdict(packet, now) {
            PacketVerdict::Pass => push(&mut sink.to_carrier, &frame[..packet.frame_length()]),
            PacketVerdict::Resolve => self.resolve(packet, now, sink),
            PacketVerdict::Refuse(why) => {
                // Multicast has many receivers and no sender expects an answer.
                if why != Why::Place(Place::Multicast)
                    && let Some(answer) = frames::refusal(packet)
                {
                    push(&mut sink.to_guest, &answer);
                }
                self.note(packet, &why.to_string(), now);
            }
        }
    }

    fn note(&mut self, packet: &Packet<'_>, why: &str, now: Instant) {
        let what = match packet.body {
            Body::Tcp { .. } => "tcp",
            Body::Udp { .. } => "udp",
            Body::Echo => "ping",
            Body::Control | Body::Other(_) => "packet",
        };
        let to = match packet.port() {
            Some(port) => SocketAddr::new(packet.destination, port).to_string(),
            None => packet.destination.to_string(),
        };
        self.refusals.note(what, to, why.to_owned(), now);
    }

    fn verdict(&mut self, packet: &Packet<'_>, now: Instant) -> PacketVerdict {
        let to = packet.destination;
        let is_server = self.rules.nameservers.contains(&to);
        let is_forwarder = to == DNS_4 || to == DNS_6;
        let is_question = matches!(packet.body, Body::Udp { destination: DNS_PORT, .. });
        let resolve = || if self.resolver.is_some() { PacketVerdict::Resolve } else { PacketVerdict::Pass };
        match packet.body {
            _ if is_forwarder && is_server && is_question => return resolve(),
            Body::Tcp { destination: DNS_PORT, .. } if is_forwarder && is_server && self.rules.dns_by_tcp => {
                return PacketVerdict::Pass;
            }
            _ if is_forwarder && is_server => {
                return PacketVerdict::Refuse(Why::NotDns { by_tcp: self.rules.dns_by_tcp });
            }
            Body::Udp { source, destination, .. } if self.rules.published_udp.contains(&source) => {
                let flow = Flow { is_tcp: false, other: to, other_port: destination, own_port: source };
                if self.came_in.touch(flow, false, now) {
                    return PacketVerdict::Pass;
                }
            }
            Body::Other(number) => return PacketVerdict::Refuse(Why::Protocol(number)),
            Body::Tcp { .. } | Body::Udp { .. } | Body::Echo | Body::Control => {}
        }
        if let Some(place) = closed(&self.rules, to) {
            return PacketVerdict::Refuse(Why::Place(place));
        }
        if is_server && is_question {
            return resolve();
        }
        if self.is_allowed(packet, now) {
            PacketVerdict::Pass
        } else {
            PacketVerdict::Refuse(Why::NotAllowed)
        }
    }

    /// Checks the allow list, if there is one. A flow that began while it was allowed continues.
    fn is_allowed(&mut self, packet: &Packet<'_>, now: Instant) -> bool {
        let (Some(allow), Some(resolver)) = (&self.rules.allow, &self.resolver) else { return true };
        let (to, port) = (packet.destination, packet.port());
        let is_open = || allow.has_address(to, port) || resolver.is_open(to, port, now);
        let (flow, begins, ends) = match packet.body {
            Body::Tcp { source, destination, flags, .. } => {
                let begins = flags & (flags::SYN | flags::ACK) == flags::SYN;
                let ends = flags & (flags::FIN | flags::RST) != 0;
                (Flow { is_tcp: true, other: to, other_port: destination, own_port: source }, begins, ends)
            }
            Body::Udp { source, destination, .. } => {
                (Flow { is_tcp: false, other: to, other_port: destination, own_port: source }, false, false)
            }
            Body::Echo | Body::Control | Body::Other(_) => return is_open(),
        };
        if !begins && self.begun.touch(flow, ends, now) {
            return true;
        }
        let is_open = is_open();
        if is_open {
            self.begun.insert(flow, now);
        }
        is_open
    }

    fn resolve(&mut self, packet: &Packet<'_>, now: Instant, sink: &mut Sink) {
        let (Some(resolver), Body::Udp { source, data, .. }) = (&mut self.resolver, packet.body) else {
            return;
        };
        let server = packet.destination;
        match resolver.ask(data, source, server, now) {
            Asked::Nothing => self.note(packet, "not a DNS query", now),
            Asked::Ask { port, bytes } => {
                push(
                    &mut sink.to_carrier,
                    &frames::udp(false, (packet.source, port), (server, DNS_PORT), &bytes),
                );
            }
            Asked::Answer { bytes, refused } => {
                let answer = frames::udp(true, (server, DNS_PORT), (packet.source, source), &bytes);
                push(&mut sink.to_guest, &answer);
                if let Some(name) = refused {
                    self.refusals.note("name", name, Why::NotAllowed.to_string(), now);
                }
            }
        }
    }

    pub fn from_carrier(&mut self, frame: &[u8], now: Instant, sink: &mut Sink) {
        // passt learns the guest's Ethernet address from the guest's first frame and writes none until then.
        let addressed = frame.strip_prefix(&NOBODY).map(|rest| [&GUEST_MAC.0, rest].concat());
        let frame = addressed.as_deref().unwrap_or(frame);
        if let Ok(Frame::Packet(packet)) = packet::of_carrier(frame)
            && let Body::Udp { source, destination, data } = packet.body
        {
            if source == DNS_PORT
                && self.rules.nameservers.contains(&packet.source)
                && self.resolver.is_some()
            {
                self.answer(&packet, destination, data, now, sink);
                return;
            }
            if self.rules.published_udp.contains(&destination) {
                let flow =
                    Flow { is_tcp: false, other: packet.source, other_port: source, own_port: destination };
                self.came_in.insert(flow, now);
            }
        }
        push(&mut sink.to_guest, frame);
    }

    fn answer(&mut self, packet: &Packet<'_>, port: u16, data: &[u8], now: Instant, sink: &mut Sink) {
        let Some(resolver) = &mut self.resolver else { return };
        let rules = &self.rules;
        let is_closed = |address: IpAddr| closed(rules, address).is_some();
        let Some(answered) = resolver.answer(data, port, packet.source, now, &is_closed) else { return };
        let to = (packet.destination, answered.port);
        push(&mut sink.to_guest, &frames::udp(true, (packet.source, DNS_PORT), to, &answered.bytes));
        for address in answered.closed {
            let what = closed(&self.rules, address).map(|place| place.to_string()).unwrap_or_default();
            self.refusals.note(
                "answer",
                answered.name.clone(),
                format!("it stands for {address}: {what}"),
                now,
            );
        }
        if answered.is_full {
            let why = "too many addresses are open already".to_owned();
            self.refusals.note("answer", answered.name, why, now);
        }
    }
}

/// Why an address is closed, if it is.
fn closed(rules: &Rules, address: IpAddr) -> Option<Place> {
    let is_open = |place: Place| place.opened_by().is_some_and(|reach| rules.reach.contains(&reach));
    place::of(address, &rules.host)
        .filter(|place| !is_open(*place))
        // An address of the host may also be of another kind.
        .or_else(|| rules.host.contains(&address).then_some(Place::Host).filter(|place| !is_open(*place)))
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.segments()[0] & 0xffc0 == 0xfe80)
}

#[cfg(test)]
mod tests;
