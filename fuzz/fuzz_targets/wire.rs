//! Both ends of the wire: input from the other side is a message within the caps, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_proto::codec::read_message;
use magikvm_proto::wire::{
    ClockSet, Event, Hello, Reply, Request, Stats, Status, StreamMessage, UrgentMessage,
};

fuzz_target!(|bytes: &[u8]| {
    let mut reader = bytes;
    while let Ok(Some(request)) = read_message::<Request>(&mut reader) {
        let again = serde_json_roundtrip(&request);
        assert_eq!(again, request);
    }
    let mut reader = bytes;
    while let Ok(Some(_)) = read_message::<Event>(&mut reader) {}
    let mut reader = bytes;
    while let Ok(Some(_)) = read_message::<Reply<Hello>>(&mut reader) {}
    let mut reader = bytes;
    while let Ok(Some(_)) = read_message::<Reply<Status>>(&mut reader) {}
    let mut reader = bytes;
    while let Ok(Some(_)) = read_message::<Reply<Stats>>(&mut reader) {}
    let mut reader = bytes;
    while let Ok(Some(_)) = read_message::<Reply<ClockSet>>(&mut reader) {}
    let mut reader = bytes;
    while let Ok(Some(_)) = read_message::<StreamMessage>(&mut reader) {}
    let mut reader = bytes;
    while let Ok(Some(_)) = read_message::<UrgentMessage>(&mut reader) {}
});

fn serde_json_roundtrip(request: &Request) -> Request {
    let mut line = Vec::new();
    magikvm_proto::codec::write_message(&mut line, request).expect("what was read can be written");
    read_message(&mut line.as_slice()).expect("and read again").expect("it is there")
}
