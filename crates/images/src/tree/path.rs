//! Paths of entries: bytes, relative to the root, without `.`, `..` and empty components.

use super::TreeError;
use super::error::text;

/// Bytes of a path (PATH_MAX of Linux, with its NUL).
pub const MAX_PATH_LEN: usize = 4095;
/// Bytes of a name (NAME_MAX of Linux).
pub const MAX_NAME_LEN: usize = 255;
/// Bytes of a symlink's target.
pub const MAX_TARGET_LEN: usize = 4095;

/// A checked path. Leading slashes are dropped, as tar does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPath<'a> {
    components: Vec<&'a [u8]>,
}

impl<'a> EntryPath<'a> {
    /// Checks a path. `/`, `.` and `./` are the root.
    pub fn parse(path: &'a [u8]) -> Result<Self, TreeError> {
        if path.is_empty() {
            return Err(TreeError::EmptyPath);
        }
        if path.len() > MAX_PATH_LEN {
            return Err(TreeError::PathTooLong { path: text(path) });
        }
        if path.contains(&0) {
            return Err(TreeError::Nul { path: text(path) });
        }
        let mut components = Vec::new();
        for component in path.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(TreeError::DotDot { path: text(path) }),
                name => {
                    check_name(name)?;
                    components.push(name);
                }
            }
        }
        Ok(Self { components })
    }

    /// The components from the root down; empty for the root itself.
    pub fn components(&self) -> &[&'a [u8]] {
        &self.components
    }

    /// The directory and the name in it; `None` for the root.
    pub fn split(&self) -> Option<(Self, &'a [u8])> {
        let (name, parents) = self.components.split_last()?;
        Some((Self { components: parents.to_vec() }, name))
    }

    pub fn text(&self) -> String {
        text(&self.components.join(&b'/'))
    }
}

pub(super) fn check_name(name: &[u8]) -> Result<(), TreeError> {
    if name.len() > MAX_NAME_LEN { Err(TreeError::NameTooLong { name: text(name) }) } else { Ok(()) }
}

/// A symlink's target: any bytes but NUL.
pub(in super::super) fn check_target(target: &[u8]) -> Result<(), TreeError> {
    if target.is_empty() || target.len() > MAX_TARGET_LEN {
        return Err(TreeError::SymlinkTarget { target: text(target) });
    }
    if target.contains(&0) {
        return Err(TreeError::Nul { path: text(target) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_root_has_many_names() {
        for root in ["/", ".", "./", "//", "/./."] {
            assert!(EntryPath::parse(root.as_bytes()).unwrap().components().is_empty(), "{root}");
        }
        assert_eq!(EntryPath::parse(b""), Err(TreeError::EmptyPath));
    }

    #[test]
    fn absolute_paths_lose_their_slash_and_dotdot_is_refused() {
        assert_eq!(EntryPath::parse(b"/etc//./passwd").unwrap().components(), [b"etc".as_slice(), b"passwd"]);
        for path in ["..", "../x", "a/../b", "/a/.."] {
            assert!(matches!(EntryPath::parse(path.as_bytes()), Err(TreeError::DotDot { .. })), "{path}");
        }
        assert_eq!(EntryPath::parse(b"...").unwrap().components(), [b"..."]);
    }

    #[test]
    fn lengths_are_those_of_linux() {
        assert!(EntryPath::parse(&[b'a'; 255]).is_ok());
        assert!(matches!(EntryPath::parse(&[b'a'; 256]), Err(TreeError::NameTooLong { .. })));
        assert!(matches!(EntryPath::parse(&b"a/".repeat(2048)), Err(TreeError::PathTooLong { .. })));
        assert!(matches!(EntryPath::parse(b"a\0b"), Err(TreeError::Nul { .. })));
    }

    proptest! {
        #[test]
        fn components_are_always_plain_names(path in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..300)) {
            if let Ok(path) = EntryPath::parse(&path) {
                for name in path.components() {
                    prop_assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
                    prop_assert!(*name != b"." && *name != b".." && name.len() <= MAX_NAME_LEN);
                }
            }
        }
    }
}
