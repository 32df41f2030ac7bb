//! The ports of this machine that a pod has: bound before anything of it boots, recorded, and named to whoever wants one that is taken.

use super::failure::{Blame, Failure, RunStage};
use crate::manifest::PodPlan;
use crate::manifest::plan::Protocol;
use crate::manifest::ports::PublishedPort;
use crate::net::ports::{BindError, Door};
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

/// Binds all ports of a plan.
pub(super) fn bind(plan: &PodPlan, layout: &Layout) -> Result<Published, Failure> {
    carry_datagrams(plan)?;
    let mut published = Published::default();
    for port in plan.published.iter().filter(|port| port.protocol == Protocol::Tcp) {
        let door = Door::bind(SocketAddr::new(port.host_ip, port.host_port), port.container_port)
            .map_err(|error| failure(port, &error, layout))?;
        published.bound.push(BoundPort {
            host_ip: door.address.ip(),
            host_port: door.address.port(),
            container_port: port.container_port,
            protocol: Transport::Tcp,
        });
        published.doors.push(door);
    }
    Ok(published)
}

/// UDP does not go through the agent: it needs a network of the pod's that carries it. None does yet, so that ports of UDP are refused here.
fn carry_datagrams(plan: &PodPlan) -> Result<(), Failure> {
    match plan.published.iter().find(|port| port.protocol != Protocol::Tcp) {
        None => Ok(()),
        Some(port) => {
            let message = format!("{}: the pod's network carries no UDP ports of this machine", port.origin);
            Err(Failure::message(RunStage::Reserve, Blame::User, message)
                .hint("leave it out; ports of TCP need no network"))
        }
    }
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
