//! The filter of a pod's network: whatever a guest sends and a DNS server answers, no packet leaves for a forbidden address or for one that the
//! allow list does not name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm::net::allow::AllowList;
use magikvm::net::filter::{Filter, Sink};
use magikvm::net::rules::Rules;
use magikvm::net::{DNS_4, GUEST_4, GUEST_6, GUEST_MAC, PASST_MAC, place};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

const LIST: &str = "good.example,*.wide.example:443,198.51.100.0/24:80,[2001:db8::]:1";
const MAX_FRAMES: usize = 32;

fn rules(listed: bool) -> Rules {
    Rules {
        guest: BTreeSet::from([GUEST_4.into(), GUEST_6.into()]),
        nameservers: BTreeSet::from([DNS_4.into()]),
        dns_by_tcp: false,
        host: BTreeSet::from([IpAddr::from([192, 0, 2, 2])]),
        reach: BTreeSet::new(),
        allow: listed.then(|| AllowList::parse(LIST).expect("a list")),
        published_udp: BTreeSet::new(),
    }
}

fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*header) as usize);
        frames.push(frame);
        bytes = rest;
    }
    assert!(bytes.is_empty());
    frames
}

/// The destination of a frame, read independently of everything else in it.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    match frame[12..14] {
        [8, 0] => Some(IpAddr::from(<[u8; 4]>::try_from(&frame[30..34]).expect("four"))),
        [0x86, 0xdd] => Some(IpAddr::from(<[u8; 16]>::try_from(&frame[38..54]).expect("sixteen"))),
        _ => None,
    }
}

/// Sets what no fuzzer would guess: the frame's addresses and lengths.
fn dressed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = [PASST_MAC.0, GUEST_MAC.0].concat();
    let mut packet = body.to_vec();
    let length = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    match kind % 4 {
        0 => frame.extend([8, 6]),
        1 if packet.len() >= 28 => {
            frame.extend([8, 0]);
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&length.to_be_bytes());
            packet[12..16].copy_from_slice(&GUEST_4.octets());
            packet[24..26].copy_from_slice(&(length - 20).to_be_bytes());
        }
        2 if packet.len() >= 48 => {
            frame.extend([0x86, 0xdd]);
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            packet[8..24].copy_from_slice(&GUEST_6.octets());
            packet[44..46].copy_from_slice(&(length - 40).to_be_bytes());
        }
        // A DNS query.
        3 => return magikvm::net::frames::udp(false, (GUEST_4.into(), 4000), (DNS_4.into(), 53), body),
        _ => frame.extend([8, 0]),
    }
    frame.extend(packet);
    frame
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, mut rest)) = bytes.split_first() else { return };
    let listed = first & 1 == 1;
    let (rules, now) = (rules(listed), Instant::now());
    let list = rules.allow.clone();
    let host = rules.host.clone();
    let mut filter = Filter::new(rules);
    let mut is_answered = false;
    for _ in 0..MAX_FRAMES {
        let Some((&[kind, length], after)) = rest.split_first_chunk::<2>() else { break };
        let (body, after) = after.split_at(usize::from(length).min(after.len()));
        rest = after;
        let mut sink = Sink::default();
        filter.from_guest(&dressed(kind, body), now, &mut sink);
        for frame in frames(&sink.to_carrier) {
            assert!(frame[6..12] == GUEST_MAC.0);
            let Some(to) = destination(frame) else { continue };
            let is_solicitation = frame[12..14] == [0x86, 0xdd] && frame[20] == 58;
            let is_question = to == DNS_4;
            assert!(is_question || is_solicitation || place::of(to, &host).is_none(), "{to}");
            // An answer may open any address that is not forbidden for everybody.
            if let Some(list) = list.as_ref().filter(|_| !is_question && !is_solicitation && !is_answered) {
                let port = u16::from_be_bytes([frame[36], frame[37]]);
                let port = if to.is_ipv4() { port } else { u16::from_be_bytes([frame[56], frame[57]]) };
                assert!(list.has_address(to, Some(port)), "{to} {port}");
            }
            // The answer of a hostile server to the filter's own query.
            if is_question && listed && frame.len() > 44 {
                let port = u16::from_be_bytes([frame[34], frame[35]]);
                let mut answer = frame[42..].to_vec();
                answer[2] |= 0x80;
                for (place, byte) in rest.iter().enumerate().take(64) {
                    if let Some(at) = answer.get_mut(2 + place * 3) {
                        *at ^= byte & 1;
                    }
                }
                answer.extend(rest.iter().take(200));
                let frame =
                    magikvm::net::frames::udp(true, (DNS_4.into(), 53), (GUEST_4.into(), port), &answer);
                filter.from_carrier(&frame, now, &mut Sink::default());
                is_answered = true;
            }
        }
        assert!(filter.refused(now).len() <= 32);
    }
});
