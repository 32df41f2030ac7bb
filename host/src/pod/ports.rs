//! The host ports of a pod: bound before the pod boots, recorded, and named in the error when another pod requests a port that is taken.

use super::failure::{Blame, Failure, RunStage};
use crate::manifest::PodPlan;
use crate::manifest::plan::Protocol;
use crate::manifest::ports::PublishedPort;
use crate::net::Provider;
use crate::net::ports::{BindError, Door, try_udp};
use crate::store::layout::Layout;
use crate::store::lock::LockState;
use crate::store::record::{self, BoundPort, Transport};
use magikvm_proto::id::PodId;
use std::io::ErrorKind;
use std::net::SocketAddr;

/// Bound ports, in the plan's order.
#[derive(Debug, Default)]
pub struct Published {
    /// The TCP ports, which do not accept connections yet.
    pub doors: Vec<Door>,
    /// All ports, for the pod's state.
    pub bound: Vec<BoundPort>,
}

/// Binds all ports of a plan. UDP ports are bound when the pod's network starts; here they are only checked to be free.
pub(super) fn bind(plan: &PodPlan, layout: &Layout) -> Result<Published, Failure> {
    bind_all(plan.published.iter(), carrier(plan), layout)
}

/// Checks that the ports of a plan can be bound, but for those that a pod has which is about to leave.
pub(super) fn check(plan: &PodPlan, layout: &Layout, leaving: &[BoundPort]) -> Result<(), Failure> {
    let stays = |port: &&PublishedPort| {
        let address = SocketAddr::new(port.host_ip, port.host_port);
        !leaving.iter().any(|bound| is_in_the_way(bound, address, transport(port.protocol)))
    };
    bind_all(plan.published.iter().filter(stays), carrier(plan), layout).map(|_| ())
}

/// Who carries connections from ports of the host to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carrier {
    /// The monitor and the pod's network.
    Relay,
    /// The plugins of a CNI network.
    Plugins,
}

fn carrier(plan: &PodPlan) -> Carrier {
    match plan.network.provider {
        Provider::Cni(_) => Carrier::Plugins,
        Provider::Magikvm | Provider::Host => Carrier::Relay,
    }
}

fn bind_all<'a>(
    ports: impl Iterator<Item = &'a PublishedPort>,
    carrier: Carrier,
    layout: &Layout,
) -> Result<Published, Failure> {
    let mut published = Published::default();
    for port in ports {
        let wanted = SocketAddr::new(port.host_ip, port.host_port);
        if carrier == Carrier::Plugins {
            check_number(port)?;
            // Plugins listen nowhere.
            if let Some(pod) = holder(wanted, transport(port.protocol), layout) {
                return Err(of_other(port, wanted, &pod));
            }
        }
        let failed = |error: BindError| failure(port, &error, layout);
        let (address, protocol) = match port.protocol {
            Protocol::Tcp => {
                let door = Door::bind(wanted, port.container_port).map_err(failed)?;
                let address = door.address;
                // What plugins forward must not reach a socket of ours.
                if carrier == Carrier::Relay {
                    published.doors.push(door);
                }
                (address, Transport::Tcp)
            }
            Protocol::Udp => {
                check_number(port)?;
                (try_udp(wanted).map_err(failed)?, Transport::Udp)
            }
            Protocol::Sctp => {
                let message = format!("{}: SCTP is not carried", port.origin);
                return Err(Failure::message(RunStage::Reserve, Blame::User, message));
            }
        };
        published.bound.push(BoundPort {
            host_ip: address.ip(),
            host_port: address.port(),
            container_port: port.container_port,
            protocol,
        });
    }
    Ok(published)
}

/// Rejects a port of any number where nobody could find one.
fn check_number(port: &PublishedPort) -> Result<(), Failure> {
    if port.host_port != 0 {
        return Ok(());
    }
    let (which, only) = match port.protocol {
        Protocol::Udp => ("a UDP port", "TCP"),
        Protocol::Tcp | Protocol::Sctp => ("a port of a CNI network", "a pod without such a network"),
    };
    let message = format!("{}: {which} needs a number", port.origin);
    Err(Failure::message(RunStage::Reserve, Blame::User, message)
        .hint(format!("Only {only} can use any free port; write a number.")))
}

fn of_other(port: &PublishedPort, address: SocketAddr, pod: &PodId) -> Failure {
    let message = format!("{}: another pod has the port {address} of the host", port.origin);
    Failure::message(RunStage::Reserve, Blame::Environment, message).hint(used_by(pod))
}

fn used_by(pod: &PodId) -> String {
    format!("Pod {pod} uses it; stop that pod with `magikvm stop {pod}`, or choose another port.")
}

fn failure(port: &PublishedPort, error: &BindError, layout: &Layout) -> Failure {
    let failure = Failure::new(RunStage::Reserve, Blame::Environment, error);
    let failure = Failure { message: format!("{}: {}", port.origin, failure.message), ..failure };
    let address = error.address;
    match error.source.kind() {
        ErrorKind::AddrInUse => match holder(address, transport(port.protocol), layout) {
            Some(pod) => failure.hint(used_by(&pod)),
            None => failure.hint(format!(
                "See which process uses it with `ss -l{}np 'sport = :{}'`, or choose another port{}.",
                if port.protocol == Protocol::Udp { 'u' } else { 't' },
                address.port(),
                // Only TCP can use any free port.
                if port.protocol == Protocol::Udp { "" } else { ", or 0 for any free one" }
            )),
        },
        ErrorKind::PermissionDenied => failure.hint(
            "Only root may bind ports below 1024; choose a higher one, or lower the bound with `sysctl net.ipv4.ip_unprivileged_port_start=PORT`.",
        ),
        ErrorKind::AddrNotAvailable => {
            failure.hint(format!("{} is not an address of the host; list the addresses with `ip address`.", address.ip()))
        }
        _ => failure,
    }
}

fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Udp => Transport::Udp,
        Protocol::Tcp | Protocol::Sctp => Transport::Tcp,
    }
}

/// Whether the bound port is in the way of the other: a port of TCP is not in the way of one of UDP with the same number.
fn is_in_the_way(port: &BoundPort, address: SocketAddr, transport: Transport) -> bool {
    port.protocol == transport
        && port.host_port == address.port()
        && (port.host_ip == address.ip() || port.host_ip.is_unspecified() || address.ip().is_unspecified())
}

/// The pod whose record has this host port.
pub fn holder(address: SocketAddr, transport: Transport, layout: &Layout) -> Option<PodId> {
    let has = |port: &BoundPort| is_in_the_way(port, address, transport);
    let pods = record::list(layout).ok()?;
    pods.into_iter().filter(|pod| pod.lock == LockState::Held).find_map(|pod| {
        let id = pod.record?.id;
        pod.state?.ports.iter().any(has).then_some(id)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_in_the_way_of_the_same_transport_only() {
        let bound = |ip: &str, protocol| BoundPort {
            host_ip: ip.parse().unwrap(),
            host_port: 53,
            container_port: 53,
            protocol,
        };
        let wanted = |text: &str| text.parse::<SocketAddr>().unwrap();
        let tcp = bound("0.0.0.0", Transport::Tcp);
        assert!(is_in_the_way(&tcp, wanted("127.0.0.1:53"), Transport::Tcp));
        assert!(!is_in_the_way(&tcp, wanted("127.0.0.1:53"), Transport::Udp));
        assert!(!is_in_the_way(&tcp, wanted("127.0.0.1:54"), Transport::Tcp));
        let udp = bound("127.0.0.1", Transport::Udp);
        assert!(is_in_the_way(&udp, wanted("0.0.0.0:53"), Transport::Udp));
        assert!(!is_in_the_way(&udp, wanted("127.0.0.2:53"), Transport::Udp));
    }
}
