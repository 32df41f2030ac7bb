//! The sandbox of a pod in namespaces: the program `magikvm-containers`. The host starts it with its settings on standard input. It makes the pod's
//! namespaces, control group and root, gives up what it does not need, and forks the pod's first process, which runs the supervisor as `vminit` does
//! in a VM. The end of either process is the end of the pod.
//!
//! Everything up to the supervisor's first thread happens in processes with one thread.

mod group;
mod home;
mod inside;
mod loop_device;
mod root;
mod spaces;
mod sys;
mod talk;
mod trial;

use crate::cgroup::Hierarchies;
use crate::containers::PodCgroup;
use crate::pod::NetworkOwner;
use crate::sys::{Fork, exit_now, fork_single_threaded, give_up_everything};
use group::{CONTAINERS, PodGroup};
use magikvm_proto::sandbox::{
    AGENT_FD, FORWARD_FD, FromSandbox, MAX_SANDBOX_SETTINGS, NetworkSpace, SandboxSettings, SharedMount,
    TALK_FD, TRIAL_ARGUMENT, ToSandbox, Users,
};
use magikvm_proto::site::Site;
use magikvm_supervisor::text::chain;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};
use root::{Mounts, Root, Source};
use serde::de::DeserializeOwned;
use spaces::Spaces;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use talk::Talk;

/// The name of the pod's interface.
const INTERFACE: &std::ffi::CStr = c"eth0";

/// A step that the sandbox cannot do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}")]
struct Failed {
    step: String,
    #[source]
    source: io::Error,
    /// The volume whose owners cannot be mapped, if that is the cause.
    unmappable: Option<Unmappable>,
}

/// A file or directory of the host with a file system that cannot have other owners.
#[derive(Debug)]
struct Unmappable {
    /// Its number in the settings.
    entry: u32,
    path: PathBuf,
    file_system: String,
}

impl Failed {
    fn of(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { step: step.into(), source: source.into(), unmappable: None }
    }
}

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> Failed {
    move |error| Failed::of(step, error)
}

/// For an answer that belongs to another question.
fn unexpected(step: &'static str) -> Failed {
    at(step)(io::Error::from(io::ErrorKind::InvalidData))
}

/// The main function of the program.
pub fn main() -> ExitCode {
    // Executed by its descriptor it would have the descriptor's number as its name.
    crate::sys::set_process_name(c"magikvm-contain");
    sys::clear_environment();
    sys::leave_keyring();
    // Containers begin with this one.
    umask(Mode::from_bits_truncate(0o022));
    let Ok(talk) = sys::take(TALK_FD).map(Talk) else {
        eprintln!("magikvm-containers is the sandbox of a pod in namespaces; magikvm starts it");
        return ExitCode::from(2);
    };
    let outcome = match std::env::args().nth(1).as_deref() {
        Some(TRIAL_ARGUMENT) => trial::main(&talk),
        _ => make(&talk).map(|never| match never {}),
    };
    let Err(failed) = outcome else { return ExitCode::SUCCESS };
    let told = match failed.unmappable {
        Some(Unmappable { entry, path, file_system }) => FromSandbox::Unmappable { entry, path, file_system },
        None => FromSandbox::Failed {
            errno: failed.source.raw_os_error(),
            detail: chain(&failed.source),
            step: failed.step,
        },
    };
    talk.tell(&told, &[]).ok();
    ExitCode::FAILURE
}

/// Makes the sandbox and stays until its end.
fn make(talk: &Talk) -> Result<std::convert::Infallible, Failed> {
    let parent = getppid();
    let settings = read_settings(|settings: &SandboxSettings| settings.generation)?;
    // What the caller of the host's program had open is nothing for a pod.
    let given = settings.shared.iter().map(|one| one.descriptor).max().unwrap_or(TALK_FD).max(TALK_FD);
    crate::sys::close_all_from(given.unsigned_abs() + 1);
    let doors = inside::Doors {
        agent: sys::take(AGENT_FD).map_err(at("use the agent's socket"))?,
        forward: sys::take(FORWARD_FD).map_err(at("use the socket for forwarded connections"))?,
    };
    let shared = settings.shared.iter();
    let opened = shared.map(|one| Ok((one, sys::take(one.descriptor)?))).collect::<io::Result<Vec<_>>>();
    let opened = opened.map_err(at("use a volume of the host"))?;
    let copy = |all: &[(&SharedMount, OwnedFd)], mounts| {
        all.iter().map(|(one, fd)| Source::of(one, fd, mounts)).collect::<Result<Vec<_>, Failed>>()
    };
    let (spaces, sources) = match settings.users {
        // Before this process has mounts of its own: what is opened belongs to those of the host.
        Users::Host | Users::Own { .. } => {
            let sources = copy(&opened, Mounts::OfHost)?;
            (None, sources)
        }
        // An ordinary user may copy mounts only in a namespace of its own.
        Users::Caller => {
            let spaces = Spaces::become_root(settings.network, talk)?;
            (Some(spaces), copy(&opened, Mounts::Own)?)
        }
    };
    drop(opened);
    let hierarchies = match &settings.cgroup {
        Some(_) => Hierarchies::detect()
            .map_err(|error| Failed::of("find control groups", io::Error::other(error)))?,
        None => Hierarchies::NONE,
    };
    let owner = match settings.users {
        Users::Host | Users::Caller => None,
        Users::Own { root } => Some(root),
    };
    let make = |name: &String| PodGroup::make(&hierarchies, name, owner);
    let group = settings.cgroup.as_ref().map(make).transpose()?;
    let site = Site { cgroup: format!("/{CONTAINERS}"), ..Site::guest() };
    let (network, users) = (settings.network, settings.users);
    let spaces = match spaces {
        Some(spaces) => spaces,
        None => Spaces::make(settings.users, network, talk)?,
    };
    // Before the root is made, which shows the pod's interfaces.
    spaces.enter()?;
    if network == NetworkSpace::Given {
        let what = "have the pod's network connected";
        match talk.ask(&FromSandbox::Network).map_err(at(what))? {
            ToSandbox::Connected => {}
            ToSandbox::Mapped => return Err(unexpected(what)),
        }
    }
    Root::make(&settings, &spaces, &site, &hierarchies, &sources)?;
    // The pod's users cannot enter the directories above it.
    std::env::set_current_dir(&settings.root).map_err(at("enter the sandbox's root"))?;
    if let NetworkSpace::Tap { mac } = network {
        let tap = sys::tap(INTERFACE, mac.0).map_err(at("make the pod's network interface"))?;
        talk.tell(&FromSandbox::Tap, &[&tap]).map_err(at("hand the pod's network interface over"))?;
    }
    spaces.enter_users()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .map_err(at("make the pod's mount and process namespaces"))?;
    let (waits, mut go) = io::pipe().map_err(at("make a pipe"))?;
    let child = match fork_single_threaded().map_err(at("fork"))? {
        Fork::Child => {
            // The pod's processes have nothing of the host but the two doors.
            let cgroup = if group.is_some() { PodCgroup::Made } else { PodCgroup::Absent };
            drop((go, group, spaces, sources, settings));
            sys::close(TALK_FD);
            let network = match network {
                NetworkSpace::Host => NetworkOwner::Host,
                NetworkSpace::Isolated | NetworkSpace::Tap { .. } | NetworkSpace::Given => NetworkOwner::Pod,
            };
            inside::main(&site, inside::Surroundings { users, cgroup, network }, doors, waits)
        }
        Fork::Parent { child } => child,
    };
    drop((waits, doors));
    if let Some(group) = group {
        group.add(child)?;
    }
    go.write_all(b"!").map_err(at("start the pod's first process"))?;
    talk.tell(&FromSandbox::Made { pid: child }, &[]).map_err(at("tell that the sandbox is made"))?;
    stay(child, parent)
}

fn read_settings<Settings: DeserializeOwned>(generation: fn(&Settings) -> u32) -> Result<Settings, Failed> {
    let mut bytes = Vec::new();
    io::stdin().take(MAX_SANDBOX_SETTINGS).read_to_end(&mut bytes).map_err(at("read the settings"))?;
    let settings: Settings =
        serde_json::from_slice(&bytes).map_err(|error| Failed::of("read the settings", error))?;
    match generation(&settings) {
        magikvm_proto::GENERATION => Ok(settings),
        other => {
            let why =
                format!("they are of generation {other}, this program of {}", magikvm_proto::GENERATION);
            Err(Failed::of("use the settings", io::Error::other(why)))
        }
    }
}

/// Waits for the end of the pod's first process and ends in the same way. That process dies with this one, to which it must belong: the kernel sends
/// its signal with the rights of this one. This process dies with the host's monitor, its parent.
fn stay(child: i32, parent: Pid) -> ! {
    crate::sys::set_process_name(c"magikvm-sandbox");
    crate::sys::close_all_from(0);
    let confined = sys::become_root()
        .and_then(|()| give_up_everything().map_err(io::Error::from))
        .and_then(|()| sys::die_with_parent());
    if confined.is_err() || getppid() != parent {
        exit_now(1);
    }
    loop {
        match waitpid(Pid::from_raw(child), None) {
            Ok(WaitStatus::Exited(_, code)) => exit_now(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => exit_now(128 + signal as i32),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => exit_now(1),
        }
    }
}
