//! Connects a pod to a network of CNI, while its sandbox waits.

use super::super::{PodToPrepare, RuntimeError};
use crate::manifest::PodPlan;
use crate::manifest::plan::Protocol;
use crate::manifest::ports::PublishedPort;
use crate::net::Provider;
use crate::net::cni::chain::{Joining, PortMapping};
use crate::net::cni::connect::{self, Network};
use crate::net::cni::{CniError, NetworkName, Places};
use crate::net::host::HostNetwork;
use crate::net::settle::{self, Settled};
use crate::store::cni::Attachment;
use crate::store::undo::{Scope, Step, Undo};

/// Checks that the host has the network that a pod asks for.
pub(super) fn check(plan: &PodPlan, places: &Places) -> Result<(), CniError> {
    match &plan.network.provider {
        Provider::Cni(name) => Network::find(name, places).map(drop),
        Provider::Magikvm | Provider::Host => Ok(()),
    }
}

/// A pod that can be connected.
pub(super) struct Joins(Attachment);

pub(super) fn prepare(
    pod: &PodToPrepare<'_>,
    name: &NetworkName,
    places: &Places,
) -> Result<Joins, CniError> {
    let ports: Vec<PortMapping> = pod.plan.published.iter().map(mapping).collect();
    let joining = Joining {
        uid: pod.uid,
        namespace: pod.plan.id.namespace.as_str(),
        name: pod.plan.id.name.as_str(),
        ports: &ports,
        dir: pod.dir.path(),
    };
    let origin = pod.plan.published.first().map_or("", |port| &port.origin);
    Network::find(name, places)?.attachment(joining, origin).map(Joins)
}

fn mapping(port: &PublishedPort) -> PortMapping {
    PortMapping {
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        },
    }
}

impl Joins {
    /// Connects the network namespace of this process.
    pub(super) fn connect(&self, pid: i32, undo: &mut Undo) -> Result<Settled, RuntimeError> {
        let Self(attachment) = self;
        undo.plan(Scope::Run, Step::DetachNetwork(Box::new(attachment.clone())))?;
        connect::pin(attachment, pid)?;
        let given = connect::add(attachment)?;
        Ok(settle::given(given.addresses, given.dns, &HostNetwork::look()))
    }
}
