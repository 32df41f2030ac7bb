//! The few kernel calls that nix does not wrap, each behind a safe function. Owns: unsafe code. Must not know: pods, plans, the wire.
#![allow(
    unsafe_code,
    reason = "raw system calls and file descriptors received from the kernel; every block says why it is sound"
)]

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socket, socketpair,
};
use nix::unistd::ForkResult;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Most file descriptors that travel in one message.
const MAX_FDS: usize = 4;

/// The users of the supervisor and of its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// Those of the system, whose root may do everything.
    Host,
    /// Those of a user namespace, whose root can set no rules for devices and keeps marks of overlays in attributes of users.
    Own,
}

/// Which side of a fork the caller is on.
pub(crate) enum Fork {
    Parent { child: i32 },
    Child,
}

/// Forks. Only for processes with a single thread: the copy may then run any code.
pub(crate) fn fork_single_threaded() -> Result<Fork, Errno> {
    // SAFETY: the callers (main before its first thread, and the spawner, which never starts one) are
    // single-threaded, so no lock can be held by a thread that the copy does not have.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Fork::Parent { child: child.as_raw() }),
        ForkResult::Child => Ok(Fork::Child),
    }
}

/// Ends a forked copy without running any exit handler.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a descriptor that the kernel has just returned.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the callers pass what a call of nix has just returned; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether the calling process is in a user namespace that is not the first one.
pub(crate) fn is_in_user_namespace() -> bool {
    // The first namespace maps every number to itself.
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

/// The bit of a process that has begun to end, in its flags of proc_pid_stat(5): PF_EXITING of linux/sched.h.
const EXITING: u32 = 4;

/// Whether a process has begun to end, or has ended. Its parent may hear of that much later.
pub(crate) fn is_ending(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| has_begun_to_end(&stat))
}

fn has_begun_to_end(stat: &str) -> bool {
    // The name of the program may contain anything. After it come state, ppid, pgrp, session, tty_nr, tpgid, flags.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let flags = after_name.split_ascii_whitespace().nth(6).and_then(|word| word.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

/// A pidfd, which never refers to another process.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// Sends a signal (1 to 64) to the process of a pidfd.
pub(crate) fn pidfd_signal(pidfd: &impl AsFd, signal: i32) -> Result<(), Errno> {
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the kernel accepts a null siginfo; the descriptor is open while it is borrowed.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, null, 0)
    })
    .map(drop)
}

/// Marks every descriptor from `first` on as closed at exec.
pub(crate) fn close_at_exec_from(first: u32) -> Result<(), Errno> {
    // SAFETY: the call takes three integers; marking descriptors does not invalidate their owners.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Makes descriptor `target` (0, 1 or 2) a copy of `fd`.
pub(crate) fn connect_stdio(fd: &impl AsFd, target: RawFd) -> Result<(), Errno> {
    // SAFETY: dup2 closes and replaces only the standard stream `target`, which nothing owns as an `OwnedFd`.
    Errno::result(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) }).map(drop)
}

/// Becomes `uid` and `gid` and keeps all capabilities until the caller drops them.
pub(crate) fn set_ids(uid: u32, gid: u32) -> Result<(), Errno> {
    // SAFETY: plain system calls on integers. Raw, because the process has one thread and libc's wrappers would
    // signal others.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        Errno::result(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0))?;
    }
    Ok(())
}

/// Drops every capability for good and becomes unreadable for other processes.
pub(crate) fn give_up_everything() -> Result<(), Errno> {
    // SAFETY: these requests take numbers.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        Errno::result(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0))?;
    }
    set_capabilities(0)
}

/// Drops these capabilities, a bit for each number of linux/capability.h, for the calling process and all programs that it will execute.
pub(crate) fn drop_capabilities(dropped: u64) -> Result<(), Errno> {
    for number in (0..u64::BITS).filter(|number| dropped & (1 << number) != 0) {
        // SAFETY: the request takes a number.
        match Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) }) {
            // An older kernel does not have it.
            Ok(_) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    // The kernel ignores the bits that it does not know, and no others can be added.
    set_capabilities(capabilities()? & !dropped)
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// _LINUX_CAPABILITY_VERSION_3 of linux/capability.h: two words per set, and for each word the effective, permitted and inheritable ones.
const CAPABILITIES: CapabilityHeader = CapabilityHeader { version: 0x2008_0522, pid: 0 };

/// The permitted ones of the calling thread.
fn capabilities() -> Result<u64, Errno> {
    let (mut header, mut sets) = (CAPABILITIES, [0u32; 6]);
    // SAFETY: both are laid out as capget(2) says for version 3 and outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    Ok(u64::from(sets[1]) | u64::from(sets[4]) << 32)
}

/// Sets the effective and the permitted ones; none is inheritable.
fn set_capabilities(permitted: u64) -> Result<(), Errno> {
    let bytes = permitted.to_le_bytes();
    let word = |from: usize| {
        bytes[from..from + 4].iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte))
    };
    let (low, high) = (word(0), word(4));
    let (header, sets) = (CAPABILITIES, [low, low, 0, high, high, 0]);
    // SAFETY: both are laid out as capset(2) says for version 3 and outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) }).map(drop)
}

/// Names the calling process, for `ps`.
pub(crate) fn set_process_name(name: &std::ffi::CStr) {
    // SAFETY: the kernel copies at most 16 bytes of the NUL-terminated name.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0);
    }
}

/// Restores the default dispositions and an empty mask, which programs expect at their start.
pub(crate) fn default_signals() -> Result<(), Errno> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { sigaction(signal, &default) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}

/// Makes the kernel reap children that end.
pub(crate) fn ignore_children() -> Result<(), Errno> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &ignore) }.map(drop)
}

/// Makes a terminal the controlling one of the calling session leader.
pub(crate) fn set_controlling_terminal(terminal: &impl AsFd) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer.
    Errno::result(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Unlocks a terminal's master and opens its other end, without a path lookup.
pub(crate) fn terminal_peer(master: &impl AsFd) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    let raw = master.as_fd().as_raw_fd();
    // SAFETY: TIOCSPTLCK reads one int that outlives the call; TIOCGPTPEER takes open flags and returns a
    // descriptor.
    unsafe {
        Errno::result(libc::ioctl(raw, libc::TIOCSPTLCK, &raw const unlocked))?;
        owned(libc::c_long::from(libc::ioctl(
            raw,
            libc::TIOCGPTPEER,
            libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC,
        )))
    }
}

/// Two connected sockets that preserve message boundaries.
pub(crate) fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends one message with descriptors.
pub(crate) fn send_message(socket: &impl AsFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<UnixAddr>(
        socket.as_fd().as_raw_fd(),
        &[IoSlice::new(bytes)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message of at most `buffer.len()` bytes with its descriptors. Zero bytes mean that the other end is closed.
pub(crate) fn receive_message(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(buffer)];
    let message = recvmsg::<UnixAddr>(
        socket.as_fd().as_raw_fd(),
        &mut iov,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((message.bytes, fds))
}

/// Waits for any child to end and returns its process id and raw wait status.
pub(crate) fn wait_any() -> Result<(i32, i32), Errno> {
    let mut status = 0;
    // SAFETY: the kernel writes one int, which outlives the call.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) })?;
    Ok((pid, status))
}

/// Closes every descriptor but this one, for a process that uses no other one any more.
pub(crate) fn close_all_but(kept: &impl AsFd) {
    let kept = kept.as_fd().as_raw_fd().cast_unsigned();
    // SAFETY: the caller, a forked copy, only waits for children afterwards, writes to `kept` and ends; no owner of another descriptor is used
    // again.
    unsafe {
        libc::syscall(libc::SYS_close_range, kept + 1, libc::c_uint::MAX, 0);
        if kept > 0 {
            libc::syscall(libc::SYS_close_range, 0, kept - 1, 0);
        }
    }
}

/// Closes every descriptor from `first` on, for a process that uses none any more.
pub(crate) fn close_all_from(first: u32) {
    // SAFETY: the caller has not opened any of them yet, or is a forked copy that only calls pause(2) afterwards; no owner of a descriptor is
    // used again.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0);
    }
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let inet = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::try_from(*from).unwrap_or_default();
    }
    // SAFETY: both requests read and write one ifreq; the flags are the union's member for them.
    unsafe {
        Errno::result(libc::ioctl(inet.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
        Errno::result(libc::ioctl(inet.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_an_end_is_read_whatever_the_program_is_called() {
        let stat = |flags: u32| format!("7 (a) b (c)) S 1 7 7 0 -1 {flags} 1 0 0");
        assert!(has_begun_to_end(&stat(0x40_0104)));
        assert!(!has_begun_to_end(&stat(0x40_0100)));
        assert!(!has_begun_to_end("") && !has_begun_to_end("7 (x"));
        assert!(!is_ending(std::process::id().cast_signed()));
    }
}
