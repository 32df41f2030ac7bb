//! The pod's user, network, IPC and UTS namespaces, made by a process that ends when they are there. The user namespace owns the others, so its root
//! may set them up.

use super::talk::Talk;
use super::{Failed, at, sys};
use crate::sys::{Fork, exit_now, fork_single_threaded};
use magikvm_proto::sandbox::{FromSandbox, NetworkSpace, ToSandbox, Users};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What the host name and IPC objects of every pod are in.
const OWN: CloneFlags = CloneFlags::CLONE_NEWIPC.union(CloneFlags::CLONE_NEWUTS);

fn of_network(network: NetworkSpace) -> CloneFlags {
    match network {
        NetworkSpace::Host => CloneFlags::empty(),
        NetworkSpace::Isolated | NetworkSpace::Tap { .. } | NetworkSpace::Given => CloneFlags::CLONE_NEWNET,
    }
}

#[derive(Debug)]
pub(super) struct Spaces {
    user: Option<OwnedFd>,
    others: Vec<OwnedFd>,
}

impl Spaces {
    /// Makes them for a user without rights on the host, who becomes root of them, and lets the calling process enter them all, with mounts of
    /// its own.
    pub(super) fn become_root(network: NetworkSpace, talk: &Talk) -> Result<Self, Failed> {
        let wanted = OWN | of_network(network) | CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS;
        unshare(wanted).map_err(at("make the pod's namespaces"))?;
        let pid = std::process::id().cast_signed();
        match talk.ask(&FromSandbox::Users { pid }).map_err(at("have the pod's ids mapped"))? {
            ToSandbox::Mapped => sys::become_root().map_err(at("become the pod's root"))?,
            ToSandbox::Connected => return Err(super::unexpected("have the pod's ids mapped")),
        }
        Ok(Self { user: None, others: Vec::new() })
    }

    /// Makes them. For a user namespace the host maps the ids.
    pub(super) fn make(users: Users, network: NetworkSpace, talk: &Talk) -> Result<Self, Failed> {
        let of_users = match users {
            Users::Host | Users::Caller => CloneFlags::empty(),
            Users::Own { .. } => CloneFlags::CLONE_NEWUSER,
        };
        let wanted = OWN | of_users | of_network(network);
        let (mut made, tells) = io::pipe().map_err(at("make a pipe"))?;
        let (waits, done) = io::pipe().map_err(at("make a pipe"))?;
        let child = match fork_single_threaded().map_err(at("fork"))? {
            Fork::Child => {
                drop((made, done));
                hold(wanted, tells, waits)
            }
            Fork::Parent { child } => child,
        };
        drop((tells, waits));
        let mut answer = Vec::new();
        made.read_to_end(&mut answer).map_err(at("read from the process that makes namespaces"))?;
        let spaces = Self::of(child, wanted, &answer, talk);
        drop(done);
        waitpid(Pid::from_raw(child), None).ok();
        spaces
    }

    fn of(child: i32, made: CloneFlags, answer: &[u8], talk: &Talk) -> Result<Self, Failed> {
        match answer.try_into().map(i32::from_ne_bytes) {
            Ok(0) => {}
            Ok(errno) => {
                return Err(at("make the pod's namespaces")(io::Error::from_raw_os_error(errno)));
            }
            Err(_) => {
                return Err(at("make the pod's namespaces")(io::Error::from(io::ErrorKind::UnexpectedEof)));
            }
        }
        let open = |kind: &str| {
            File::open(format!("/proc/{child}/ns/{kind}")).map(OwnedFd::from).map_err(at("open a namespace"))
        };
        let user = if made.contains(CloneFlags::CLONE_NEWUSER) {
            match talk.ask(&FromSandbox::Users { pid: child }).map_err(at("have the pod's ids mapped"))? {
                ToSandbox::Mapped => Some(open("user")?),
                ToSandbox::Connected => return Err(super::unexpected("have the pod's ids mapped")),
            }
        } else {
            None
        };
        let mut others = vec![open("ipc")?, open("uts")?];
        if made.contains(CloneFlags::CLONE_NEWNET) {
            others.push(open("net")?);
        }
        Ok(Self { user, others })
    }

    /// The user namespace, if the pod has one.
    pub(super) fn users(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(AsFd::as_fd)
    }

    /// Enters all but the user namespace.
    pub(super) fn enter(&self) -> Result<(), Failed> {
        self.others
            .iter()
            .try_for_each(|space| setns(space, CloneFlags::empty()))
            .map_err(at("enter the pod's namespaces"))
    }

    /// Enters the user namespace, after which the calling process has no rights outside of it.
    pub(super) fn enter_users(&self) -> Result<(), Failed> {
        match &self.user {
            Some(user) => {
                setns(user, CloneFlags::CLONE_NEWUSER).map_err(at("enter the pod's user namespace"))
            }
            None => Ok(()),
        }
    }
}

/// Makes the namespaces, tells the result, and stays until they have been opened.
fn hold(wanted: CloneFlags, mut tells: impl Write, mut waits: impl Read) -> ! {
    let errno = unshare(wanted).err().map_or(0, |errno| errno as i32);
    tells.write_all(&errno.to_ne_bytes()).ok();
    drop(tells);
    // The other end is closed without a word.
    waits.read_exact(&mut [0]).ok();
    exit_now(0)
}
