//! Frames of a guest, parsed only as tolerantly as honest kernels need, so that no later parser can read them differently: no IP options,
//! no fragments, no extension headers, consistent lengths. Pure.

use super::GUEST_MAC;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest frame that passt and both drivers accept.
pub const MAX_FRAME: usize = 65_535;
/// Length of the Ethernet header.
pub(super) const ETHERNET: usize = 14;
const IPV4: usize = 20;
pub(super) const IPV6: usize = 40;
pub(super) const TCP: usize = 20;
pub(super) const UDP: usize = 8;

pub(super) const TYPE_ARP: [u8; 2] = [0x08, 0x06];
pub(super) const TYPE_4: [u8; 2] = [0x08, 0x00];
pub(super) const TYPE_6: [u8; 2] = [0x86, 0xdd];

pub(super) const ICMP: u8 = 1;
pub(super) const TCP_NUMBER: u8 = 6;
pub(super) const UDP_NUMBER: u8 = 17;
pub(super) const ICMPV6: u8 = 58;

pub mod flags {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// Why a frame is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Malformed {
    /// It ends too early, or its lengths are inconsistent.
    Length,
    /// IP options or extension headers.
    Options,
    /// A fragment of a packet.
    Fragment,
    /// Not from the pod's interface, or not in an Ethernet frame of IP or ARP.
    Foreign,
}

/// A parsed frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    Who {
        from: IpAddr,
        target: IpAddr,
        /// Bytes of the frame that count.
        length: usize,
    },
    /// Traffic that kernels send on their own and nobody needs. It is dropped silently.
    Chatter,
    Packet(Packet<'a>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub body: Body<'a>,
    /// The packet, from its IP header to its end.
    pub bytes: &'a [u8],
}

/// The transport of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    Tcp {
        source: u16,
        destination: u16,
        /// See [`flags`].
        flags: u8,
        /// Number of its first byte.
        sequence: u32,
        /// Number of the next expected byte.
        acknowledged: u32,
        /// Bytes of data.
        length: u32,
    },
    Udp {
        source: u16,
        destination: u16,
        data: &'a [u8],
    },
    /// An echo request or its reply.
    Echo,
    /// ICMP messages about other packets, and IPv6 neighbour messages.
    Control,
    Other(u8),
}

impl Packet<'_> {
    /// Bytes of its frame that count.
    pub fn frame_length(&self) -> usize {
        ETHERNET + self.bytes.len()
    }

    pub fn port(&self) -> Option<u16> {
        match self.body {
            Body::Tcp { destination, .. } | Body::Udp { destination, .. } => Some(destination),
            Body::Echo | Body::Control | Body::Other(_) => None,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let two = bytes.get(at..at + 2).and_then(|two| two.try_into().ok());
    two.map(u16::from_be_bytes).ok_or(Malformed::Length)
}

fn double(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    four.map(u32::from_be_bytes).ok_or(Malformed::Length)
}

fn four(bytes: &[u8], at: usize) -> Result<IpAddr, Malformed> {
    Ok(Ipv4Addr::from_bits(double(bytes, at)?).into())
}

fn six(bytes: &[u8], at: usize) -> Result<IpAddr, Malformed> {
    let sixteen: Option<[u8; 16]> = bytes.get(at..at + 16).and_then(|bytes| bytes.try_into().ok());
    sixteen.map(|octets| Ipv6Addr::from(octets).into()).ok_or(Malformed::Length)
}

/// Parses a frame of the guest.
pub fn of_guest(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    if frame.len() > MAX_FRAME {
        return Err(Malformed::Length);
    }
    let header = frame.get(..ETHERNET).ok_or(Malformed::Length)?;
    if header[6..12] != GUEST_MAC.0 {
        return Err(Malformed::Foreign);
    }
    read(frame)
}

/// Parses a frame of the carrier (the NAT or passt), whose sender addresses are trusted.
pub fn of_carrier(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    read(frame)
}

/// Parses a packet of the guest without its Ethernet header.
pub(super) fn of_ip(packet: &[u8]) -> Option<Packet<'_>> {
    let frame = if packet.first()? >> 4 == 4 { ipv4(packet) } else { ipv6(packet) };
    match frame {
        Ok(Frame::Packet(packet)) => Some(packet),
        Ok(Frame::Who { .. } | Frame::Chatter) | Err(_) => None,
    }
}

fn read(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    let kind = frame.get(12..ETHERNET).ok_or(Malformed::Length)?;
    let inner = &frame[ETHERNET..];
    match [kind[0], kind[1]] {
        TYPE_ARP => arp(inner),
        TYPE_4 => ipv4(inner),
        TYPE_6 => ipv6(inner),
        _ => Err(Malformed::Foreign),
    }
}

fn arp(bytes: &[u8]) -> Result<Frame<'_>, Malformed> {
    /// Ethernet, IPv4, their lengths, a request.
    const QUESTION: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    const LENGTH: usize = 28;
    let bytes = bytes.get(..LENGTH).ok_or(Malformed::Length)?;
    if bytes[..8] != QUESTION {
        return Ok(Frame::Chatter);
    }
    if bytes[8..14] != GUEST_MAC.0 {
        return Err(Malformed::Foreign);
    }
    Ok(Frame::Who { from: four(bytes, 14)?, target: four(bytes, 24)?, length: ETHERNET + LENGTH })
}

fn ipv4(bytes: &[u8]) -> Result<Frame<'_>, Malformed> {
    let header = bytes.get(..IPV4).ok_or(Malformed::Length)?;
    match header[0] {
        0x45 => {}
        0x46..=0x4f => return options_4(header),
        _ => return Err(Malformed::Foreign),
    }
    let total = usize::from(word(header, 2)?);
    // Tests the flag for more fragments and the fragment offset, but not the flag that forbids fragments.
    if word(header, 6)? & 0xbfff != 0 {
        return Err(Malformed::Fragment);
    }
    let packet = bytes.get(..total).filter(|packet| packet.len() >= IPV4).ok_or(Malformed::Length)?;
    let body = body(header[9], &packet[IPV4..], ICMP, 8, 0)?;
    let (source, destination) = (four(header, 12)?, four(header, 16)?);
    Ok(Frame::Packet(Packet { source, destination, body, bytes: packet }))
}

/// Linux announces its multicast groups (IGMP) with an option. Nobody needs to receive that.
fn options_4(header: &[u8]) -> Result<Frame<'_>, Malformed> {
    const IGMP: u8 = 2;
    if header[9] == IGMP { Ok(Frame::Chatter) } else { Err(Malformed::Options) }
}

fn ipv6(bytes: &[u8]) -> Result<Frame<'_>, Malformed> {
    const FRAGMENT: u8 = 44;
    const HOP_BY_HOP: u8 = 0;
    const OTHER_EXTENSIONS: [u8; 8] = [43, 50, 51, 60, 135, 139, 140, 253];
    let header = bytes.get(..IPV6).ok_or(Malformed::Length)?;
    if header[0] >> 4 != 6 {
        return Err(Malformed::Foreign);
    }
    let total = IPV6 + usize::from(word(header, 4)?);
    let packet = bytes.get(..total).ok_or(Malformed::Length)?;
    let (source, destination) = (six(header, 8)?, six(header, 24)?);
    match header[6] {
        FRAGMENT => return Err(Malformed::Fragment),
        // Linux announces its multicast groups (MLD) with it.
        HOP_BY_HOP if header[24] == 0xff => return Ok(Frame::Chatter),
        HOP_BY_HOP => return Err(Malformed::Options),
        next if OTHER_EXTENSIONS.contains(&next) => return Err(Malformed::Options),
        _ => {}
    }
    if header[6] == ICMPV6
        && let Some(frame) = neighbours(source, header[7], &packet[IPV6..])?
    {
        return Ok(frame);
    }
    let body = body(header[6], &packet[IPV6..], ICMPV6, 128, 129)?;
    Ok(Frame::Packet(Packet { source, destination, body, bytes: packet }))
}

/// IPv6 neighbour messages, which are part of ICMPv6.
fn neighbours(source: IpAddr, hops: u8, message: &[u8]) -> Result<Option<Frame<'static>>, Malformed> {
    const ROUTER_SOLICITATION: u8 = 133;
    const SOLICITATION: u8 = 135;
    const REDIRECT: u8 = 137;
    const REPORT_2: u8 = 143;
    match message.first() {
        // Only neighbours send with hop limit 255.
        Some(&SOLICITATION) if hops == 255 && source != Ipv6Addr::UNSPECIFIED => {
            let length = ETHERNET + IPV6 + message.len();
            Ok(Some(Frame::Who { from: source, target: six(message, 8)?, length }))
        }
        Some(&(ROUTER_SOLICITATION..=REDIRECT | REPORT_2)) => Ok(Some(Frame::Chatter)),
        _ => Ok(None),
    }
}

fn body(protocol: u8, bytes: &[u8], icmp: u8, asked: u8, answered: u8) -> Result<Body<'_>, Malformed> {
    match protocol {
        TCP_NUMBER => tcp(bytes),
        UDP_NUMBER => {
            let header = bytes.get(..UDP).ok_or(Malformed::Length)?;
            if usize::from(word(header, 4)?) != bytes.len() {
                return Err(Malformed::Length);
            }
            Ok(Body::Udp { source: word(header, 0)?, destination: word(header, 2)?, data: &bytes[UDP..] })
        }
        _ if protocol == icmp => match bytes.first() {
            Some(&kind) if (kind == asked || kind == answered) && bytes.len() >= 8 => Ok(Body::Echo),
            Some(_) => Ok(Body::Control),
            None => Err(Malformed::Length),
        },
        other => Ok(Body::Other(other)),
    }
}

fn tcp(bytes: &[u8]) -> Result<Body<'_>, Malformed> {
    let header = bytes.get(..TCP).ok_or(Malformed::Length)?;
    let begin = usize::from(header[12] >> 4) * 4;
    let data = bytes.get(begin..).filter(|_| begin >= TCP).ok_or(Malformed::Length)?;
    Ok(Body::Tcp {
        source: word(header, 0)?,
        destination: word(header, 2)?,
        flags: header[13],
        sequence: double(header, 4)?,
        acknowledged: double(header, 8)?,
        length: u32::try_from(data.len()).map_err(|_| Malformed::Length)?,
    })
}

#[cfg(test)]
pub(super) mod tests;
