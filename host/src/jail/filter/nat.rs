//! The list of the NAT of a pod's network. It has one thread and opens nothing. It makes TCP, UDP and ping sockets of the two families of IP, and no others.

use super::{List, Must};
use nix::libc;

const TYPE: u64 = 0xf;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        // Seen.
        "connect", "epoll_create1", "epoll_ctl", "epoll_wait", "getsockopt", "recvfrom", "recvmsg", "sendto", "setsockopt",
        // A half of a connection is closed when its peer has closed it, which takes a server that does so.
        "shutdown",
        // It waits by this one for a filter that does not read, and at the end of the pod.
        "poll",
        // Other processors have these names for waiting.
        "epoll_pwait", "ppoll",
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
