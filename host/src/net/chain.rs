//! The processes of a pod's network and the connections between them: VMM, filter, carrier (our NAT or passt). This module creates the
//! connections; the owner of the VM starts the processes, since the end of one is the end of the VM.

use super::nat::handover;
use super::nat::process::{NAT_VERB, PUBLISHED, WIRE};
use super::passt::{self, UdpPort};
use super::process::{FDS, NET_VERB, Settings};
use super::rules::Rules;
use super::settle::Carrier;
use super::stream::Carries;
use crate::store::sandbox::Role;
use crate::store::text::ignore;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

/// Bytes that a connection buffers. passt drops what does not fit; the NAT waits.
const BUFFER: usize = 4 << 20;

/// How to start a process.
#[derive(Debug)]
pub enum Start {
    /// This program with a hidden verb, in a jail.
    Jailed(&'static str),
    /// Another program, which confines itself.
    Itself(Command),
}

/// A process to start.
#[derive(Debug)]
pub struct Helper {
    pub role: Role,
    pub name: &'static str,
    pub start: Start,
    /// Its descriptors with their numbers.
    pub inherits: Vec<(OwnedFd, i32)>,
    /// The data on its standard input.
    pub input: Vec<u8>,
}

#[derive(Debug)]
pub struct Chain {
    /// The processes in the order to start them.
    pub helpers: Vec<Helper>,
    /// The VMM's end: a stream of frames, each after its length in 4 bytes, big endian. `None` if the pod has an interface of the host's kernel.
    pub vmm: Option<OwnedFd>,
    /// The filter's reports of refusals ([`super::report::read`]).
    pub reports: File,
}

/// The pod's side of the filter.
#[derive(Debug)]
pub enum PodSide {
    /// A VMM, for which a stream is made.
    Vmm,
    /// The other end of an interface of the host's kernel.
    Interface(OwnedFd),
}

pub fn make(rules: &Rules, carrier: &Carrier, pod: PodSide) -> io::Result<Chain> {
    let (vmm, guest_side, guest) = match pod {
        PodSide::Vmm => {
            let (vmm, guest_side) = pair()?;
            (Some(vmm), guest_side, Carries::Stream)
        }
        PodSide::Interface(interface) => (None, interface, Carries::Frames),
    };
    let (carrier_side, carrier_end) = pair()?;
    let (reports, tells) = io::pipe()?;
    let [guest_fd, carrier_fd, report_fd] = FDS;
    let filter = Helper {
        role: Role::NetFilter,
        name: "net-filter",
        start: Start::Jailed(NET_VERB),
        inherits: vec![(guest_side, guest_fd), (carrier_side, carrier_fd), (OwnedFd::from(tells), report_fd)],
        input: serde_json::to_vec(&Settings { rules: rules.clone(), guest })?,
    };
    let carrier = match carrier {
        Carrier::Passt(wanted) => Helper {
            role: Role::Passt,
            name: "passt",
            start: Start::Itself(passt::command(wanted)),
            inherits: vec![(carrier_end, passt::FD)],
            input: Vec::new(),
        },
        Carrier::Nat(config, ports) => {
            let bound: Vec<OwnedFd> = ports.iter().map(bind).collect::<io::Result<_>>()?;
            Helper {
                role: Role::Nat,
                name: "nat",
                start: Start::Jailed(NAT_VERB),
                inherits: vec![(carrier_end, WIRE), (handover::send(&bound)?, PUBLISHED)],
                input: serde_json::to_vec(config)?,
            }
        }
    };
    Ok(Chain { helpers: vec![carrier, filter], vmm, reports: File::from(OwnedFd::from(reports)) })
}

/// Binds a published port. Without an address, that is every address of both families, where the host has both.
fn bind(port: &UdpPort) -> io::Result<OwnedFd> {
    let bound = match port.host_address {
        Some(address) => UdpSocket::bind((address, port.host)),
        None => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port.host))
            .or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port.host))),
    };
    bound.map(OwnedFd::from)
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

/// Enlarges the buffers as far as the system allows.
fn enlarge(socket: &impl AsFd) {
    #[cfg(target_os = "linux")]
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_ok() {
        return;
    }
    ignore(setsockopt(socket, sockopt::SndBuf, &BUFFER), "then it has the usual size");
}
