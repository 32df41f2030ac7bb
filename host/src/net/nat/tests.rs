//! The NAT between a guest whose TCP is smoltcp's, and real sockets of the host's loopback.

use super::*;
use crate::net::packet::tests::{guest_syn, guest_tcp, guest_udp};
use crate::net::{GUEST_MAC, PASST_MAC};
use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const PEER: &str = "203.0.113.5";
const LONG: Duration = Duration::from_secs(20);

/// Every address of the world is the host's loopback, at the same port.
struct Loopback;

impl Outside for Loopback {
    fn open(&mut self, kind: Kind, to: SocketAddr) -> nix::Result<OwnedFd> {
        let config = NatConfig { gateway_is_loopback: true, ..NatConfig::default() };
        Host(config).open(kind, SocketAddr::new(GATEWAY_4.into(), to.port()))
    }
}

/// Every socket is one of a pair, whose other end is kept.
#[derive(Default)]
struct Pairs(Vec<OwnedFd>);

impl Outside for Pairs {
    fn open(&mut self, kind: Kind, _: SocketAddr) -> nix::Result<OwnedFd> {
        let kind = if kind == Kind::Tcp { SockType::Stream } else { SockType::Datagram };
        let (one, two) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_NONBLOCK)?;
        self.0.push(two);
        Ok(one)
    }
}

struct Failing(Errno);

impl Outside for Failing {
    fn open(&mut self, _: Kind, _: SocketAddr) -> nix::Result<OwnedFd> {
        Err(self.0)
    }
}

fn nat<O: Outside>(outside: O) -> Nat<O> {
    Nat::new(outside, Vec::new(), Instant::now()).unwrap()
}

fn frames_of(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        frames.push(frame.to_vec());
        bytes = rest;
    }
    frames
}

/// A guest's kernel: the other end of the wire.
struct Guest<O> {
    nat: Nat<O>,
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
}

#[derive(Default)]
struct Wire {
    to_guest: VecDeque<Vec<u8>>,
    to_nat: VecDeque<Vec<u8>>,
}

struct Received(Vec<u8>);
struct Sent<'a>(&'a mut VecDeque<Vec<u8>>);

impl smoltcp::phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl smoltcp::phy::TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        let kind = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
        self.0.push_back([&PASST_MAC.0[..], &GUEST_MAC.0, &kind, &packet].concat());
        result
    }
}

impl smoltcp::phy::Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sent<'_>)> {
        let frame = self.to_guest.pop_front()?;
        Some((Received(frame[14..].to_vec()), Sent(&mut self.to_nat)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sent<'_>> {
        Some(Sent(&mut self.to_nat))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 65_520;
        capabilities
    }
}

impl<O: Outside> Guest<O> {
    fn new(outside: O) -> Self {
        let mut wire = Wire::default();
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ip), &mut wire, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(GUEST_4), 0)).unwrap();
            addresses.push(IpCidr::new(IpAddress::Ipv6(GUEST_6), 0)).unwrap();
        });
        let sockets = SocketSet::new(Vec::new());
        Self { nat: nat(outside), wire, interface, sockets, start: Instant::now() }
    }

    fn connect(&mut self, to: SocketAddr, own_port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 100_000]);
        let mut socket = Socket::new(buffer(), buffer());
        let own = SocketAddr::new(if to.is_ipv4() { GUEST_4.into() } else { GUEST_6.into() }, own_port);
        let context = self.interface.context();
        socket
            .connect(context, (IpAddress::from(to.ip()), to.port()), (IpAddress::from(own.ip()), own_port))
            .unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets both sides work once.
    fn turn(&mut self) {
        let now = Instant::now();
        let elapsed = i64::try_from((now - self.start).as_micros()).unwrap();
        let at = smoltcp::time::Instant::from_micros(elapsed);
        self.interface.poll(at, &mut self.wire, &mut self.sockets);
        let mut out = Vec::new();
        for frame in std::mem::take(&mut self.wire.to_nat) {
            self.nat.from_guest(&frame, now, &mut out);
        }
        self.nat.turn(now, &mut out).unwrap();
        self.wire.to_guest.extend(frames_of(&out));
    }

    /// Lets both sides work until something is true.
    #[track_caller]
    fn until(&mut self, what: &str, mut is_true: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + LONG;
        while !is_true(self) {
            assert!(Instant::now() < end, "{what} did not happen");
            self.turn();
            std::thread::yield_now();
        }
    }
}

fn listener(peer: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, SocketAddr::new(peer.parse().unwrap(), port))
}

/// A server's end of a connection, with the guest's.
fn connected(peer: &str) -> (Guest<Loopback>, SocketHandle, TcpStream) {
    let (listener, to) = listener(peer);
    let mut guest = Guest::new(Loopback);
    let handle = guest.connect(to, 40_000);
    guest.until("a connection", |guest| guest.socket(handle).may_send());
    let (server, from) = listener.accept().unwrap();
    assert_ne!(from.port(), 40_000, "no port of the host is the guest's");
    (guest, handle, server)
}

#[test]
fn bytes_pass_both_ways_and_each_side_ends_for_itself() {
    let (listener, to) = listener(PEER);
    // It answers only after the end of the request: a side that has ended can still be told something.
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        stream.write_all(&request).unwrap();
    });
    let mut guest = Guest::new(Loopback);
    let handle = guest.connect(to, 40_000);
    let sent: Vec<u8> = (0..=250).cycle().take(3_000_000).collect();
    let (mut at, mut got) = (0, Vec::new());
    guest.until("the answer and its end", |guest| {
        let socket = guest.socket(handle);
        if socket.may_send() && at < sent.len() {
            at += socket.send_slice(&sent[at..]).unwrap();
            if at == sent.len() {
                socket.close();
            }
        }
        if socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes))).unwrap();
        }
        at == sent.len() && !socket.may_recv() && socket.state() == State::TimeWait
    });
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    guest.until("nothing is left", |guest| guest.nat.counts() == [0; 3]);
    server.join().unwrap();
}

#[test]
fn the_peers_end_reaches_a_guest_that_has_not_ended() {
    let (mut guest, handle, mut server) = connected("2001:db8::5");
    server.write_all(b"last words").unwrap();
    server.shutdown(std::net::Shutdown::Write).unwrap();
    guest.until("the peer's end", |guest| guest.socket(handle).state() == State::CloseWait);
    let socket = guest.socket(handle);
    assert_eq!(socket.recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap(), b"last words");
    socket.send_slice(b"still here").unwrap();
    socket.close();
    guest.until("the guest's end", |guest| guest.nat.counts() == [0; 3]);
    let mut heard = String::new();
    server.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "still here");
}

#[test]
fn a_side_that_does_not_read_stops_the_other() {
    let (mut guest, handle, mut server) = connected(PEER);
    server.set_nonblocking(true).unwrap();
    // The guest does not read: what is buffered on the way is bounded.
    let mut sent = 0;
    let mut quiet = 0;
    guest.until("the server is stopped", |_| {
        match server.write(&[7; 65_536]) {
            Ok(length) => (sent, quiet) = (sent + length, 0),
            Err(_) => quiet += 1,
        }
        quiet > 2000
    });
    assert!(guest.wire.to_guest.is_empty());
    let mut got = 0;
    guest.until("everything arrives after all", |guest| {
        let socket = guest.socket(handle);
        if socket.can_recv() {
            got += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        got == sent
    });
}

#[test]
fn resets_and_refusals_are_passed_on() {
    let (mut guest, handle, server) = connected(PEER);
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&server, sockopt::Linger, &linger).unwrap();
    drop(server);
    guest.until("the peer's reset", |guest| guest.socket(handle).state() == State::Closed);
    assert_eq!(guest.nat.counts(), [0; 3]);

    let (mut guest, handle, mut server) = connected(PEER);
    guest.socket(handle).abort();
    guest.until("the guest's reset", |guest| guest.nat.counts() == [0; 3]);
    let error = server.read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let (listener, to) = listener(PEER);
    drop(listener);
    let mut guest = Guest::new(Loopback);
    let handle = guest.connect(to, 40_000);
    guest.until("a refusal", |guest| guest.socket(handle).state() == State::Closed);
    assert_eq!(guest.nat.counts(), [0; 3]);
}

/// The frames that answer one frame of the guest.
fn answers<O: Outside>(nat: &mut Nat<O>, frame: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    nat.from_guest(frame, Instant::now(), &mut out);
    frames_of(&out)
}

/// What another implementation reads in a frame.
fn said(frame: &[u8]) -> String {
    assert_eq!((&frame[..6], &frame[6..12]), (&GUEST_MAC.0[..], &PASST_MAC.0[..]));
    match SlicedPacket::from_ethernet(frame).unwrap().transport {
        Some(TransportSlice::Tcp(tcp)) => {
            format!("tcp{}{}", if tcp.rst() { " rst" } else { "" }, if tcp.syn() { " syn" } else { "" })
        }
        Some(TransportSlice::Udp(udp)) => format!("udp {} {}", udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
            Icmpv4Type::DestinationUnreachable(header) => format!("icmp {header:?}"),
            Icmpv4Type::EchoReply(echo) => format!("reply {} {}", echo.id, echo.seq),
            other => format!("{other:?}"),
        },
        Some(TransportSlice::Icmpv6(icmp)) => match icmp.icmp_type() {
            Icmpv6Type::DestinationUnreachable(header) => format!("icmp6 {header:?}"),
            Icmpv6Type::EchoReply(echo) => format!("reply6 {} {}", echo.id, echo.seq),
            other => format!("{other:?}"),
        },
        other => format!("{other:?}"),
    }
}

#[test]
fn errors_of_the_host_are_told_in_the_guests_terms() {
    for (errno, four, six) in [
        (Errno::ECONNREFUSED, "tcp rst", "tcp rst"),
        (Errno::EMFILE, "tcp rst", "tcp rst"),
        (Errno::EHOSTUNREACH, "icmp Host", "icmp6 Address"),
        (Errno::ENETUNREACH, "icmp Network", "icmp6 NoRoute"),
        (Errno::EACCES, "icmp FilterProhibited", "icmp6 Prohibited"),
    ] {
        for (to, wanted) in [(PEER, four), ("2001:db8::5", six)] {
            let mut nat = nat(Failing(errno));
            let frames = answers(&mut nat, &guest_syn(to.parse().unwrap(), (40_000, 80)));
            let said = said(&frames[0]);
            assert!(said.starts_with(wanted), "{errno}: {said}");
            assert_eq!((frames.len(), nat.counts()), (1, [0; 3]));
        }
    }
    // A connection that times out: the guest's own patience decides.
    assert!(
        answers(&mut nat(Failing(Errno::ETIMEDOUT)), &guest_syn(PEER.parse().unwrap(), (1, 2))).is_empty()
    );
    // A packet of a connection that does not exist.
    let frames = answers(&mut nat(Loopback), &guest_tcp(PEER.parse().unwrap(), (40_000, 80), b"x"));
    assert_eq!(said(&frames[0]), "tcp rst");
}

#[test]
fn connections_are_capped_and_refused_beyond_the_cap() {
    let mut nat = nat(Pairs::default());
    let (mut out, now) = (Vec::new(), Instant::now());
    let mut refused = 0;
    for port in 1..=u16::try_from(MAX_TCP).unwrap() + 10 {
        nat.from_guest(&guest_syn(PEER.parse().unwrap(), (port, 80)), now, &mut out);
        refused += frames_of(&out).iter().filter(|frame| said(frame) == "tcp rst").count();
        out.clear();
        while nat.turn(now, &mut out).unwrap() > 0 {}
        out.clear();
    }
    assert_eq!((nat.counts()[0], refused), (MAX_TCP, 10));
}

#[test]
fn a_udp_flow_hears_its_peer_and_nobody_else() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut nat = nat(Loopback);
    assert!(answers(&mut nat, &guest_udp(PEER.parse().unwrap(), (40_000, port), b"question")).is_empty());
    let mut space = [0; 100];
    let (length, from) = server.recv_from(&mut space).unwrap();
    assert_eq!(&space[..length], b"question");
    assert_ne!(from.port(), 40_000, "no port of the host is the guest's");
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(b"attack", from).unwrap();
    server.send_to(&[9; 60_000], from).unwrap();
    let mut out = Vec::new();
    while nat.turn(Instant::now(), &mut out).unwrap() == 0 {}
    let frames = frames_of(&out);
    assert_eq!((frames.len(), said(&frames[0])), (1, format!("udp {port} 40000")));
    assert_eq!(frames[0].len(), 60_000 + 42);

    // It ends when it has been silent.
    nat.tick(Instant::now() + Duration::from_secs(170), &mut out);
    assert_eq!(nat.counts(), [0, 1, 0]);
    nat.tick(Instant::now() + Duration::from_secs(190), &mut out);
    assert_eq!((nat.counts(), nat.due()), ([0; 3], None));
}

#[test]
fn a_udp_port_without_a_server_is_unreachable() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    drop(server);
    let mut nat = nat(Loopback);
    assert!(answers(&mut nat, &guest_udp(PEER.parse().unwrap(), (40_000, port), b"question")).is_empty());
    let mut out = Vec::new();
    while nat.turn(Instant::now(), &mut out).unwrap() == 0 {}
    assert_eq!(said(&frames_of(&out)[0]), "icmp Port");
}

#[test]
fn udp_flows_are_capped_and_the_oldest_without_an_answer_makes_room() {
    let mut nat = nat(Pairs::default());
    let mut out = Vec::new();
    let start = Instant::now();
    let to = PEER.parse().unwrap();
    nat.from_guest(&guest_udp(to, (1, 80), b"x"), start, &mut out);
    nix::sys::socket::send(
        std::os::fd::AsRawFd::as_raw_fd(&nat.outside.0[0]),
        b"answer",
        nix::sys::socket::MsgFlags::empty(),
    )
    .unwrap();
    nat.turn(start, &mut out).unwrap();
    for port in 2..=u16::try_from(MAX_UDP).unwrap() + 100 {
        nat.from_guest(
            &guest_udp(to, (port, 80), b"x"),
            start + Duration::from_micros(port.into()),
            &mut out,
        );
        nat.outside.0.truncate(2);
    }
    assert_eq!(nat.counts(), [0, MAX_UDP, 0]);
    nix::sys::socket::send(
        std::os::fd::AsRawFd::as_raw_fd(&nat.outside.0[0]),
        b"again",
        nix::sys::socket::MsgFlags::empty(),
    )
    .unwrap();
    out.clear();
    while out.is_empty() {
        nat.turn(start + Duration::from_secs(1), &mut out).unwrap();
    }
    assert_eq!(said(&frames_of(&out)[0]), "udp 80 1", "the flow with an answer is still there");
}

#[test]
fn published_ports_are_answered_through_themselves() {
    let bound = UdpSocket::bind("127.0.0.1:0").unwrap();
    bound.set_nonblocking(true).unwrap();
    let port = bound.local_addr().unwrap();
    let mut nat = Nat::new(Loopback, vec![(bound.into(), 53)], Instant::now()).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"question", port).unwrap();
    let mut out = Vec::new();
    while nat.turn(Instant::now(), &mut out).unwrap() == 0 {}
    let frames = frames_of(&out);
    let from = client.local_addr().unwrap().port();
    assert_eq!(said(&frames[0]), format!("udp {from} 53"));
    let Ok(Frame::Packet(packet)) = packet::of_carrier(&frames[0]) else { panic!() };
    assert_eq!(packet.source, GATEWAY_4, "the host's loopback is behind the gateway");
    answers(&mut nat, &guest_udp(GATEWAY_4.into(), (53, from), b"answer"));
    let mut space = [0; 100];
    let (length, sender) = client.recv_from(&mut space).unwrap();
    assert_eq!((&space[..length], sender), (&b"answer"[..], port));
    assert_eq!(nat.counts(), [0; 3], "it is no flow of the guest's own");
}

fn ping(to: IpAddr, identifier: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2(GUEST_MAC.0, PASST_MAC.0);
    match to {
        IpAddr::V4(to) => builder
            .ipv4(GUEST_4.octets(), to.octets(), 64)
            .icmpv4_echo_request(identifier, 7)
            .write(&mut frame, b"data"),
        IpAddr::V6(to) => builder
            .ipv6(GUEST_6.octets(), to.octets(), 64)
            .icmpv6_echo_request(identifier, 7)
            .write(&mut frame, b"data"),
    }
    .unwrap();
    frame
}

#[test]
fn pings_are_answered_under_the_guests_identifier_or_prohibited() {
    for (to, request, reply, wanted) in
        [(PEER, 8u8, 0u8, "reply 1234 7"), ("2001:db8::5", 128, 129, "reply6 1234 7")]
    {
        let mut nat = nat(Pairs::default());
        assert!(answers(&mut nat, &ping(to.parse().unwrap(), 1234)).is_empty());
        let host = std::os::unix::net::UnixDatagram::from(nat.outside.0.remove(0));
        let mut space = [0; 100];
        let length = host.recv(&mut space).unwrap();
        assert_eq!((space[0], &space[8..length]), (request, &b"data"[..]));
        // The host's kernel uses an identifier of its own.
        (space[0], space[4]) = (reply, 99);
        host.send(&space[..length]).unwrap();
        let mut out = Vec::new();
        while nat.turn(Instant::now(), &mut out).unwrap() == 0 {}
        assert_eq!(said(&frames_of(&out)[0]), wanted);
        nat.tick(Instant::now() + Duration::from_secs(40), &mut out);
        assert_eq!(nat.counts(), [0; 3]);
    }
    let frames = answers(&mut nat(Failing(Errno::EACCES)), &ping(PEER.parse().unwrap(), 1));
    assert_eq!(said(&frames[0]), "icmp FilterProhibited");
}

#[test]
fn neighbours_are_answered_for_and_others_are_not() {
    let mut nat = nat(Loopback);
    let question = |target: Ipv4Addr| {
        let mut frame = [[0xff; 6], GUEST_MAC.0].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(GUEST_MAC.0);
        frame.extend(GUEST_4.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        frame
    };
    let frames = answers(&mut nat, &question(GATEWAY_4));
    assert_eq!(frames[0][20..22], [0, 2], "an answer");
    assert_eq!((&frames[0][22..28], &frames[0][28..32]), (&PASST_MAC.0[..], &GATEWAY_4.octets()[..]));
    assert!(answers(&mut nat, &question(Ipv4Addr::new(10, 0, 2, 9))).is_empty());
}

#[test]
fn tokens_survive_the_kernel() {
    for token in [Token::Wire, Token::Tcp(1), Token::Udp(7), Token::Published(0), Token::Ping(1 << 40)] {
        assert_eq!(Token::of(token.number()), token);
    }
}

proptest! {
    /// Whatever a guest sends, in whatever order, the tables stay within their caps, and nothing breaks.
    #[test]
    fn no_guest_breaks_it(steps in proptest::collection::vec(step(), 1..60)) {
        let mut nat = nat(Pairs::default());
        let mut out = Vec::new();
        let mut now = Instant::now();
        for step in steps {
            match step {
                Step::Frame(frame) => nat.from_guest(&frame, now, &mut out),
                Step::Turn(time) => {
                    now += Duration::from_millis(time);
                    nat.turn(now, &mut out).unwrap();
                }
            }
            for frame in frames_of(&out) {
                prop_assert!(packet::of_carrier(&frame).is_ok());
            }
            out.clear();
        }
        let [tcp, udp, pings] = nat.counts();
        prop_assert!(tcp <= MAX_TCP && udp <= MAX_UDP && pings <= MAX_PINGS);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Frame(Vec<u8>),
    Turn(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let to = prop_oneof![Just(PEER), Just("2001:db8::5")].prop_map(|to| to.parse::<IpAddr>().unwrap());
    let tcp =
        (to.clone(), 1u16..4, any::<(u8, u32, u32, u16)>(), proptest::collection::vec(any::<u8>(), 0..80));
    prop_oneof![
        2 => (0u64..20_000).prop_map(Step::Turn),
        2 => (to.clone(), 1u16..4).prop_map(|(to, port)| Step::Frame(guest_syn(to, (port, 80)))),
        4 => tcp.prop_map(|(to, port, (flags, sequence, acknowledged, window), data)| {
            let mut frame = guest_tcp(to, (port, 80), &data);
            let at = 14 + if to.is_ipv4() { 20 } else { 40 };
            frame[at + 4..at + 8].copy_from_slice(&(sequence % 64).to_be_bytes());
            frame[at + 8..at + 12].copy_from_slice(&acknowledged.to_be_bytes());
            frame[at + 12] = 0x50 + (flags & 0x30);
            frame[at + 13] = flags;
            frame[at + 14..at + 16].copy_from_slice(&window.to_be_bytes());
            Step::Frame(frame)
        }),
        1 => (to.clone(), any::<(u16, u16)>(), proptest::collection::vec(any::<u8>(), 0..80))
            .prop_map(|(to, ports, data)| Step::Frame(guest_udp(to, ports, &data))),
        1 => (to, any::<u16>()).prop_map(|(to, identifier)| Step::Frame(ping(to, identifier))),
    ]
}
