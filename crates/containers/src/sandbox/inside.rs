//! The first process of the pod: PID 1 of its own namespaces. It enters the root that was made for it and becomes the pod's supervisor.

use super::home::Namespaces;
use super::sys;
use crate::cgroup::Hierarchies;
use crate::containers::{LinuxContainers, PodCgroup};
use crate::pod::{NetworkOwner, furnish, mount_volumes};
use crate::rootfs::read_capped;
use crate::sys::{drop_capabilities, exit_now};
use magikvm_proto::limits::MAX_PLAN_SIZE;
use magikvm_proto::path::AGENT_LISTENING;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::sandbox::{AGENT_FD, FORWARD_FD, Users};
use magikvm_proto::site::Site;
use magikvm_supervisor::extension::contains_panic;
use magikvm_supervisor::text::chain;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir, pivot_root};
use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Longest line of the log, in bytes.
const MAX_LINE: usize = 1024;

/// Capabilities over the host that a supervisor with its users does not need (numbers of linux/capability.h): CAP_DAC_READ_SEARCH,
/// CAP_LINUX_IMMUTABLE, CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_PACCT, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_AUDIT_CONTROL, CAP_MAC_OVERRIDE, CAP_MAC_ADMIN,
/// CAP_SYSLOG, CAP_WAKE_ALARM, CAP_BLOCK_SUSPEND, CAP_AUDIT_READ, CAP_PERFMON, CAP_BPF, CAP_CHECKPOINT_RESTORE.
const HOST_POWERS: [u32; 17] = [2, 9, 16, 17, 20, 22, 25, 30, 32, 33, 34, 35, 36, 37, 38, 39, 40];

/// The pod's listening sockets.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) agent: OwnedFd,
    pub(super) forward: OwnedFd,
}

/// What the sandbox has made, or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings {
    pub(super) users: Users,
    pub(super) cgroup: PodCgroup,
    pub(super) network: NetworkOwner,
}

/// Runs the pod to its end. `go` says when this process is in its control group; its end without a word is that of the sandbox.
pub(super) fn main(site: &Site, surroundings: Surroundings, doors: Doors, mut go: impl Read) -> ! {
    let (mut byte, mut error) = ([0], None);
    let is_ready = go.read(&mut byte).is_ok_and(|count| count == 1);
    // Copies of this process are to have none of its descriptors.
    drop(go);
    if is_ready && let Err(why) = run(site, surroundings, doors) {
        error = Some(why);
    }
    if let Some(error) = error {
        note(&format!("cannot start: {}", chain(&*error)));
    }
    exit_now(1)
}

fn run(site: &Site, surroundings: Surroundings, doors: Doors) -> Result<(), Box<dyn Error>> {
    sys::become_root()?;
    if surroundings.users == Users::Host {
        let dropped = HOST_POWERS.iter().fold(0, |all, number| all | 1 << number);
        drop_capabilities(dropped)?;
    }
    // After the ids, whose change clears it. A parent that has died meanwhile has closed its end of the pipe.
    sys::die_with_parent()?;
    std::panic::set_hook(Box::new(|info| {
        note(&format!("panic: {info}"));
        if !contains_panic() {
            exit_now(101);
        }
    }));
    enter()?;
    let containers = LinuxContainers::start(site.clone(), surroundings.cgroup, note, || {
        // Forked copies make containers, and serve nobody.
        sys::close(AGENT_FD);
        sys::close(FORWARD_FD);
    })?;
    magikvm_supervisor::block_signals()?;
    let home = Arc::new(Namespaces::new(doors));
    note_plain(AGENT_LISTENING);
    let plan = prepare(site, surroundings.network, &containers);
    let extensions =
        plan.as_ref().map_or_else(|_| Vec::new(), |plan| magikvm_supervisor::extensions(site, plan));
    magikvm_supervisor::run(plan, extensions, Arc::new(containers), home)?;
    Ok(())
}

/// Makes the working directory, which is the root that was prepared, the only root, and shows the processes of the pod in it.
fn enter() -> Result<(), Box<dyn Error>> {
    let none = None::<&str>;
    // A copy, because what was mounted before this namespace was made cannot be the root. By descriptors, because the pod's users cannot enter
    // the directories above.
    let here = open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let copy = sys::copy_of_opened(&here)?;
    sys::attach(&copy, Path::new("."))?;
    fchdir(&copy)?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // While the host's processes are visible, which the kernel demands.
    mount(Some("proc"), "proc", Some("proc"), safe, none)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    // The kernel lets no process of such a namespace move another one to a group of version 2 outside of it (`nsdelegate`), and the containers' groups
    // are beside that of this process. Each container has a namespace of its own.
    if !matches!(Hierarchies::detect(), Ok(Hierarchies::Unified(_))) {
        unshare(CloneFlags::CLONE_NEWCGROUP)?;
    }
    Ok(())
}

/// The plan, once everything that its containers need is ready; or the reason why the pod can't run.
fn prepare(site: &Site, network: NetworkOwner, containers: &LinuxContainers) -> Result<GuestPlan, String> {
    let plan = read_plan(site).map_err(|error| chain(&*error))?;
    furnish(site, &plan, network).and_then(|()| mount_volumes(site, &plan)).map_err(|error| chain(&error))?;
    containers
        .share(plan.process_namespace)
        .map_err(|error| format!("cannot make the shared process namespace: {error}"))?;
    containers.limit(&plan.limits).map_err(|error| format!("cannot limit the pod: {error}"))?;
    Ok(plan)
}

fn read_plan(site: &Site) -> Result<GuestPlan, Box<dyn Error>> {
    let cap = u64::try_from(MAX_PLAN_SIZE).unwrap_or(u64::MAX);
    let bytes = File::open(site.spec_json()).and_then(|file| read_capped(file, cap))?;
    let plan: GuestPlan = serde_json::from_slice(&bytes)?;
    plan.check()?;
    Ok(plan)
}

/// Writes one line to the log for people who debug a failed pod.
pub(super) fn note(text: &str) {
    note_plain(&format!("magikvm-containers: {text}"));
}

fn note_plain(text: &str) {
    let cut = (0..=text.len().min(MAX_LINE)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let clean: String = text[..cut].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    writeln!(io::stdout(), "{clean}").ok();
}
