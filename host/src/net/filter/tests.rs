use super::super::allow::AllowList;
use super::super::packet::tests::{guest_syn, guest_tcp, guest_udp};
use super::super::{GATEWAY_4, GUEST_4, GUEST_6, Reach};
use super::*;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn rules() -> Rules {
    Rules {
        guest: BTreeSet::from([GUEST_4.into(), GUEST_6.into()]),
        nameservers: BTreeSet::from([DNS_4.into()]),
        dns_by_tcp: false,
        host: BTreeSet::from([ip("192.0.2.2"), ip("2001:db8::2")]),
        reach: BTreeSet::new(),
        allow: None,
        published_udp: BTreeSet::new(),
    }
}

fn allowing(list: &str) -> Filter {
    Filter::new(Rules { allow: Some(AllowList::parse(list).unwrap()), ..rules() })
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The frames in a sink for one side.
fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<4>() {
        let (frame, after) = after.split_at(u32::from_be_bytes(*header) as usize);
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    Answered,
    Dropped,
}

fn fate(filter: &mut Filter, frame: &[u8], now: Instant) -> Fate {
    let mut sink = Sink::default();
    filter.from_guest(frame, now, &mut sink);
    match (frames(&sink.to_carrier).as_slice(), sink.to_guest.is_empty()) {
        ([passed], true) => {
            assert_eq!(passed, frame);
            Fate::Passed
        }
        ([], false) => Fate::Answered,
        ([], true) => Fate::Dropped,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_list_everything_is_open_but_what_is_closed_by_default() {
    let (mut filter, now) = (Filter::new(rules()), Instant::now());
    for open in ["198.51.100.1", "10.9.9.9", "2001:db8::99", "fd00::1"] {
        assert_eq!(fate(&mut filter, &guest_syn(ip(open), (1, 80)), now), Fate::Passed, "{open}");
        assert_eq!(fate(&mut filter, &guest_udp(ip(open), (1, 53), b"x"), now), Fate::Passed, "{open}");
    }
    let closed = [
        "127.0.0.1",
        "0.0.0.0",
        "10.0.2.2",
        "169.254.1.1",
        "169.254.169.254",
        "192.0.2.2",
        "::1",
        "::ffff:127.0.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "2001:db8::2",
        "10.0.2.77",
        "::ffff:198.51.100.1",
    ];
    for closed in closed {
        assert_eq!(fate(&mut filter, &guest_syn(ip(closed), (1, 80)), now), Fate::Answered, "{closed}");
        assert_eq!(fate(&mut filter, &guest_udp(ip(closed), (1, 80), b"x"), now), Fate::Answered, "{closed}");
    }
    for many in ["224.0.0.251", "255.255.255.255", "ff02::fb"] {
        assert_eq!(fate(&mut filter, &guest_udp(ip(many), (1, 5353), b"x"), now), Fate::Dropped, "{many}");
    }
    assert_eq!(fate(&mut filter, &guest_udp(DNS_4.into(), (1, 53), b"x"), now), Fate::Passed);
    assert_eq!(fate(&mut filter, &guest_udp(DNS_4.into(), (1, 54), b"x"), now), Fate::Answered);
    assert_eq!(fate(&mut filter, &guest_syn(DNS_4.into(), (1, 53)), now), Fate::Answered);
    let mut filter = Filter::new(Rules { dns_by_tcp: true, ..rules() });
    assert_eq!(fate(&mut filter, &guest_syn(DNS_4.into(), (1, 53)), now), Fate::Passed);
    assert_eq!(fate(&mut filter, &guest_syn(DNS_4.into(), (1, 80)), now), Fate::Answered);
    assert_eq!(
        fate(&mut filter, &guest_syn(DNS_6.into(), (1, 53)), now),
        Fate::Answered,
        "it is not a server"
    );
}

#[test]
fn each_closed_place_can_be_opened() {
    let cases = [
        (Reach::Loopback, GATEWAY_4.to_string()),
        (Reach::Host, "192.0.2.2".to_owned()),
        (Reach::LinkLocal, "169.254.1.1".to_owned()),
        (Reach::Metadata, "169.254.169.254".to_owned()),
    ];
    let now = Instant::now();
    for (reach, address) in &cases {
        let mut filter = Filter::new(Rules { reach: BTreeSet::from([*reach]), ..rules() });
        for (other, place) in &cases {
            let expected = if other == reach { Fate::Passed } else { Fate::Answered };
            assert_eq!(
                fate(&mut filter, &guest_syn(ip(place), (1, 2)), now),
                expected,
                "{reach:?} {address} {place}"
            );
        }
    }
    // A link-local address of the host.
    let host = BTreeSet::from([ip("169.254.1.1")]);
    let mut filter = Filter::new(Rules { host, reach: BTreeSet::from([Reach::LinkLocal]), ..rules() });
    assert_eq!(fate(&mut filter, &guest_syn(ip("169.254.1.1"), (1, 2)), now), Fate::Answered);
    assert_eq!(fate(&mut filter, &guest_syn(ip("169.254.1.2"), (1, 2)), now), Fate::Passed);
}

#[test]
fn only_the_guest_itself_speaks() {
    let (mut filter, now) = (Filter::new(rules()), Instant::now());
    let mut frame = guest_udp(ip("198.51.100.1"), (1, 2), b"x");
    frame[29] ^= 1;
    assert_eq!(fate(&mut filter, &frame, now), Fate::Dropped, "another address");
    let told = filter.refused(now);
    assert_eq!(told[0].why, "not from the pod's address");
}

#[test]
fn a_list_opens_its_networks_and_ports_only() {
    let (mut filter, now) =
        (allowing("198.51.100.0/24:443,[2001:db8::/32]:80,127.0.0.0/8,0.0.0.0/1:1"), Instant::now());
    let mut syn = |to: &str, port| fate(&mut filter, &guest_syn(ip(to), (9, port)), now);
    assert_eq!(syn("198.51.100.9", 443), Fate::Passed);
    assert_eq!(syn("198.51.100.9", 80), Fate::Answered);
    assert_eq!(syn("2001:db8::9", 80), Fate::Passed);
    assert_eq!(syn("203.0.113.1", 443), Fate::Answered);
    assert_eq!(syn("127.0.0.1", 80), Fate::Answered, "what is closed by default is not opened by a list");
    assert_eq!(syn("10.0.2.2", 1), Fate::Answered);
    assert_eq!(
        fate(&mut filter, &guest_udp(ip("8.8.8.8"), (9, 53), b"x"), now),
        Fate::Answered,
        "another name server"
    );
}

/// Looks up `name` and has the server answer with these addresses. Returns what the guest received.
fn resolved(filter: &mut Filter, name: &str, addresses: &[&str], now: Instant) -> Message {
    let mut sink = Sink::default();
    filter.from_guest(&guest_udp(DNS_4.into(), (5555, 53), &question(name)), now, &mut sink);
    let asked = frames(&sink.to_carrier);
    if asked.is_empty() {
        return heard(&sink);
    }
    let Ok(Frame::Packet(ours)) = packet::of_guest(&asked[0]) else { panic!() };
    let Body::Udp { source, data, .. } = ours.body else { panic!() };
    let mut message = Message::from_vec(data).unwrap();
    message.metadata.message_type = MessageType::Response;
    let own = message.queries[0].name().clone();
    let records =
        addresses.iter().map(|text| Record::from_rdata(own.clone(), 60, RData::A(A(text.parse().unwrap()))));
    message.insert_answers(records.collect());
    let answer = frames::udp(true, (DNS_4.into(), 53), (GUEST_4.into(), source), &message.to_vec().unwrap());
    let mut sink = Sink::default();
    filter.from_carrier(&answer, now, &mut sink);
    heard(&sink)
}

fn question(name: &str) -> Vec<u8> {
    use hickory_proto::op::{OpCode, Query};
    use hickory_proto::rr::RecordType;
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name.parse().unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn heard(sink: &Sink) -> Message {
    let answers = frames(&sink.to_guest);
    let Ok(Frame::Packet(answer)) = packet::of_carrier(&answers[0]) else { panic!() };
    let Body::Udp { source: 53, destination: 5555, data } = answer.body else { panic!() };
    Message::from_vec(data).unwrap()
}

#[test]
fn a_name_that_is_asked_for_opens_its_address_for_its_time() {
    let (mut filter, start) = (allowing("good.example:443"), Instant::now());
    let to = ip("203.0.113.5");
    let syn = guest_syn(to, (9, 443));
    assert_eq!(fate(&mut filter, &syn, start), Fate::Answered);
    assert_eq!(resolved(&mut filter, "good.example.", &["203.0.113.5"], start).answers.len(), 1);
    assert_eq!(fate(&mut filter, &syn, start), Fate::Passed);
    assert_eq!(fate(&mut filter, &guest_syn(to, (9, 80)), start), Fate::Answered);
    // A flow that has begun continues after its time is over; no new flow begins.
    let later = start + Duration::from_secs(3600);
    assert_eq!(fate(&mut filter, &guest_tcp(to, (9, 443), b"x"), later), Fate::Passed);
    assert_eq!(fate(&mut filter, &guest_tcp(to, (10, 443), b"x"), later), Fate::Answered);
    assert_eq!(fate(&mut filter, &syn, later), Fate::Answered);
    assert_eq!(fate(&mut filter, &guest_tcp(to, (9, 443), b"x"), later + TCP_IDLE), Fate::Answered);
}

#[test]
fn other_names_and_answers_that_point_inside_are_refused_and_told() {
    let (mut filter, now) = (allowing("good.example"), Instant::now());
    let refused = resolved(&mut filter, "bad.example.", &["203.0.113.5"], now);
    assert_eq!(refused.metadata.response_code, hickory_proto::op::ResponseCode::Refused);
    let rebound = resolved(&mut filter, "good.example.", &["127.0.0.1", "169.254.169.254", "192.0.2.2"], now);
    assert!(rebound.answers.is_empty());
    let told: Vec<String> = filter
        .refused(now)
        .into_iter()
        .map(|line| format!("{} {}: {}", line.what, line.to, line.why))
        .collect();
    assert_eq!(
        told,
        [
            "name bad.example: not in egress-allow",
            "answer good.example: it stands for 127.0.0.1: the host's loopback",
            "answer good.example: it stands for 169.254.169.254: a cloud's metadata",
            "answer good.example: it stands for 192.0.2.2: an address of the host",
        ]
    );
    assert_eq!(fate(&mut filter, &guest_syn(ip("127.0.0.1"), (1, 80)), now), Fate::Answered);
}

#[test]
fn answers_go_out_to_whom_something_came_in_from_by_a_published_port() {
    let published_udp = BTreeSet::from([53]);
    let allow = Some(AllowList::default());
    let (mut filter, now) = (Filter::new(Rules { published_udp, allow, ..rules() }), Instant::now());
    for client in [GATEWAY_4.into(), ip("203.0.113.5")] {
        let answer = guest_udp(client, (53, 4000), b"x");
        assert_eq!(fate(&mut filter, &answer, now), Fate::Answered);
        let mut sink = Sink::default();
        filter.from_carrier(&frames::udp(true, (client, 4000), (GUEST_4.into(), 53), b"q"), now, &mut sink);
        assert_eq!(frames(&sink.to_guest).len(), 1);
        assert_eq!(fate(&mut filter, &answer, now), Fate::Passed);
        assert_eq!(fate(&mut filter, &guest_udp(client, (54, 4000), b"x"), now), Fate::Answered);
        assert_eq!(fate(&mut filter, &answer, now + UDP_IDLE * 2), Fate::Answered);
    }
}

#[test]
fn what_comes_before_passt_knows_the_guest_is_addressed_to_it() {
    let published_udp = BTreeSet::from([53]);
    let mut filter = Filter::new(Rules { published_udp, ..rules() });
    let mut frame = frames::udp(true, (ip("203.0.113.5"), 4000), (GUEST_4.into(), 53), b"q");
    let expected = frame.clone();
    frame[..6].fill(0);
    let mut sink = Sink::default();
    filter.from_carrier(&frame, Instant::now(), &mut sink);
    assert_eq!(frames(&sink.to_guest), [expected]);
}

#[test]
fn a_million_connections_fill_no_memory() {
    let (mut filter, now) = (allowing("0.0.0.0/0"), Instant::now());
    for n in 0..20_000u32 {
        let to = IpAddr::V4((0xcb00_7100 + n).into());
        fate(&mut filter, &guest_syn(to, (1, 2)), now);
    }
    assert_eq!(filter.begun.0.len(), MAX_FLOWS);
}

proptest! {
    #[test]
    fn nothing_closed_gets_out_however_it_is_written(bytes in proptest::collection::vec(any::<u8>(), 0..120), closed in 0..6usize, at in 12..40usize, value: u8) {
        let now = Instant::now();
        let to = ["127.0.0.1", "169.254.169.254", "192.0.2.2", "::1", "fe80::1", "::ffff:10.0.0.1"][closed];
        let mut filter = Filter::new(rules());
        for frame in [guest_udp(ip(to), (1, 2), &bytes), guest_syn(ip(to), (3, 4))] {
            let mut frame = frame;
            // Any field but the destination.
            let destination = if ip(to).is_ipv4() { 30..34 } else { 38..54 };
            if !destination.contains(&at) && at < frame.len() {
                frame[at] = value;
            }
            let mut sink = Sink::default();
            filter.from_guest(&frame, now, &mut sink);
            for passed in frames(&sink.to_carrier) {
                // A changed Ethernet type or IP version makes it another kind of frame, which is parsed anew.
                let Ok(Frame::Packet(packet)) = packet::of_guest(&passed) else { continue };
                prop_assert!(closed_by_default(packet.destination).is_none(), "{packet:?}");
            }
        }
    }
}

fn closed_by_default(address: IpAddr) -> Option<Place> {
    closed(&rules(), address)
}
