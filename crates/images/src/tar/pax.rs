//! PAX extended headers: records of the form `<length> <key>=<value>\n` (POSIX.1-2001, pax).

use super::super::tree::Timestamp;
use super::header::{Block, check_size, owner};
use super::{MAX_XATTRS, Segment, TarError, sparse};

/// Everything that extended headers say about the entry that follows.
#[derive(Debug, Default)]
pub(super) struct Extended {
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_size: Option<u64>,
    /// The map, for sparse formats that store it here.
    pub(super) sparse_map: Option<Vec<Segment>>,
    sparse_name: Option<Vec<u8>>,
    sparse_offset: Option<u64>,
    has_sparse_1: bool,
}

impl Extended {
    /// Applies the records of one header.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(TarError::PaxRecord)?;
            self.take(key, value)?;
            bytes = rest;
        }
        Ok(())
    }

    /// The name: PAX before GNU before ustar, and a sparse file's real name before all of them.
    pub(super) fn path(&self, block: &Block) -> Vec<u8> {
        let extended = self.sparse_name.as_ref().or(self.path.as_ref()).or(self.long_name.as_ref());
        extended.cloned().unwrap_or_else(|| block.name())
    }

    pub(super) fn link(&self, block: &Block) -> Vec<u8> {
        self.linkpath.as_ref().or(self.long_link.as_ref()).cloned().unwrap_or_else(|| block.link())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        // An empty value removes the field.
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = no_nul(bytes())?,
            b"linkpath" => self.linkpath = no_nul(bytes())?,
            b"size" => self.size = integer(value)?.map(check_size).transpose()?,
            b"uid" => self.uid = owner_of(value, "uid")?,
            b"gid" => self.gid = owner_of(value, "gid")?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.major" => self.has_sparse_1 = value == b"1",
            b"GNU.sparse.name" => self.sparse_name = no_nul(bytes())?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse_size = integer(value)?.map(check_size).transpose()?
            }
            b"GNU.sparse.map" => self.sparse_map = Some(sparse::read_list(value)?),
            // Format 0.0 has pairs of records, one pair for each segment.
            b"GNU.sparse.offset" => self.sparse_offset = integer(value)?,
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse_offset.take().ok_or(TarError::SparseMap)?;
                let length = integer(value)?.ok_or(TarError::SparseMap)?;
                self.sparse_map.get_or_insert_default().push(Segment { offset, length });
            }
            b"GNU.sparse.numblocks" if !self.has_sparse_1 => _ = self.sparse_map.get_or_insert_default(),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let value = base64(value).ok_or(TarError::PaxRecord)?;
                    self.set_xattr(percent(name), value)?;
                }
            }
        }
        Ok(())
    }

    /// libarchive writes both kinds of records for one attribute; the last one counts.
    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), TarError> {
        if let Some(found) = self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            found.1 = value;
        } else if self.xattrs.len() < MAX_XATTRS {
            self.xattrs.push((name, value));
        } else {
            return Err(TarError::TooManyXattrs);
        }
        Ok(())
    }
}

/// The first record: key, value and the remaining bytes.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = decimal(&bytes[..blank])?.try_into().ok()?;
    if length > bytes.len() {
        return None;
    }
    let (record, rest) = bytes.split_at(length);
    let body = record.get(blank + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let key = &body[..equals];
    (!key.is_empty() && !key.contains(&0)).then_some((key, &body[equals + 1..], rest))
}

fn no_nul(value: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, TarError> {
    if value.as_ref().is_some_and(|value| value.contains(&0)) { Err(TarError::PaxRecord) } else { Ok(value) }
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn integer<T: TryFrom<u64>>(value: &[u8]) -> Result<Option<T>, TarError> {
    if value.is_empty() {
        return Ok(None);
    }
    decimal(value).and_then(|number| T::try_from(number).ok()).map(Some).ok_or(TarError::PaxRecord)
}

fn owner_of(value: &[u8], field: &'static str) -> Result<Option<u32>, TarError> {
    if value.is_empty() {
        return Ok(None);
    }
    let (sign, digits) = value.strip_prefix(b"-").map_or((1, value), |digits| (-1, digits));
    let id = decimal(digits).and_then(|id| i64::try_from(id).ok()).ok_or(TarError::PaxRecord)?;
    owner(sign * id, field).map(Some)
}

/// `[-]seconds[.fraction]`; digits after the ninth are dropped.
fn time(value: &[u8]) -> Result<Timestamp, TarError> {
    let parse = || {
        let (negative, value) = value.strip_prefix(b"-").map_or((false, value), |value| (true, value));
        let mut parts = value.splitn(2, |byte| *byte == b'.');
        let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
        let fraction = parts.next().unwrap_or(b"");
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let nanoseconds =
            (0..9).fold(0, |sum, at| sum * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0')));
        Some(match (negative, nanoseconds) {
            (false, _) => Timestamp { seconds, nanoseconds },
            (true, 0) => Timestamp { seconds: -seconds, nanoseconds },
            // Nanoseconds count forwards even before 1970.
            (true, _) => Timestamp { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
        })
    };
    parse().ok_or(TarError::PaxRecord)
}

/// Base64 as libarchive writes it: the usual alphabet, with or without padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.trim_ascii_end();
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |at| at + 1);
    let mut out = Vec::with_capacity(end * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in &text[..end] {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    Some(out)
}

/// Decodes `%41`, as libarchive writes attribute names.
fn percent(name: &[u8]) -> Vec<u8> {
    let hex = |byte: &u8| (*byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((byte, more)) = rest.split_first() {
        if *byte == b'%'
            && let [high, low, more @ ..] = more
            && let (Some(high), Some(low)) = (hex(high), hex(low))
        {
            out.push(high << 4 | low);
            rest = more;
        } else {
            out.push(*byte);
            rest = more;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(records: &[u8]) -> Result<Extended, TarError> {
        let mut extended = Extended::default();
        extended.read(records).map(|()| extended)
    }

    #[test]
    fn records_with_binary_values_and_wrong_ones() {
        let extended = read(b"30 SCHILY.xattr.user.a=\x00\n=\xff12\n15 uid=4294967\n").unwrap();
        assert_eq!(extended.xattrs, [(b"user.a".to_vec(), b"\x00\n=\xff12".to_vec())]);
        assert_eq!(extended.uid, Some(4_294_967));
        let wrong: [&[u8]; 8] = [
            b"5",
            b"99 a=b\n",
            b"6 a=bc",
            b"5 ab\n",
            b"6 =abc\n",
            b"0 a=b\n",
            b"-6 a=b\n",
            b"14 path=a\x00bcd\n",
        ];
        for records in wrong {
            assert!(matches!(read(records), Err(TarError::PaxRecord)), "{records:?}");
        }
        for wrong in [b"18 uid=4294967296\n".as_slice(), b"10 gid=-1\n", b"11 uid=--2\n", b"9 gid=-\n"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(read(b"10 uid=-2\n").unwrap().uid, Some(4_294_967_294));
    }

    #[test]
    fn times_have_nanoseconds_and_may_be_before_1970() {
        let at = |text: &str| time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds)).ok();
        assert_eq!(at("1350244992.023960108"), Some((1_350_244_992, 23_960_108)));
        assert_eq!(at("1.0000000019"), Some((1, 1)));
        assert_eq!(at("1."), Some((1, 0)));
        assert_eq!(at("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(at("-1"), Some((-1, 0)));
        for wrong in ["", ".5", "1.x", "--1", "1e9", "99999999999999999999"] {
            assert_eq!(at(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn libarchive_attributes_are_decoded() {
        let extended = read(b"37 LIBARCHIVE.xattr.user.%41b=AQIDBA\n").unwrap();
        assert_eq!(extended.xattrs, [(b"user.Ab".to_vec(), vec![1, 2, 3, 4])]);
        assert_eq!(base64(b"AQID"), Some(vec![1, 2, 3]));
        assert_eq!(base64(b"AQ=="), Some(vec![1]));
        assert_eq!(base64(b"A*"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(read(&bytes));
        }

        #[test]
        fn a_written_record_is_read(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            let body = [b" SCHILY.xattr.user.x=".as_slice(), &value, b"\n"].concat();
            let mut length = body.len() + 1;
            while length != body.len() + length.to_string().len() {
                length = body.len() + length.to_string().len();
            }
            let record = [length.to_string().as_bytes(), &body].concat();
            prop_assert_eq!(read(&record).unwrap().xattrs, vec![(b"user.x".to_vec(), value)]);
        }
    }
}
