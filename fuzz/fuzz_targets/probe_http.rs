//! What a probed server answers over HTTP is an answer within its limits or an error, and the pieces in which it arrives make no
//! difference.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_supervisor::parsers::answer::{Answer, AnswerError, Reader};

/// Most bytes of a body that are kept.
const MAX_OUTPUT: usize = 10 << 10;

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Answer, AnswerError> {
    let mut reader = Reader::default();
    for piece in pieces {
        if let Some(answer) = reader.feed(piece)? {
            return Ok(answer);
        }
    }
    reader.end()
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read(std::iter::once(bytes));
    let pieces = read(bytes.chunks(7));
    if let Ok(answer) = &whole {
        assert!((100..1000).contains(&answer.status) && answer.body.len() <= MAX_OUTPUT);
    }
    if let (Ok(whole), Ok(pieces)) = (&whole, &pieces) {
        assert_eq!((whole.status, &whole.location), (pieces.status, &pieces.location));
    }
    // One of both may have enough before something is wrong.
    if whole.is_err() && pieces.is_err() {
        assert!(!whole.unwrap_err().to_string().is_empty());
    }
});
