//! One header block of 512 bytes.

use super::super::tree::Timestamp;
use super::{BLOCK, Segment, TarError, sparse};

/// The dialect of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Old,
    /// POSIX ustar and PAX: a prefix of the name at 345.
    Ustar,
    /// Star: the prefix is shorter.
    Star,
    Gnu,
}

#[derive(Debug)]
pub(super) struct Block([u8; BLOCK]);

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(&[])
}

impl Block {
    pub(super) fn new(bytes: [u8; BLOCK]) -> Self {
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; BLOCK] {
        &self.0
    }

    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// The sum of all bytes with the checksum field as blanks. Old tars added signed bytes.
    pub(super) fn check_sum(&self) -> Result<(), TarError> {
        let said = number(&self.0[148..156]).ok_or(TarError::Checksum)?;
        let as_summed = |at: usize, byte: u8| if (148..156).contains(&at) { b' ' } else { byte };
        let bytes = || self.0.iter().enumerate().map(|(at, byte)| as_summed(at, *byte));
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if said == unsigned || said == signed { Ok(()) } else { Err(TarError::Checksum) }
    }

    fn dialect(&self) -> Dialect {
        match (&self.0[257..263], &self.0[263..265]) {
            (b"ustar\0", _) if &self.0[508..512] == b"tar\0" => Dialect::Star,
            (b"ustar\0", _) => Dialect::Ustar,
            (b"ustar ", b" \0") => Dialect::Gnu,
            _ => Dialect::Old,
        }
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => until_nul(&self.0[345..500]),
            Dialect::Star => until_nul(&self.0[345..476]),
            Dialect::Old | Dialect::Gnu => &[],
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.0[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u16, TarError> {
        // Some tars put the bits of the type here as well.
        let mode = number(&self.0[100..108]).ok_or(TarError::Field { field: "mode" })?;
        u16::try_from(mode & 0o7777).map_err(|_| TarError::Field { field: "mode" })
    }

    pub(super) fn uid(&self) -> Result<u32, TarError> {
        let id = number(&self.0[108..116]).ok_or(TarError::Field { field: "uid" })?;
        owner(id, "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, TarError> {
        let id = number(&self.0[116..124]).ok_or(TarError::Field { field: "gid" })?;
        owner(id, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.unsigned(124..136, "size").and_then(check_size)
    }

    pub(super) fn mtime(&self) -> Result<Timestamp, TarError> {
        let seconds = number(&self.0[136..148]).ok_or(TarError::Field { field: "mtime" })?;
        Ok(Timestamp { seconds, nanoseconds: 0 })
    }

    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        Ok((self.unsigned(329..337, "device number")?, self.unsigned(337..345, "device number")?))
    }

    /// The parts of an old GNU sparse map that are in the header itself.
    pub(super) fn sparse_map(&self) -> Result<Vec<Segment>, TarError> {
        let mut map = Vec::new();
        sparse::read_pairs(&self.0[386..482], &mut map)?;
        Ok(map)
    }

    pub(super) fn sparse_extended(&self) -> bool {
        self.0[482] != 0
    }

    pub(super) fn sparse_size(&self) -> Result<u64, TarError> {
        self.unsigned(483..495, "size").and_then(check_size)
    }

    fn unsigned<T: TryFrom<i64>>(
        &self,
        range: std::ops::Range<usize>,
        field: &'static str,
    ) -> Result<T, TarError> {
        number(&self.0[range]).and_then(|number| T::try_from(number).ok()).ok_or(TarError::Field { field })
    }
}

/// An owner. Systems whose ids are signed write large ones as negative numbers of 32 bits: -2 is 4294967294 (often `nobody`), as in GNU tar
/// and podman. The largest id means "unchanged" to Linux, so no file has it.
pub(super) fn owner(id: i64, field: &'static str) -> Result<u32, TarError> {
    let unsigned = match id {
        0.. => u32::try_from(id).ok(),
        _ => i32::try_from(id).ok().map(i32::cast_unsigned),
    };
    unsigned.filter(|id| *id != u32::MAX).ok_or(TarError::Owner { field, id })
}

/// Sizes are limited so that no sum of them can overflow.
pub(super) fn check_size(size: u64) -> Result<u64, TarError> {
    if size < 1 << 62 { Ok(size) } else { Err(TarError::Field { field: "size" }) }
}

/// A numeric field: octal digits with blanks and NULs around, or (high bit set) a big-endian two's complement number.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        let text = field.trim_ascii_start();
        let text = until_nul(text).trim_ascii();
        if text.is_empty() {
            return Some(0);
        }
        let digit = |byte: u8| (b'0'..=b'7').contains(&byte).then(|| i64::from(byte - b'0'));
        return text.iter().try_fold(0i64, |sum, byte| sum.checked_mul(8)?.checked_add(digit(*byte)?));
    }
    // The first byte's highest bit is the mark, the next one the sign.
    let start =
        if first & 0x40 == 0 { i64::from(first & 0x3f) } else { i64::from((first | 0x80).cast_signed()) };
    field[1..].iter().try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add(i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_in_all_their_forms() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"77777777"), Some(0o7777_7777));
        assert_eq!(number(b"9"), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(&[0x80, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xfe]), Some(-2));
        assert_eq!(number(&[0xbf; 12]), None, "overflow");
    }

    #[test]
    fn owners_may_be_signed_numbers_of_32_bits() {
        let of = |id| owner(id, "uid").ok();
        assert_eq!((of(0), of(1000), of(4_294_967_294)), (Some(0), Some(1000), Some(4_294_967_294)));
        assert_eq!((of(-2), of(i64::from(i32::MIN))), (Some(4_294_967_294), Some(1 << 31)));
        for wrong in [-1, i64::from(u32::MAX), 1 << 32, i64::from(i32::MIN) - 1, i64::MIN, i64::MAX] {
            let error = owner(wrong, "uid").unwrap_err().to_string();
            assert!(error.contains(&wrong.to_string()), "{error}");
        }
        let mut block = [0; BLOCK];
        block[108..116].copy_from_slice(&(-2i64).to_be_bytes());
        block[116..124].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
        let block = Block::new(block);
        assert_eq!((block.uid().unwrap(), block.gid().unwrap()), (4_294_967_294, 4_294_967_294));
    }

    proptest! {
        #[test]
        fn no_block_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), BLOCK)) {
            let block = Block::new(bytes.try_into().unwrap());
            drop((block.check_sum(), block.name(), block.link(), block.mode(), block.uid(), block.gid()));
            drop((block.size(), block.mtime(), block.device(), block.sparse_map(), block.sparse_size()));
        }

        #[test]
        fn base_256_reads_what_was_written(value in any::<i64>()) {
            let mut field = [if value < 0 { 0xff } else { 0 }; 12];
            field[4..].copy_from_slice(&value.to_be_bytes());
            field[0] |= 0x80;
            prop_assert_eq!(number(&field), Some(value));
        }
    }
}
