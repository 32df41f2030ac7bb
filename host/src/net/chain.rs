//! The processes of a pod's network and the connections between them: VMM, filter, passt. They are made here and started by whoever owns the
//! machine, since the end of one is the machine's end.

use super::passt::{self, Wanted};
use super::process::FDS;
use super::rules::Rules;
use crate::store::sandbox::Role;
use crate::store::text::ignore;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

/// Bytes that a connection holds. passt throws away what finds no room.
const BUFFER: usize = 4 << 20;

/// How a process is started.
#[derive(Debug)]
pub enum Start {
    /// As this program with [`super::NET_VERB`], in a jail.
    Jailed,
    /// As another program, which locks itself in.
    Itself(Command),
}

/// A process to be started.
#[derive(Debug)]
pub struct Helper {
    pub role: Role,
    pub name: &'static str,
    pub start: Start,
    /// What it is given, and under which number.
    pub inherits: Vec<(OwnedFd, i32)>,
    /// What it reads from its standard input.
    pub input: Vec<u8>,
}

#[derive(Debug)]
pub struct Chain {
    /// In the order to start them.
    pub helpers: Vec<Helper>,
    /// The VMM's end: a stream of frames, each behind its length in 4 bytes, the highest first.
    pub vmm: OwnedFd,
    /// Where the filter tells what it refuses ([`super::report::read`]).
    pub reports: File,
}

pub fn make(rules: &Rules, wanted: &Wanted) -> io::Result<Chain> {
    let (vmm, guest_side) = pair()?;
    let (passt_side, passt_end) = pair()?;
    let (reports, tells) = io::pipe()?;
    let [guest_fd, passt_fd, report_fd] = FDS;
    let filter = Helper {
        role: Role::NetFilter,
        name: "net-filter",
        start: Start::Jailed,
        inherits: vec![(guest_side, guest_fd), (passt_side, passt_fd), (OwnedFd::from(tells), report_fd)],
        input: serde_json::to_vec(rules)?,
    };
    let passt = Helper {
        role: Role::Passt,
        name: "passt",
        start: Start::Itself(passt::command(wanted)),
        inherits: vec![(passt_end, passt::FD)],
        input: Vec::new(),
    };
    Ok(Chain { helpers: vec![passt, filter], vmm, reports: File::from(OwnedFd::from(reports)) })
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    #[cfg(target_os = "linux")]
    let flags = SockFlag::SOCK_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = SockFlag::empty();
    let (one, two) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
    for end in [&one, &two] {
        enlarge(end);
    }
    Ok((one, two))
}

/// As far as one may.
fn enlarge(socket: &impl AsFd) {
    #[cfg(target_os = "linux")]
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_ok() {
        return;
    }
    ignore(setsockopt(socket, sockopt::SndBuf, &BUFFER), "then it has the usual size");
}
