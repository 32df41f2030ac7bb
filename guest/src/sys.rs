//! The few kernel calls of the guest that nix does not wrap, each behind a safe function. Owns: unsafe code. Must not know: pods, plans, the
//! wire.
#![allow(
    unsafe_code,
    reason = "raw system calls and file descriptors received from the kernel; every block says why it is sound"
)]

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, getpeername, listen, socket,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Limits the malloc arenas: vminit has many small threads that mostly sleep.
pub(crate) fn one_malloc_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called first in main, before any thread; the parameters are constants of malloc.h.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 10);
    }
}

/// Removes every variable from this process's environment (the kernel passes unknown words of its command line
/// here).
pub(crate) fn clear_environment() {
    // SAFETY: called in main before any thread.
    unsafe {
        libc::clearenv();
    }
}

/// Discards the free blocks of a file system in runs of at least `least` bytes, except those that were discarded before and not used since.
pub(crate) fn trim(directory: &impl AsFd, least: u64) -> io::Result<()> {
    /// `struct fstrim_range` of linux/fs.h.
    #[repr(C)]
    struct Range {
        start: u64,
        len: u64,
        least: u64,
    }
    // _IOWR('X', 121, struct fstrim_range), which all architectures with virtual machines number alike.
    const FITRIM: u64 = 0xC018_5879;
    let mut range = Range { start: 0, len: u64::MAX, least };
    // SAFETY: the request reads and writes one range of this layout, which outlives the call.
    let said = unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), FITRIM as _, &raw mut range) };
    Errno::result(said).map(drop).map_err(io::Error::from)
}

/// Enlarges the mounted ext4 file system of this directory to this many blocks.
pub(crate) fn resize(directory: &impl AsFd, blocks: u64) -> io::Result<()> {
    // _IOW('f', 16, __u64) of linux/ext4.h, which all architectures with virtual machines number alike.
    const EXT4_IOC_RESIZE_FS: u64 = 0x4008_6610;
    // SAFETY: the request reads one number, which outlives the call.
    let said =
        unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks) };
    Errno::result(said).map(drop).map_err(io::Error::from)
}

/// Connections that may wait to be accepted.
const AGENT_BACKLOG: i32 = 256;
const _: () = assert!(AGENT_BACKLOG as usize >= magikvm_proto::limits::MAX_AGENT_CONNECTIONS);

pub(crate) fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    let listener = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    // All clients may come at once.
    listen(&listener, Backlog::new(AGENT_BACKLOG)?)?;
    Ok(listener)
}

/// A listening non-blocking AF_VSOCK socket for many connections.
pub(crate) fn vsock_listen_for_many(port: u32) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    listen(&listener, Backlog::new(1024)?)?;
    Ok(listener)
}

/// Accepts a connection and returns it with the peer's context id.
pub(crate) fn vsock_accept(listener: &impl AsFd) -> io::Result<(OwnedFd, u32)> {
    let raw = accept4(listener.as_fd().as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    let connection = unsafe { OwnedFd::from_raw_fd(raw) };
    let peer: VsockAddr = getpeername(connection.as_raw_fd())?;
    Ok((connection, peer.cid()))
}
