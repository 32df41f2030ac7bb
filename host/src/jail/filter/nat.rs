//! The list of the NAT of a pod's network. It makes TCP, UDP and ping sockets of the two families of IP, and no others.

use super::{List, Must};
use nix::libc;

const TYPE: u64 = 0xf;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        "brk", "clock_gettime", "clock_nanosleep", "close", "close_range", "connect", "epoll_create1", "epoll_ctl",
        "epoll_pwait", "epoll_wait", "exit", "exit_group", "fcntl", "fstat", "futex", "getpid", "getrandom",
        "getsockopt", "gettid", "gettimeofday", "lseek", "madvise", "membarrier", "mmap", "mprotect", "mremap",
        "munmap", "poll", "ppoll", "prlimit64", "read", "recvfrom", "recvmsg", "restart_syscall", "rseq", "rt_sigaction",
        "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "sendmsg", "sendto", "set_robust_list",
        "setsockopt", "shutdown", "sigaltstack", "tgkill", "write",
    ],
    limited: &[
        (
            "socket",
            &[
                &[Must::Be(0, libc::AF_INET as u64), Must::Have(1, TYPE, libc::SOCK_STREAM as u64), Must::Be(2, 0)],
                &[Must::Be(0, libc::AF_INET6 as u64), Must::Have(1, TYPE, libc::SOCK_STREAM as u64), Must::Be(2, 0)],
                &[Must::Be(0, libc::AF_INET as u64), Must::Have(1, TYPE, libc::SOCK_DGRAM as u64), Must::Be(2, 0)],
                &[Must::Be(0, libc::AF_INET6 as u64), Must::Have(1, TYPE, libc::SOCK_DGRAM as u64), Must::Be(2, 0)],
                &[
                    Must::Be(0, libc::AF_INET as u64),
                    Must::Have(1, TYPE, libc::SOCK_DGRAM as u64),
                    Must::Be(2, libc::IPPROTO_ICMP as u64),
                ],
                &[
                    Must::Be(0, libc::AF_INET6 as u64),
                    Must::Have(1, TYPE, libc::SOCK_DGRAM as u64),
                    Must::Be(2, libc::IPPROTO_ICMPV6 as u64),
                ],
            ],
        ),
    ],
};
