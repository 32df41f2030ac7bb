//! Both ends of each kind of stream: input from the other side is accepted within a window or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_proto::codec::{read_message, write_message};
use magikvm_proto::forward::ForwardRequest;
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::stream::{
    Incoming, Link, MAX_MESSAGE, MAX_URGENT, Side, Traffic, WINDOW_TO_GUEST, WINDOW_TO_HOST,
};
use magikvm_proto::wire::{Done, Refusal, Reply};

/// Control frames that may wait at one time; data frames of our own are not sent here.
const MOST_CONTROL: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    // Parses the two lines.
    let (line, frames) =
        bytes.split_at(bytes.iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1));
    if let Ok(Some(request)) = read_message::<ForwardRequest>(&mut &*line) {
        let mut again = Vec::new();
        write_message(&mut again, &request).expect("what was read can be written");
        let read = read_message::<ForwardRequest>(&mut again.as_slice()).expect("and read again");
        assert_eq!(read, Some(request));
    }
    if let Ok(Some(Reply::Error(refusal))) = read_message::<Reply<Done>>(&mut &*line) {
        assert!(Refusal::new(refusal.code, refusal.message).message.len() <= MAX_MESSAGE_LEN);
    }
    for traffic in [Traffic::PORT, Traffic::PROCESS, Traffic::EVENTS, Traffic::logs(2)] {
        one_end(Side::Host, traffic, frames);
        one_end(Side::Guest, traffic, frames);
    }
});

fn one_end(side: Side, traffic: Traffic, frames: &[u8]) {
    let window = match side {
        Side::Host => WINDOW_TO_HOST,
        Side::Guest => WINDOW_TO_GUEST,
    };
    let window = usize::try_from(window).expect("a small number");
    let (mut whole, mut parts) = (Link::new(side, traffic), Link::new(side, traffic));
    let in_one = whole.receive(frames);
    let in_parts = frames.iter().try_for_each(|&byte| parts.receive(&[byte]));
    assert_eq!(in_one, in_parts, "pieces make no difference");
    if in_one.is_ok() {
        assert_eq!((whole.inbox(), whole.next()), (parts.inbox(), parts.next()));
    }
    for link in [&mut whole, &mut parts] {
        assert!(link.inbox().len() <= window);
        while let Some(message) = link.take_urgent() {
            assert!((1..=MAX_URGENT).contains(&message.len()) && side == Side::Guest);
        }
        // Delivered data makes room, which is announced once.
        while let Some(next) = link.next() {
            let count = match next {
                Incoming::Data { bytes, .. } => bytes.len(),
                Incoming::Message(message) => {
                    assert!(message.len() <= MAX_MESSAGE);
                    message.len()
                }
            };
            link.delivered(count);
        }
        // Only an incomplete message may be left.
        assert!(link.inbox().len() < MAX_MESSAGE && link.outbox().len() <= MOST_CONTROL);
        if link.room() > 0 {
            let data = vec![1; link.room()];
            link.send(0, &data);
        }
        link.end();
        link.abort();
    }
}
