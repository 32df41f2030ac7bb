//! The list of QEMU. Its built-in list stands beside this one: no programs, no privileges, no limits from inside.

use super::{List, Must};

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        // Seen: the loader and the start,
        "access", "arch_prctl", "get_mempolicy", "memfd_create", "newfstatat", "openat", "readlink", "seccomp", "set_mempolicy",
        "set_tid_address", "signalfd4", "statfs", "sysinfo",
        // its disks,
        "fallocate", "fdatasync", "fstatfs", "ftruncate", "pread64", "preadv", "pwrite64", "pwritev", "readv",
        // its sockets and what it waits for.
        "connect", "epoll_create1", "eventfd2", "getpeername", "getsockname", "getsockopt", "ioctl", "ppoll", "recvmsg", "setsockopt",
        // It signals its processors' threads by this one on hosts with KVM, and takes the signal back by the other one.
        "rt_sigtimedwait",
        // QEMU binds memory to nodes of the host if it has several.
        "mbind", "sched_setaffinity",
        // The sockets of the network and of vhost-user devices are also read in these ways, depending on the version.
        "recvfrom", "sendto", "shutdown",
        // It waits by these with another number of descriptors.
        "epoll_ctl", "epoll_wait", "poll", "timerfd_create", "timerfd_settime",
        // A disk whose file system cannot sync data alone, or whose advice is refused; locks of a file, by the version.
        "fadvise64", "flock", "fsync",
        // The loader, glib and the library of threads of other versions, which look at files, users and the kernel in these ways.
        "close_range", "dup", "dup3", "getcwd", "getdents64", "getegid", "geteuid", "getgid", "getuid", "pipe2", "statx", "umask",
        "uname",
        // Other processors have these names for the same calls.
        "epoll_pwait", "faccessat", "faccessat2",
    ],
    // Chooses what happens to it when memory fails.
    limited: &[("prctl", &[&[Must::Be(0, nix::libc::PR_MCE_KILL as u64)]])],
};
