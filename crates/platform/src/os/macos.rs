//! macOS.
#![allow(unsafe_code, reason = "calls that only the C library has")]

use nix::libc;
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

/// State of the machine as a whole.
pub const SYSTEM_RUN: &str = "/var/run/magikvm";

// Processes.

/// In a child between fork and exec: the kernel has no such service, so the child looks after it itself ([`follow_parent`]).
pub fn die_with_parent() -> nix::Result<()> {
    Ok(())
}

/// In a child that was started so, once it runs this program: a thread ends it when its parent has ended. A child that is stopped
/// (SIGSTOP) ends when it goes on, or is killed by whoever reads the undo journal.
pub fn follow_parent() {
    let parent = getppid();
    match watch(parent) {
        Ok(queue) => {
            // Signals are for other threads: some of them block what they wait for before they start any.
            let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
            let follower = std::thread::Builder::new().name("parent".to_owned()).spawn(move || {
                let mut ended = [no_event()];
                // Nothing else is asked of the queue, so any event is the parent's end.
                while queue.kevent(&[], &mut ended, None) == Err(nix::errno::Errno::EINTR) {}
                end();
            });
            let restored = before.and_then(|before| before.thread_set_mask());
            if follower.is_err() || restored.is_err() {
                end();
            }
        }
        // It has ended already, or cannot be watched, and then this process might outlive it.
        Err(_) => end(),
    }
    // It may have ended before it was watched, and its number have gone to another process.
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

/// As a signal that cannot be caught would end it: nothing of this process runs any more.
fn end() -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(128 + libc::SIGKILL) }
}

/// Orphans go to launchd and nowhere else. Of our children none has children of its own.
pub fn adopt_orphans() -> nix::Result<()> {
    Ok(())
}

/// Start time of a process in microseconds since 1970; `None` when there is none or only a zombie.
pub fn start_time(pid: i32) -> Option<u64> {
    let mut info = MaybeUninit::<libc::proc_bsdinfo>::zeroed();
    let size = i32::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
    // SAFETY: the buffer has the size that is said.
    let got = unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, info.as_mut_ptr().cast(), size) };
    if got != size {
        return None;
    }
    // SAFETY: all of it was written; any bytes are a value of it.
    let info = unsafe { info.assume_init() };
    (info.pbi_status != libc::SZOMB).then(|| info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec)
}

/// Whether this process ignores a signal. Said to be not ignored when it is not known.
pub fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action it only writes the present one.
    let answer = unsafe { libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it was zeroed, which is a value of it, and perhaps written.
    answer == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

// Locks of open files.

/// For `l_type`: shared.
pub const READ_LOCK: libc::c_short = libc::F_RDLCK;
/// For `l_type`: alone.
pub const WRITE_LOCK: libc::c_short = libc::F_WRLCK;
/// For `l_type`: nobody's.
pub const NO_LOCK: libc::c_short = libc::F_UNLCK;

/// Takes a lock of an open file, or fails with EAGAIN or EACCES.
pub fn set_lock(file: &File, range: &libc::flock) -> nix::Result<()> {
    // SAFETY: the call reads the range.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, std::ptr::from_ref(range)) };
    nix::errno::Errno::result(answer).map(drop)
}

/// Takes a lock of an open file when nobody else has it any more.
pub fn set_lock_waiting(file: &File, range: &libc::flock) -> nix::Result<()> {
    // SAFETY: the call reads the range.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, std::ptr::from_ref(range)) };
    nix::errno::Errno::result(answer).map(drop)
}

/// Finds a lock in the way of this one: `l_type` says whether there is any.
pub fn get_lock(file: &File, range: &mut libc::flock) -> nix::Result<()> {
    // SAFETY: the call reads and writes the range.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, std::ptr::from_mut(range)) };
    nix::errno::Errno::result(answer).map(drop)
}

// Unix sockets. There is no way around the length of an address.

/// Bytes of an address, without the NUL behind it.
const MAX_ADDRESS: usize = 103;

/// Connects to a Unix socket.
pub fn connect_unix(socket: &Path) -> io::Result<UnixStream> {
    check_unix(socket)?;
    UnixStream::connect(socket)
}

/// The same, and from then on without waiting. To connect does not wait here: a socket without room for one more refuses.
pub fn connect_unix_at_once(socket: &Path) -> io::Result<UnixStream> {
    let stream = connect_unix(socket).map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => io::ErrorKind::WouldBlock.into(),
        _ => error,
    })?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Makes a Unix socket that only this user may connect to, in a directory that nobody else gets into.
pub fn bind_unix(socket: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    check_unix(socket)?;
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Whether [`connect_unix`] takes a path of this length.
pub fn check_unix(socket: &Path) -> io::Result<()> {
    let length = socket.as_os_str().as_bytes().len();
    if length <= MAX_ADDRESS {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "a socket's path has at most {MAX_ADDRESS} bytes on macOS, this one has {length}; name a shorter directory with --root DIR, or give the pod a shorter name"
        ),
    ))
}

// Files.

/// Makes a hole in a file: not done here, callers write zeros instead.
pub fn punch_hole(_file: &File, _offset: u64, _length: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Makes durable what is in the file system of this file, and in all others.
pub fn sync_file_system(_file: &File) -> io::Result<()> {
    // SAFETY: it takes nothing.
    unsafe { libc::sync() };
    Ok(())
}

/// Makes a pipe, a socket or a device.
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
    // SAFETY: the name ends in NUL and outlives the calls, the directory is open.
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

/// Something that is looked at without following it, if it is a link.
#[derive(Debug)]
pub struct Unopened {
    dir: OwnedFd,
    name: Vec<u8>,
}

impl Unopened {
    /// Finds it. `kind`: further flags for what it must be.
    pub fn find(dir: BorrowedFd<'_>, name: &[u8], kind: OFlags) -> Result<Self, Errno> {
        let found = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let found = FileType::from_raw_mode(found.st_mode);
        if kind.contains(OFlags::DIRECTORY) && found != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let dir = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { dir, name: name.to_owned() })
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        // The link itself; and a descriptor with which nothing can be read, for which devices and pipes are not really opened.
        let flags = libc::O_SYMLINK | libc::O_EVTONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let opened = openat(&self.dir, &self.name[..], flags, Mode::empty())?;
        fsetxattr(opened, key, value, XattrFlags::empty())
    }

    /// Sets the permissions of what is no link.
    pub fn set_mode(&self, mode: Mode) -> Result<(), Errno> {
        chmodat(&self.dir, &self.name[..], mode, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Changes of directories. A kqueue tells of a directory's names, not of what is written to its files, so one looks now and then.
#[derive(Debug)]
pub struct DirChanges;

impl DirChanges {
    /// Watches these from now on.
    pub fn of(_dirs: &[&Path]) -> nix::Result<Self> {
        Ok(Self)
    }

    /// Waits for so long.
    pub fn wait(&self, limit_ms: u16) {
        std::thread::sleep(Duration::from_millis(limit_ms.into()));
    }
}

// The clock.

/// How often the two clocks are compared.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// How far they may part in that time: the machine's clock is also corrected by slowing it down.
const MAX_PART: Duration = Duration::from_millis(500);

/// Notices that the machine's clock was set, or that the machine slept: the clock that counts only while it is awake ([`Instant`]) and the
/// wall clock have parted.
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
            // None: the wall clock went back.
            let passed = wall.duration_since(were_wall).ok();
            let parted = passed.map(|passed| passed.abs_diff(awake.duration_since(were_awake)));
            if parted.is_none_or(|parted| parted > MAX_PART) {
                return Ok(());
            }
        }
    }
}
