//! The capabilities of this process, and how it drops them.
#![allow(unsafe_code, reason = "capset has no function in the C library")]

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;

/// A capability: its number and its name.
pub(super) type Cap = (u32, &'static str);
pub(super) const CHOWN: Cap = (0, "CAP_CHOWN");
pub(super) const SETGID: Cap = (6, "CAP_SETGID");
pub(super) const SETUID: Cap = (7, "CAP_SETUID");
pub(super) const SETPCAP: Cap = (8, "CAP_SETPCAP");
pub(super) const SYS_ADMIN: Cap = (21, "CAP_SYS_ADMIN");

/// What a file server needs to act for the owners of files. It opens files by handles for DAC_READ_SEARCH.
const OF_FILE_SERVERS_BY_NAME: [Cap; 7] = [
    CHOWN,
    (1, "CAP_DAC_OVERRIDE"),
    (2, "CAP_DAC_READ_SEARCH"),
    (3, "CAP_FOWNER"),
    (4, "CAP_FSETID"),
    SETGID,
    SETUID,
];
pub(super) const OF_FILE_SERVERS: u64 = {
    let (mut mask, mut at) = (0, 0);
    while at < OF_FILE_SERVERS_BY_NAME.len() {
        mask |= 1 << OF_FILE_SERVERS_BY_NAME[at].0;
        at += 1;
    }
    mask
};

/// The names of those in a mask that file servers keep.
pub(super) fn names(mask: u64) -> Vec<String> {
    let kept = OF_FILE_SERVERS_BY_NAME.iter().filter(|(number, _)| mask & (1 << number) != 0);
    kept.map(|(_, name)| (*name).to_owned()).collect()
}

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The effective capabilities, one bit for each number.
pub(super) fn effective() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Reduces the capabilities to this mask.
pub(super) fn set(mask: u64) -> nix::Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |mask: u64| {
        let mask = u32::try_from(mask & u64::from(u32::MAX)).unwrap_or(0);
        Data { effective: mask, permitted: mask, inheritable: 0 }
    };
    let data = [half(mask), half(mask >> 32)];
    // SAFETY: both structures match the kernel's header for this version and outlive the call.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) }).map(drop)
}

/// Makes all permitted capabilities effective, because a change of user clears the effective ones.
pub(super) fn raise() -> nix::Result<()> {
    set(permitted()?)
}

/// The permitted capabilities, one bit for each number.
pub(super) fn permitted() -> nix::Result<u64> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: as above; the kernel writes to `data`.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &header, data.as_mut_ptr()) })?;
    Ok(u64::from(data[0].permitted) | u64::from(data[1].permitted) << 32)
}

/// Removes all capabilities but these for ever, so that no program can regain them.
pub(super) fn bound(mask: u64) -> nix::Result<()> {
    for number in 0..64u64 {
        if mask & (1 << number) != 0 {
            continue;
        }
        // SAFETY: it takes numbers.
        let dropped = Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) });
        match dropped {
            // Past the last capability that this kernel knows.
            Err(Errno::EINVAL) => break,
            dropped => drop(dropped?),
        }
    }
    // SAFETY: it takes numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })
        .map(drop)
}

/// From now on, being root gives no capabilities to executed programs.
pub(super) fn lock_root() -> nix::Result<()> {
    const NOROOT_LOCKED: libc::c_ulong = 1 | 1 << 1;
    const NO_AMBIENT_LOCKED: libc::c_ulong = 1 << 6 | 1 << 7;
    // SAFETY: it takes numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_SECUREBITS, NOROOT_LOCKED | NO_AMBIENT_LOCKED, 0, 0, 0) })
        .map(drop)
}

/// From now on, executed programs cannot gain more rights than this process has.
pub(super) fn no_new_privileges() -> nix::Result<()> {
    prctl::set_no_new_privs()
}

/// Whether capabilities survive a change from root to another user.
pub(super) fn keep(keep: bool) -> nix::Result<()> {
    prctl::set_keepcaps(keep)
}
