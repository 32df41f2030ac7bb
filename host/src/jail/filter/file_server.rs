//! The server of shared directories.

use super::List;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        "accept4", "access", "arch_prctl", "bind", "brk", "capget", "capset", "clock_gettime",
        "clock_nanosleep", "close", "close_range", "connect", "copy_file_range", "dup", "dup3",
        "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "exit", "exit_group",
        "faccessat", "faccessat2", "fallocate", "fchdir", "fchmod", "fchmodat", "fchown", "fchownat",
        "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock", "fremovexattr", "fsetxattr", "fstat",
        "fstatfs", "fsync", "ftruncate", "futex", "getdents64", "getegid", "geteuid", "getgid", "getpid",
        "getrandom", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "getxattr", "ioctl",
        "lgetxattr", "linkat", "listen", "listxattr", "lremovexattr", "lseek", "lsetxattr", "madvise",
        "membarrier", "mkdirat", "mknodat", "mmap", "mprotect", "mremap", "munmap", "name_to_handle_at",
        "nanosleep", "newfstatat", "open_by_handle_at", "openat", "openat2", "pipe2", "poll", "ppoll",
        "pread64", "preadv", "preadv2", "prlimit64", "pwrite64", "pwritev", "pwritev2", "read", "readlink",
        "readlinkat", "readv", "recvfrom", "recvmsg", "removexattr", "renameat", "renameat2",
        "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait",
        "sched_getaffinity", "sched_yield", "sendmsg", "sendto", "set_robust_list", "set_tid_address",
        "setgroups", "setresgid", "setresuid", "setsockopt", "setxattr", "shutdown", "sigaltstack",
        "statfs", "statx", "symlinkat", "sync_file_range", "syncfs", "sysinfo", "tgkill", "umask", "uname",
        "unlink", "unlinkat", "utimensat", "write", "writev",
    ],
    limited: &[],
};
