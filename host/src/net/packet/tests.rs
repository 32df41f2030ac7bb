//! Frames parsed and created here, compared with those of another implementation.

use super::super::PASST_MAC;
use super::super::frames::{refusal, udp};
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

/// A guest's UDP packet, created by another implementation.
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
        Some(etherparse::TransportSlice::Udp(udp)) => (from, to, udp.source_port(), udp.destination_port()),
        Some(etherparse::TransportSlice::Tcp(tcp)) => (from, to, tcp.source_port(), tcp.destination_port()),
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
    assert_eq!(changed(6, 9), Some(Malformed::Foreign), "another sender");
    assert_eq!(changed(14, 0x46), Some(Malformed::Options));
    assert_eq!(changed(14, 0x65), Some(Malformed::Foreign), "version 6 in IPv4's frame");
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
    for (offset, why) in [(0x10, Some(Malformed::Length)), (0xf0, Some(Malformed::Length)), (0x50, None)] {
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
    let expected =
        Frame::Who { from: super::super::GUEST_4.into(), target: super::super::GATEWAY_4.into(), length: 42 };
    assert_eq!(of_guest(&arp), Ok(expected));
    arp[22] ^= 1;
    assert_eq!(of_guest(&arp), Err(Malformed::Foreign));
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
        let Ok(Frame::Packet(read)) = of_carrier(&answer) else { panic!() };
        let Body::Tcp { flags, acknowledged: 8, sequence: 0, .. } = read.body else { panic!("{read:?}") };
        assert_eq!(flags, flags::RST | flags::ACK);
        let later = guest_tcp(destination, (4000, 80), b"abc");
        let answer = refusal(&packet(&later)).unwrap();
        let Ok(Frame::Packet(read)) = of_carrier(&answer) else { panic!() };
        let Body::Tcp { flags: flags::RST, sequence: 77, .. } = read.body else { panic!("{read:?}") };
        assert_eq!(refusal(&read), None, "a reset is not answered");
    }
}

/// Checks all checksums of a frame that was created here against another implementation.
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
            // Another parse gives the same result.
            let whole = &frame[..packet.frame_length()];
            prop_assert_eq!(of_guest(whole), Ok(Frame::Packet(packet)));
            if matches!(packet.body, Body::Tcp { .. } | Body::Udp { .. }) {
                let (source, destination) = ports(&packet);
                prop_assert_eq!(sliced(whole), (packet.source, packet.destination, source, destination));
            }
            if let Some(answer) = refusal(&packet) {
                let answered = matches!(of_carrier(&answer), Ok(Frame::Packet(_)));
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
