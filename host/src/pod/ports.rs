//! The host ports of a pod: bound before the pod boots, recorded, and named in the error when another pod requests a port that is taken.

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

/// Bound ports, in the plan's order.
#[derive(Debug, Default)]
pub struct Published {
    /// The TCP ports, which do not accept connections yet.
    pub doors: Vec<Door>,
    /// All ports, for the pod's state.
    pub bound: Vec<BoundPort>,
}

/// Binds all ports of a plan. passt binds the UDP ports when the pod starts, because it takes numbers; here they are only checked to be
/// free.
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
                let message = format!("{}: a UDP port needs a number", port.origin);
                return Err(Failure::message(RunStage::Reserve, Blame::User, message)
                    .hint("only TCP can use any free port; write a number."));
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
                "pod {pod} uses it; stop that pod with `magikvm stop {pod}`, or choose another port, or 0 for any free one."
            )),
            None => failure.hint(format!(
                "see which process uses it with `ss -ltnp 'sport = :{}'`, or choose another port, or 0 for any free one.",
                address.port()
            )),
        },
        ErrorKind::PermissionDenied => failure.hint(
            "only root may bind ports below 1024; choose a higher one, or lower the bound with `sysctl net.ipv4.ip_unprivileged_port_start=PORT`.",
        ),
        ErrorKind::AddrNotAvailable => {
            failure.hint(format!("{} is not an address of the host; list the addresses with `ip address`.", address.ip()))
        }
        _ => failure,
    }
}

/// The pod whose record has this host port.
fn holder(address: SocketAddr, layout: &Layout) -> Option<String> {
    let has = |port: &BoundPort| {
        port.host_port == address.port()
            && (port.host_ip == address.ip()
                || port.host_ip.is_unspecified()
                || address.ip().is_unspecified())
    };
    let pods = record::list(layout).ok()?;
    pods.into_iter().filter(|pod| pod.lock == LockState::Held).find_map(|pod| {
        let id = pod.record?.id;
        pod.state?.ports.iter().any(has).then(|| id.to_string())
    })
}
