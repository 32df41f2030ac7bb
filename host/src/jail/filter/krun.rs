//! The list of libkrun's VM. It was measured before the lists told what was seen from what is argued for, so that it has more than it needs.

use super::List;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        "accept", "accept4", "access", "arch_prctl", "bind", "close_range", "connect", "dup", "dup3", "epoll_create1", "epoll_ctl",
        "epoll_pwait", "epoll_wait", "eventfd2", "faccessat", "faccessat2", "fallocate", "fdatasync", "flock", "fstatfs", "fsync",
        "ftruncate", "getegid", "geteuid", "getgid", "getsockname", "getsockopt", "getuid", "ioctl", "listen", "memfd_create",
        "newfstatat", "openat", "pipe2", "poll", "ppoll", "pread64", "preadv", "pwrite64", "pwritev", "readlink", "readv",
        "recvfrom", "recvmsg", "rt_sigtimedwait", "sendto", "set_tid_address", "setsockopt", "shutdown", "statx", "sysinfo",
        "timerfd_create", "timerfd_settime", "uname",
    ],
    limited: &[],
};
