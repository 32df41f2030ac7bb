//! The lists of the servers of shared directories.

use super::List;

/// What a server of files calls for its guest, whichever it is.
#[rustfmt::skip]
const FOR_THE_GUEST: &[&str] = &[
    // Seen.
    "dup", "fallocate", "fchmodat", "fchownat", "fgetxattr", "fstatfs", "fsync", "ftruncate", "getdents64", "getegid", "geteuid",
    "linkat", "mkdirat", "mknodat", "openat", "readlinkat", "renameat2", "statx", "symlinkat", "umask", "unlinkat", "utimensat",
    // The guest's other calls, with which both servers answer according to their source.
    "copy_file_range", "fchmod", "fdatasync", "flistxattr", "fremovexattr", "fsetxattr", "newfstatat",
    // Changes of the user for what the guest's users make, and what belongs to a change.
    "capget", "capset", "setresgid", "setresuid",
    // Other versions of the C library have these names for the same calls.
    "faccessat", "faccessat2", "fchmodat2", "getgid", "getuid",
];

/// The server in this program. It is the crate `virtiofsd`, whose own list of calls names those that were not seen.
#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: FOR_THE_GUEST,
    limited: &[],
};

/// The connection of that server to the VMM, and its calls that libkrun's server does not make.
#[rustfmt::skip]
pub(super) const ALONE: List = List {
    calls: &[
        // Seen.
        "accept4", "epoll_create1", "epoll_ctl", "epoll_wait", "eventfd2", "openat2", "poll", "preadv2", "pwritev2", "recvmsg", "syncfs",
        // In the crate's list.
        "epoll_pwait", "fchdir", "flock", "getxattr", "listxattr", "name_to_handle_at", "open_by_handle_at", "pread64", "preadv", "pwrite64",
        "pwritev", "readv", "removexattr", "renameat", "sendto", "setgroups", "setxattr", "unlink",
        // Other processors have this name for waiting.
        "ppoll",
    ],
    limited: &[],
};

/// What libkrun's server of files calls beyond both, according to its source: attributes of links and of special files.
#[rustfmt::skip]
pub(super) const IN_KRUN: List = List {
    calls: &["lgetxattr", "llistxattr", "lremovexattr", "lsetxattr"],
    limited: &[],
};
