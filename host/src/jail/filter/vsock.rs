//! The list of vhost-device-vsock.

use super::List;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        "accept4", "access", "arch_prctl", "bind", "brk", "clock_gettime", "clock_nanosleep", "close",
        "close_range", "connect", "dup", "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait",
        "eventfd2", "exit", "exit_group", "faccessat", "faccessat2", "fcntl", "fstat", "ftruncate",
        "futex", "getegid", "geteuid", "getgid", "getpid", "getrandom", "getsockname", "getsockopt",
        "gettid", "gettimeofday", "getuid", "ioctl", "listen", "lseek", "madvise", "membarrier", "mmap",
        "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "openat", "pipe2", "poll", "ppoll",
        "pread64", "preadv", "prlimit64", "pwrite64", "pwritev", "read", "readlink", "readv", "recvfrom",
        "recvmsg", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
        "rt_sigtimedwait", "sched_getaffinity", "sched_yield", "sendmsg", "sendto", "set_robust_list",
        "set_tid_address", "setsockopt", "shutdown", "sigaltstack", "statx", "sysinfo", "tgkill", "umask",
        "uname", "unlink", "unlinkat", "write", "writev",
    ],
    limited: &[],
};
