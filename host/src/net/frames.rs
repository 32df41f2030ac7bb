//! The frames that are created here: UDP packets, answers to `ping` and to questions for neighbours, and the notices that a guest's packet was
//! refused or could not be delivered. Pure.

use super::packet::{
    Body, ETHERNET, ICMP, ICMPV6, IPV6, Packet, TCP, TCP_NUMBER, TYPE_4, TYPE_6, TYPE_ARP, UDP, UDP_NUMBER,
    flags,
};
use super::{GUEST_MAC, PASST_MAC};
use std::net::{IpAddr, SocketAddr};

/// Why a packet cannot be delivered, as ICMP says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    Network,
    Host,
    Port,
    /// "Communication administratively prohibited".
    Prohibited,
}

impl Unreachable {
    /// Type and code for IPv4 and for IPv6.
    fn codes(self) -> [[u8; 2]; 2] {
        match self {
            Self::Network => [[3, 0], [1, 0]],
            Self::Host => [[3, 1], [1, 3]],
            Self::Port => [[3, 3], [1, 4]],
            Self::Prohibited => [[3, 13], [1, 1]],
        }
    }
}

/// How much of a refused packet is quoted to its sender.
const QUOTED: usize = 128;

/// The checksum of IP, TCP, UDP and ICMP.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut total: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).unwrap_or(0)
}

/// A frame with this body. `check_at`: the place of the checksum in the body.
fn frame(
    to_guest: bool,
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    mut body: Vec<u8>,
    check_at: usize,
) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let [target, source] = if to_guest { [GUEST_MAC, PASST_MAC] } else { [PASST_MAC, GUEST_MAC] };
    let mut bytes = Vec::with_capacity(ETHERNET + IPV6 + body.len());
    bytes.extend(target.0);
    bytes.extend(source.0);
    let pseudo = [0, protocol, length.to_be_bytes()[0], length.to_be_bytes()[1]];
    let check = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x45, 0];
            header.extend(length.saturating_add(20).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let check = sum(&[&header]).to_be_bytes();
            header[10..12].copy_from_slice(&check);
            bytes.extend(TYPE_4);
            bytes.extend(header);
            match protocol {
                ICMP => sum(&[&body]),
                _ => sum(&[&from.octets(), &to.octets(), &pseudo, &body]),
            }
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(four) => four.to_ipv6_mapped().octets(),
                IpAddr::V6(six) => six.octets(),
            };
            let (from, to) = (octets(from), octets(to));
            bytes.extend(TYPE_6);
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(from);
            bytes.extend(to);
            sum(&[&from, &to, &pseudo, &body])
        }
    };
    // For UDP, 0 would mean that there is no checksum.
    let check = if check == 0 && protocol == UDP_NUMBER { 0xffff } else { check };
    if let Some(place) = body.get_mut(check_at..check_at + 2) {
        place.copy_from_slice(&check.to_be_bytes());
    }
    bytes.extend(body);
    bytes
}

/// A UDP packet to the guest, or from the guest to the outside.
pub fn udp(to_guest: bool, from: (IpAddr, u16), to: (IpAddr, u16), data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(UDP + data.len()).unwrap_or(u16::MAX);
    let mut body = Vec::with_capacity(UDP + data.len());
    body.extend(from.1.to_be_bytes());
    body.extend(to.1.to_be_bytes());
    body.extend(length.to_be_bytes());
    body.extend([0, 0]);
    body.extend(data);
    frame(to_guest, from.0, to.0, UDP_NUMBER, body, 6)
}

/// The notice that a packet was refused, so that the guest's program fails at once; `None` if none is possible.
pub fn refusal(packet: &Packet<'_>) -> Option<Vec<u8>> {
    match packet.body {
        Body::Tcp { flags, .. } if flags & flags::RST != 0 => None,
        Body::Tcp { .. } => Some(reset(packet)),
        Body::Udp { .. } | Body::Echo | Body::Other(_) => Some(prohibited(packet)),
        Body::Control => None,
    }
}

/// A reset as for a closed port (RFC 9293, 3.10.7.1).
fn reset(packet: &Packet<'_>) -> Vec<u8> {
    let Body::Tcp { source, destination, flags, sequence, acknowledged, length } = packet.body else {
        return prohibited(packet);
    };
    let counted = u32::from(flags & flags::SYN != 0) + u32::from(flags & flags::FIN != 0);
    let (sequence, acknowledged, flags) = match flags & flags::ACK != 0 {
        true => (acknowledged, 0, flags::RST),
        false => (0, sequence.wrapping_add(length).wrapping_add(counted), flags::RST | flags::ACK),
    };
    let mut body = Vec::with_capacity(TCP);
    body.extend(destination.to_be_bytes());
    body.extend(source.to_be_bytes());
    body.extend(sequence.to_be_bytes());
    body.extend(acknowledged.to_be_bytes());
    body.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame(true, packet.destination, packet.source, TCP_NUMBER, body, 16)
}

/// "Communication administratively prohibited".
fn prohibited(packet: &Packet<'_>) -> Vec<u8> {
    unreachable(packet.source, packet.bytes, Unreachable::Prohibited)
}

/// The notice to the guest that its packet could not be delivered. It comes from the gateway, since some destinations cannot be senders.
pub fn unreachable(guest: IpAddr, packet: &[u8], why: Unreachable) -> Vec<u8> {
    let [_, gateway, _] = super::family(guest);
    let [four, six] = why.codes();
    let (protocol, head) = if guest.is_ipv4() { (ICMP, four) } else { (ICMPV6, six) };
    let mut body = head.to_vec();
    body.extend([0; 6]);
    body.extend(&packet[..packet.len().min(QUOTED)]);
    frame(true, gateway, guest, protocol, body, 2)
}

/// The notice that an earlier UDP packet of the guest could not be delivered. Its header is quoted; its data is no longer known.
pub fn undelivered(guest: SocketAddr, peer: SocketAddr, why: Unreachable) -> Vec<u8> {
    let sent = udp(false, (guest.ip(), guest.port()), (peer.ip(), peer.port()), &[]);
    unreachable(guest.ip(), &sent[ETHERNET..], why)
}

/// A message of ICMP or ICMPv6 to the guest. Its checksum is computed here.
pub fn control(from: IpAddr, guest: IpAddr, message: Vec<u8>) -> Vec<u8> {
    let protocol = if guest.is_ipv4() { ICMP } else { ICMPV6 };
    frame(true, from, guest, protocol, message, 2)
}

/// The answer to the guest's question for a neighbour, by ARP or IPv6.
pub fn neighbour(asker: IpAddr, target: IpAddr) -> Option<Vec<u8>> {
    const SOLICITED_OVERRIDE: u8 = 0x60;
    const HOP_LIMIT: usize = ETHERNET + 7;
    match (asker, target) {
        (IpAddr::V4(asker), IpAddr::V4(target)) => {
            let mut bytes = [GUEST_MAC.0, PASST_MAC.0].concat();
            bytes.extend(TYPE_ARP);
            bytes.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            bytes.extend(PASST_MAC.0);
            bytes.extend(target.octets());
            bytes.extend(GUEST_MAC.0);
            bytes.extend(asker.octets());
            Some(bytes)
        }
        (IpAddr::V6(_), IpAddr::V6(address)) => {
            let mut message = vec![136, 0, 0, 0, SOLICITED_OVERRIDE, 0, 0, 0];
            message.extend(address.octets());
            message.extend([2, 1]);
            message.extend(PASST_MAC.0);
            let mut bytes = control(target, asker, message);
            bytes[HOP_LIMIT] = 255;
            Some(bytes)
        }
        _ => None,
    }
}
