//! A worker that makes a container with libcontainer.

use super::{Answer, Context, DEFAULT_SIZE, await_start, program, send, streams};
use crate::bundle::{self, Prepared};
use crate::cgroup::Amounts;
use crate::devices;
use crate::sys::{self, Users};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use magikvm_proto::plan::{ContainerPlan, ProcessNamespace, Stdio};
use magikvm_supervisor::Failure;
use magikvm_supervisor::sys::set_window_size;
use std::collections::HashMap;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the processes of an earlier run may take to end.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// Makes a container and starts it on order.
pub(super) fn create(
    channel: &OwnedFd,
    context: &Context,
    plan: &ContainerPlan,
    run: u32,
    processes: ProcessNamespace,
    stdio: Vec<OwnedFd>,
) -> Result<(), Failure> {
    let Context { site, tree, users, .. } = context;
    let cgroup = tree.container(&plan.name);
    // Before the mounts, which may show it.
    cgroup.make_for_container(Instant::now() + LEFTOVERS)?;
    let Prepared { spec, resources } =
        bundle::prepare(site, plan, *users, tree.views(&plan.name).as_deref(), processes)
            .map_err(|error| Failure::other(&error))?;
    if tree.is_there() {
        cgroup.apply(&Amounts::of(&resources))?;
    }
    // With users of its own the pod has the rules of its group, which nobody in it can change.
    if *users == Users::Host {
        devices::restrict(&cgroup, plan.privilege, resources.devices().as_deref().unwrap_or_default())?;
    }

    let user = spec.process().as_ref().map_or(0, |process| process.user().uid());
    let report = program::Report::new()?;
    let id = format!("{}-{run}", plan.name);
    let states = site.runtime_state();
    let state = states.join(&id);
    let console =
        if plan.stdio == Stdio::Terminal { Some(Console::new(site.console_socket(&id))?) } else { None };
    let mut builder = ContainerBuilder::new(id, SyscallType::default())
        .with_root_path(&states)
        .map_err(|error| Failure::other(&error))?
        .with_executor(Program { report: report.raw() });
    match &console {
        Some(console) => builder = builder.with_console_socket(Some(console.path.clone())),
        None => {
            streams::give(&stdio, user)?;
            let mut stdio = stdio.into_iter();
            if let (Some(stdin), Some(stdout), Some(stderr)) = (stdio.next(), stdio.next(), stdio.next()) {
                builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            }
        }
    }
    let built = builder.as_init(site.bundle(&plan.name)).with_systemd(false).with_detach(true).build();
    let container = match built {
        Ok(container) => container,
        // The executor's failure is more precise than libcontainer's.
        Err(error) => return Err(report.outcome().err().unwrap_or_else(|| Failure::other(&error))),
    };
    let pid = container.pid().map_or(0, |pid| pid.as_raw());
    let pidfd = sys::pidfd_open(pid)?;
    let terminal = console.map(|console| console.accept()).transpose()?;
    if let Some(master) = &terminal {
        streams::give(&[sys::terminal_peer(master)?], user)?;
    }
    let mut fds = vec![&pidfd];
    fds.extend(&terminal);
    send(channel, &Answer::Created { pid }, &fds)?;
    if let Err(failure) = await_start(channel) {
        cgroup.kill();
        sys::pidfd_signal(&pidfd, libc::SIGKILL).ok();
        return Err(failure);
    }
    NotifySocket::new(state.join(NOTIFY_FILE))
        .notify_container_start()
        .map_err(|error| Failure::other(&error))?;
    let outcome = report.outcome();
    fs::remove_dir_all(&state).ok();
    outcome
}

/// The socket through which the container's first process hands over the master of its terminal, which it opened in the
/// container's devpts.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn new(path: PathBuf) -> Result<Self, Failure> {
        fs::remove_file(&path).ok();
        Ok(Self { listener: UnixListener::bind(&path)?, path })
    }

    fn accept(self) -> Result<OwnedFd, Failure> {
        let (connection, _) = self.listener.accept()?;
        fs::remove_file(&self.path).ok();
        let mut name = [0; 64];
        let (_, mut fds) = sys::receive_message(&connection, &mut name)?;
        let master = fds.pop().ok_or_else(super::gone)?;
        set_window_size(&master, DEFAULT_SIZE)?;
        Ok(master)
    }
}

/// Runs the program as the container's first process, in place of libcontainer's executor, which looks only at
/// the permission of "others", requires a `PATH` and can't say why an exec failed.
#[derive(Clone)]
struct Program {
    report: RawFd,
}

impl Program {
    fn command(spec: &Spec) -> (&[String], &[String]) {
        let process = spec.process().as_ref();
        let args = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
        let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
        (args, env)
    }

    fn report(&self, failure: &Failure) {
        program::report(take(self.report), failure);
    }
}

#[allow(
    unsafe_code,
    reason = "the executor interface can carry only a copyable descriptor number over libcontainer's fork"
)]
fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: the container's first process inherited the pipe end of this number by fork and nobody else uses it;
    // it is taken once, right before the process ends.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let (args, env) = Self::command(spec);
        program::find(args, env).map(drop).map_err(|failure| {
            self.report(&failure);
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment goes to execve unchanged and in its order.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (args, env) = Self::command(spec);
        let failure = program::execute(args, env);
        self.report(&failure);
        Err(ExecutorError::Other(failure.message))
    }
}
