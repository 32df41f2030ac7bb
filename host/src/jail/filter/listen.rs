//! Listens from outside for system calls that are not on the list of a process, records them, and kills the process.

use super::super::spec::{Inside, JailSpec};
use super::{SAME_FOR_ALL, lists_of, names};
use crate::process::{Violation, Watch};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `SECCOMP_IOCTL_NOTIF_RECV`, `SECCOMP_IOCTL_NOTIF_SEND`.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`: the kernel carries out the call.
const CONTINUE: u32 = 1;

/// The decision about a call.
enum CallVerdict {
    Pass,
    Kill(Violation),
}

/// Decides about the calls of one process.
struct Judge {
    /// Whether another program is still to be executed.
    may_execute: bool,
    spec: JailSpec,
    #[cfg(feature = "testing")]
    lesson: Option<Lesson>,
}

/// In builds for tests: the file that records calls, and what it has. No call is recorded twice for a process.
#[cfg(feature = "testing")]
struct Lesson {
    file: std::fs::File,
    told: std::collections::BTreeSet<String>,
    /// Whether every call is recorded, by its name alone, and not only those beyond the list.
    measures: bool,
}

/// Listens on a separate thread until the process has ended.
pub(in crate::jail) fn listen(listener: OwnedFd, pid: i32, spec: &JailSpec, watch: Watch) -> io::Result<()> {
    // SAFETY: it takes numbers, and the process is a child that nobody has reaped yet.
    let opened = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let number = i32::try_from(opened).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor.
    let process = unsafe { OwnedFd::from_raw_fd(number) };
    let mut judge = Judge {
        may_execute: matches!(spec.inside, Inside::Program { .. }),
        spec: spec.clone(),
        #[cfg(feature = "testing")]
        lesson: lesson(),
    };
    std::thread::Builder::new().name("system calls".to_owned()).spawn(move || {
        while let Some(call) = next(&listener) {
            match judge.judge(&call.data) {
                CallVerdict::Pass => pass(&listener, call.id),
                CallVerdict::Kill(violation) => {
                    watch.note(violation);
                    kill(&process);
                }
            }
        }
    })?;
    Ok(())
}

/// In builds for tests: records calls beyond the list in the file named by `MAGIKVM_JAIL_LEARN`, or every call in the file named by
/// `MAGIKVM_JAIL_MEASURE`, and lets them pass.
#[cfg(feature = "testing")]
fn lesson() -> Option<Lesson> {
    let measured = std::env::var_os(super::MEASURE);
    let measures = measured.is_some();
    let path = measured.or_else(|| std::env::var_os("MAGIKVM_JAIL_LEARN"))?;
    let file = std::fs::File::options().create(true).append(true).open(path).ok()?;
    Some(Lesson { file, told: std::collections::BTreeSet::new(), measures })
}

impl Judge {
    fn judge(&mut self, data: &libc::seccomp_data) -> CallVerdict {
        let number = i64::from(data.nr);
        if self.may_execute && number == libc::SYS_execve {
            self.may_execute = false;
            return CallVerdict::Pass;
        }
        let call = describe(&self.spec, data);
        #[cfg(feature = "testing")]
        if let Some(lesson) = &mut self.lesson {
            use std::io::Write;
            let [a, b, c, ..] = data.args;
            let line = if lesson.measures {
                format!("{:?} {call}\n", self.spec.filter)
            } else {
                format!("{:?} {call} {a:#x} {b:#x} {c:#x}\n", self.spec.filter)
            };
            if lesson.told.contains(&line) || lesson.file.write_all(line.as_bytes()).is_ok() {
                lesson.told.insert(line);
                return CallVerdict::Pass;
            }
        }
        CallVerdict::Kill(Violation { call })
    }
}

/// The name of a call, with its arguments if those decide.
fn describe(spec: &JailSpec, data: &libc::seccomp_data) -> String {
    let Some(name) = names::name(i64::from(data.nr)) else {
        return format!("system call {}", data.nr);
    };
    let limited = lists_of(spec.filter).iter().flat_map(|list| list.limited);
    let limited = SAME_FOR_ALL.iter().chain(limited).any(|(other, _)| *other == name);
    if limited {
        let [a, b, c, ..] = data.args;
        return format!("{name} ({a:#x}, {b:#x}, {c:#x})");
    }
    name.to_owned()
}

/// The next call; `None` when the process has ended.
fn next(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    loop {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
        let happened = fds[0].revents().unwrap_or(PollFlags::empty());
        if happened.contains(PollFlags::POLLIN) {
            // SAFETY: the structure consists of numbers, and the kernel wants it zeroed.
            let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel writes one such structure.
            let received = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &mut call) };
            match Errno::result(received) {
                Ok(_) => return Some(call),
                // The process has died meanwhile.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(_) => return None,
            }
        } else if happened.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            return None;
        }
    }
}

fn pass(listener: &OwnedFd, id: u64) {
    let answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags: CONTINUE };
    // SAFETY: the kernel reads one such structure.
    if unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &answer) } < 0 {
        // The process has died meanwhile.
    }
}

fn kill(process: &OwnedFd) {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null pointer stands for the information that kill(2) would send.
    let killed =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, nothing, 0) };
    if killed < 0 {
        // It has died meanwhile.
    }
}
