//! The ports of this machine that a pod has: bound before anything of it boots, recorded, and named to whoever wants one that is taken.

use super::failure::{Blame, Failure, RunStage};
use crate::manifest::PodPlan;
use crate::manifest::plan::Protocol;
use crate::manifest::ports::PublishedPort;
use crate::net::ports::{BindError, Door, try_udp};
use crate::store::layout::Layout;
use crate::store::lock::LockState;
use crate::store::record::{self, BoundPort, Transport};
use std::io::ErrorKind;
use std::net::SocketAddr;

/// Ports that are bound, in the plan's order.
#[derive(Debug, Default)]
pub struct Published {
    /// Those of TCP: nobody is accepted yet.
    pub doors: Vec<Door>,
    /// All of them, for the pod's state.
    pub bound: Vec<BoundPort>,
}

/// Binds all ports of a plan. Those of UDP are the network's to bind when the pod starts (by passt, which takes numbers); here it is seen
/// that they can be had.
pub(super) fn bind(plan: &PodPlan, layout: &Layout) -> Result<Published, Failure> {
    let mut published = Published::default();
    for port in &plan.published {
        let wanted = SocketAddr::new(port.host_ip, port.host_port);
        let failed = |error: BindError| failure(port, &error, layout);
        let (address, protocol) = match port.protocol {
            Protocol::Tcp => {
                let door = Door::bind(wanted, port.container_port).map_err(failed)?;
                let address = door.address;
                published.doors.push(door);
                (address, Transport::Tcp)
            }
            Protocol::Udp if port.host_port == 0 => {
                let message = format!("{}: a port of UDP has a number of its own", port.origin);
                return Err(Failure::message(RunStage::Reserve, Blame::User, message)
                    .hint("any port that is free is for TCP only: write a number"));
            }
            Protocol::Udp => (try_udp(wanted).map_err(failed)?, Transport::Udp),
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

fn failure(port: &PublishedPort, error: &BindError, layout: &Layout) -> Failure {
    let failure = Failure::new(RunStage::Reserve, Blame::Environment, error);
    let failure = Failure { message: format!("{}: {}", port.origin, failure.message), ..failure };
    let address = error.address;
    match error.source.kind() {
        ErrorKind::AddrInUse => match holder(address, layout) {
            Some(pod) => failure.hint(format!(
                "pod {pod} has it: magikvm stop {pod}; or take another port, or 0 for any that is free"
            )),
            None => failure.hint(format!(
                "see who has it: ss -ltnp 'sport = :{}'; or take another port, or 0 for any that is free",
                address.port()
            )),
        },
        ErrorKind::PermissionDenied => failure.hint(
            "ports below 1024 are for root: take a higher one, or lower the bound: sysctl net.ipv4.ip_unprivileged_port_start",
        ),
        ErrorKind::AddrNotAvailable => {
            failure.hint(format!("{} is no address of this machine: see ip address", address.ip()))
        }
        _ => failure,
    }
}

/// The pod that has a port of this machine, if its record says so.
fn holder(address: SocketAddr, layout: &Layout) -> Option<String> {
    let has = |port: &BoundPort| {
        port.host_port == address.port()
            && (port.host_ip == address.ip()
                || port.host_ip.is_unspecified()
                || address.ip().is_unspecified())
    };
    let pods = record::list(layout).ok()?;
    pods.into_iter().filter(|pod| pod.lock == LockState::Held).find_map(|pod| {
        let id = pod.record.ok()?.id;
        pod.state?.ports.iter().any(has).then(|| id.to_string())
    })
}
