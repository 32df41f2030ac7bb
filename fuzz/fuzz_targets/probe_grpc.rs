//! What a probed server answers over HTTP/2 is an answer within its limits or an error, and the pieces in which it arrives make no
//! difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_supervisor::parsers::h2::{Answer, Call, H2Error};

/// Most bytes of a message, with its prefix.
const MAX_MESSAGE: usize = 16 << 10;

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Result<Option<Answer>, H2Error>, Vec<u8>) {
    let mut call = Call::new("127.0.0.1:80", "/a/B", "fuzz", 1000, b"");
    let mut found = Ok(None);
    for piece in pieces {
        found = call.receive(piece);
        if !matches!(found, Ok(None)) {
            break;
        }
    }
    (found, call.take_outbox())
}

fuzz_target!(|bytes: &[u8]| {
    // Most inputs would not get beyond the first frame.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let bytes = [&settings[..], bytes].concat();
    let (whole, sent) = read(std::iter::once(&bytes[..]));
    let (pieces, also_sent) = read(bytes.chunks(1));
    assert_eq!(whole, pieces);
    assert_eq!(sent, also_sent);
    if let Ok(Some(answer)) = whole {
        assert!(answer.message.is_none_or(|message| message.len() <= MAX_MESSAGE));
    }
});
