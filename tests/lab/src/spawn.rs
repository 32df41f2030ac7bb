//! The lab's two processes: QEMU, and virtiofsd, which shares the host's files. Both die with the thread that started them.
#![allow(
    unsafe_code,
    reason = "pre_exec is the only place where a child can ask for its parent's death signal and mount what only it sees"
)]

use crate::LabError;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{Pid, getppid};
use nix::{errno::Errno, libc};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// The socket of the shared files, relative to the run's directory, which is the working directory of both programs: the full path may be
/// too long for a socket's address.
pub(crate) const SOCKET: &str = "share.sock";
/// Largest file that the lab may write. Writes beyond it fail in the lab.
const MAX_FILE_BYTES: u64 = 4 << 30;
const SHARE_FD: i32 = 3;

/// A process that is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Ours(Child);

impl Ours {
    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, LabError> {
        self.0.try_wait().map_err(LabError::system("asking for the end of a process"))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        // It may have ended by itself; then nothing is left to do.
        if self.0.kill().is_ok() {
            drop(self.0.wait());
        }
    }
}

/// Starts a program in a directory, with its output in the file `log` there, after `prepare` in the child, which must not allocate.
fn start(
    mut command: Command,
    dir: &Path,
    log: &str,
    prepare: impl Fn() -> io::Result<()> + Send + Sync + 'static,
) -> Result<Ours, LabError> {
    let what = format!("starting {}", command.get_program().display());
    let path = dir.join(log);
    let log = File::create(&path).map_err(LabError::system(format!("creating {}", path.display())))?;
    let copy = log.try_clone().map_err(LabError::system("copying a descriptor"))?;
    command.current_dir(dir).stdin(Stdio::null()).stdout(copy).stderr(log);
    let parent = Pid::this();
    // SAFETY: between fork and exec only system calls are made, none of which allocates.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != parent {
                // The parent died before the signal was requested.
                return Err(Errno::ESRCH.into());
            }
            prepare()
        });
    }
    command.spawn().map(Ours).map_err(LabError::system(what))
}

pub(crate) fn qemu(program: &Path, args: &[String], dir: &Path) -> Result<Ours, LabError> {
    let mut command = Command::new(program);
    command.args(args);
    start(command, dir, "qemu.log", || Ok(()))
}

/// Shares the host's files as its mounts show them, all read-only, with the directory `writable` in place of `/run`.
pub(crate) fn virtiofsd(program: &Path, dir: &Path, writable: &Path) -> Result<Ours, LabError> {
    let socket = listen(dir)?;
    let mut command = Command::new(program);
    command.arg(format!("--fd={SHARE_FD}"));
    // Its own sandboxes need a /proc and an unshared / that are not always available, and it may not be able to raise a file limit.
    command.args(["-f", "-o", "source=/,sandbox=chroot,cache=always", "--rlimit-nofile=0"]);
    let writable = CString::new(writable.as_os_str().as_bytes()).map_err(|_| LabError::BadCommand {
        what: format!("the directory {}", writable.display()),
        why: "it holds a zero byte",
    })?;
    let limit =
        |resource| getrlimit(resource).map_err(|errno| LabError::system("asking for limits")(errno.into()));
    let file_bytes = limit(Resource::RLIMIT_FSIZE)?.1.min(MAX_FILE_BYTES);
    // It keeps every file open that the lab has ever looked at.
    let open_files = limit(Resource::RLIMIT_NOFILE)?.1;
    start(command, dir, "virtiofsd.log", move || {
        freeze(&writable)?;
        setrlimit(Resource::RLIMIT_FSIZE, file_bytes, file_bytes)?;
        setrlimit(Resource::RLIMIT_NOFILE, open_files, open_files)?;
        // SAFETY: no handler is installed; the signal is ignored, so that a write beyond the limit fails instead of killing.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
        pass(socket.as_raw_fd())
    })
}

/// A socket in a directory with any path.
fn listen(dir: &Path) -> Result<UnixListener, LabError> {
    let failed =
        |error| LabError::System { what: format!("making a socket in {}", dir.display()), source: error };
    let open = File::open(dir).map_err(failed)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd())).map_err(failed)
}

/// Gives a descriptor the number that virtiofsd expects.
fn pass(fd: i32) -> io::Result<()> {
    // SAFETY: plain system calls on a descriptor that this process owns.
    let result =
        unsafe { if fd == SHARE_FD { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, SHARE_FD) } };
    Errno::result(result)?;
    Ok(())
}

/// A private mount namespace in which only `/run` is writable, where `writable` is mounted.
fn freeze(writable: &CStr) -> io::Result<()> {
    const NONE: Option<&CStr> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount(Some(writable), c"/run", NONE, MsFlags::MS_BIND, NONE)?;
    set_attributes(c"/", libc::AT_RECURSIVE, libc::MOUNT_ATTR_RDONLY, 0)?;
    set_attributes(c"/run", 0, 0, libc::MOUNT_ATTR_RDONLY)
}

fn set_attributes(path: &CStr, flags: i32, set: u64, clear: u64) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    // SAFETY: path and attributes are valid for the call, which reads them only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(result)?;
    Ok(())
}
