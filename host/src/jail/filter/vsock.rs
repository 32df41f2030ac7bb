//! The list of vhost-device-vsock.

use super::List;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        // Seen: the loader and the start,
        "access", "arch_prctl", "newfstatat", "openat", "pread64", "set_tid_address",
        // its sockets, and the connections of the host,
        "accept4", "bind", "dup", "epoll_create1", "epoll_ctl", "epoll_wait", "eventfd2", "ioctl", "listen", "poll", "recvfrom",
        "recvmsg", "sendto", "unlink",
        // A connection of the guest to the host is one to a socket that may not be there. Connections end in two steps.
        "connect", "shutdown",
        // Its library asks for these to find out what a descriptor is and how it is set up, depending on its version.
        "getsockname", "getsockopt", "setsockopt", "statx", "umask", "readv",
        // The loader and the library of threads of other versions of the C library.
        "dup3", "getegid", "geteuid", "getgid", "getuid", "pipe2", "readlink", "sysinfo", "uname",
        // Other processors have these names for the same calls.
        "epoll_pwait", "faccessat", "faccessat2", "ppoll", "unlinkat",
    ],
    limited: &[],
};
