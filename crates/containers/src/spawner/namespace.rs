//! The process that holds the PID namespace shared by a pod's containers (`shareProcessNamespace`). It is
//! PID 1 there and reaps by ignoring SIGCHLD. Containers see it, so it keeps nothing of value: no
//! capability, no root, no descriptor.

use super::{Answer, Context, await_start, send};
use crate::sys;
use magikvm_supervisor::Failure;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot, pause, pipe2};
use std::fs;
use std::os::fd::OwnedFd;

pub(super) fn hold(channel: &OwnedFd, context: &Context) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let (wait, go) = pipe2(OFlag::O_CLOEXEC)?;
    match sys::fork_single_threaded()? {
        sys::Fork::Child => {
            drop(go);
            // It shows its namespace only as long as it can be looked at.
            let shown = nix::unistd::read(&wait, &mut [0]);
            if let Err(failure) = shown.map_err(Failure::from).and_then(|_| settle(context)) {
                (context.note)(&format!("pod namespace: {failure}"));
                sys::exit_now(1);
            }
            sys::close_all_from(0);
            loop {
                pause();
            }
        }
        sys::Fork::Parent { child } => {
            drop(wait);
            let place = context.site.pid_namespace();
            fs::write(&place, "")?;
            let of_child = format!("/proc/{child}/ns/pid");
            mount(Some(of_child.as_str()), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            drop(go);
            let pidfd = sys::pidfd_open(child)?;
            send(channel, &Answer::Created { pid: child }, &[&pidfd])?;
            await_start(channel)
        }
    }
}

fn settle(context: &Context) -> Result<(), Failure> {
    sys::set_process_name(c"pause");
    sys::ignore_children()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    chroot(&context.site.empty)?;
    chdir("/")?;
    sys::give_up_everything()?;
    Ok(())
}
