//! Configures the pod's interface as the plan says: addresses, routes, neighbours, by rtnetlink. It asks nobody and waits for nothing. Owns: the
//! messages. Must not know: what is behind the interface.

use magikvm_proto::plan::{MacAddress, NetworkPlan};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, socket,
};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The interface's name in containers.
const NAME: &str = "eth0";
/// Where the kernel lists its interfaces.
const INTERFACES: &str = "/sys/class/net";
/// How long the interface may take to appear. Its driver is built into the kernel, so it nearly always exists already.
const DEVICE_WAIT: Duration = Duration::from_secs(5);
/// Delay between two checks for it.
const DEVICE_POLL: Duration = Duration::from_millis(2);
/// IPv6 settings of the interface: it solicits no routers, and uses addresses without a duplicate check, since nobody else is on the network.
const SETTINGS: [(&str, &str); 5] = [
    ("all/accept_dad", "0"),
    ("default/accept_dad", "0"),
    ("eth0/accept_dad", "0"),
    ("eth0/accept_ra", "0"),
    ("eth0/router_solicitations", "0"),
];

/// Why the network can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("no interface has the address {0}")]
    NoDevice(MacAddress),
    #[error("cannot {what}")]
    Refused {
        what: String,
        #[source]
        source: io::Error,
    },
}

fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Refused { what, source }
}

pub(super) fn set_up(plan: &NetworkPlan) -> Result<(), NetworkError> {
    let index = find(plan.mac)?;
    let mut link = Link { socket: open().map_err(refused("open a netlink socket"))?, index, sequence: 0 };
    for (name, value) in SETTINGS {
        if fs::write(format!("/proc/sys/net/ipv6/conf/{name}"), value).is_err() {
            // A kernel without IPv6 reports that at the first IPv6 address.
        }
    }
    link.up(plan.mtu).map_err(refused(format!("bring {NAME} up with an MTU of {}", plan.mtu)))?;
    for one in &plan.addresses {
        link.address(one.address, one.prefix)
            .map_err(refused(format!("give {NAME} the address {}/{}", one.address, one.prefix)))?;
    }
    for one in plan.gateways.iter().chain(&plan.neighbours) {
        if let Some(mac) = one.mac {
            link.neighbour(one.address, mac).map_err(refused(format!("make {} a neighbour", one.address)))?;
        }
    }
    for one in &plan.gateways {
        link.route(one.address).map_err(refused(format!("make {} the gateway", one.address)))?;
    }
    Ok(())
}

/// Finds the interface with this address, gives it its name, and returns its index.
fn find(mac: MacAddress) -> Result<u32, NetworkError> {
    let deadline = Instant::now() + DEVICE_WAIT;
    let wanted = mac.to_string();
    loop {
        for entry in fs::read_dir(INTERFACES).into_iter().flatten().filter_map(Result::ok) {
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            if entry.file_name() == NAME
                && read("address").trim() == wanted
                && let Ok(index) = read("ifindex").trim().parse()
            {
                return Ok(index);
            }
        }
        if Instant::now() >= deadline {
            return Err(NetworkError::NoDevice(mac));
        }
        std::thread::sleep(DEVICE_POLL);
    }
}

fn open() -> io::Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(socket)
}

/// An rtnetlink message under construction.
struct Message(Vec<u8>);

impl Message {
    /// Begins a message with its header (whose length is set at the end) and its fixed part.
    fn new(kind: u16, sequence: u32, fixed: &[u8]) -> Self {
        /// Request an acknowledgement.
        const ASK: u16 = 0x1 | 0x4;
        /// Create the object or replace an existing one. An interface exists already and can only be changed.
        const MAKE: u16 = 0x400 | 0x100;
        let flags = if kind == libc::RTM_NEWLINK { ASK } else { ASK | MAKE };
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(fixed);
        Self(bytes)
    }

    fn with(mut self, attribute: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(attribute.to_ne_bytes());
        self.0.extend(value);
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
        self
    }

    fn bytes(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

struct Link {
    socket: OwnedFd,
    index: u32,
    sequence: u32,
}

impl Link {
    fn up(&mut self, mtu: u32) -> io::Result<()> {
        const UP: u32 = 1;
        let mut fixed = vec![0; 4];
        fixed.extend(self.index.to_ne_bytes());
        fixed.extend(UP.to_ne_bytes());
        fixed.extend(UP.to_ne_bytes());
        let mtu = mtu.to_ne_bytes();
        self.ask(libc::RTM_NEWLINK, &fixed, &[(libc::IFLA_MTU, &mtu)])
    }

    fn address(&mut self, address: IpAddr, prefix: u8) -> io::Result<()> {
        const UNTRIED: u8 = 2;
        let mut fixed = vec![family(address), prefix, UNTRIED, 0];
        fixed.extend(self.index.to_ne_bytes());
        let octets = octets(address);
        self.ask(libc::RTM_NEWADDR, &fixed, &[(libc::IFA_LOCAL, &octets), (libc::IFA_ADDRESS, &octets)])
    }

    fn neighbour(&mut self, address: IpAddr, mac: MacAddress) -> io::Result<()> {
        const PERMANENT: u16 = 0x80;
        const ATTRIBUTES: [u16; 2] = [1, 2];
        let mut fixed = vec![family(address), 0, 0, 0];
        fixed.extend(self.index.to_ne_bytes());
        fixed.extend(PERMANENT.to_ne_bytes());
        fixed.extend([0, 0]);
        let octets = octets(address);
        self.ask(libc::RTM_NEWNEIGH, &fixed, &[(ATTRIBUTES[0], &octets), (ATTRIBUTES[1], &mac.0)])
    }

    fn route(&mut self, gateway: IpAddr) -> io::Result<()> {
        /// Table `main`, protocol boot, scope universe, type unicast.
        const KIND: [u8; 4] = [254, 3, 0, 1];
        let mut fixed = vec![family(gateway), 0, 0, 0];
        fixed.extend(KIND);
        fixed.extend([0; 4]);
        let (octets, index) = (octets(gateway), self.index.to_ne_bytes());
        self.ask(libc::RTM_NEWROUTE, &fixed, &[(libc::RTA_GATEWAY, &octets), (libc::RTA_OIF, &index)])
    }

    /// Sends a message and reads the acknowledgement.
    fn ask(&mut self, kind: u16, fixed: &[u8], attributes: &[(u16, &[u8])]) -> io::Result<()> {
        self.sequence += 1;
        let message =
            attributes.iter().fold(Message::new(kind, self.sequence, fixed), |message, (name, value)| {
                message.with(*name, value)
            });
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.socket.as_raw_fd(), &message.bytes(), &kernel, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        outcome(&answer[..length])
    }
}

/// The error number in an acknowledgement (NLMSG_ERROR), behind its header.
fn outcome(answer: &[u8]) -> io::Result<()> {
    const ERROR: u16 = 2;
    let unclear = || io::Error::from(io::ErrorKind::InvalidData);
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(unclear()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_length_and_are_padded() {
        let bytes = Message::new(20, 7, &[1; 8]).with(2, &[9; 6]).bytes();
        assert_eq!(bytes.len(), 16 + 8 + 4 + 6 + 2);
        assert_eq!(bytes[..4], 36u32.to_ne_bytes());
        assert_eq!(bytes[24..26], 10u16.to_ne_bytes());
        assert_eq!(bytes[34..], [0, 0]);
    }

    #[test]
    fn answers_are_read() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![0; 4];
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert!(outcome(&answer(2, 0)).is_ok());
        let refused = outcome(&answer(2, -libc::EEXIST)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST));
        for unclear in [answer(3, 0), Vec::new(), vec![2; 5]] {
            assert_eq!(outcome(&unclear).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
