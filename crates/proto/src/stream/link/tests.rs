//! Tests of one end against the other, and against peers that break the rules.

use super::*;
use proptest::prelude::*;

/// Everything that one end sends.
fn take(from: &mut Link) -> Vec<u8> {
    let bytes = from.outbox().to_vec();
    from.sent(bytes.len());
    bytes
}

#[test]
fn both_directions_end_by_themselves() {
    let (mut host, mut guest) = (Link::new(Side::Host, Traffic::PORT), Link::new(Side::Guest, Traffic::PORT));
    host.send(0, b"question");
    guest.receive(&take(&mut host)).unwrap();
    host.end();
    guest.receive(&take(&mut host)).unwrap();
    assert_eq!(guest.inbox(), b"question");
    assert!(!guest.is_delivered());
    guest.delivered(8);
    assert!(guest.is_delivered() && !guest.is_finished());
    guest.send(0, b"answer");
    host.receive(&take(&mut guest)).unwrap();
    guest.end();
    host.receive(&take(&mut guest)).unwrap();
    host.delivered(6);
    assert!(host.is_finished() && guest.is_finished());
}

#[test]
fn who_is_not_read_from_sends_a_window_and_no_more() {
    let (mut host, mut guest) = (Link::new(Side::Host, Traffic::PORT), Link::new(Side::Guest, Traffic::PORT));
    let mut sent = 0;
    while guest.room() > 0 {
        let bytes = vec![7; guest.room()];
        guest.send(0, &bytes);
        sent += bytes.len();
        host.receive(&take(&mut guest)).unwrap();
    }
    assert!(sent < 128 << 10 && sent > 100 << 10, "{sent}");
    assert_eq!((host.inbox().len(), host.outbox().len()), (sent, 0));
    host.delivered(sent);
    guest.receive(&take(&mut host)).unwrap();
    assert!(guest.room() > 0);
}

#[test]
fn small_frames_fill_the_window_by_their_number() {
    let mut guest = Link::new(Side::Guest, Traffic::PORT);
    let mut frames = 0;
    while guest.room() > 0 {
        guest.send(0, b"x");
        guest.sent(5);
        frames += 1;
    }
    assert!((100..=128).contains(&frames), "{frames}");
}

#[test]
fn what_no_honest_peer_sends_is_refused() {
    let refused = |bytes: &[u8]| Link::new(Side::Host, Traffic::PORT).receive(bytes).unwrap_err();
    assert_eq!(refused(&[9, 0, 0, 0]), Violation::Kind(9));
    assert_eq!(refused(&[DATA, 0, 0, 0]), Violation::Number { kind: DATA, number: 0 });
    assert_eq!(refused(&[DATA, 0, 0x40, 0]), Violation::Number { kind: DATA, number: 16384 });
    assert_eq!(refused(&[END, 0, 0, 1]), Violation::Number { kind: END, number: 1 });
    assert_eq!(refused(&[WINDOW, 0, 0, 0]), Violation::Number { kind: WINDOW, number: 0 });
    assert_eq!(refused(&[WINDOW, 0, 0, 1]), Violation::Room);
    assert_eq!(refused(&[RESET, 1, 0, 0]), Violation::Number { kind: RESET, number: 65536 });
    assert_eq!(refused(&[END, 0, 0, 0, DATA, 0, 0, 1]), Violation::AfterEnd);
    assert_eq!(refused(&[END, 0, 0, 0, END, 0, 0, 0]), Violation::AfterEnd);
    assert_eq!(refused(&[DATA, 0, 0x40, 1]), Violation::Number { kind: DATA, number: 16385 });
    assert_eq!(refused(&[MESSAGE, 0, 0, 1]), Violation::Misplaced(MESSAGE));
    assert_eq!(refused(&[URGENT, 0, 0, 1]), Violation::Misplaced(URGENT));
    let flood: Vec<u8> = (0..200).flat_map(|_| [DATA, 0, 0, 1, b'x']).collect();
    assert_eq!(refused(&flood), Violation::Window);
}

#[test]
fn after_a_reset_nothing_counts_and_nothing_waits() {
    let mut host = Link::new(Side::Host, Traffic::PORT);
    host.receive(&[DATA, 0, 0, 2, b'a', b'b', RESET, 0, 0, 0, 9, 9, 9, 9]).unwrap();
    assert_eq!((host.reset_by(), host.inbox(), host.room()), (Some(Side::Guest), &b""[..], 0));
    host.end();
    host.abort();
    assert!(host.outbox().is_empty());
}

#[test]
fn each_kind_of_stream_carries_what_it_is_for() {
    let to = |side, traffic, bytes: &[u8]| Link::new(side, traffic).receive(bytes);
    let (host, guest) = (Side::Host, Side::Guest);
    assert_eq!(to(host, Traffic::PROCESS, &[DATA, 0, 0x40, 1, b'x']), Ok(()));
    let third = Violation::Number { kind: DATA, number: 0x8001 };
    assert_eq!(to(host, Traffic::PROCESS, &[DATA, 0, 0x80, 1]), Err(third));
    assert_eq!(to(host, Traffic::logs(2), &[DATA, 0, 0xc0, 1]), Ok(()));
    let fifth = Violation::Number { kind: DATA, number: 0x1_0001 };
    assert_eq!(to(host, Traffic::logs(2), &[DATA, 1, 0, 1]), Err(fifth));
    assert_eq!(to(host, Traffic::PROCESS, &[URGENT, 0, 0, 1]), Err(Violation::Misplaced(URGENT)));
    assert_eq!(to(guest, Traffic::PROCESS, &[URGENT, 0, 0, 1]), Ok(()));
    assert_eq!(to(guest, Traffic::PROCESS, &[MESSAGE, 0, 0, 1]), Err(Violation::Misplaced(MESSAGE)));
    for traffic in [Traffic::EVENTS, Traffic::logs(2)] {
        assert_eq!(to(guest, traffic, &[DATA, 0, 0, 1]), Err(Violation::Misplaced(DATA)));
        assert_eq!(to(guest, traffic, &[END, 0, 0, 0]), Ok(()));
    }
    for (side, kind, most) in [(host, MESSAGE, MAX_MESSAGE), (guest, URGENT, MAX_URGENT)] {
        for number in [0, u32::try_from(most).unwrap() + 1] {
            let refused = to(side, Traffic::PROCESS, &header(kind, number));
            assert_eq!(refused, Err(Violation::Number { kind, number }));
        }
    }
    let mut flood = [URGENT, 0, 0, 255].to_vec();
    flood.resize(HEADER_LEN + MAX_URGENT, b'x');
    assert_eq!(to(guest, Traffic::PROCESS, &flood.repeat(257)), Err(Violation::Urgent));
}

#[test]
fn an_urgent_message_overtakes_what_waits_and_takes_no_room() {
    let (mut host, mut guest) =
        (Link::new(Side::Host, Traffic::PROCESS), Link::new(Side::Guest, Traffic::PROCESS));
    while host.room() > 0 {
        let input = vec![7; host.room()];
        host.send(0, &input);
        assert!(!host.has_room_for_urgent(), "the input waits for the connection, and only for that");
        guest.receive(&take(&mut host)).unwrap();
    }
    for text in [b"one".as_slice(), b"two"] {
        host.send_urgent(text);
        guest.receive(&take(&mut host)).unwrap();
    }
    assert_eq!(guest.take_urgent().unwrap(), b"one");
    assert_eq!(guest.take_urgent().unwrap(), b"two");
    assert_eq!(guest.take_urgent(), None);
    let waiting = guest.inbox().len();
    assert!(
        waiting > 32 << 10
            && matches!(guest.next(), Some(Incoming::Data { channel: 0, bytes }) if bytes.len() == waiting)
    );
}

#[test]
fn a_message_is_seen_when_all_of_it_has_come_and_its_turn_has() {
    let mut host = Link::new(Side::Host, Traffic::PROCESS);
    host.receive(&[DATA, 0, 0, 1, b'a', DATA, 0, 0, 1, b'b', DATA, 0, 0x40, 1, b'c']).unwrap();
    host.receive(&[MESSAGE, 0, 0, 3, b'x', b'y']).unwrap();
    assert_eq!(host.next(), Some(Incoming::Data { channel: 0, bytes: b"ab" }));
    host.delivered(2);
    assert_eq!(host.next(), Some(Incoming::Data { channel: 1, bytes: b"c" }));
    host.delivered(1);
    assert_eq!((host.next(), host.open_frame()), (None, Some(4)));
    host.receive(b"z").unwrap();
    assert_eq!((host.next(), host.open_frame()), (Some(Incoming::Message(b"xyz")), None));
    host.delivered(3);
    assert_eq!(host.next(), None);
}

#[test]
fn a_peer_that_does_not_read_is_not_told_of_room_again_and_again() {
    let mut host = Link::new(Side::Host, Traffic::PORT);
    let frame = [header(DATA, 16380).as_slice(), &[7; 16380]].concat();
    for _ in 0..2 {
        host.receive(&frame).unwrap();
    }
    host.delivered(2 * 16380);
    assert_eq!(host.outbox().len(), HEADER_LEN);
    for _ in 0..2 {
        host.receive(&frame).unwrap();
    }
    host.delivered(2 * 16380);
    assert_eq!(host.outbox().len(), HEADER_LEN, "it waits until the first leave is sent");
    host.sent(HEADER_LEN);
    assert_eq!(host.outbox().len(), HEADER_LEN);
}

/// What one end does next.
#[derive(Debug, Clone)]
enum Act {
    /// Sends data of a channel.
    Read(u16, usize),
    /// Sends a message, in order or urgent.
    Say(usize),
    /// Hands on what has arrived.
    Write(usize),
    Carry(usize),
}

fn act() -> impl Strategy<Value = (bool, Act)> {
    let act = prop_oneof![
        (0u16..2, 1usize..40_000).prop_map(|(channel, most)| Act::Read(channel, most)),
        (1usize..6000).prop_map(Act::Say),
        (1usize..40_000).prop_map(Act::Write),
        (1usize..40_000).prop_map(Act::Carry),
    ];
    (any::<bool>(), act)
}

/// What was sent or has arrived: data of a channel, joined, and messages.
type Log = Vec<(Option<u16>, Vec<u8>)>;

fn note(log: &mut Log, channel: u16, bytes: &[u8]) {
    match log.last_mut() {
        Some((Some(last), joined)) if *last == channel => joined.extend_from_slice(bytes),
        _ if bytes.is_empty() => {}
        _ => log.push((Some(channel), bytes.to_vec())),
    }
}

/// Takes the next item; of data, at most `most` bytes.
fn hand_on(link: &mut Link, most: usize, log: &mut Log) {
    let count = match link.next() {
        Some(Incoming::Data { channel, bytes }) => {
            let bytes = &bytes[..most.min(bytes.len())];
            note(log, channel, bytes);
            bytes.len()
        }
        Some(Incoming::Message(message)) => {
            log.push((None, message.to_vec()));
            message.len()
        }
        None => return,
    };
    link.delivered(count);
}

proptest! {
    #[test]
    fn any_bytes_are_taken_or_refused_within_bounds(
        pieces in proptest::collection::vec(proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..40), 0..40),
    ) {
        for (side, traffic) in [
            (Side::Host, Traffic::PORT),
            (Side::Host, Traffic::PROCESS),
            (Side::Guest, Traffic::PROCESS),
            (Side::Host, Traffic::logs(3)),
        ] {
            let mut link = Link::new(side, traffic);
            for piece in &pieces {
                if link.receive(piece).is_err() {
                    break;
                }
                prop_assert!(link.inbox().len() <= WINDOW_TO_HOST as usize);
                prop_assert!(link.outbox().len() <= 64);
                prop_assert!(link.urgent.as_slice().len() <= MAX_URGENT_HELD);
            }
        }
    }

    #[test]
    fn what_is_sent_arrives_whatever_comes_in_which_pieces(acts in proptest::collection::vec(act(), 0..200)) {
        let mut ends = [Link::new(Side::Host, Traffic::PROCESS), Link::new(Side::Guest, Traffic::PROCESS)];
        let mut sent = [Log::new(), Log::new()];
        let mut arrived = [Log::new(), Log::new()];
        let (mut urgent, mut heard) = (Vec::new(), Vec::new());
        let mut next = 0u8;
        let mut fill = |count: usize| -> Vec<u8> { (0..count).map(|_| { next = next.wrapping_add(1); next }).collect() };
        let everything = (0..2000usize).flat_map(|_| [Act::Carry(1 << 20), Act::Write(1 << 20)]).flat_map(|act| [(false, act.clone()), (true, act)]);
        for (number, (which, act)) in acts.iter().cloned().chain(everything).enumerate() {
            let (me, other) = (usize::from(which), usize::from(!which));
            if number == acts.len() {
                ends.iter_mut().for_each(Link::end);
            }
            match act {
                Act::Read(channel, most) => {
                    // The host's data have one channel.
                    let channel = if which { channel } else { 0 };
                    let bytes = fill(most.min(ends[me].room()));
                    ends[me].send(channel, &bytes);
                    note(&mut sent[me], channel, &bytes);
                }
                Act::Say(len) if which && ends[me].room() > 0 => {
                    let message = fill(len.min(MAX_MESSAGE));
                    ends[me].send_message(&message);
                    sent[me].push((None, message));
                }
                Act::Say(len) if !which && ends[me].has_room_for_urgent() => {
                    let message = fill(len.min(MAX_URGENT));
                    ends[me].send_urgent(&message);
                    urgent.push(message);
                }
                Act::Say(_) => {}
                Act::Write(most) => hand_on(&mut ends[me], most, &mut arrived[me]),
                Act::Carry(most) => {
                    let bytes = ends[me].outbox()[..most.min(ends[me].outbox().len())].to_vec();
                    ends[me].sent(bytes.len());
                    ends[other].receive(&bytes).unwrap();
                    heard.extend(std::iter::from_fn(|| ends[1].take_urgent()));
                }
            }
            prop_assert!(ends[me].inbox().len() <= WINDOW_TO_HOST as usize);
            prop_assert!(ends[me].outbox().len() <= MAX_DATA + 64);
            if ends.iter().all(Link::is_finished) {
                break;
            }
        }
        prop_assert!(ends.iter().all(Link::is_finished));
        prop_assert_eq!(&sent[0], &arrived[1]);
        prop_assert_eq!(&sent[1], &arrived[0]);
        prop_assert_eq!(urgent, heard);
    }
}
