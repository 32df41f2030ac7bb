//! Linux.

use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rustix::fs::{Dev, FileType, Mode, OFlags, XattrFlags, chmod, fstat, mknodat, openat, setxattr};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Runtime state of the system-wide installation.
pub const SYSTEM_RUN: &str = "/run/magikvm";

// Processes.

/// For a child between fork and exec: the kernel kills it when the thread that started it ends. Async-signal-safe.
pub fn die_with_parent() -> nix::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)
}

/// For such a child, once it runs this program: the kernel does everything.
pub fn follow_parent() {}

/// Makes orphaned descendants of this process its children.
pub fn adopt_orphans() -> nix::Result<()> {
    prctl::set_child_subreaper(true)
}

/// Start time of a process in clock ticks since boot (field 22 of `/proc/PID/stat`); `None` when it does not exist or is a zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may itself contain blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Whether this process ignores a signal; `false` when that cannot be determined.
pub fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignored(&status) >> (signal as i32 - 1) & 1 == 1
}

/// The set of ignored signals (proc_pid_status(5): bit 0 is signal 1).
fn ignored(status: &str) -> u64 {
    let field = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    field.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

// Locks of open files.

#[allow(clippy::cast_possible_truncation, reason = "the constants are small; the field is a short")]
mod lock_types {
    use super::libc;
    /// Shared, for `l_type`.
    pub const READ_LOCK: libc::c_short = libc::F_RDLCK as libc::c_short;
    /// Exclusive, for `l_type`.
    pub const WRITE_LOCK: libc::c_short = libc::F_WRLCK as libc::c_short;
    /// Unlocked, for `l_type`.
    pub const NO_LOCK: libc::c_short = libc::F_UNLCK as libc::c_short;
}
pub use lock_types::*;

/// Takes a lock of an open file, or fails with EAGAIN or EACCES.
pub fn set_lock(file: &File, range: &libc::flock) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(range)).map(drop)
}

/// Takes a lock of an open file, waiting until nobody else holds it.
pub fn set_lock_waiting(file: &File, range: &libc::flock) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLKW(range)).map(drop)
}

/// Finds a lock that conflicts with this one: `l_type` says whether one exists.
pub fn get_lock(file: &File, range: &mut libc::flock) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_GETLK(range)).map(drop)
}

// Unix sockets whose path may be longer than an address.

/// Connects to a Unix socket with a path of any length, through the descriptor of its directory. Anybody who can write to that directory
/// can replace the socket by a link that this process would follow, so links are not followed.
pub fn connect_unix(socket: &Path) -> io::Result<UnixStream> {
    let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(parent)?;
    let found = Unopened::find(dir.as_fd(), name.as_encoded_bytes(), OFlags::empty())?;
    if FileType::from_raw_mode(fstat(&found.0)?.st_mode) != FileType::Socket {
        return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
    }
    UnixStream::connect(found.path())
}

/// Connects to a Unix socket that never blocks: `WouldBlock` when its backlog is full.
pub fn connect_unix_at_once(path: &Path) -> io::Result<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    let (_dir, address) = address(path)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(&address)?)?;
    Ok(UnixStream::from(stream))
}

/// Whether the kernel knows a file system. For root it loads the module of one that it does not know yet.
pub fn knows_file_system(name: &std::ffi::CStr) -> bool {
    let known = || {
        let all = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        all.lines().any(|line| line.split_whitespace().last() == name.to_str().ok())
    };
    // What it is opened for is not made.
    known() || rustix::mount::fsopen(name, rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC).is_ok()
}

/// A copy of a program in memory that nobody can change any more. Its number is at least `least`.
pub fn sealed_copy(program: &Path, least: i32) -> io::Result<OwnedFd> {
    use nix::fcntl::SealFlag;
    use rustix::fs::{MemfdFlags, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match memfd_create("program", flags | MemfdFlags::EXEC) {
        // Linux before 6.3 executes every one.
        Err(Errno::INVAL) => memfd_create("program", flags),
        made => made,
    };
    let mut copy = File::from(made?);
    io::copy(&mut File::open(program)?, &mut copy)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(rustix::io::fcntl_dupfd_cloexec(&copy, least)?)
}

/// Creates a Unix socket that only this user can connect to, in a directory that only this user can enter.
pub fn bind_unix(socket: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, address) = address(socket)?;
    let listener = UnixListener::bind(&address)?;
    std::fs::set_permissions(&address, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether [`connect_unix`] accepts a path of this length.
pub fn check_unix(_socket: &Path) -> io::Result<()> {
    Ok(())
}

/// A short path to a socket, since an address holds only 107 bytes. The path is valid as long as the directory is open.
fn address(socket: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(parent)?;
    let address = Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    Ok((dir, address))
}

// Files.

pub fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let signed =
        |number: u64| i64::try_from(number).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, flags, signed(offset)?, signed(length)?)?)
}

/// Makes the file system of this file durable.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    Ok(rustix::fs::syncfs(file)?)
}

/// Creates a pipe, a socket or a device.
pub fn make_special(
    dir: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    mode: Mode,
    device: Dev,
) -> Result<(), Errno> {
    mknodat(dir, name, kind, mode, device)
}

/// A file that was found without opening it, and without following it if it is a link.
#[derive(Debug)]
pub struct Unopened(OwnedFd);

impl Unopened {
    /// Finds it. `kind` holds additional flags for the expected type.
    pub fn find(dir: BorrowedFd<'_>, name: &[u8], kind: OFlags) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
        openat(dir, name, flags, Mode::empty()).map(Self)
    }

    /// Stands for the file that was found; nothing behind it is followed.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }

    pub fn set_xattr(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        setxattr(self.path(), key, value, XattrFlags::empty())
    }

    /// Sets the permissions of a file that is not a link.
    pub fn set_mode(&self, mode: Mode) -> Result<(), Errno> {
        chmod(self.path(), mode)
    }
}

/// Changes of directories: files created, moved there or written to.
#[derive(Debug)]
pub struct DirChanges(Inotify);

impl DirChanges {
    /// Starts watching these directories.
    pub fn of(dirs: &[&Path]) -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        for dir in dirs {
            inotify.add_watch(*dir, flags)?;
        }
        Ok(Self(inotify))
    }

    /// Waits for a change, until `bell` can be read, or for the limit.
    pub fn wait(&self, limit_ms: u16, bell: Option<BorrowedFd<'_>>) {
        wait_for_events(&self.0, limit_ms, bell);
    }
}

/// The removal of a directory, or its move to another place.
#[derive(Debug)]
pub struct Removals(Inotify);

impl Removals {
    /// Starts watching a directory and the one that it is in.
    pub fn of(dir: &Path) -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let itself = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        inotify.add_watch(dir, itself)?;
        if let Some(parent) = dir.parent() {
            inotify.add_watch(parent, itself | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM)?;
        }
        Ok(Self(inotify))
    }

    /// Waits until something in or around it was removed, until `bell` can be read, or for the limit.
    pub fn wait(&self, limit_ms: u16, bell: Option<BorrowedFd<'_>>) {
        wait_for_events(&self.0, limit_ms, bell);
    }
}

fn wait_for_events(inotify: &Inotify, limit_ms: u16, bell: Option<BorrowedFd<'_>>) {
    let watched = |fd| PollFd::new(fd, PollFlags::POLLIN);
    let mut fds: Vec<PollFd<'_>> = [Some(inotify.as_fd()), bell].into_iter().flatten().map(watched).collect();
    if poll(&mut fds, PollTimeout::from(limit_ms)).is_ok() {
        while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
    }
}

// The clock.

/// Seconds since 1970 that the kernel's clock never reaches (the year 9999).
const NEVER: Duration = Duration::from_secs(253_402_300_799);

/// Notices that the host's clock was set or that the host was suspended. The kernel reports it; nothing is polled.
#[derive(Debug)]
pub struct ClockJumps(TimerFd);

impl ClockJumps {
    pub fn watch() -> nix::Result<Self> {
        Self::with(TimerFlags::TFD_CLOEXEC)
    }

    fn with(flags: TimerFlags) -> nix::Result<Self> {
        let jumps = Self(TimerFd::new(ClockId::CLOCK_REALTIME, flags)?);
        jumps.arm()?;
        Ok(jumps)
    }

    fn arm(&self) -> nix::Result<()> {
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        self.0.set(Expiration::OneShot(TimeSpec::from_duration(NEVER)), flags)
    }

    /// Returns at the next jump.
    pub fn wait(&mut self) -> nix::Result<()> {
        use nix::errno::Errno;
        let mut count = [0u8; 8];
        loop {
            match nix::unistd::read(&self.0, &mut count) {
                Err(Errno::ECANCELED) => return self.arm(),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(ignored("Name:\tx\nSigBlk:\t0000000000004000\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!((ignored(""), ignored("SigIgn:\tx")), (0, 0));
        // Rust's runtime ignores SIGPIPE at start.
        assert!(is_ignored(Signal::SIGPIPE));
    }

    #[test]
    fn the_timer_never_goes_off_by_itself() {
        let mut jumps = ClockJumps::with(TimerFlags::TFD_NONBLOCK).unwrap();
        assert_eq!(jumps.wait(), Err(nix::errno::Errno::EAGAIN));
        assert!(matches!(jumps.0.get(), Ok(Some(Expiration::OneShot(left))) if left.tv_sec() > 1 << 31));
    }
}
