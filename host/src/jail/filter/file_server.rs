//! The list of the server of shared directories.

use super::List;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        "accept4", "access", "arch_prctl", "bind", "brk", "capget", "capset", "chmod", "chown",
        "clock_gettime", "clock_nanosleep", "close", "close_range", "connect", "copy_file_range", "creat",
        "dup", "dup3", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "exit",
        "exit_group", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir", "fchmod", "fchmodat",
        "fchmodat2", "fchown", "fchownat", "fcntl", "fdatasync", "fgetxattr", "flistxattr", "flock",
        "fremovexattr", "fsetxattr", "fstat", "fstatfs", "fsync", "ftruncate", "futex", "futimesat",
        "getcwd", "getdents", "getdents64", "getegid", "geteuid", "getgid", "getgroups", "getpid",
        "getrandom", "getsockname", "getsockopt", "gettid", "gettimeofday", "getuid", "getxattr", "ioctl",
        "lchown", "lgetxattr", "link", "linkat", "listen", "listxattr", "lremovexattr", "lseek",
        "lsetxattr", "lstat", "madvise", "membarrier", "mkdir", "mkdirat", "mknod", "mknodat", "mmap",
        "mprotect", "mremap", "munmap", "name_to_handle_at", "nanosleep", "newfstatat", "open",
        "open_by_handle_at", "openat", "openat2", "pause", "pipe2", "poll", "ppoll", "pread64", "preadv",
        "preadv2", "prlimit64", "pwrite64", "pwritev", "pwritev2", "read", "readlink", "readlinkat",
        "readv", "recvfrom", "recvmsg", "removexattr", "rename", "renameat", "renameat2", "restart_syscall",
        "rmdir", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait",
        "sched_getaffinity", "sched_yield", "sendmsg", "sendto", "set_robust_list", "set_tid_address",
        "setfsgid", "setfsuid", "setgroups", "setresgid", "setresuid", "setsockopt", "setxattr", "shutdown",
        "sigaltstack", "splice", "stat", "statfs", "statx", "symlink", "symlinkat", "sync_file_range",
        "syncfs", "sysinfo", "tgkill", "truncate", "umask", "uname", "unlink", "unlinkat", "utime",
        "utimensat", "utimes", "write", "writev",
    ],
    limited: &[],
};
