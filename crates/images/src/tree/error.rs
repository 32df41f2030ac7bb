//! What can be wrong with an entry.

use super::{MAX_DEPTH, MAX_ENTRIES, MAX_METADATA, MAX_NAME_LEN, MAX_PATH_LEN, MAX_SYMLINKS, MAX_TARGET_LEN};

/// Why an entry cannot be put in the tree. Paths are shown with what is not text replaced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// No name at all.
    #[error("an entry has an empty path")]
    EmptyPath,
    /// `..` in a path.
    #[error("the path {path:?} contains \"..\"")]
    DotDot { path: String },
    /// A NUL byte in a path or target.
    #[error("the path {path:?} contains a NUL byte")]
    Nul { path: String },
    /// Longer than Linux takes.
    #[error("the path {path:?} is longer than {MAX_PATH_LEN} bytes")]
    PathTooLong { path: String },
    /// A component longer than Linux takes.
    #[error("the name {name:?} is longer than {MAX_NAME_LEN} bytes")]
    NameTooLong { name: String },
    /// A symlink without a target or with too long a one.
    #[error("a symbolic link's target is empty or longer than {MAX_TARGET_LEN} bytes: {target:?}")]
    SymlinkTarget { target: String },
    /// A parent is a file.
    #[error("{name:?} in the path {path:?} is not a directory")]
    NotADirectory { path: String, name: String },
    /// Too many symlinks on the way.
    #[error("the path {path:?} leads through more than {MAX_SYMLINKS} symbolic links, or in a circle")]
    SymlinkLoop { path: String },
    /// The root as something else than a directory.
    #[error("an entry replaces the root directory by something else")]
    RootReplaced,
    #[error("a hard link leads to {target:?}, which is not in the image")]
    HardlinkTarget { target: String },
    /// A hardlink to a directory.
    #[error("a hard link leads to the directory {target:?}")]
    HardlinkDirectory { target: String },
    /// A device number that Linux does not have.
    #[error("the device number {major}:{minor} is out of range")]
    DeviceNumber { major: u32, minor: u32 },
    /// An extended attribute that cannot be kept.
    #[error("the extended attribute {name:?} has too long a name or value, or the file has too many")]
    XattrTooLong { name: String },
    /// Nanoseconds of a second or more.
    #[error("a time has {nanoseconds} nanoseconds")]
    Nanoseconds { nanoseconds: u32 },
    #[error("the image has more than {MAX_ENTRIES} files and directories")]
    TooManyEntries,
    /// Too many bytes of names.
    #[error("names, link targets and extended attributes of the image take more than {MAX_METADATA} bytes")]
    TooMuchMetadata,
    /// Paths through too many links.
    #[error("the paths of the layer lead through too many directories and symbolic links")]
    TooManySteps,
    #[error("directories are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// A stranger's bytes for an error message: at most 80 characters.
pub(in super::super) fn text(bytes: &[u8]) -> String {
    // Cut before the conversion: the bytes may be many.
    super::super::digest::shorten(&String::from_utf8_lossy(&bytes[..bytes.len().min(512)]))
}
