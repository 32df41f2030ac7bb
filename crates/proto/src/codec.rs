//! Lines on any byte stream, with a cap on every length. Both ends read with the same code.

use crate::limits::MAX_LINE_LEN;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, Read, Write};

/// Why the peer's bytes can't be used. The connection must be closed after any of these.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The connection failed or ran into its deadline.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// A line is too long.
    #[error("a line is longer than {MAX_LINE_LEN} bytes")]
    LineTooLong,
    /// A line is not valid JSON of the expected type.
    #[error("a line is not a valid message")]
    Json(#[source] serde_json::Error),
    /// The stream ended inside a line.
    #[error("the connection ended inside a message")]
    Truncated,
}

/// Reads one line into `line` (without its newline). `false` at a clean end of the stream.
pub fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, CodecError> {
    line.clear();
    let limit = u64::try_from(MAX_LINE_LEN).unwrap_or(u64::MAX);
    reader.by_ref().take(limit).read_until(b'\n', line)?;
    match line.pop() {
        None => Ok(false),
        Some(b'\n') => Ok(true),
        Some(_) if line.len() + 1 == MAX_LINE_LEN => Err(CodecError::LineTooLong),
        Some(_) => Err(CodecError::Truncated),
    }
}

/// Reads one JSON message; `None` at a clean end of the stream.
pub fn read_message<T: DeserializeOwned>(reader: &mut impl BufRead) -> Result<Option<T>, CodecError> {
    let mut line = Vec::new();
    if !read_line(reader, &mut line)? {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(CodecError::Json)
}

/// Writes one JSON message and its newline in a single `write_all`.
pub fn write_message<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), CodecError> {
    let line = encode_line(message)?;
    writer.write_all(&line)?;
    Ok(())
}

fn encode_line<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let mut line = serde_json::to_vec(message).map_err(CodecError::Json)?;
    line.push(b'\n');
    if line.len() > MAX_LINE_LEN { Err(CodecError::LineTooLong) } else { Ok(line) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Request;
    use proptest::prelude::*;

    #[test]
    fn a_line_over_the_cap_is_refused_and_no_more_is_read() {
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        assert!(matches!(read_line(&mut endless, &mut Vec::new()), Err(CodecError::LineTooLong)));
        let mut longest = vec![b'x'; MAX_LINE_LEN - 1];
        longest.push(b'\n');
        let mut line = Vec::new();
        assert!(read_line(&mut longest.as_slice(), &mut line).unwrap());
        assert_eq!(line.len(), MAX_LINE_LEN - 1);
    }

    #[test]
    fn a_stream_that_ends_inside_a_message_is_truncated() {
        let ping = b"{\"action\":\"ping\"}";
        assert!(matches!(read_message::<Request>(&mut ping.as_slice()), Err(CodecError::Truncated)));
        assert!(read_message::<Request>(&mut [].as_slice()).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_error_or_a_message_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut reader = bytes.as_slice();
            while let Ok(Some(_)) = read_message::<Request>(&mut reader) {}
        }
    }
}
