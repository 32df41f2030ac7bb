//! A worker that starts another process in a running container, bound by everything that binds the container's first
//! process: namespaces, cgroup, limits, user, capabilities, seccomp, the AppArmor profile.

use super::confine::{Processes, Profile};
use super::{Answer, Context, DEFAULT_SIZE, await_start, identity, program, send, streams};
use crate::cgroup::{Attended, Entry};
use crate::{bundle, sys};
use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{LinuxSeccomp, PosixRlimitType, Process, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use magikvm_proto::wire::ExecRequest;
use magikvm_supervisor::files;
use magikvm_supervisor::sync::{self, Ready};
use magikvm_supervisor::sys::set_window_size;
use magikvm_supervisor::{Descendants, Failure, FailureKind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, fstat, major, minor, umask};
use nix::sys::statfs::fstatfs;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, chdir, getuid, pipe2, read, setgroups, setsid};
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// What the new process gets for its standard streams.
enum Streams {
    Pipes([OwnedFd; 3]),
    Terminal { master: OwnedFd, slave: OwnedFd },
}

impl Streams {
    fn give(&self, user: u32) -> Result<(), Failure> {
        match self {
            Self::Pipes(pipes) => streams::give(pipes, user),
            Self::Terminal { slave, .. } => streams::give(std::slice::from_ref(slave), user),
        }
    }
}

/// Starts the process on order.
pub(super) fn exec(
    channel: &OwnedFd,
    context: &Context,
    request: &ExecRequest,
    id: u64,
    descendants: Descendants,
    fds: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let mut fds = fds.into_iter();
    let init = fds.next().ok_or_else(super::gone)?;
    enter(channel, context, request, (id, descendants), &init, fds)
        .map_err(|failure| or_container_ended(failure, &init))
}

/// A container that ends takes the new process with it at any point, and what then fails says little: no memory for a process of a process
/// namespace that ends, no answer from a killed process.
fn or_container_ended(failure: Failure, init: &OwnedFd) -> Failure {
    let now = Some(Instant::now());
    match sync::wait([(init.as_fd(), PollFlags::POLLIN)], now) {
        Ok([Ready { read: true, .. }]) => container_ended(),
        _ => failure,
    }
}

fn container_ended() -> Failure {
    Failure::new(FailureKind::Gone, "the container has just ended")
}

fn enter(
    channel: &OwnedFd,
    context: &Context,
    request: &ExecRequest,
    (id, descendants): (u64, Descendants),
    init: &OwnedFd,
    mut fds: impl Iterator<Item = OwnedFd>,
) -> Result<(), Failure> {
    let config = context.site.bundle(&request.container).join("config.json");
    let spec = bundle::load(&config).map_err(|error| Failure::other(&error))?;
    let process = spec.process().as_ref().ok_or_else(super::gone)?;
    let group = context.tree.exec(&request.container, id).make_for_exec().map_err(|error| gone_or(&error))?;
    fs::write("/proc/self/oom_score_adj", process.oom_score_adj().unwrap_or(0).to_string())?;
    set_limits(process)?;
    // The container may have mounted something else at its own /proc.
    let profile = process.apparmor_profile().as_deref();
    let profile =
        profile.map(|name| Ok::<_, Failure>(Profile { name, processes: Processes::open()? })).transpose()?;
    // The container can see the new process while it still runs this program, so nothing in the container may inspect it.
    nix::sys::prctl::set_dumpable(false)?;
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP;
    setns(init, namespaces).map_err(|errno| gone_or(&errno.into()))?;
    let mut process = process.clone();
    if let Some(user) = &request.user {
        identity::assume(&mut process, user, &context.ids)?;
    }
    let args: &[String] = match request.args.as_slice() {
        [] if request.files.is_some() => &[],
        [] => &[identity::shell(&process)?],
        args => args,
    };

    let streams = match (request.terminal, fds.next(), fds.next(), fds.next()) {
        (Some(size), ..) => open_terminal(size)?,
        (None, Some(stdin), Some(stdout), Some(stderr)) => Streams::Pipes([stdin, stdout, stderr]),
        _ => return Err(super::gone()),
    };
    streams.give(process.user().uid())?;
    let mut report = program::Report::new()?;
    let (wait, go) = pipe2(OFlag::O_CLOEXEC)?;
    let (entered, entry) = pipe2(OFlag::O_CLOEXEC)?;
    match sys::fork_single_threaded()? {
        sys::Fork::Child => {
            drop((go, entered));
            let new = New { spec: &spec, process: &process, request, profile, streams, group, entry, wait };
            let failure = new.become_program(args, descendants);
            if let Some(writer) = report.writer() {
                program::report(writer, &failure);
            }
            sys::exit_now(127);
        }
        sys::Fork::Parent { child } => {
            drop((entry, group, profile));
            let pidfd = sys::pidfd_open(child)?;
            // Until it is in its group, only this process can end it.
            let give_up = |failure| {
                sys::pidfd_signal(&pidfd, libc::SIGKILL).ok();
                failure
            };
            if !tells(&entered, channel)? {
                return Err(give_up(super::gone()));
            }
            // A byte of the program and one of its attendant.
            let mut bytes = [0; 2];
            let first = read(&entered, &mut bytes)?;
            if first == 0 {
                report.outcome()?;
                return Err(give_up(killed()));
            }
            if first == 1 && !tells(&entered, channel)? {
                return Err(give_up(super::gone()));
            }
            if first == 1 && read(&entered, &mut bytes)? != 1 {
                return Err(give_up(killed()));
            }
            let mut to_send = vec![&pidfd];
            if let Streams::Terminal { master, .. } = &streams {
                to_send.push(master);
            }
            send(channel, &Answer::Created { pid: child }, &to_send)?;
            drop(streams);
            // Without the order the pipe closes unwritten, and the new process exits, unless a process of its container has stopped it.
            await_start(channel).map_err(give_up)?;
            nix::unistd::write(&go, b"1")?;
            // Kept until now: the new process may have failed and ended already, and writing to it must not kill the worker.
            drop(wait);
            report.outcome()
        }
    }
}

/// The new process has ended without a word: with its container, or because somebody killed it.
fn killed() -> Failure {
    Failure::new(
        FailureKind::Gone,
        "the process was killed before its program started; its container may have ended",
    )
}

/// Waits until the new process says something or has ended; false if nobody wants it any more.
fn tells(entered: &OwnedFd, channel: &OwnedFd) -> Result<bool, Failure> {
    let polled = [(entered.as_fd(), PollFlags::POLLIN), (channel.as_fd(), PollFlags::empty())];
    let [told, left] = sync::wait(polled, None)?;
    Ok(told.read && !left.hang_up)
}

fn gone_or(error: &std::io::Error) -> Failure {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV) => container_ended(),
        _ => Failure::other(error),
    }
}

/// The descriptor that holds terminal numbers: linux/major.h and fs/devpts/inode.c.
const PTMX: (u64, u64) = (5, 2);
const DEVPTS: libc::c_long = 0x1cd1;

/// Opens a terminal of the container's devpts. Anything else that the container put at that path is
/// refused.
fn open_terminal(size: magikvm_proto::wire::WindowSize) -> Result<Streams, Failure> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let master = open("/dev/pts/ptmx", flags, Mode::empty())?;
    let device = fstat(&master)?.st_rdev;
    if (major(device), minor(device)) != PTMX || fstatfs(&master)?.filesystem_type().0 != DEVPTS {
        return Err(Failure::new(FailureKind::Other, "the container's /dev/pts/ptmx is not a terminal"));
    }
    let slave = sys::terminal_peer(&master)?;
    let size = if size.rows == 0 || size.cols == 0 { DEFAULT_SIZE } else { size };
    set_window_size(&master, size)?;
    Ok(Streams::Terminal { master, slave })
}

fn set_limits(process: &Process) -> Result<(), Failure> {
    for limit in process.rlimits().iter().flatten() {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
            PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
            PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
            PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
            PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
            PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
            PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
            PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
            PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
            PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
            PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
            PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
            PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
            PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
            PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
            PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
        };
        setrlimit(resource, limit.soft(), limit.hard())?;
    }
    Ok(())
}

/// The new process, which is already in the container's PID namespace.
struct New<'a> {
    spec: &'a Spec,
    process: &'a Process,
    request: &'a ExecRequest,
    /// The AppArmor profile of the container.
    profile: Option<Profile<'a>>,
    streams: Streams,
    group: Entry,
    /// Where it tells that it is in its group.
    entry: OwnedFd,
    /// Where it is told to go on.
    wait: OwnedFd,
}

impl New<'_> {
    /// Returns only if it failed.
    fn become_program(self, args: &[String], descendants: Descendants) -> Failure {
        let request = self.request;
        match self.prepare(descendants) {
            Ok(_) if request.files.is_some() => copy(request),
            Ok(env) => program::execute(args, &env),
            Err(failure) => failure,
        }
    }

    fn prepare(self, descendants: Descendants) -> Result<Vec<String>, Failure> {
        let Self { spec, process, request, profile, streams, group, entry, wait } = self;
        // In a user namespace with cgroup v1 only the owner of the group's open files can enter it.
        let enters_early = descendants == Descendants::Stay || group.attended().is_none();
        if enters_early {
            group.enter().map_err(|error| gone_or(&error))?;
        }
        setsid()?;
        connect(&streams)?;
        sys::close_at_exec_from(3)?;
        let cwd = request.cwd.as_deref().map_or(process.cwd().as_path(), Path::new);
        chdir(cwd).map_err(|errno| {
            Failure::new(FailureKind::Other, format!("cannot enter {}: {errno}", cwd.display()))
        })?;
        // A link of /proc can lead to a directory outside the container; the kernel then knows no path to it.
        std::env::current_dir().map_err(|_| {
            Failure::new(FailureKind::Other, format!("{} is not in the container", cwd.display()))
        })?;
        if let Some(mask) = process.user().umask() {
            umask(Mode::from_bits_truncate(mask));
        }
        // A copy of files is made by this process itself, which the profile binds only when it has become the container's user.
        let to_enter = match profile {
            Some(profile) if request.files.is_none() => {
                profile.enter_with_program()?;
                None
            }
            profile => profile,
        };
        take_identity(spec, process)?;
        if descendants == Descendants::End {
            let mut is_attended = false;
            if let Some(attended) = group.attended() {
                nix::sys::prctl::set_child_subreaper(true)?;
                match sys::fork_single_threaded() {
                    Ok(sys::Fork::Parent { child }) => attend(child, attended, &entry),
                    Ok(sys::Fork::Child) => is_attended = true,
                    // A filter, or a limit of the user, does not let it fork.
                    Err(_) => {}
                }
            }
            if !enters_early {
                group.enter().map_err(|error| gone_or(&error))?;
            }
            if !is_attended {
                tell(&entry)?;
            }
        } else {
            tell(&entry)?;
        }
        tell(&entry)?;
        drop(entry);
        let mut go = [0];
        if read(&wait, &mut go)? != 1 {
            return Err(super::gone());
        }
        if let Some(profile) = to_enter {
            profile.enter_now()?;
        }
        Ok(environment(process, request))
    }
}

fn tell(entry: &OwnedFd) -> Result<(), Failure> {
    nix::unistd::write(entry, b"1")?;
    Ok(())
}

/// Copies files instead of becoming a program. What the worker waits for is closed, as a program's start would close it.
fn copy(request: &ExecRequest) -> ! {
    sys::close_all_from(3);
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(fs::File::from);
    // A program of another user than root loses its capabilities when it starts, and this process does not start one.
    let bound = if getuid().is_root() { Ok(()) } else { sys::give_up_everything() };
    let done = match (&request.files, own(std::io::stdin().as_fd()), own(std::io::stdout().as_fd())) {
        _ if bound.is_err() => Err("the capabilities of the process cannot be dropped".to_owned()),
        (Some(task), Ok(input), Ok(output)) => files::carry_out(task, Path::new("/"), input, output),
        (None, ..) => Ok(()),
        (_, Err(error), _) | (.., Err(error)) => Err(error.to_string()),
    };
    let code = match done {
        Ok(()) => 0,
        Err(message) => {
            std::io::stderr().write_all(message.as_bytes()).ok();
            1
        }
    };
    sys::exit_now(code)
}

/// Waits for the program, ends what it has left, and reaps all of it. It is in the container's control group and may do no more than the
/// program. It was forked outside the group, as the program was, because a fork in it may fail.
fn attend(program: i32, attended: &Attended, entry: &OwnedFd) -> ! {
    let entered = attended.enter_beside().is_ok() && nix::unistd::write(entry, b"1").is_ok();
    sys::close_all_but(&attended.kill);
    let program = Pid::from_raw(program);
    if !entered {
        // The container is gone, and the program can't enter its group either.
        sys::exit_now(127);
    }
    let code = loop {
        match waitpid(program, None) {
            Ok(WaitStatus::Exited(_, code)) => break code,
            Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => break 127,
        }
    };
    nix::unistd::write(&attended.kill, b"1").ok();
    while matches!(waitpid(None, None), Ok(_) | Err(Errno::EINTR)) {}
    sys::exit_now(code)
}

fn connect(streams: &Streams) -> Result<(), Failure> {
    match streams {
        Streams::Pipes(pipes) => {
            for (fd, target) in pipes.iter().zip(0..) {
                sys::connect_stdio(fd, target)?;
            }
        }
        Streams::Terminal { slave, .. } => {
            sys::set_controlling_terminal(slave)?;
            for target in 0..3 {
                sys::connect_stdio(slave, target)?;
            }
        }
    }
    Ok(())
}

/// Groups, user, capabilities and seccomp, in libcontainer's order: without `noNewPrivileges` the kernel takes a
/// filter only from a process that still has its capabilities.
fn take_identity(spec: &Spec, process: &Process) -> Result<(), Failure> {
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        nix::sys::prctl::set_no_new_privs()?;
    }
    let groups: Vec<Gid> =
        process.user().additional_gids().iter().flatten().map(|&gid| Gid::from_raw(gid)).collect();
    match setgroups(&groups) {
        // Where the user may not give up groups (user_namespaces(7)), nobody asks for any.
        Err(Errno::EPERM) if groups.is_empty() => {}
        set => set?,
    }
    sys::set_ids(process.user().uid(), process.user().gid())?;
    // Changing the user cleared the effective capabilities, which the kernel requires for a filter.
    let calls = create_syscall();
    reset_effective(calls.as_ref()).map_err(|error| Failure::other(&error))?;
    if !no_new_privileges {
        filter(seccomp)?;
    }
    if let Some(capabilities) = process.capabilities() {
        drop_privileges(capabilities, calls.as_ref()).map_err(|error| Failure::other(&error))?;
    }
    if no_new_privileges {
        filter(seccomp)?;
    }
    Ok(())
}

fn filter(seccomp: Option<&LinuxSeccomp>) -> Result<(), Failure> {
    match seccomp {
        Some(seccomp) => initialize_seccomp(seccomp).map(drop).map_err(|error| Failure::other(&error)),
        None => Ok(()),
    }
}

/// The container's variables, preceded by those of the request; a process with a terminal gets a `TERM`.
fn environment(process: &Process, request: &ExecRequest) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let own = process.env().as_deref().unwrap_or_default();
    let asked = |entry: &&String| !request.env.iter().any(|new| name(new) == name(entry));
    let mut env: Vec<String> = own.iter().filter(asked).cloned().collect();
    env.extend(request.env.iter().cloned());
    if request.terminal.is_some() && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn what_fails_after_the_end_of_a_container_is_told_as_that() {
        let mut container = Command::new("sleep").arg("60").spawn().unwrap();
        let init = sys::pidfd_open(container.id().cast_signed()).unwrap();
        let no_memory = || Failure::from(Errno::ENOMEM);
        assert_eq!(or_container_ended(no_memory(), &init), no_memory());
        container.kill().unwrap();
        // Nobody has reaped it when its end can be seen.
        sync::wait([(init.as_fd(), PollFlags::POLLIN)], None).unwrap();
        for failure in [no_memory(), super::super::gone(), killed()] {
            assert_eq!(or_container_ended(failure, &init), container_ended());
        }
        container.wait().unwrap();
        assert_eq!(or_container_ended(no_memory(), &init), container_ended());
    }
}
