//! The process that holds the PID namespace which the containers of a pod share (`shareProcessNamespace`). It is
//! process 1 there and reaps by ignoring SIGCHLD. Containers see it, so it keeps nothing that is worth having: no
//! capability, no root, no descriptor.

use super::{Answer, Failure, await_start, send};
use crate::sys;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chroot, pause};
use std::os::fd::OwnedFd;

/// Makes it.
pub(super) fn hold(channel: &OwnedFd) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    match sys::fork_single_threaded()? {
        sys::Fork::Child => {
            if let Err(failure) = settle() {
                crate::console::say(&format!("pod namespace: {failure}"));
                sys::exit_now(1);
            }
            sys::close_all_from(0);
            loop {
                pause();
            }
        }
        sys::Fork::Parent { child } => {
            let pidfd = sys::pidfd_open(child)?;
            send(channel, &Answer::Created { pid: child }, &[&pidfd])?;
            await_start(channel)
        }
    }
}

fn settle() -> Result<(), Failure> {
    sys::set_process_name(c"pause");
    sys::ignore_children()?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    chroot("/empty")?;
    chdir("/")?;
    sys::give_up_everything()?;
    Ok(())
}
