//! The list of QEMU. Its built-in list stands beside this one: no programs, no privileges, no limits from inside.

use super::{List, Must};

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        "accept4", "access", "arch_prctl", "bind", "brk", "clock_gettime", "clock_nanosleep", "close",
        "close_range", "connect", "dup", "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait",
        "eventfd2", "exit", "exit_group", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fcntl",
        "fdatasync", "flock", "fstat", "fstatfs", "fsync", "get_mempolicy", "getpeername", "ftruncate", "futex", "getcwd", "getdents64",
        "getegid", "geteuid", "getgid", "getpid", "getrandom", "getsockname", "getsockopt", "gettid",
        "gettimeofday", "getuid", "ioctl", "kill", "listen", "lseek", "madvise", "mbind", "membarrier",
        "memfd_create", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "openat",
        "pipe2", "poll", "ppoll", "pread64", "preadv", "prlimit64", "pwrite64", "pwritev", "read",
        "readlink", "readv", "recvfrom", "recvmsg", "restart_syscall", "rseq", "rt_sigaction",
        "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "sched_getaffinity", "sched_setaffinity",
        "sched_yield", "seccomp", "sendmsg", "sendto", "set_mempolicy", "set_robust_list",
        "set_tid_address", "setsockopt", "shutdown", "sigaltstack", "signalfd4", "statfs", "statx",
        "sysinfo", "tgkill", "timerfd_create", "timerfd_settime", "umask", "uname", "write", "writev",
    ],
    // Chooses what happens to it when memory fails.
    limited: &[("prctl", &[&[Must::Be(0, nix::libc::PR_MCE_KILL as u64)]])],
};
