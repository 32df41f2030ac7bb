//! Frames of a guest, read with as little tolerance as honest kernels need, so that nobody behind can read them in another way: no IP options,
//! no fragments, no extension headers, lengths that agree. And the few frames that we answer or ask with. Pure.

use super::{GUEST_MAC, PASST_MAC};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest frame: what passt and both drivers take.
pub const MAX_FRAME: usize = 65_535;
/// Bytes before the packet.
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
const UDP: usize = 8;
/// Of a refused packet, this much is quoted to its sender.
const QUOTED: usize = 128;

const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_4: [u8; 2] = [0x08, 0x00];
const TYPE_6: [u8; 2] = [0x86, 0xdd];

const ICMP: u8 = 1;
const TCP_NUMBER: u8 = 6;
const UDP_NUMBER: u8 = 17;
const ICMPV6: u8 = 58;

/// TCP's flags.
pub mod flags {
    /// No more data.
    pub const FIN: u8 = 1;
    /// A connection begins.
    pub const SYN: u8 = 2;
    /// It is refused.
    pub const RST: u8 = 4;
    /// Something is acknowledged.
    pub const ACK: u8 = 16;
}

/// Why a frame is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Malformed {
    /// It ends too early, or its lengths disagree.
    Length,
    /// IP options or extension headers.
    Options,
    /// A part of a packet.
    Fragment,
    /// Not from the pod's interface, or not in an Ethernet frame of IP or ARP.
    Stranger,
}

/// A frame that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Who has this address?
    Who {
        /// The one who asks.
        from: IpAddr,
        /// The address.
        target: IpAddr,
        /// Bytes of the frame that count.
        length: usize,
    },
    /// What kernels send by themselves and what nobody needs: it goes nowhere, and nothing is said about it.
    Chatter,
    /// A packet.
    Packet(Packet<'a>),
}

/// A whole IP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// From where.
    pub source: IpAddr,
    /// To where.
    pub destination: IpAddr,
    /// What is in it.
    pub body: Body<'a>,
    /// The packet, from its IP header to its end.
    pub bytes: &'a [u8],
}

/// What is in a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// See [`flags`].
        flags: u8,
        /// Number of its first byte.
        sequence: u32,
        /// Number of the byte that is awaited.
        acknowledged: u32,
        /// Bytes of data.
        length: u32,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Its data.
        data: &'a [u8],
    },
    /// A question whether somebody is there, or its answer.
    Echo,
    /// Messages of ICMP about other packets, and of IPv6 between neighbours.
    Control,
    /// Another protocol.
    Other(u8),
}

impl Packet<'_> {
    /// Bytes of its frame that count.
    pub fn frame_length(&self) -> usize {
        ETHERNET + self.bytes.len()
    }

    /// Its destination port.
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

/// Reads a frame of the guest.
pub fn of_guest(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    if frame.len() > MAX_FRAME {
        return Err(Malformed::Length);
    }
    let header = frame.get(..ETHERNET).ok_or(Malformed::Length)?;
    if header[6..12] != GUEST_MAC.0 {
        return Err(Malformed::Stranger);
    }
    read(frame)
}

/// Reads a frame of passt, whose word is taken for who it is.
pub fn of_passt(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    read(frame)
}

fn read(frame: &[u8]) -> Result<Frame<'_>, Malformed> {
    let kind = frame.get(12..ETHERNET).ok_or(Malformed::Length)?;
    let inner = &frame[ETHERNET..];
    match [kind[0], kind[1]] {
        TYPE_ARP => arp(inner),
        TYPE_4 => ipv4(inner),
        TYPE_6 => ipv6(inner),
        _ => Err(Malformed::Stranger),
    }
}

fn arp(bytes: &[u8]) -> Result<Frame<'_>, Malformed> {
    /// Ethernet, IPv4, their lengths, a question.
    const QUESTION: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
    const LENGTH: usize = 28;
    let bytes = bytes.get(..LENGTH).ok_or(Malformed::Length)?;
    if bytes[..8] != QUESTION {
        return Ok(Frame::Chatter);
    }
    if bytes[8..14] != GUEST_MAC.0 {
        return Err(Malformed::Stranger);
    }
    Ok(Frame::Who { from: four(bytes, 14)?, target: four(bytes, 24)?, length: ETHERNET + LENGTH })
}

fn ipv4(bytes: &[u8]) -> Result<Frame<'_>, Malformed> {
    let header = bytes.get(..IPV4).ok_or(Malformed::Length)?;
    match header[0] {
        0x45 => {}
        0x46..=0x4f => return options_4(header),
        _ => return Err(Malformed::Stranger),
    }
    let total = usize::from(word(header, 2)?);
    // Not the bit that forbids fragments; the one that says that more come, and where this one belongs.
    if word(header, 6)? & 0xbfff != 0 {
        return Err(Malformed::Fragment);
    }
    let packet = bytes.get(..total).filter(|packet| packet.len() >= IPV4).ok_or(Malformed::Length)?;
    let body = body(header[9], &packet[IPV4..], ICMP, 8, 0)?;
    let (source, destination) = (four(header, 12)?, four(header, 16)?);
    Ok(Frame::Packet(Packet { source, destination, body, bytes: packet }))
}

/// Linux announces its groups (IGMP) with an option. Nobody is to hear it.
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
        return Err(Malformed::Stranger);
    }
    let total = IPV6 + usize::from(word(header, 4)?);
    let packet = bytes.get(..total).ok_or(Malformed::Length)?;
    let (source, destination) = (six(header, 8)?, six(header, 24)?);
    match header[6] {
        FRAGMENT => return Err(Malformed::Fragment),
        // Linux announces its groups (MLD) with it.
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

/// What IPv6 hosts say to their neighbours, which is among ICMPv6.
fn neighbours(source: IpAddr, hops: u8, message: &[u8]) -> Result<Option<Frame<'static>>, Malformed> {
    const ROUTER_SOLICITATION: u8 = 133;
    const SOLICITATION: u8 = 135;
    const REDIRECT: u8 = 137;
    const REPORT_2: u8 = 143;
    match message.first() {
        // Only neighbours send with 255.
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

/// The sum that IP, TCP, UDP and ICMP have over their words.
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

/// A frame with this in it. `check_at`: where in the body its sum belongs.
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
    // For UDP none at all would be written as 0.
    let check = if check == 0 && protocol == UDP_NUMBER { 0xffff } else { check };
    if let Some(place) = body.get_mut(check_at..check_at + 2) {
        place.copy_from_slice(&check.to_be_bytes());
    }
    bytes.extend(body);
    bytes
}

/// A datagram, to the guest or for it to passt.
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

/// What the guest hears when a packet of its was refused, so that its program fails at once. None: nothing can be said.
pub fn refusal(packet: &Packet<'_>) -> Option<Vec<u8>> {
    match packet.body {
        Body::Tcp { flags, .. } if flags & flags::RST != 0 => None,
        Body::Tcp { .. } => Some(reset(packet)),
        Body::Udp { .. } | Body::Echo | Body::Other(_) => Some(prohibited(packet)),
        Body::Control => None,
    }
}

/// As RFC 9293, 3.10.7.1, for a port that is closed.
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

/// "Communication administratively prohibited". It comes from the gateway: some of what is refused can't be a sender.
fn prohibited(packet: &Packet<'_>) -> Vec<u8> {
    let [_, gateway, _] = super::family(packet.source);
    let (protocol, head) = if packet.source.is_ipv4() { (ICMP, [3, 13]) } else { (ICMPV6, [1, 1]) };
    let mut body = head.to_vec();
    body.extend([0; 6]);
    body.extend(&packet.bytes[..packet.bytes.len().min(QUOTED)]);
    frame(true, gateway, packet.source, protocol, body, 2)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use etherparse::{PacketBuilder, SlicedPacket};
    use proptest::prelude::*;

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        if v6 {
            (super::super::GUEST_6.into(), "2001:db8::1".parse().unwrap())
        } else {
            (super::super::GUEST_4.into(), "198.51.100.1".parse().unwrap())
        }
    }

    fn builder(source: IpAddr, destination: IpAddr) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(GUEST_MAC.0, PASST_MAC.0);
        match (source, destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("one of each"),
        }
    }

    /// A guest's datagram, made by somebody else's code.
    pub(in crate::net) fn guest_udp(to: IpAddr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let [from, ..] = super::super::family(to);
        let mut bytes = Vec::new();
        builder(from, to).udp(ports.0, ports.1).write(&mut bytes, data).unwrap();
        bytes
    }

    /// The first packet of a guest's connection.
    pub(in crate::net) fn guest_syn(to: IpAddr, ports: (u16, u16)) -> Vec<u8> {
        let [from, ..] = super::super::family(to);
        let mut bytes = Vec::new();
        builder(from, to).tcp(ports.0, ports.1, 7, 1000).syn().write(&mut bytes, &[]).unwrap();
        bytes
    }

    /// A later one.
    pub(in crate::net) fn guest_tcp(to: IpAddr, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let [from, ..] = super::super::family(to);
        let mut bytes = Vec::new();
        builder(from, to).tcp(ports.0, ports.1, 8, 1000).ack(77).write(&mut bytes, data).unwrap();
        bytes
    }

    fn packet(frame: &[u8]) -> Packet<'_> {
        match of_guest(frame) {
            Ok(Frame::Packet(packet)) => packet,
            other => panic!("{other:?}"),
        }
    }

    /// Source, destination and ports as another parser reads them.
    fn sliced(frame: &[u8]) -> (IpAddr, IpAddr, u16, u16) {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let (from, to) = match sliced.net.unwrap() {
            etherparse::NetSlice::Ipv4(slice) => {
                (slice.header().source_addr().into(), slice.header().destination_addr().into())
            }
            etherparse::NetSlice::Ipv6(slice) => {
                (slice.header().source_addr().into(), slice.header().destination_addr().into())
            }
            other => panic!("{other:?}"),
        };
        match sliced.transport {
            Some(etherparse::TransportSlice::Udp(udp)) => {
                (from, to, udp.source_port(), udp.destination_port())
            }
            Some(etherparse::TransportSlice::Tcp(tcp)) => {
                (from, to, tcp.source_port(), tcp.destination_port())
            }
            _ => (from, to, 0, 0),
        }
    }

    fn ports(packet: &Packet<'_>) -> (u16, u16) {
        match packet.body {
            Body::Tcp { source, destination, .. } | Body::Udp { source, destination, .. } => {
                (source, destination)
            }
            Body::Echo | Body::Control | Body::Other(_) => (0, 0),
        }
    }

    #[test]
    fn honest_packets_are_read_and_padding_is_left_behind() {
        for v6 in [false, true] {
            let (source, destination) = addresses(v6);
            let mut frame = guest_udp(destination, (1000, 53), b"question");
            let length = frame.len();
            frame.extend([0; 20]);
            let read = packet(&frame);
            assert_eq!((read.source, read.destination), (source, destination));
            assert_eq!(read.body, Body::Udp { source: 1000, destination: 53, data: b"question" });
            assert_eq!(read.frame_length(), length);
            let syn = guest_syn(destination, (1000, 80));
            let Body::Tcp { flags, sequence: 7, length: 0, .. } = packet(&syn).body else { panic!() };
            assert_eq!(flags, flags::SYN);
        }
    }

    #[test]
    fn tricks_are_not_read() {
        let (_, to) = addresses(false);
        let good = guest_udp(to, (1, 2), b"data");
        let changed = |at: usize, value: u8| {
            let mut frame = good.clone();
            frame[at] = value;
            of_guest(&frame).err()
        };
        assert_eq!(changed(6, 9), Some(Malformed::Stranger), "another sender");
        assert_eq!(changed(14, 0x46), Some(Malformed::Options));
        assert_eq!(changed(14, 0x65), Some(Malformed::Stranger), "version 6 in IPv4's frame");
        assert_eq!(changed(20, 0x20), Some(Malformed::Fragment), "more to come");
        assert_eq!(changed(21, 1), Some(Malformed::Fragment), "a later one");
        assert_eq!(changed(17, 200), Some(Malformed::Length), "longer than it is");
        assert_eq!(changed(17, 10), Some(Malformed::Length), "shorter than a header");
        assert_eq!(changed(39, 5), Some(Malformed::Length), "UDP shorter than its packet");
        assert_eq!(changed(20, 0x40), None, "not to be fragmented");
        let (_, to) = addresses(true);
        let good = guest_udp(to, (1, 2), b"data");
        for (next, why) in [
            (44, Malformed::Fragment),
            (0, Malformed::Options),
            (43, Malformed::Options),
            (60, Malformed::Options),
        ] {
            let mut frame = good.clone();
            frame[20] = next;
            assert_eq!(of_guest(&frame), Err(why), "{next}");
        }
        let syn = guest_syn(to, (1, 2));
        for (offset, why) in [(0x10, Some(Malformed::Length)), (0xf0, Some(Malformed::Length)), (0x50, None)]
        {
            let mut frame = syn.clone();
            frame[14 + 40 + 12] = offset;
            assert_eq!(of_guest(&frame).err(), why, "{offset:x}");
        }
        for length in 0..good.len() {
            assert!(of_guest(&good[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn who_has_an_address_is_understood() {
        let mut arp = vec![0xff; 6];
        arp.extend(GUEST_MAC.0);
        arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        arp.extend(GUEST_MAC.0);
        arp.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
        let expected = Frame::Who {
            from: super::super::GUEST_4.into(),
            target: super::super::GATEWAY_4.into(),
            length: 42,
        };
        assert_eq!(of_guest(&arp), Ok(expected));
        arp[22] ^= 1;
        assert_eq!(of_guest(&arp), Err(Malformed::Stranger));
        arp[21] = 2;
        assert_eq!(of_guest(&arp), Ok(Frame::Chatter));
    }

    #[test]
    fn a_reset_is_one_that_a_kernel_believes() {
        for v6 in [false, true] {
            let (source, destination) = addresses(v6);
            let syn = guest_syn(destination, (4000, 80));
            let answer = refusal(&packet(&syn)).unwrap();
            assert_eq!(sliced(&answer), (destination, source, 80, 4000));
            let Ok(Frame::Packet(read)) = of_passt(&answer) else { panic!() };
            let Body::Tcp { flags, acknowledged: 8, sequence: 0, .. } = read.body else { panic!("{read:?}") };
            assert_eq!(flags, flags::RST | flags::ACK);
            let later = guest_tcp(destination, (4000, 80), b"abc");
            let answer = refusal(&packet(&later)).unwrap();
            let Ok(Frame::Packet(read)) = of_passt(&answer) else { panic!() };
            let Body::Tcp { flags: flags::RST, sequence: 77, .. } = read.body else { panic!("{read:?}") };
            assert_eq!(refusal(&read), None, "a reset is not answered");
        }
    }

    /// All sums of a frame that was made here, as another implementation makes them.
    fn assert_sums(frame: &[u8]) {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let transport = sliced.transport.clone().unwrap();
        match (sliced.net.unwrap(), transport) {
            (etherparse::NetSlice::Ipv4(ip), transport) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                match transport {
                    etherparse::TransportSlice::Udp(udp) => {
                        let again = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                        assert_eq!(udp.checksum(), again);
                    }
                    etherparse::TransportSlice::Tcp(tcp) => {
                        assert_eq!(
                            tcp.checksum(),
                            tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap()
                        );
                    }
                    etherparse::TransportSlice::Icmpv4(icmp) => {
                        assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
                    }
                    other => panic!("{other:?}"),
                }
            }
            (etherparse::NetSlice::Ipv6(ip), transport) => {
                let header = ip.header().to_header();
                match transport {
                    etherparse::TransportSlice::Udp(udp) => {
                        let again = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
                        assert_eq!(udp.checksum(), again);
                    }
                    etherparse::TransportSlice::Tcp(tcp) => {
                        assert_eq!(
                            tcp.checksum(),
                            tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()).unwrap()
                        );
                    }
                    etherparse::TransportSlice::Icmpv6(icmp) => {
                        assert!(icmp.is_checksum_valid(header.source, header.destination));
                    }
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn no_frame_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3usize) {
            let mut frame = bytes;
            if frame.len() >= 14 {
                frame[6..12].copy_from_slice(&GUEST_MAC.0);
                frame[12..14].copy_from_slice(&[TYPE_ARP, TYPE_4, TYPE_6][kind]);
            }
            if let Ok(Frame::Packet(packet)) = of_guest(&frame) {
                prop_assert!(packet.frame_length() <= frame.len());
                // Whoever reads it again reads the same.
                let whole = &frame[..packet.frame_length()];
                prop_assert_eq!(of_guest(whole), Ok(Frame::Packet(packet)));
                if matches!(packet.body, Body::Tcp { .. } | Body::Udp { .. }) {
                    let (source, destination) = ports(&packet);
                    prop_assert_eq!(sliced(whole), (packet.source, packet.destination, source, destination));
                }
                if let Some(answer) = refusal(&packet) {
                    let answered = matches!(of_passt(&answer), Ok(Frame::Packet(_)));
                    prop_assert!(answered);
                }
            }
        }

        #[test]
        fn what_is_made_has_right_sums(v6: bool, ports: (u16, u16), data in proptest::collection::vec(any::<u8>(), 0..70)) {
            let (guest, other) = addresses(v6);
            let made = udp(true, (other, ports.0), (guest, ports.1), &data);
            assert_sums(&made);
            prop_assert_eq!(sliced(&made), (other, guest, ports.0, ports.1));
            assert_sums(&refusal(&packet(&guest_udp(other, ports, &data))).unwrap());
            assert_sums(&refusal(&packet(&guest_syn(other, ports))).unwrap());
        }
    }
}
