//! The answer to an HTTP request, from bytes in pieces of any size. Pure: no connection, no clock. Owns: the limits of an answer.

use magikvm_proto::lifecycle::MAX_PROBE_OUTPUT;

/// Longest head of an answer, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// Most headers of an answer.
const MAX_HEADERS: usize = 256;
/// Most bytes of a body that are read, with the framing of its chunks.
const MAX_BODY: usize = 64 << 10;
/// Longest line before a chunk, in bytes.
const MAX_CHUNK_LINE: usize = 4096;
/// Most interim answers (1xx) before the answer, as in Go.
const MAX_INTERIM: usize = 5;
/// How much of a wrong answer a message repeats, in bytes.
const MAX_QUOTE: usize = 60;

/// What a server has answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// 100 to 999.
    pub status: u16,
    /// The first `Location`.
    pub location: Option<String>,
    /// The beginning of the body.
    pub body: Vec<u8>,
}

/// Why an answer is none. The texts are those of Go's `net/http`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("EOF")]
    Nothing,
    #[error("unexpected EOF")]
    Cut,
    #[error("net/http: HTTP/1.x transport connection broken: malformed HTTP response {0:?}")]
    Malformed(String),
    #[error("net/http: HTTP/1.x transport connection broken: malformed headers: {0}")]
    Headers(httparse::Error),
    #[error("net/http: server response headers exceeded {MAX_HEAD} bytes; aborted")]
    TooLong,
    #[error("net/http: too many 1xx informational responses")]
    Interim,
    #[error("net/http: HTTP/1.x transport connection broken: bad Content-Length {0:?}")]
    Length(String),
    #[error("net/http: HTTP/1.x transport connection broken: malformed chunked encoding")]
    Chunk,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    /// A body with this much left.
    Sized(u64),
    /// A body that ends with the connection.
    ToEnd,
    /// The line before a chunk.
    ChunkLine,
    /// A chunk with this much left.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
}

/// Reads an answer.
#[derive(Debug)]
pub struct Reader {
    stage: Stage,
    /// What has arrived and is not understood yet.
    buffer: Vec<u8>,
    /// How much of `buffer` has no end of a head.
    searched: usize,
    interim: usize,
    /// Bytes of the body, with its framing.
    read: usize,
    answer: Answer,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            stage: Stage::Head,
            buffer: Vec::new(),
            searched: 0,
            interim: 0,
            read: 0,
            answer: Answer::default(),
        }
    }
}

impl Reader {
    /// Takes what has arrived. Returns the answer when it is complete, or long enough to be judged.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Answer>, AnswerError> {
        self.buffer.extend_from_slice(bytes);
        loop {
            let done = match self.stage {
                Stage::Head => match self.head()? {
                    true => continue,
                    false => return Ok(None),
                },
                Stage::Sized(0) => true,
                Stage::Sized(left) => {
                    let taken = self.take(left);
                    self.stage = Stage::Sized(left - taken);
                    left == taken
                }
                Stage::ToEnd => {
                    self.take(u64::MAX);
                    false
                }
                Stage::ChunkLine => match self.chunk_line()? {
                    Some(0) => true,
                    Some(length) => {
                        self.stage = Stage::Chunk(length);
                        continue;
                    }
                    None => false,
                },
                Stage::Chunk(0) => {
                    self.stage = Stage::ChunkEnd;
                    continue;
                }
                Stage::Chunk(left) => {
                    let taken = self.take(left);
                    self.stage = Stage::Chunk(left - taken);
                    match taken {
                        0 => false,
                        _ => continue,
                    }
                }
                Stage::ChunkEnd => match self.line(2)? {
                    Some(line) if line.is_empty() => {
                        self.stage = Stage::ChunkLine;
                        continue;
                    }
                    Some(_) => return Err(AnswerError::Chunk),
                    None => false,
                },
            };
            let enough = self.answer.body.len() >= MAX_PROBE_OUTPUT || self.read >= MAX_BODY;
            return Ok((done || enough).then(|| std::mem::take(&mut self.answer)));
        }
    }

    /// The connection has ended.
    pub fn end(&mut self) -> Result<Answer, AnswerError> {
        match self.stage {
            Stage::Head if self.buffer.is_empty() => Err(AnswerError::Nothing),
            Stage::Head if !could_be_http(&self.buffer) => Err(self.malformed()),
            Stage::ToEnd => Ok(std::mem::take(&mut self.answer)),
            _ => Err(AnswerError::Cut),
        }
    }

    /// Reads the head, if it is complete.
    fn head(&mut self) -> Result<bool, AnswerError> {
        if !could_be_http(&self.buffer) {
            return Err(self.malformed());
        }
        // An empty line, whose end may arrive in pieces.
        let from = self.searched.saturating_sub(3);
        let rest = &self.buffer[from..];
        let end = rest.iter().enumerate().find_map(|(index, &byte)| match &rest[index + 1..] {
            [b'\n', ..] if byte == b'\n' => Some(from + index + 2),
            [b'\r', b'\n', ..] if byte == b'\n' => Some(from + index + 3),
            _ => None,
        });
        let Some(end) = end.filter(|&end| end <= MAX_HEAD) else {
            self.searched = self.buffer.len();
            return if self.searched >= MAX_HEAD { Err(AnswerError::TooLong) } else { Ok(false) };
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        self.searched = 0;
        self.understand(&head)?;
        Ok(true)
    }

    fn understand(&mut self, head: &[u8]) -> Result<(), AnswerError> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let mut config = httparse::ParserConfig::default();
        config
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .ignore_invalid_headers_in_responses(true);
        match config.parse_response(&mut response, head) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(malformed(head)),
            Err(httparse::Error::Version | httparse::Error::Status) => return Err(malformed(head)),
            Err(error) => return Err(AnswerError::Headers(error)),
        }
        let status = response.code.filter(|&status| status >= 100).ok_or_else(|| malformed(head))?;
        if (100..200).contains(&status) && status != 101 {
            self.interim += 1;
            return if self.interim > MAX_INTERIM { Err(AnswerError::Interim) } else { Ok(()) };
        }
        let value = |header: &httparse::Header<'_>| String::from_utf8_lossy(header.value).trim().to_owned();
        let all = |name: &str| {
            let named = response.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            named.map(value).collect::<Vec<String>>()
        };
        let location = all("location").into_iter().next().filter(|location| !location.is_empty());
        self.answer = Answer { status, location, body: Vec::new() };
        let chunked = all("transfer-encoding").iter().any(|coding| coding.eq_ignore_ascii_case("chunked"));
        self.stage = if matches!(status, 101 | 204 | 304) {
            Stage::Sized(0)
        } else if chunked {
            Stage::ChunkLine
        } else {
            length(&all("content-length"))?.map_or(Stage::ToEnd, Stage::Sized)
        };
        Ok(())
    }

    /// Moves at most this much of what has arrived to the body, as far as the body has room. Returns how much has arrived.
    fn take(&mut self, most: u64) -> u64 {
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        let room = MAX_PROBE_OUTPUT - self.answer.body.len().min(MAX_PROBE_OUTPUT);
        let taken: Vec<u8> = self.buffer.drain(..count).collect();
        self.answer.body.extend_from_slice(&taken[..count.min(room)]);
        self.read += count;
        count as u64
    }

    /// The line of a chunk's length.
    fn chunk_line(&mut self) -> Result<Option<u64>, AnswerError> {
        let Some(line) = self.line(MAX_CHUNK_LINE)? else { return Ok(None) };
        let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
        let digits = std::str::from_utf8(digits).map_err(|_| AnswerError::Chunk)?.trim_matches([' ', '\t']);
        let fine = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let length = u64::from_str_radix(digits, 16).ok().filter(|_| fine);
        length.map(Some).ok_or(AnswerError::Chunk)
    }

    /// The next line without its end, if it has arrived.
    fn line(&mut self, longest: usize) -> Result<Option<Vec<u8>>, AnswerError> {
        let Some(end) = self.buffer.iter().take(longest).position(|&byte| byte == b'\n') else {
            return if self.buffer.len() >= longest { Err(AnswerError::Chunk) } else { Ok(None) };
        };
        let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
        self.read += line.len();
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        Ok(Some(line))
    }

    fn malformed(&self) -> AnswerError {
        malformed(&self.buffer)
    }
}

/// Whether this may be the beginning of an answer.
fn could_be_http(bytes: &[u8]) -> bool {
    let known = b"HTTP/";
    let count = bytes.len().min(known.len());
    bytes[..count] == known[..count]
}

fn malformed(bytes: &[u8]) -> AnswerError {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = &line[..line.len().min(MAX_QUOTE)];
    AnswerError::Malformed(String::from_utf8_lossy(line).trim_end().to_owned())
}

/// The length of a body that is not chunked.
fn length(values: &[String]) -> Result<Option<u64>, AnswerError> {
    let Some(first) = values.first() else { return Ok(None) };
    let fine = !first.is_empty() && first.bytes().all(|byte| byte.is_ascii_digit());
    match first.parse().ok().filter(|_| fine && values.iter().all(|value| value == first)) {
        Some(length) => Ok(Some(length)),
        None => {
            let shown: String = first.chars().take(MAX_QUOTE).collect();
            Err(AnswerError::Length(shown))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The answer of a server that sends this and closes the connection.
    fn whole(bytes: &[u8]) -> Result<Answer, AnswerError> {
        let mut reader = Reader::default();
        match reader.feed(bytes)? {
            Some(answer) => Ok(answer),
            None => reader.end(),
        }
    }

    fn body(text: &str) -> Result<String, AnswerError> {
        whole(text.as_bytes()).map(|answer| String::from_utf8(answer.body).unwrap())
    }

    #[test]
    fn bodies_end_as_their_head_says() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", "ab"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\nab", "ab"),
            ("HTTP/1.0 200 OK\r\n\r\nabc", "abc"),
            ("HTTP/1.1 200\n\nabc", "abc"),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", ""),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nContent-Length: 9\r\n\r\n2\r\nab\r\n3 ;x=y\r\ncde\r\n0\r\nA: b\r\n\r\n",
                "abcde",
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx",
                "x",
            ),
        ] {
            assert_eq!(body(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_answers_are_named_as_go_does() {
        for (text, expected) in [
            ("", "EOF"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", "unexpected EOF"),
            ("HTTP/1.1 200 OK\r\n", "unexpected EOF"),
            (
                "SSH-2.0-OpenSSH\r\n",
                "net/http: HTTP/1.x transport connection broken: malformed HTTP response \"SSH-2.0-OpenSSH\"",
            ),
            (
                "HTTP/2.0 200 OK\r\n\r\n",
                "net/http: HTTP/1.x transport connection broken: malformed HTTP response \"HTTP/2.0 200 OK\"",
            ),
            (
                "HTTP/1.1 20 OK\r\n\r\n",
                "net/http: HTTP/1.x transport connection broken: malformed HTTP response \"HTTP/1.1 20 OK\"",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
                "net/http: HTTP/1.x transport connection broken: bad Content-Length \"-1\"",
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
                "net/http: HTTP/1.x transport connection broken: bad Content-Length \"1\"",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
                "net/http: HTTP/1.x transport connection broken: malformed chunked encoding",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
                "net/http: HTTP/1.x transport connection broken: malformed chunked encoding",
            ),
        ] {
            assert_eq!(whole(text.as_bytes()).unwrap_err().to_string(), expected, "{text}");
        }
        let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(6);
        assert_eq!(whole(interim.as_bytes()), Err(AnswerError::Interim));
    }

    #[test]
    fn lengths_are_bounded() {
        let mut reader = Reader::default();
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\n"), Ok(None));
        let line = format!("A: {}\r\n", "x".repeat(1000));
        let error = (0..100).find_map(|_| reader.feed(line.as_bytes()).err());
        assert_eq!(error, Some(AnswerError::TooLong));
        assert!(reader.buffer.len() <= MAX_HEAD + line.len());
        // A body is read as far as it is kept.
        let answer = whole(format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(1 << 20)).as_bytes()).unwrap();
        assert_eq!(answer.body.len(), MAX_PROBE_OUTPUT);
        // One of many small chunks, too.
        let mut reader = Reader::default();
        assert_eq!(reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Ok(None));
        let chunk = format!("1;{}\r\nx\r\n", "y".repeat(4000));
        let answer = (0..100).find_map(|_| reader.feed(chunk.as_bytes()).unwrap());
        assert!(answer.unwrap().body.len() < 20);
    }

    #[test]
    fn a_redirect_names_its_place() {
        let answer = whole(
            b"HTTP/1.1 302 Found\r\nLocation:  /login \r\nlocation: /other\r\nContent-Length: 0\r\n\r\n",
        );
        assert_eq!(answer.unwrap().location.as_deref(), Some("/login"));
    }

    fn parts() -> impl Strategy<Value = String> {
        let part = prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "Content-Length: 3\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Location: /x\r\n",
            "\r\n",
            "\n",
            "3\r\n",
            "abc",
            "0\r\n",
            "\0",
            "HTTP",
        ]);
        prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(text in parts(), cut in 0usize..200) {
            let (first, second) = text.as_bytes().split_at(cut.min(text.len()));
            let mut reader = Reader::default();
            let in_two = reader.feed(first).and_then(|answer| match answer {
                Some(answer) => Ok(answer),
                None => match reader.feed(second)? {
                    Some(answer) => Ok(answer),
                    None => reader.end(),
                },
            });
            let seen = |answer: Answer| (answer.status, answer.location);
            prop_assert_eq!(in_two.ok().map(seen), whole(text.as_bytes()).ok().map(seen));
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(whole(&bytes));
            drop(whole(&[b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat()));
        }
    }
}
