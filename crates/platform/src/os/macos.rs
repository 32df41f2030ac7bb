//! macOS.
#![allow(unsafe_code, reason = "calls that only the C library has")]

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::unistd::{Pid, getppid};
use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, XattrFlags, chmodat, fsetxattr, openat, statat};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

/// Runtime state of the system-wide installation.
pub const SYSTEM_RUN: &str = "/var/run/magikvm";

// Processes.

/// For a child between fork and exec. The kernel has no such service, so the child does it itself ([`follow_parent`]).
pub fn die_with_parent() -> nix::Result<()> {
    Ok(())
}

/// For such a child, once it runs this program: a thread ends the process when its parent has ended. A stopped child (SIGSTOP) ends when
/// it continues, or is killed through the undo journal.
pub fn follow_parent() {
    let parent = getppid();
    match watch(parent) {
        Ok(queue) => {
            // Other threads receive the signals: some of them block signals they wait for before they start any thread.
            let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
            let follower = std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
                let mut ended = [no_event()];
                // The queue watches nothing else, so any event is the end of the parent.
                while queue.kevent(&[], &mut ended, None) == Err(nix::errno::Errno::EINTR) {}
                end();
            });
            let restored = before.and_then(|before| before.thread_set_mask());
            if follower.is_err() || restored.is_err() {
                end();
            }
        }
        // The parent has ended or cannot be watched, in which case this process might outlive it.
        Err(_) => end(),
    }
    // The parent may have ended before it was watched, and its number may belong to another process.
    if getppid() != parent || parent == LAUNCHD {
        end();
    }
}

const LAUNCHD: Pid = Pid::from_raw(1);

fn no_event() -> KEvent {
    KEvent::new(0, EventFilter::EVFILT_PROC, EvFlags::empty(), FilterFlag::empty(), 0, 0)
}

fn watch(process: Pid) -> nix::Result<Kqueue> {
    let queue = Kqueue::new()?;
    let id = usize::try_from(process.as_raw()).map_err(|_| nix::errno::Errno::ESRCH)?;
    let exit = KEvent::new(
        id,
        EventFilter::EVFILT_PROC,
        EvFlags::EV_ADD | EvFlags::EV_ONESHOT,
        FilterFlag::NOTE_EXIT,
        0,
        0,
    );
    queue.kevent(&[exit], &mut [], None)?;
    Ok(queue)
}

/// Ends the process as an uncatchable signal would: none of its code runs any more.
fn end() -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(128 + libc::SIGKILL) }
}

/// Orphans always go to launchd. None of our children has children.
pub fn adopt_orphans() -> nix::Result<()> {
    Ok(())
}

/// Start time of a process in microseconds since 1970; `None` when it does not exist or is a zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    let mut info = MaybeUninit::<libc::proc_bsdinfo>::zeroed();
    let size = i32::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
    // SAFETY: the buffer has the size that is passed.
    let got = unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, info.as_mut_ptr().cast(), size) };
    if got != size {
        return None;
    }
    // SAFETY: the call wrote all of it, and any bytes are a valid value.
    let info = unsafe { info.assume_init() };
    (info.pbi_status != libc::SZOMB).then(|| info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec)
}

/// Whether this process ignores a signal; `false` when that cannot be determined.
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the current one.
    let answer = unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it was zeroed, which is a valid value, and may have been written.
    answer == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

// Locks of open files.

/// Shared, for `l_type`.
pub const READ_LOCK: libc::c_short = libc::F_RDLCK;
/// Exclusive, for `l_type`.
pub const WRITE_LOCK: libc::c_short = libc::F_WRLCK;
/// Unlocked, for `l_type`.
pub const NO_LOCK: libc::c_short = libc::F_UNLCK;

/// Takes a lock of an open file, or fails with EAGAIN or EACCES.
pub fn set_lock(file: &File, range: &libc::flock) -> nix::Result<()> {
    // SAFETY: the call reads the range.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, std::ptr::from_ref(range)) };
    nix::errno::Errno::result(answer).map(drop)
}

/// Takes a lock of an open file, waiting until nobody else holds it.
pub fn set_lock_waiting(file: &File, range: &libc::flock) -> nix::Result<()> {
    // SAFETY: the call reads the range.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, std::ptr::from_ref(range)) };
    nix::errno::Errno::result(answer).map(drop)
}

/// Finds a lock that conflicts with this one: `l_type` says whether one exists.
pub fn get_lock(file: &File, range: &mut libc::flock) -> nix::Result<()> {
    // SAFETY: the call reads and writes the range.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, std::ptr::from_mut(range)) };
    nix::errno::Errno::result(answer).map(drop)
}

// Unix sockets. macOS has no way around the limit on the length of an address.

/// Longest address in bytes, without the NUL behind it.
const MAX_ADDRESS: usize = 103;

pub fn connect_unix(socket: &Path) -> io::Result<UnixStream> {
    check_unix(socket)?;
    UnixStream::connect(socket)
}

/// Connects to a Unix socket that does not block afterwards. Connecting does not wait here: a socket whose backlog is full refuses.
pub fn connect_unix_at_once(socket: &Path) -> io::Result<UnixStream> {
    let stream = connect_unix(socket).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => io::ErrorKind::WouldBlock.into(),
        _ => error,
    })?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Whether the kernel knows a file system of Linux.
pub fn knows_file_system(_name: &std::ffi::CStr) -> bool {
    false
}

/// A copy of a program that nobody can change: there is none on this system.
pub fn sealed_copy(_program: &Path, _least: i32) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Creates a Unix socket that only this user can connect to, in a directory that only this user can enter.
pub fn bind_unix(socket: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    check_unix(socket)?;
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether [`connect_unix`] accepts a path of this length.
pub fn check_unix(socket: &Path) -> io::Result<()> {
    let length = socket.as_os_str().as_bytes().len();
    if length <= MAX_ADDRESS {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "a socket's path has at most {MAX_ADDRESS} bytes on macOS, this one has {length}; choose a shorter directory with `--root DIR` or a shorter pod name"
        ),
    ))
}

// Files.

/// Punching holes is not supported here; callers write zeros.
pub fn punch_hole(_file: &File, _offset: u64, _length: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes the file system of this file durable, and all others with it.
pub fn sync_file_system(_file: &File) -> io::Result<()> {
    // SAFETY: it takes no arguments.
    unsafe { libc::sync() };
    Ok(())
}

/// Creates a pipe, a socket or a device.
pub fn make_special(
    dir: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    mode: Mode,
    device: Dev,
) -> Result<(), Errno> {
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let fifo = kind == FileType::Fifo;
    let (dir, mode, kind) = (dir.as_raw_fd(), mode.as_raw_mode(), kind.as_raw_mode());
    // SAFETY: the name ends in NUL and outlives the calls, and the directory is open.
    let answer = unsafe {
        if fifo {
            libc::mkfifoat(dir, name.as_ptr(), mode)
        } else {
            libc::mknodat(dir, name.as_ptr(), kind | mode, device)
        }
    };
    if answer == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// A file that was found without following it if it is a link.
#[derive(Debug)]
pub struct Unopened {
    dir: OwnedFd,
    name: Vec<u8>,
}

impl Unopened {
    /// Finds it. `kind` holds additional flags for the expected type.
    pub fn find(dir: BorrowedFd<'_>, name: &[u8], kind: OFlags) -> Result<Self, Errno> {
        let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let found = FileType::from_raw_mode(found.st_mode);
        if kind.contains(OFlags::DIRECTORY) && found != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let dir = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { dir, name: name.to_owned() })
    }

    pub fn set_xattr(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        // Opens the link itself, and without read access, with which devices and pipes are not really opened.
        let flags = libc::O_SYMLINK | libc::O_EVTONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let opened = openat(&self.dir, &self.name[..], flags, Mode::empty())?;
        fsetxattr(opened, key, value, XattrFlags::empty())
    }

    /// Sets the permissions of a file that is not a link.
    pub fn set_mode(&self, mode: Mode) -> Result<(), Errno> {
        chmodat(&self.dir, &self.name[..], mode, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Changes of directories. A kqueue reports the names in a directory but not writes to its files, so callers look periodically.
#[derive(Debug)]
pub struct DirChanges;

impl DirChanges {
    /// Starts watching these directories.
    pub fn of(_dirs: &[&Path]) -> nix::Result<Self> {
        Ok(Self)
    }

    /// Waits until `bell` can be read, or for the limit.
    pub fn wait(&self, limit_ms: u16, bell: Option<BorrowedFd<'_>>) {
        let mut fds: Vec<PollFd<'_>> =
            bell.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // A signal may end it early: callers look again.
        poll(&mut fds, PollTimeout::from(limit_ms)).ok();
    }
}

/// The removal of a directory. Callers look periodically.
#[derive(Debug)]
pub struct Removals;

impl Removals {
    /// Starts watching a directory.
    pub fn of(_dir: &Path) -> nix::Result<Self> {
        Ok(Self)
    }

    /// Waits until `bell` can be read, or for a part of the limit.
    pub fn wait(&self, limit_ms: u16, bell: Option<BorrowedFd<'_>>) {
        let mut fds: Vec<PollFd<'_>> =
            bell.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // A signal may end it early: callers look again.
        poll(&mut fds, PollTimeout::from(limit_ms / 10)).ok();
    }
}

// The clock.

/// How often the two clocks are compared.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// How far they may diverge in that time: the clock is also corrected by slewing.
const MAX_PART: Duration = Duration::from_millis(500);

/// Notices that the host's clock was set or that the host slept: the clock that stops during sleep ([`Instant`]) and the wall clock then
/// diverge.
#[derive(Debug)]
pub struct ClockJumps {
    awake: Instant,
    wall: SystemTime,
}

impl ClockJumps {
    pub fn watch() -> nix::Result<Self> {
        Ok(Self { awake: Instant::now(), wall: SystemTime::now() })
    }

    /// Returns after the next jump.
    pub fn wait(&mut self) -> nix::Result<()> {
        loop {
            std::thread::sleep(COMPARE_EVERY);
            let (awake, wall) = (Instant::now(), SystemTime::now());
            let (were_awake, were_wall) = (self.awake, self.wall);
            *self = Self { awake, wall };
            // `None`: the wall clock went back.
            let passed = wall.duration_since(were_wall).ok();
            let parted = passed.map(|passed| passed.abs_diff(awake.duration_since(were_awake)));
            if parted.is_none_or(|parted| parted > MAX_PART) {
                return Ok(());
            }
        }
    }
}
