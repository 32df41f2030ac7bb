//! What can be wrong with an entry.

use super::{MAX_DEPTH, MAX_ENTRIES, MAX_METADATA, MAX_NAME_LEN, MAX_PATH_LEN, MAX_SYMLINKS, MAX_TARGET_LEN};

/// Why an entry cannot be added to the tree. In paths, bytes that are not text are replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("an entry has an empty path")]
    EmptyPath,
    #[error("the path {path:?} contains \"..\"")]
    DotDot { path: String },
    /// A NUL byte in a path or target.
    #[error("the path {path:?} contains a NUL byte")]
    Nul { path: String },
    /// Longer than Linux allows.
    #[error("the path {path:?} is longer than {MAX_PATH_LEN} bytes")]
    PathTooLong { path: String },
    /// A component is longer than Linux allows.
    #[error("the name {name:?} is longer than {MAX_NAME_LEN} bytes")]
    NameTooLong { name: String },
    /// A symlink's target is missing or too long.
    #[error("a symbolic link's target is empty or longer than {MAX_TARGET_LEN} bytes: {target:?}")]
    SymlinkTarget { target: String },
    /// A parent is a file.
    #[error("{name:?} in the path {path:?} is not a directory")]
    NotADirectory { path: String, name: String },
    /// Too many symlinks on the path.
    #[error("the path {path:?} leads through more than {MAX_SYMLINKS} symbolic links, or in a circle")]
    SymlinkLoop { path: String },
    /// Something other than a directory replaces the root.
    #[error("an entry replaces the root directory by something else")]
    RootReplaced,
    #[error("a hard link leads to {target:?}, which is not in the image")]
    HardlinkTarget { target: String },
    #[error("a hard link leads to the directory {target:?}")]
    HardlinkDirectory { target: String },
    /// Linux has no such device number.
    #[error("the device number {major}:{minor} is out of range")]
    DeviceNumber { major: u32, minor: u32 },
    /// An extended attribute exceeds the limits.
    #[error("the extended attribute {name:?} has too long a name or value, or the file has too many")]
    XattrTooLong { name: String },
    /// A fraction of a second that is too large.
    #[error("a time has {nanoseconds} nanoseconds")]
    Nanoseconds { nanoseconds: u32 },
    #[error("the image has more than {MAX_ENTRIES} files and directories")]
    TooManyEntries,
    /// Names and attributes take too many bytes.
    #[error("names, link targets and extended attributes of the image take more than {MAX_METADATA} bytes")]
    TooMuchMetadata,
    /// Paths lead through too many links.
    #[error("the paths of the layer lead through too many directories and symbolic links")]
    TooManySteps,
    #[error("directories are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// Untrusted bytes for an error message: at most 80 characters.
pub(in super::super) fn text(bytes: &[u8]) -> String {
    // Cut before the conversion, since there may be many bytes.
    super::super::digest::shorten(&String::from_utf8_lossy(&bytes[..bytes.len().min(512)]))
}
