//! Header blocks of HTTP/2 (RFC 7541): plain literals are written, everything is read. Pure. Owns: their limits.

use std::collections::VecDeque;

/// Most bytes of all headers of one block, each counted with [`OVERHEAD`] (RFC 9113, `SETTINGS_MAX_HEADER_LIST_SIZE`).
pub(super) const MAX_LIST: usize = 16 << 10;
/// What an entry counts beyond its name and value (RFC 7541, 4.1).
const OVERHEAD: usize = 32;
/// Size of the dynamic table: that of a connection whose settings name no other.
const MAX_TABLE: usize = 4096;

/// A header block that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HpackError {
    #[error("a header block is cut off")]
    Cut,
    #[error("a header block names an entry that does not exist")]
    Index,
    #[error("a header block has a number or a text that is too long")]
    TooLong,
    #[error("a header block has a wrong Huffman code")]
    Huffman,
}

/// A name and a value.
pub(super) type Header = (Vec<u8>, Vec<u8>);

/// Adds a header that stands in no table.
pub(super) fn write(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        write_number(block, text.len());
        block.extend_from_slice(text.as_bytes());
    }
}

/// A number with a prefix of 7 bits, the eighth of which is 0.
fn write_number(block: &mut Vec<u8>, number: usize) {
    let low = |number: usize| u8::try_from(number & 0x7f).unwrap_or_default();
    if number < 0x7f {
        return block.push(low(number));
    }
    block.push(0x7f);
    let mut rest = number - 0x7f;
    while rest >= 0x80 {
        block.push(low(rest) | 0x80);
        rest >>= 7;
    }
    block.push(low(rest));
}

/// Reads the header blocks of one connection, which build on each other.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The newest entry first.
    table: VecDeque<Header>,
    /// The size of its entries.
    size: usize,
    /// The most that the other side has announced to use.
    limit: Option<usize>,
}

impl Decoder {
    /// The headers of a block.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Vec<Header>, HpackError> {
        let mut input = Input(block);
        let (mut headers, mut bytes) = (Vec::new(), 0);
        while let Some(&first) = input.0.first() {
            let header = match first {
                0x80.. => self.entry(input.number(7)?)?,
                0x40..0x80 => {
                    let header = self.literal(&mut input, 6)?;
                    self.insert(header.clone());
                    header
                }
                0x20..0x40 => {
                    let limit = input.number(5)?;
                    if limit > MAX_TABLE {
                        return Err(HpackError::TooLong);
                    }
                    self.limit = Some(limit);
                    self.shrink(limit);
                    continue;
                }
                ..0x20 => self.literal(&mut input, 4)?,
            };
            bytes += size(&header);
            if bytes > MAX_LIST {
                return Err(HpackError::TooLong);
            }
            headers.push(header);
        }
        Ok(headers)
    }

    fn literal(&self, input: &mut Input<'_>, prefix: u32) -> Result<Header, HpackError> {
        let name = match input.number(prefix)? {
            0 => input.text()?,
            index => self.entry(index)?.0,
        };
        Ok((name, input.text()?))
    }

    fn entry(&self, index: usize) -> Result<Header, HpackError> {
        let index = index.checked_sub(1).ok_or(HpackError::Index)?;
        if let Some(&(name, value)) = STATIC.get(index) {
            return Ok((name.into(), value.into()));
        }
        self.table.get(index - STATIC.len()).cloned().ok_or(HpackError::Index)
    }

    fn insert(&mut self, header: Header) {
        let limit = self.limit.unwrap_or(MAX_TABLE);
        let new = size(&header);
        self.shrink(limit.saturating_sub(new));
        // One that is larger than the table empties it, and is not kept.
        if new <= limit {
            self.size += new;
            self.table.push_front(header);
        }
    }

    fn shrink(&mut self, limit: usize) {
        while self.size > limit {
            let Some(oldest) = self.table.pop_back() else { return };
            self.size -= size(&oldest);
        }
    }
}

fn size((name, value): &Header) -> usize {
    name.len() + value.len() + OVERHEAD
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, HpackError> {
        let (&first, rest) = self.0.split_first().ok_or(HpackError::Cut)?;
        self.0 = rest;
        Ok(first)
    }

    /// A number whose first byte has this many bits of it.
    fn number(&mut self, prefix: u32) -> Result<usize, HpackError> {
        let most = (1usize << prefix) - 1;
        let mut number = usize::from(self.byte()?) & most;
        if number < most {
            return Ok(number);
        }
        for shift in [0, 7, 14] {
            let byte = usize::from(self.byte()?);
            number += (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(HpackError::TooLong)
    }

    fn text(&mut self) -> Result<Vec<u8>, HpackError> {
        let is_coded = *self.0.first().ok_or(HpackError::Cut)? >= 0x80;
        let length = self.number(7)?;
        if length > MAX_LIST {
            return Err(HpackError::TooLong);
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(HpackError::Cut)?;
        self.0 = rest;
        if is_coded { decode(text) } else { Ok(text.to_vec()) }
    }
}

/// The bytes with a code of each length, in the order of their codes: the code is canonical. The last of 30 bits is the end of a text.
const CODES: [(u32, &[u8]); 21] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
    (14, b"^}"),
    (15, b"<`{"),
    (19, &[92, 195, 208]),
    (20, &[128, 130, 131, 162, 184, 194, 224, 226]),
    (21, &[153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230]),
    (
        22,
        &[
            129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181, 185, 186, 187,
            189, 190, 196, 198, 228, 232, 233,
        ],
    ),
    (
        23,
        &[
            1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174,
            175, 180, 182, 183, 188, 191, 197, 231, 239,
        ],
    ),
    (24, &[9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237]),
    (25, &[199, 207, 234, 235]),
    (26, &[192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255]),
    (27, &[203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253, 254]),
    (
        28,
        &[
            2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31,
            127, 220, 249,
        ],
    ),
    (30, &[10, 13, 22]),
];

/// Reads a text in the Huffman code of RFC 7541, appendix B.
fn decode(bytes: &[u8]) -> Result<Vec<u8>, HpackError> {
    let mut text = Vec::new();
    let (mut code, mut length) = (0u32, 0u32);
    for bit in bytes.iter().flat_map(|&byte| (0..8).rev().map(move |shift| u32::from(byte >> shift) & 1)) {
        (code, length) = (code << 1 | bit, length + 1);
        if let Some(symbol) = symbol(code, length) {
            text.push(symbol);
            (code, length) = (0, 0);
        } else if length >= 30 {
            return Err(HpackError::Huffman);
        }
    }
    // What is left is the beginning of the end's code, which is ones.
    if length < 8 && code == (1 << length) - 1 { Ok(text) } else { Err(HpackError::Huffman) }
}

/// The byte with this code.
fn symbol(code: u32, length: u32) -> Option<u8> {
    let (mut first, mut before) = (0u32, 0u32);
    for (of, symbols) in CODES {
        first <<= of - before;
        before = of;
        if of == length {
            let index = usize::try_from(code.checked_sub(first)?).ok()?;
            return symbols.get(index).copied();
        }
        first += u32::try_from(symbols.len()).ok()?;
    }
    None
}

/// The entries that every connection knows (RFC 7541, appendix A).
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn texts(headers: &[Header]) -> Vec<(&str, &str)> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        headers.iter().map(|(name, value)| (text(name), text(value))).collect()
    }

    #[test]
    fn every_byte_has_one_code_and_the_codes_are_complete() {
        let mut symbols: Vec<u8> = CODES.iter().flat_map(|(_, symbols)| symbols.iter().copied()).collect();
        symbols.sort_unstable();
        assert_eq!(symbols, (0..=255).collect::<Vec<u8>>());
        // Kraft's sum, in units of 2^-30, with the end of a text.
        let sum: u64 = CODES.iter().map(|(length, symbols)| (symbols.len() as u64) << (30 - length)).sum();
        assert_eq!(sum + 1, 1 << 30);
        assert!(CODES.iter().all(|(_, symbols)| symbols.is_sorted()));
    }

    /// RFC 7541, C.4 and C.6.
    #[test]
    fn the_examples_of_the_standard_are_read() {
        for (code, text) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            ("d07a be94 1054 d444 a820 0595 040b 8166 e082 a62d 1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
            (
                "94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
                "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
            ),
        ] {
            assert_eq!(String::from_utf8(decode(&hex(code)).unwrap()).unwrap(), text);
        }
        assert_eq!(decode(&hex("f1e3 c2e5 f23a 6ba0 ab90 f4fe")), Err(HpackError::Huffman));
        assert_eq!(decode(&hex("ffff ffff")), Err(HpackError::Huffman));
    }

    /// RFC 7541, C.5: the table holds 256 bytes, so that entries are evicted.
    #[test]
    fn a_connection_has_a_table() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.read(&hex("3fe1 01")), Ok(Vec::new()));
        assert_eq!(decoder.limit, Some(256));
        let first = decoder
            .read(&hex(
                "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e \
                 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            ))
            .unwrap();
        assert_eq!(
            texts(&first),
            [
                (":status", "302"),
                ("cache-control", "private"),
                ("date", "Mon, 21 Oct 2013 20:13:21 GMT"),
                ("location", "https://www.example.com"),
            ]
        );
        assert_eq!(decoder.size, 222);
        let second = decoder.read(&hex("4803 3330 37c1 c0bf")).unwrap();
        assert_eq!(texts(&second)[0], (":status", "307"));
        assert_eq!(texts(&second)[1..], texts(&first)[1..]);
        assert_eq!((decoder.size, decoder.table.len()), (222, 4));
    }

    #[test]
    fn what_is_no_block_is_refused() {
        for (block, error) in [
            ("80", HpackError::Index),
            ("be", HpackError::Index),
            ("ff80 8080 80", HpackError::TooLong),
            ("7f", HpackError::Cut),
            ("0005 61", HpackError::Cut),
            ("3fe1 ff03", HpackError::TooLong),
        ] {
            assert_eq!(Decoder::default().read(&hex(block)), Err(error), "{block}");
        }
        let mut long = Vec::new();
        write(&mut long, "a", &"x".repeat(MAX_LIST));
        assert_eq!(Decoder::default().read(&long), Err(HpackError::TooLong));
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(name in "[a-z-]{1,20}", value in "[ -~]{0,300}") {
            let mut block = Vec::new();
            write(&mut block, &name, &value);
            let read = Decoder::default().read(&block).unwrap();
            prop_assert_eq!(texts(&read), [(name.as_str(), value.as_str())]);
        }

        #[test]
        fn any_block_is_read_or_refused(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..4)) {
            let mut decoder = Decoder::default();
            for block in blocks {
                drop(decoder.read(&block));
                prop_assert!(decoder.size <= MAX_TABLE);
            }
        }
    }
}
