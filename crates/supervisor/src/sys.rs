//! The few kernel calls of the supervisor that nix does not wrap, each behind a safe function. Owns: unsafe code. Must not know:
//! pods, plans.
#![allow(
    unsafe_code,
    reason = "raw system calls and file descriptors received from the kernel; every block says why it is sound"
)]

use magikvm_proto::wire::WindowSize;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, connect, setsockopt, socket, sockopt,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Gives a terminal a new size.
pub fn set_window_size(terminal: &impl AsFd, size: WindowSize) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

/// Begins to connect to an address. The socket becomes writable when the attempt has ended.
pub fn tcp_connect(address: std::net::SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(family, SockType::Stream, flags, None)?;
    let begun = match address {
        std::net::SocketAddr::V4(address) => connect(stream.as_raw_fd(), &SockaddrIn::from(address)),
        std::net::SocketAddr::V6(address) => connect(stream.as_raw_fd(), &SockaddrIn6::from(address)),
    };
    match begun {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(stream),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes the other end see a reset instead of an end when the socket is closed.
pub fn reset_on_close(stream: &impl AsFd) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &at_once).ok();
}

/// Bytes that can be read from a pipe or a terminal now; 0 if the kernel can't tell.
pub(crate) fn unread_bytes(fd: &impl AsFd) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) })
        .map_or(0, |_| usize::try_from(bytes).unwrap_or(0))
}

/// Bytes written to a socket that have not left the guest yet; 0 if the kernel can't tell.
pub fn unsent_bytes(socket: &impl AsFd) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (the same number as SIOCOUTQ) writes one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })
        .map_or(0, |_| bytes)
}
