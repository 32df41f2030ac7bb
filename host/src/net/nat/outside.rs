//! The way to the host's sockets: which address of the host's world stands behind an address that the guest uses, and how a socket to it is
//! made.

use super::super::frames::Unreachable;
use super::super::{DNS_4, DNS_6, GATEWAY_4, GATEWAY_6, GUEST_4, GUEST_6};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

/// What the NAT is told. The monitor writes it to the process's standard input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatConfig {
    /// Whether the gateway's address is the host's loopback. Otherwise nothing is behind it.
    pub gateway_is_loopback: bool,
    /// The pod's forwarders of DNS queries, and the host's name server behind each.
    pub forwarders: Vec<(IpAddr, IpAddr)>,
    /// The guest's ports that the inherited UDP sockets lead to, in their order.
    pub published: Vec<u16>,
}

/// The kinds of sockets that the NAT makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Udp,
    Ping,
}

/// Makes sockets to the destinations of a guest.
pub trait Outside {
    /// A non-blocking socket that is connected to `to`, or is being connected, where `to` is the address that the guest uses.
    fn open(&mut self, kind: Kind, to: SocketAddr) -> nix::Result<OwnedFd>;
}

/// The host's sockets.
#[derive(Debug)]
pub struct Host(pub NatConfig);

impl Host {
    /// The destination in the host's world; `None` if there is none.
    fn real(&self, to: SocketAddr) -> Option<SocketAddr> {
        const DNS_PORT: u16 = 53;
        let ip = to.ip();
        if let Some((_, server)) = self.0.forwarders.iter().find(|(forwarder, _)| *forwarder == ip) {
            return (to.port() == DNS_PORT).then(|| SocketAddr::new(*server, DNS_PORT));
        }
        if ip == GATEWAY_4 || ip == GATEWAY_6 {
            let loopback = if ip.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            return self.0.gateway_is_loopback.then(|| SocketAddr::new(loopback, to.port()));
        }
        // The filter has refused these already. The loopback has only the one way in, whatever the filter does.
        let is_closed = match ip {
            IpAddr::V4(four) => {
                four.octets()[0] == 0 || four.is_loopback() || four.is_multicast() || four.is_broadcast()
            }
            IpAddr::V6(six) => {
                six.is_loopback() || six.is_unspecified() || six.is_multicast() || six.to_ipv4().is_some()
            }
        };
        let is_own = [DNS_4, GUEST_4].map(IpAddr::from).contains(&ip)
            || [DNS_6, GUEST_6].map(IpAddr::from).contains(&ip);
        (!is_closed && !is_own).then_some(to)
    }
}

impl Outside for Host {
    fn open(&mut self, kind: Kind, to: SocketAddr) -> nix::Result<OwnedFd> {
        let real = self.real(to).ok_or(Errno::EACCES)?;
        let family = if real.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let (kind_of_socket, protocol) = match kind {
            Kind::Tcp => (SockType::Stream, None),
            Kind::Udp => (SockType::Datagram, None),
            Kind::Ping if real.is_ipv4() => (SockType::Datagram, Some(SockProtocol::Icmp)),
            Kind::Ping => (SockType::Datagram, Some(SockProtocol::IcmpV6)),
        };
        let made = make(family, kind_of_socket, protocol)?;
        if kind == Kind::Tcp {
            // The guest's kernel has decided already when to send.
            setsockopt(&made, sockopt::TcpNoDelay, &true)?;
        }
        match connect(made.as_raw_fd(), &SockaddrStorage::from(real)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(made),
            Err(errno) => Err(errno),
        }
    }
}

#[cfg(target_os = "linux")]
fn make(family: AddressFamily, kind: SockType, protocol: Option<SockProtocol>) -> nix::Result<OwnedFd> {
    socket(family, kind, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, protocol)
}

#[cfg(not(target_os = "linux"))]
fn make(family: AddressFamily, kind: SockType, protocol: Option<SockProtocol>) -> nix::Result<OwnedFd> {
    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    let made = socket(family, kind, SockFlag::empty(), protocol)?;
    fcntl(&made, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    fcntl(&made, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(made)
}

/// What the guest learns of an error of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    Refused,
    Unreachable(Unreachable),
    /// Nothing, as from a network that loses the packet. The guest has its own patience.
    Silent,
}

pub(super) fn failure(errno: Errno) -> Failure {
    match errno {
        Errno::EHOSTUNREACH | Errno::EHOSTDOWN => Failure::Unreachable(Unreachable::Host),
        Errno::ENETUNREACH | Errno::ENETDOWN | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT | Errno::EINVAL => {
            Failure::Unreachable(Unreachable::Network)
        }
        Errno::EACCES | Errno::EPERM => Failure::Unreachable(Unreachable::Prohibited),
        Errno::ETIMEDOUT | Errno::EAGAIN | Errno::EINTR | Errno::EMSGSIZE => Failure::Silent,
        // Also when the host has no descriptor or memory left: the guest must not wait for that to pass.
        _ => Failure::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn real(host: &Host, to: &str) -> Option<String> {
        host.real(to.parse().unwrap()).map(|address| address.to_string())
    }

    #[test]
    fn only_what_the_guest_is_to_have_is_behind_its_addresses() {
        let mut host = Host(NatConfig {
            forwarders: vec![(DNS_4.into(), "127.0.0.53".parse().unwrap())],
            ..NatConfig::default()
        });
        assert_eq!(real(&host, "203.0.113.5:80").as_deref(), Some("203.0.113.5:80"));
        assert_eq!(real(&host, "10.0.2.3:53").as_deref(), Some("127.0.0.53:53"));
        for closed in [
            "10.0.2.3:80",
            "10.0.2.2:80",
            "127.0.0.1:80",
            "0.0.0.0:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "10.0.2.15:80",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[ff02::1]:80",
            "[fd6d:616b:766d::2]:80",
            "[fd6d:616b:766d::3]:53",
        ] {
            assert_eq!(real(&host, closed), None, "{closed}");
        }
        host.0.gateway_is_loopback = true;
        assert_eq!(real(&host, "10.0.2.2:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(real(&host, "[fd6d:616b:766d::2]:80").as_deref(), Some("[::1]:80"));
    }
}
