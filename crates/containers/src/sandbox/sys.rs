//! The kernel's calls for mounts and namespaces that nix does not wrap, each behind a safe function. Owns: unsafe code of the sandbox. Must not know:
//! pods.
#![allow(unsafe_code, reason = "raw system calls; every block says why it is sound")]

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Flags of linux/mount.h.
const OPEN_TREE_CLONE: libc::c_long = 1;
const FSMOUNT_CLOEXEC: libc::c_long = 1;
const FSOPEN_CLOEXEC: libc::c_long = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_long = 4;
const FSCONFIG_SET_FLAG: libc::c_long = 0;
const FSCONFIG_SET_STRING: libc::c_long = 1;
const FSCONFIG_CMD_CREATE: libc::c_long = 6;

/// Attributes of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Attributes {
    pub(super) read_only: bool,
    pub(super) no_suid: bool,
    pub(super) no_devices: bool,
}

impl Attributes {
    fn bits(self) -> u64 {
        const RDONLY: u64 = 1;
        const NOSUID: u64 = 2;
        const NODEV: u64 = 4;
        [(self.read_only, RDONLY), (self.no_suid, NOSUID), (self.no_devices, NODEV)]
            .into_iter()
            .filter_map(|(wanted, bit)| wanted.then_some(bit))
            .sum()
    }
}

fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    let raw =
        RawFd::try_from(Errno::result(answer)?).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// A copy of the mount of this path, without those beneath it, that is mounted nowhere yet.
pub(super) fn copy_of_path(source: &Path) -> io::Result<OwnedFd> {
    let source = path(source)?;
    let flags = OPEN_TREE_CLONE | libc::c_long::from(libc::O_CLOEXEC);
    // SAFETY: the path is NUL-terminated and outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, source.as_ptr(), flags) })
}

/// The same of an opened file or directory, with the mounts beneath it.
pub(super) fn copy_of_opened(source: &impl AsFd) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE
        | libc::c_long::from(libc::O_CLOEXEC)
        | libc::c_long::from(libc::AT_EMPTY_PATH)
        | libc::c_long::from(libc::AT_RECURSIVE);
    let raw = source.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while it is borrowed; the path is a constant.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, raw, c"".as_ptr(), flags) })
}

/// A new mount of a file system, mounted nowhere yet.
pub(super) fn new_mount(kind: &CStr, source: &Path, flags: &[&CStr]) -> io::Result<OwnedFd> {
    let source = path(source)?;
    let null = std::ptr::null::<libc::c_char>();
    // SAFETY: all texts are NUL-terminated and outlive the calls; the kernel accepts null for values that a command lacks.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC))?;
        let raw = context.as_raw_fd();
        let set = |command: libc::c_long, key: *const libc::c_char, value: *const libc::c_char| {
            Errno::result(libc::syscall(libc::SYS_fsconfig, raw, command, key, value, 0))
        };
        set(FSCONFIG_SET_STRING, c"source".as_ptr(), source.as_ptr())?;
        for flag in flags {
            set(FSCONFIG_SET_FLAG, flag.as_ptr(), null)?;
        }
        set(FSCONFIG_CMD_CREATE, null, null)?;
        owned(libc::syscall(libc::SYS_fsmount, raw, FSMOUNT_CLOEXEC, 0))
    }
}

/// Opens an opened file or directory again, in the mounts of the calling process.
pub(super) fn opened_again(opened: &OwnedFd) -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, fstat};
    let at = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))?;
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let again = open(&at, flags, Mode::empty())?;
    let (before, now) = (fstat(opened)?, fstat(&again)?);
    // Something else may be at the path meanwhile.
    if (before.st_dev, before.st_ino) == (now.st_dev, now.st_ino) {
        Ok(again)
    } else {
        Err(io::Error::new(io::ErrorKind::NotFound, format!("{} has been replaced", at.display())))
    }
}

/// Sets attributes of a mount that is mounted nowhere yet, and those beneath it. With `users` the ids of its files are those of that user namespace.
pub(super) fn change_mount(
    mount: &impl AsFd,
    attributes: Attributes,
    users: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bits = attributes.bits();
    let mapped = users.map_or(0, |_| libc::MOUNT_ATTR_IDMAP);
    let wanted = libc::mount_attr {
        attr_set: bits | mapped,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.map_or(0, |users| u64::from(users.as_raw_fd().cast_unsigned())),
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the structure has the size that is stated and outlives the call; the path is a constant.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Mounts at a path what is mounted nowhere yet.
pub(super) fn attach(mount: &impl AsFd, target: &Path) -> io::Result<()> {
    let target = path(target)?;
    // SAFETY: both paths are NUL-terminated and outlive the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Ends the calling process with the thread that has made it.
pub(super) fn die_with_parent() -> io::Result<()> {
    // SAFETY: the call takes integers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    Ok(())
}

/// Becomes root of the calling process's user namespace, without further groups where they can be given up.
pub(super) fn become_root() -> io::Result<()> {
    // SAFETY: plain system calls on integers and a null list of no groups, in a process with one thread.
    unsafe {
        let null = std::ptr::null::<libc::gid_t>();
        // Refused where the namespace's groups were mapped without privileges.
        libc::syscall(libc::SYS_setgroups, 0, null);
        Errno::result(libc::syscall(libc::SYS_setresgid, 0, 0, 0))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, 0, 0, 0))?;
        // Or its files in /proc belong to root of the host. No process of a container sees this one.
        Errno::result(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0))?;
    }
    Ok(())
}

/// Makes an interface whose frames the returned descriptor reads and writes, in the calling process's network namespace.
pub(super) fn tap(name: &CStr, mac: [u8; 6]) -> io::Result<OwnedFd> {
    // _IOW('T', 202, int) of linux/if_tun.h.
    const TUNSETIFF: u64 = 0x4004_54ca;
    const IFF_TAP: libc::c_short = 2;
    const IFF_NO_PI: libc::c_short = 0x1000;
    let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK;
    let tun = nix::fcntl::open("/dev/net/tun", flags, nix::sys::stat::Mode::empty())?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI;
    // SAFETY: the request reads and writes one ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF as _, &raw mut request) })?;
    let mut request = self::request(name);
    let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_hwaddr = address;
    // SAFETY: the request reads one ifreq, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::SIOCSIFHWADDR as _, &raw const request) })?;
    Ok(tun)
}

fn request(name: &CStr) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let last = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..last].iter_mut().zip(name.to_bytes()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request
}

/// Takes a descriptor that the starter of this process gave it under this number.
pub(super) fn take(number: RawFd) -> io::Result<OwnedFd> {
    nix::fcntl::fcntl(
        // SAFETY: only borrowed for the call, which fails when the number is not open.
        unsafe { BorrowedFd::borrow_raw(number) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    // SAFETY: the descriptor is open, was given to this process for this purpose, and is taken once, by its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Leaves the session keyring of whoever has started this process.
pub(super) fn leave_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the call takes integers and a null name. Without keyrings in the kernel there is none to leave.
    unsafe {
        let null = std::ptr::null::<libc::c_char>();
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, null);
    }
}

/// Closes a descriptor of the host by its number, in a forked copy that uses it no more.
pub(super) fn close(number: RawFd) {
    // SAFETY: the caller, a forked copy, never returns to the owner of the descriptor.
    unsafe {
        libc::close(number);
    }
}

/// Names of sockets and the like are removed from the environment with everything else.
pub(super) fn clear_environment() {
    // SAFETY: called in main before any thread.
    unsafe {
        libc::clearenv();
    }
}
