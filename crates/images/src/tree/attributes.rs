//! Owner, mode, time, extended attributes and device numbers of an inode.

use super::TreeError;
use super::error::text;

/// Bytes of one extended attribute's value: EROFS counts them in 16 bits.
const MAX_VALUE_LEN: usize = u16::MAX as usize;
/// Bytes of all extended attributes of one inode: EROFS counts words in 16 bits; Linux lists at most 64 KiB of names.
const MAX_XATTRS_LEN: usize = 128 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Time of the last change.
    pub mtime: Timestamp,
    /// Sorted by name. Filled by [`Attributes::add_xattr`].
    pub xattrs: Vec<Xattr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Below 1 000 000 000.
    pub nanoseconds: u32,
}

/// An extended attribute, its name split as EROFS keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    prefix: u8,
    suffix: Box<[u8]>,
    value: Box<[u8]>,
}

/// The result for an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is in the image.
    Yes,
    /// It is dropped: EROFS has no such namespace, or overlayfs would obey it.
    Dropped,
}

/// Name prefixes of EROFS with their numbers. The prefix of an access control list is its whole name.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The name prefix with this number.
pub(in super::super) fn xattr_prefix(number: u8) -> Option<&'static [u8]> {
    PREFIXES.iter().find_map(|(prefix, found)| (*found == number).then_some(*prefix))
}

/// Attributes that are instructions to overlayfs (redirect, opaque, metacopy): an image must not pass them to the overlay that is mounted
/// on top of it.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

impl Attributes {
    /// Owned by root, mtime 0.
    pub fn plain(mode: u16) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() }
    }

    /// Adds or replaces an extended attribute by its full name.
    pub fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<Kept, TreeError> {
        if OVERLAY.iter().any(|prefix| name.starts_with(prefix)) {
            return Ok(Kept::Dropped);
        }
        let known = PREFIXES.iter().find_map(|(prefix, number)| Some((name.strip_prefix(*prefix)?, *number)));
        let Some((suffix, prefix)) =
            known.filter(|(suffix, number)| suffix.is_empty() == matches!(number, 2 | 3))
        else {
            return Ok(Kept::Dropped);
        };
        let too_long = || TreeError::XattrTooLong { name: text(name) };
        if name.len() > 255 || value.len() > MAX_VALUE_LEN || name.contains(&0) {
            return Err(too_long());
        }
        self.xattrs.retain(|xattr| (xattr.prefix, &*xattr.suffix) != (prefix, suffix));
        let at = self.xattrs.partition_point(|xattr| (xattr.prefix, &*xattr.suffix) < (prefix, suffix));
        self.xattrs.insert(at, Xattr { prefix, suffix: suffix.into(), value: value.into() });
        if self.weight() > MAX_XATTRS_LEN {
            return Err(too_long());
        }
        Ok(Kept::Yes)
    }

    /// Approximate bytes of memory in addition to the struct.
    pub(super) fn weight(&self) -> usize {
        self.xattrs.iter().map(|xattr| 8 + xattr.suffix.len() + xattr.value.len()).sum()
    }
}

impl Timestamp {
    /// Checks the nanoseconds.
    pub fn new(seconds: i64, nanoseconds: u32) -> Result<Self, TreeError> {
        if nanoseconds < 1_000_000_000 {
            Ok(Self { seconds, nanoseconds })
        } else {
            Err(TreeError::Nanoseconds { nanoseconds })
        }
    }
}

impl Xattr {
    /// EROFS's number of the name's prefix.
    pub fn prefix_index(&self) -> u8 {
        self.prefix
    }

    /// The name behind the prefix.
    pub fn suffix(&self) -> &[u8] {
        &self.suffix
    }

    pub fn value(&self) -> &[u8] {
        &self.value
    }
}

/// A device number in Linux's range: 12 bits major, 20 bits minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    pub fn new(major: u32, minor: u32) -> Result<Self, TreeError> {
        if major < 1 << 12 && minor < 1 << 20 {
            Ok(Self { major, minor })
        } else {
            Err(TreeError::DeviceNumber { major, minor })
        }
    }

    pub fn major(self) -> u32 {
        self.major
    }

    pub fn minor(self) -> u32 {
        self.minor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_sorted_and_replaced() {
        let mut attributes = Attributes::plain(0o644);
        for (name, value) in [("user.b", "1"), ("user.a", "2"), ("security.capability", "3"), ("user.b", "4")]
        {
            assert_eq!(attributes.add_xattr(name.as_bytes(), value.as_bytes()), Ok(Kept::Yes));
        }
        let found: Vec<_> =
            attributes.xattrs.iter().map(|x| (x.prefix_index(), x.suffix(), x.value())).collect();
        assert_eq!(found, [(1, b"a".as_slice(), b"2".as_slice()), (1, b"b", b"4"), (6, b"capability", b"3")]);
    }

    #[test]
    fn orders_to_overlayfs_and_unknown_namespaces_are_dropped() {
        let mut attributes = Attributes::plain(0o755);
        for name in [
            "trusted.overlay.opaque",
            "user.overlay.redirect",
            "system.nfs4_acl",
            "user.",
            "system.posix_acl_accessible",
            "",
        ] {
            assert_eq!(attributes.add_xattr(name.as_bytes(), b"y"), Ok(Kept::Dropped), "{name}");
        }
        assert!(attributes.xattrs.is_empty());
        assert_eq!(attributes.add_xattr(b"system.posix_acl_access", b"x"), Ok(Kept::Yes));
    }

    #[test]
    fn values_and_sums_are_capped() {
        let mut attributes = Attributes::plain(0o644);
        assert!(attributes.add_xattr(b"user.big", &vec![0; 65_536]).is_err());
        assert!(attributes.add_xattr(&[b"user.".as_slice(), &[b'n'; 251]].concat(), b"").is_err());
        assert!(attributes.add_xattr(b"user.1", &vec![0; 65_535]).is_ok());
        assert!(attributes.add_xattr(b"user.2", &vec![0; 65_000]).is_ok());
        assert!(attributes.add_xattr(b"user.3", &vec![0; 65_535]).is_err());
    }

    #[test]
    fn device_numbers_and_times_have_a_range() {
        assert!(Device::new(4095, 1_048_575).is_ok());
        assert!(Device::new(4096, 0).is_err() && Device::new(0, 1 << 20).is_err());
        assert!(Timestamp::new(-1, 999_999_999).is_ok() && Timestamp::new(0, 1_000_000_000).is_err());
    }
}
