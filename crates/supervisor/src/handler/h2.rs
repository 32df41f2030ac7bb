//! One gRPC call over HTTP/2 without TLS (RFC 9113), from the client's side, from bytes in pieces of any size. Pure: no connection, no
//! clock. Owns: the limits of the conversation.

use super::hpack::{self, Decoder, Header, HpackError};

/// What a client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the head of a frame.
const HEAD: usize = 9;
/// Longest frame: what a client accepts that says nothing else.
const MAX_FRAME: usize = 16 << 10;
/// Most bytes of one header block.
const MAX_BLOCK: usize = 32 << 10;
/// Most bytes of the answer's message, with its prefix.
const MAX_MESSAGE: usize = 16 << 10;
/// Most bytes of the whole conversation.
const MAX_BYTES: usize = 1 << 20;
/// The only stream.
const STREAM: u32 = 1;

/// Types of frames.
mod frame {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
mod flag {
    pub(super) const ACK: u8 = 1;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
    pub(super) const PRIORITY: u8 = 32;
}

/// What a server has answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// `:status`, 0 if there was none.
    pub http_status: u16,
    /// `grpc-status`.
    pub grpc_status: Option<u32>,
    /// `grpc-message`, decoded.
    pub grpc_message: String,
    /// The message without its prefix, if it is complete.
    pub message: Option<Vec<u8>>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum H2Error {
    #[error("the server does not speak HTTP/2 without TLS")]
    NotHttp2,
    #[error("the server broke the rules of HTTP/2: {0}")]
    Violation(&'static str),
    #[error("the server broke the rules of HTTP/2: {0}")]
    Hpack(#[from] HpackError),
    #[error("the server ended the connection with the error {code} {text:?}")]
    GoAway { code: u32, text: String },
    #[error("stream terminated by RST_STREAM with error code: {0}")]
    Reset(u32),
    #[error("the server sends more than {MAX_BYTES} bytes")]
    TooMuch,
}

/// The conversation of one call.
#[derive(Debug, Default)]
pub struct Call {
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    received: usize,
    /// The server has sent its first settings.
    greeted: bool,
    decoder: Decoder,
    /// A header block that is not complete, and whether the stream ends with it.
    block: Option<(Vec<u8>, bool)>,
    data: Vec<u8>,
    answer: Answer,
}

impl Call {
    /// A call of a method with a message, whose name and lengths are those of a plan. What is to be sent is in the outbox.
    pub fn new(authority: &str, path: &str, agent: &str, timeout_ms: u64, message: &[u8]) -> Self {
        let mut call = Self { outbox: PREFACE.to_vec(), ..Self::default() };
        // No pushed streams, and an end to what headers may say.
        let list = u32::try_from(hpack::MAX_LIST).unwrap_or(u32::MAX);
        let settings = [(2u16, 0u32), (6, list)]
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect::<Vec<u8>>();
        call.send(frame::SETTINGS, 0, 0, &settings);
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("user-agent", agent),
            ("te", "trailers"),
            // At most eight digits.
            ("grpc-timeout", &format!("{}m", timeout_ms.clamp(1, 99_999_999))),
        ] {
            hpack::write(&mut block, name, value);
        }
        call.send(frame::HEADERS, flag::END_HEADERS, STREAM, &block);
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let data = [&[0][..], &length.to_be_bytes(), message].concat();
        call.send(frame::DATA, flag::END_STREAM, STREAM, &data);
        call
    }

    /// What is to be sent, which is then forgotten.
    pub fn take_outbox(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outbox)
    }

    /// Takes what has arrived. Returns the answer when it is complete.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<Option<Answer>, H2Error> {
        self.received = self.received.saturating_add(bytes.len());
        if self.received > MAX_BYTES {
            return Err(H2Error::TooMuch);
        }
        self.inbox.extend_from_slice(bytes);
        loop {
            let Some((&head, _)) = self.inbox.split_first_chunk::<HEAD>() else { return Ok(None) };
            let [a, b, c, kind, flags, stream @ ..] = head;
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            // The first frame is the server's settings; anything else is another protocol.
            if !self.greeted && (kind != frame::SETTINGS || flags & flag::ACK != 0 || length > MAX_FRAME) {
                return Err(H2Error::NotHttp2);
            }
            self.greeted = true;
            if length > MAX_FRAME {
                return Err(H2Error::Violation("a frame is too long"));
            }
            let Some(payload) = self.inbox.get(HEAD..HEAD + length).map(<[u8]>::to_vec) else {
                return Ok(None);
            };
            self.inbox.drain(..HEAD + length);
            let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
            if self.frame(kind, flags, stream, &payload)? {
                return Ok(Some(self.finish()));
            }
        }
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        self.outbox.extend_from_slice(&length[1..]);
        self.outbox.extend_from_slice(&[kind, flags]);
        self.outbox.extend_from_slice(&stream.to_be_bytes());
        self.outbox.extend_from_slice(payload);
    }

    /// Takes a frame; returns whether it ends the stream.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<bool, H2Error> {
        if self.block.is_some() != (kind == frame::CONTINUATION) {
            return Err(H2Error::Violation("a header block is interrupted, or continues nothing"));
        }
        let is_ours = match kind {
            frame::SETTINGS | frame::PING | frame::GOAWAY => stream == 0,
            frame::DATA | frame::HEADERS | frame::CONTINUATION | frame::RST_STREAM => stream == STREAM,
            _ => true,
        };
        if !is_ours {
            return Err(H2Error::Violation("a frame is for a stream that is not there"));
        }
        match kind {
            frame::SETTINGS if flags & flag::ACK == 0 => self.send(frame::SETTINGS, flag::ACK, 0, &[]),
            frame::PING if payload.len() != 8 => return Err(H2Error::Violation("a ping has not 8 bytes")),
            frame::PING if flags & flag::ACK == 0 => self.send(frame::PING, flag::ACK, 0, payload),
            frame::GOAWAY => return self.going_away(payload),
            frame::RST_STREAM => return Err(H2Error::Reset(number(payload, 0).unwrap_or_default())),
            frame::PUSH_PROMISE => return Err(H2Error::Violation("it pushes a stream")),
            frame::HEADERS => {
                let rest = unpadded(payload, flags)?;
                let rest = match flags & flag::PRIORITY {
                    0 => rest,
                    _ => rest.get(5..).ok_or(H2Error::Violation("a priority is cut off"))?,
                };
                self.block = Some((rest.to_vec(), flags & flag::END_STREAM != 0));
                return self.block_grew(flags);
            }
            frame::CONTINUATION => {
                if let Some((block, _)) = &mut self.block {
                    block.extend_from_slice(payload);
                }
                return self.block_grew(flags);
            }
            frame::DATA => {
                self.data.extend_from_slice(unpadded(payload, flags)?);
                if self.data.len() > MAX_MESSAGE {
                    return Err(H2Error::Violation("its answer is too long"));
                }
                return Ok(flags & flag::END_STREAM != 0);
            }
            // Of no interest, or unknown.
            _ => {}
        }
        Ok(false)
    }

    /// A server that stops without an error still answers what it has begun.
    fn going_away(&self, payload: &[u8]) -> Result<bool, H2Error> {
        let (last, code) = (number(payload, 0).unwrap_or_default(), number(payload, 4).unwrap_or_default());
        if code == 0 && last & 0x7fff_ffff >= STREAM {
            return Ok(false);
        }
        let text = payload.get(8..).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..text.len().min(100)]).into_owned();
        Err(H2Error::GoAway { code, text })
    }

    fn block_grew(&mut self, flags: u8) -> Result<bool, H2Error> {
        let Some((block, ends)) = self.block.take() else { return Ok(false) };
        if block.len() > MAX_BLOCK {
            return Err(H2Error::Violation("a header block is too long"));
        }
        if flags & flag::END_HEADERS == 0 {
            self.block = Some((block, ends));
            return Ok(false);
        }
        for (name, value) in self.decoder.read(&block)? {
            self.header(&(name, value));
        }
        Ok(ends)
    }

    fn header(&mut self, (name, value): &Header) {
        let text = String::from_utf8_lossy(value);
        match &name[..] {
            // That of an interim answer is replaced.
            b":status" => self.answer.http_status = text.parse().unwrap_or_default(),
            b"grpc-status" => self.answer.grpc_status = text.trim().parse().ok(),
            b"grpc-message" => self.answer.grpc_message = percent_decoded(&text),
            _ => {}
        }
    }

    fn finish(&mut self) -> Answer {
        // The prefix: not compressed, and the length.
        if let Some((&[0, length @ ..], rest)) = self.data.split_first_chunk::<5>() {
            let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
            self.answer.message = rest.get(..length).map(<[u8]>::to_vec);
        }
        std::mem::take(&mut self.answer)
    }
}

fn number(payload: &[u8], at: usize) -> Option<u32> {
    let bytes = payload.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// A payload without its padding.
fn unpadded(payload: &[u8], flags: u8) -> Result<&[u8], H2Error> {
    if flags & flag::PADDED == 0 {
        return Ok(payload);
    }
    let wrong = H2Error::Violation("the padding is longer than its frame");
    let (&padding, rest) = payload.split_first().ok_or(wrong.clone())?;
    let end = rest.len().checked_sub(padding.into()).ok_or(wrong)?;
    Ok(&rest[..end])
}

/// The text of a `grpc-message`.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let coded =
            digits.filter(|digits| first == b'%' && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match coded.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut call = Call::default();
        call.send(kind, flags, stream, payload);
        call.take_outbox()
    }

    fn block(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        headers.iter().for_each(|(name, value)| hpack::write(&mut block, name, value));
        block
    }

    /// The answer of a server that sends its settings and then these frames.
    fn answer(frames: &[Vec<u8>]) -> Result<Option<Answer>, H2Error> {
        let bytes = [frame(frame::SETTINGS, 0, 0, &[]), frames.concat()].concat();
        Call::new("127.0.0.1:80", "/a/B", "test", 1000, b"").receive(&bytes)
    }

    #[test]
    fn an_answer_may_be_written_in_many_ways() {
        let head = block(&[(":status", "200"), ("content-type", "application/grpc")]);
        let tail = block(&[("grpc-status", "0"), ("grpc-message", "a%20b%zz")]);
        let message = b"\0\0\0\0\x02\x08\x01";
        let expected = Answer {
            http_status: 200,
            grpc_status: Some(0),
            grpc_message: "a b%zz".to_owned(),
            message: Some(b"\x08\x01".to_vec()),
        };
        let plain = [
            frame(frame::HEADERS, flag::END_HEADERS, 1, &head),
            frame(frame::DATA, 0, 1, message),
            frame(frame::HEADERS, flag::END_HEADERS | flag::END_STREAM, 1, &tail),
        ];
        assert_eq!(answer(&plain), Ok(Some(expected.clone())));
        let padded = |bytes: &[u8]| [&[3][..], bytes, &[0; 3]].concat();
        let other = [
            frame(frame::PING, 0, 0, b"12345678"),
            frame(
                frame::HEADERS,
                flag::PADDED | flag::PRIORITY,
                1,
                &padded(&[&[0; 5][..], &head[..9]].concat()),
            ),
            frame(frame::CONTINUATION, flag::END_HEADERS, 1, &head[9..]),
            frame(0xee, 0xff, 77, b"unknown"),
            frame(frame::DATA, flag::PADDED, 1, &padded(&message[..3])),
            frame(frame::DATA, 0, 1, &message[3..]),
            frame(frame::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
            frame(frame::HEADERS, flag::END_STREAM, 1, &tail[..4]),
            frame(frame::CONTINUATION, flag::END_HEADERS, 1, &tail[4..]),
        ];
        assert_eq!(answer(&other), Ok(Some(expected)));
    }

    #[test]
    fn settings_and_pings_are_answered() {
        let mut call = Call::new("127.0.0.1:80", "/a/B", "test", 1000, b"x");
        let sent = call.take_outbox();
        assert!(sent.starts_with(PREFACE) && sent.ends_with(b"\0\0\x06\0\x01\0\0\0\x01\0\0\0\0\x01x"));
        let settings = frame(frame::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        let ping = frame(frame::PING, 0, 0, b"12345678");
        let acknowledged = frame(frame::SETTINGS, flag::ACK, 0, &[]);
        assert_eq!(call.receive(&[settings, ping, acknowledged.clone()].concat()), Ok(None));
        let pong = frame(frame::PING, flag::ACK, 0, b"12345678");
        assert_eq!(call.take_outbox(), [acknowledged, pong].concat());
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let violation = |frames: &[Vec<u8>]| match answer(frames) {
            Err(H2Error::Violation(why)) => why,
            other => panic!("{other:?}"),
        };
        let head = block(&[(":status", "200")]);
        for (frames, why) in [
            (vec![frame(frame::DATA, 0, 3, b"")], "a frame is for a stream that is not there"),
            (vec![frame(frame::PUSH_PROMISE, 0, 1, b"")], "it pushes a stream"),
            (vec![frame(frame::PING, 0, 0, b"1")], "a ping has not 8 bytes"),
            (vec![frame(frame::DATA, flag::PADDED, 1, &[9, 0])], "the padding is longer than its frame"),
            (
                vec![frame(frame::CONTINUATION, 0, 1, &head)],
                "a header block is interrupted, or continues nothing",
            ),
            (
                vec![frame(frame::HEADERS, 0, 1, &head), frame(frame::DATA, 0, 1, b"")],
                "a header block is interrupted, or continues nothing",
            ),
            (
                vec![frame(frame::HEADERS, 0, 1, &head), frame(frame::CONTINUATION, 0, 1, &[0; MAX_FRAME])]
                    .into_iter()
                    .chain([frame(frame::CONTINUATION, 0, 1, &[0; MAX_FRAME])])
                    .collect(),
                "a header block is too long",
            ),
            (
                vec![frame(frame::DATA, 0, 1, &[0; MAX_FRAME]), frame(frame::DATA, 0, 1, &[0])],
                "its answer is too long",
            ),
        ] {
            assert_eq!(violation(&frames), why);
        }
        assert_eq!(violation(&[vec![0, 0x40, 1, 0, 0, 0, 0, 0, 1]]), "a frame is too long");
        assert_eq!(answer(&[frame(frame::RST_STREAM, 0, 1, &[0, 0, 0, 8])]), Err(H2Error::Reset(8)));
        let calm = [&[0, 0, 0, 0, 0, 0, 0, 11][..], b"too_many_pings"].concat();
        assert_eq!(
            answer(&[frame(frame::GOAWAY, 0, 0, &calm)]),
            Err(H2Error::GoAway { code: 11, text: "too_many_pings".to_owned() })
        );
        let mut call = Call::default();
        assert_eq!(call.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Err(H2Error::NotHttp2));
        // Pings without an end.
        let mut call = Call::default();
        assert_eq!(call.receive(&frame(frame::SETTINGS, 0, 0, &[])), Ok(None));
        let pings = frame(frame::PING, flag::ACK, 0, b"12345678").repeat(1000);
        assert_eq!((0..100).find_map(|_| call.receive(&pings).err()), Some(H2Error::TooMuch));
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop::sample::select(vec![0u8, 0, 1, 1, 3, 4, 5, 6, 7, 8, 9, 9, 20]);
        let payload = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..30),
            Just(block(&[(":status", "200")])),
            Just(block(&[("grpc-status", "0")])),
            Just(b"\0\0\0\0\x02\x08\x01".to_vec()),
        ];
        let one = (kind, any::<u8>(), 0u32..3, payload)
            .prop_map(|(kind, flags, stream, payload)| frame(kind, flags & 0x2d, stream, &payload));
        prop::collection::vec(one, 0..8).prop_map(|frames| frames.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes in frames(), size in 1usize..40) {
            let bytes = [frame(frame::SETTINGS, 0, 0, &[]), bytes].concat();
            let (mut whole, mut pieces) = (Call::default(), Call::default());
            let in_one = whole.receive(&bytes);
            let mut in_pieces = Ok(None);
            for piece in bytes.chunks(size) {
                in_pieces = pieces.receive(piece);
                if in_pieces != Ok(None) {
                    break;
                }
            }
            prop_assert_eq!(in_one, in_pieces);
            prop_assert_eq!(whole.take_outbox(), pieces.take_outbox());
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(Call::default().receive(&bytes));
        }
    }
}
