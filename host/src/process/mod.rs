//! Child processes that cannot outlive their parent.
#![allow(
    unsafe_code,
    reason = "pre_exec is the only place where a child can ask for its parent's death signal"
)]

mod helper;
mod layers;
mod watch;

pub use helper::{SettingsError, serve};
pub use layers::{Layer, Layers, Missing};
pub use watch::{Violation, Watch};

use crate::os;
use crate::store::sandbox::{ProcessRef, Role};
use crate::store::text::ignore;
use crate::store::undo;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often to check whether a process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Why a child could not be started or used.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A program that does not exist or cannot be executed.
    #[error("cannot start {program}")]
    Start {
        /// The program as it was requested.
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The output of a child was requested that was started without pipes.
    #[error("{0} was started without pipes for its output")]
    NoPipes(String),
}

impl ProcessRef {
    /// This process, if the system tells its start time.
    pub fn of_this_process(role: Role, name: &str) -> Option<Self> {
        let pid = nix::unistd::getpid().as_raw();
        Some(Self { role, name: name.to_owned(), pid, start_time: os::start_time(pid)? })
    }

    /// A descendant. One that is already a zombie gets the start time 0, which no live process has.
    pub(crate) fn of_child(role: Role, name: &str, pid: i32) -> Self {
        Self { role, name: name.to_owned(), pid, start_time: os::start_time(pid).unwrap_or(0) }
    }

    /// The step that undoes the start of this process.
    pub fn undo_step(&self) -> undo::Step {
        undo::Step::KillProcess { pid: self.pid, start_time: self.start_time, name: self.name.clone() }
    }

    /// Whether it exists and is not a zombie.
    pub fn is_alive(&self) -> bool {
        os::start_time(self.pid) == Some(self.start_time)
    }

    /// Sends SIGKILL if it exists.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Sends SIGSTOP if it exists.
    pub fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Sends SIGCONT if it exists.
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Sends a signal if it exists.
    pub fn signal(&self, signal: Signal) {
        if self.is_alive() {
            ignore(
                kill(Pid::from_raw(self.pid), signal),
                "it ended in between and cannot be signalled any more",
            );
        }
    }
}

/// A child of this process. It is killed and reaped if it is dropped before it was reaped.
#[derive(Debug)]
pub struct Process {
    /// Identifies the process, also after its end.
    pub reference: ProcessRef,
    pub child: Child,
    /// Its isolation if it runs in a jail.
    pub layers: Option<Layers>,
    watch: Option<Watch>,
    reaped: bool,
}

/// Replaces the standard library's type of this name: a child in a jail need not be the process that was started.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    status: Option<ExitStatus>,
    /// The pipe to its standard input, if there is one.
    pub stdin: Option<ChildStdin>,
    /// The pipe from its standard output, if there is one.
    pub stdout: Option<ChildStdout>,
    /// The pipe from its standard error, if there is one.
    pub stderr: Option<ChildStderr>,
}

impl Child {
    fn of(mut child: std::process::Child) -> Self {
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Self { pid, status: None, stdin, stdout, stderr }
    }

    /// Its exit status if it has ended.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.reap(nix::libc::WNOHANG)
    }

    /// Waits for its exit status.
    pub fn wait(&mut self) -> std::io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.reap(0)? {
                return Ok(status);
            }
        }
    }

    fn reap(&mut self, flags: i32) -> std::io::Result<Option<ExitStatus>> {
        while self.status.is_none() {
            let mut status = 0;
            // SAFETY: the kernel writes to `status`.
            match unsafe { nix::libc::waitpid(self.pid, &mut status, flags) } {
                0 => return Ok(None),
                1.. => self.status = Some(ExitStatus::from_raw(status)),
                _ => match std::io::Error::last_os_error() {
                    error if error.kind() == std::io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(self.status)
    }
}

/// Starts a child that the kernel kills when the calling *thread* ends; call it on a thread that lives as long as the child should. A
/// child that is this program must call [`os::follow_parent`], for systems whose kernel does not do this.
pub fn spawn(role: Role, name: &str, command: &mut Command) -> Result<Process, ProcessError> {
    spawn_with(role, name, command, &[])
}

/// Descriptor numbers of children are below this one.
pub(crate) const FIRST_COPY: i32 = 64;

/// Like [`Process::spawn`]; the child has these descriptors, each under a number from 3 to 63.
pub fn spawn_with(
    role: Role,
    name: &str,
    command: &mut Command,
    inherits: &[(&OwnedFd, i32)],
) -> Result<Process, ProcessError> {
    let start = |source, command: &Command| ProcessError::Start {
        program: PathBuf::from(command.get_program()),
        source,
    };
    let parent = Pid::this();
    // The copies are above all those numbers, so that assigning one never overwrites another.
    let copies = inherits.iter().map(|(fd, number)| {
        let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_COPY))?;
        // SAFETY: the kernel has just created this descriptor for us.
        Ok((unsafe { OwnedFd::from_raw_fd(copy) }, *number))
    });
    let copies: Vec<(OwnedFd, i32)> =
        copies.collect::<nix::Result<_>>().map_err(|errno| start(errno.into(), command))?;
    let numbers: Vec<(i32, i32)> = copies.iter().map(|(copy, number)| (copy.as_raw_fd(), *number)).collect();
    // SAFETY: between fork and exec only prctl, getppid and dup2 are called, which are async-signal-safe, and nothing is allocated. The
    // copies stay open in this process until the child has been started, and those of dup2 stay open over exec.
    unsafe {
        command.pre_exec(move || {
            os::die_with_parent()?;
            for (copy, number) in &numbers {
                errno(nix::libc::dup2(*copy, *number))?;
            }
            // The parent may have died before the request was in place.
            if getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        });
    }
    let child = command.spawn().map_err(|source| start(source, command))?;
    drop(copies);
    let child = Child::of(child);
    let reference = ProcessRef::of_child(role, name, child.pid);
    Ok(Process { reference, child, layers: None, watch: None, reaped: false })
}

fn errno(answer: i32) -> std::io::Result<()> {
    if answer < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes to the standard input of a child, a pipe, and closes it. Whether the child has already ended is seen by the caller that waits
/// for it.
pub fn tell(process: &mut Process, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    match process.child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(bytes)) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

impl Process {
    /// Its exit status; kills it when it has not ended in time. `None`: somebody else has reaped it.
    pub fn wait_or_kill(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < end => std::thread::sleep(LOOK_EVERY),
                Ok(None) => {
                    self.reference.kill();
                    break self.child.wait().ok();
                }
                Ok(status) => break status,
                Err(_) => return None,
            }
        };
        self.reaped = status.is_some();
        status
    }

    /// Its standard output and standard error, which must have been requested as pipes and can be taken once.
    pub fn take_output(&mut self) -> Result<(ChildStdout, ChildStderr), ProcessError> {
        let output = self.child.stdout.take().zip(self.child.stderr.take());
        output.ok_or_else(|| ProcessError::NoPipes(self.reference.name.clone()))
    }

    /// Records that it is in its jail. The process in the jail need not be the one that was started: the first one has then handed over,
    /// ends, and is reaped here.
    pub(crate) fn enter(&mut self, pid: i32, layers: Layers, watch: Option<Watch>) {
        if pid != self.child.pid {
            ignore(self.child.wait(), "somebody else has reaped it");
            self.child.pid = pid;
            self.child.status = None;
            self.reference = ProcessRef::of_child(self.reference.role, &self.reference.name, pid);
        }
        self.layers = Some(layers);
        self.watch = watch;
    }

    /// The forbidden system call that it was killed for.
    pub fn violation(&self) -> Option<Violation> {
        self.watch.as_ref()?.violation()
    }

    /// Records that a `waitpid` elsewhere has reaped it.
    pub fn set_reaped(&mut self) {
        self.reaped = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.reaped {
            let pid = Pid::from_raw(self.reference.pid);
            if kill(pid, Signal::SIGKILL).is_ok() {
                while waitpid(pid, None) == Err(nix::errno::Errno::EINTR) {}
            }
        }
    }
}

/// Whether the processes of a sandbox run or are stopped, whoever stopped them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Motion {
    Running,
    PartlyStopped,
    Stopped,
}

/// The first process of a sandbox that ended.
#[derive(Debug)]
pub struct Ended {
    pub role: Role,
    pub name: String,
    /// The status reported by the system; `StillAlive` when nothing could be waited for.
    pub status: WaitStatus,
    /// The forbidden system call that it was killed for.
    pub violation: Option<Violation>,
}

/// Waits for the first of these processes to end, then kills and reaps the others. Returns that process and its status; meanwhile reports
/// to `on_motion` each process that is stopped or continues.
pub fn wait_first(processes: &mut Vec<Process>, on_motion: &mut dyn FnMut(Motion)) -> Ended {
    let mut stopped: Vec<i32> = Vec::new();
    let first = processes.first().map(|process| process.reference.clone());
    let (ended, status) = loop {
        match waitpid(None, Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WCONTINUED)) {
            Ok(status) => {
                let found =
                    processes.iter_mut().find(|p| Some(p.reference.pid) == status.pid().map(Pid::as_raw));
                // Other children are orphans that this process adopted as their subreaper.
                let Some(process) = found else { continue };
                let pid = process.reference.pid;
                match status {
                    WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                        process.set_reaped();
                        break (Some(process.reference.clone()), status);
                    }
                    WaitStatus::Stopped(..) if !stopped.contains(&pid) => stopped.push(pid),
                    // Of a stop and a continuation in quick succession only the latter is seen; it is reported anyway.
                    WaitStatus::Continued(_) => stopped.retain(|&other| other != pid),
                    _ => continue,
                }
                on_motion(match stopped.len() {
                    0 => Motion::Running,
                    all if all == processes.len() => Motion::Stopped,
                    _ => Motion::PartlyStopped,
                });
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break (first, WaitStatus::StillAlive),
        }
    };
    // A process killed for a violation may take others with it before its end is seen. The violation is the reason.
    let guilty = processes.iter().find_map(|process| Some((process.reference.clone(), process.violation()?)));
    processes.clear();
    let (reference, violation) = match guilty {
        Some((reference, violation)) => (Some(reference), Some(violation)),
        None => (ended, None),
    };
    let (role, name) = reference.map_or((Role::Vmm, String::new()), |process| (process.role, process.name));
    Ended { role, name, status, violation }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    fn sleeper() -> Process {
        spawn(Role::Vmm, "sleep", Command::new("sleep").arg("1000")).unwrap()
    }

    /// The only test that waits for any child. It must not run beside others that do, so it runs in a separate process.
    #[test]
    fn stops_and_continuations_are_told_until_the_end() {
        const ALONE: &str = "MAGIKVM_TEST_ALONE";
        let name = "process::tests::stops_and_continuations_are_told_until_the_end";
        if std::env::var_os(ALONE).is_none() {
            let me = std::env::current_exe().unwrap();
            let alone = Command::new(me).args(["--exact", name]).env(ALONE, "1").output().unwrap();
            let said = String::from_utf8_lossy(&alone.stdout).into_owned();
            assert!(alone.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let mut processes = vec![sleeper(), sleeper()];
        let [one, two] = [0, 1].map(|n| processes[n].reference.clone());
        let (told, motions) = channel();
        let waiter =
            std::thread::spawn(move || wait_first(&mut processes, &mut |motion| told.send(motion).unwrap()));
        let next = || motions.recv_timeout(Duration::from_secs(20)).unwrap();
        one.stop();
        assert_eq!(next(), Motion::PartlyStopped);
        two.stop();
        assert_eq!(next(), Motion::Stopped);
        two.go_on();
        assert_eq!(next(), Motion::PartlyStopped);
        one.go_on();
        assert_eq!(next(), Motion::Running);
        one.stop();
        assert_eq!(next(), Motion::PartlyStopped);
        // A stopped process can be killed, and the other one is killed with it.
        one.kill();
        let Ended { status, .. } = waiter.join().unwrap();
        assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{status:?}");
        assert!(!one.is_alive() && !two.is_alive());
        assert_eq!(motions.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
    }
}
