//! The list of the filter of a pod's network.

use super::List;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        "accept4", "access", "arch_prctl", "bind", "brk", "clock_gettime", "clock_nanosleep", "close",
        "close_range", "connect", "dup", "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait",
        "eventfd2", "exit", "exit_group", "faccessat", "faccessat2", "fcntl", "fstat", "futex", "getegid",
        "geteuid", "getgid", "getpid", "getrandom", "getsockname", "getsockopt", "gettid", "gettimeofday",
        "getuid", "ioctl", "listen", "lseek", "madvise", "membarrier", "mmap", "mprotect", "mremap",
        "munmap", "nanosleep", "newfstatat", "openat", "pipe2", "poll", "ppoll", "pread64", "preadv",
        "prlimit64", "pwrite64", "pwritev", "read", "readv", "recvfrom", "recvmsg", "restart_syscall",
        "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "sched_getaffinity",
        "sched_yield", "sendmsg", "sendto", "set_robust_list", "set_tid_address", "setsockopt", "shutdown",
        "sigaltstack", "statx", "sysinfo", "tgkill", "timerfd_create", "timerfd_settime", "uname", "write",
        "writev",
    ],
    limited: &[],
};
