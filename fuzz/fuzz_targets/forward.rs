//! Forwarded connections, either end: whatever the other side sends is taken or refused, within a window.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_proto::codec::{read_message, write_message};
use magikvm_proto::forward::{ForwardRequest, Link, Side, WINDOW_TO_GUEST, WINDOW_TO_HOST};
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::wire::{Done, Refusal, Reply};

/// Control frames that may wait at one time; data frames of our own are not sent here.
const MOST_CONTROL: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    // What reads the two lines.
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
    for (side, window) in [(Side::Host, WINDOW_TO_HOST), (Side::Guest, WINDOW_TO_GUEST)] {
        let window = usize::try_from(window).expect("a small number");
        let (mut whole, mut parts) = (Link::new(side), Link::new(side));
        let in_one = whole.receive(frames);
        let in_parts = frames.iter().try_for_each(|&byte| parts.receive(&[byte]));
        assert_eq!(in_one, in_parts, "pieces make no difference");
        if in_one.is_ok() {
            assert_eq!(whole.inbox(), parts.inbox());
        }
        for link in [&mut whole, &mut parts] {
            assert!(link.inbox().len() <= window);
            // What is delivered makes room, and is told once.
            let count = link.inbox().len();
            link.delivered(count);
            assert!(link.inbox().is_empty() && link.outbox().len() <= MOST_CONTROL);
            if link.room() > 0 {
                let data = vec![1; link.room()];
                link.send(&data);
            }
            link.end();
            link.abort();
        }
    }
});
