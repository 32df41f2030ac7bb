//! Connects a pod to [`crate::net`]: its network settings, and its network processes, which end with the VM.

use super::{RuntimeError, SandboxNetwork};
use crate::jail::{
    self, Cgroup, Descriptor, HostNetwork, Inside, JailSpec, Limits, Procfs, Requirement, SyscallFilter,
};
use crate::manifest::PodPlan;
use crate::manifest::plan::Protocol;
use crate::manifest::ports::PublishedPort;
use crate::net::chain::{self, Helper, PodSide, Start};
use crate::net::host::Resolv;
use crate::net::passt::UdpPort;
use crate::net::settle::{NetError, Settled, Ways};
use crate::net::{GATEWAY_6, Mode, NAT_VERB, PREFIX_6, Provider, host, passt, settle};
use crate::process::{self, Process};
use crate::store::thread;
use crate::vmm::console::ConsoleTail;
use crate::vmm::nic::Nic;
use crate::vmm::{JailOptions, KernelChoice, VmConfig, VmmError, VmmKind, find_program};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

/// The network devices that a driver can give a VM.
pub(super) fn ways(kind: VmmKind, kernel: KernelChoice) -> Ways {
    match kind {
        VmmKind::Krun => Ways { nic: true, tsi: kernel == KernelChoice::Libkrunfw, user: false },
        VmmKind::Qemu => Ways { nic: true, tsi: false, user: true },
        #[cfg(all(feature = "testing", target_os = "linux"))]
        VmmKind::Fake => Ways { nic: false, tsi: false, user: false },
    }
}

/// The pod's network on this host.
pub(super) fn settle(plan: &PodPlan, ways: Ways) -> Result<Settled, NetError> {
    let here = host::HostNetwork::look();
    match plan.network.provider {
        Provider::Host => return Ok(settle::of_host(&here)),
        // The addresses are known once the pod is connected. Until then this one stands for them.
        Provider::Cni(_) => {
            return Ok(settle::given(vec![Ipv4Addr::UNSPECIFIED.into()], Resolv::default(), &here));
        }
        Provider::Magikvm => {}
    }
    let passt = || {
        let named = std::env::var_os("MAGIKVM_PASST").map(PathBuf::from);
        passt::check(named.or_else(|| find_program("passt")).as_deref()).map(ToOwned::to_owned)
    };
    let udp = || plan.published.iter().filter(|port| port.protocol == Protocol::Udp);
    let ports: Vec<UdpPort> = udp().map(datagrams).collect();
    let settled = settle::settle(&plan.network.egress, &ports, ways, &here, passt)?;
    match udp().next() {
        Some(port) if settled.chain.is_none() => {
            Err(NetError::NoDatagrams { origin: port.origin.clone(), mode: settled.mode })
        }
        _ => Ok(settled),
    }
}

/// A port in the carrier's terms. The IPv6 wildcard address includes IPv4, as with TCP.
fn datagrams(port: &PublishedPort) -> UdpPort {
    let every = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    UdpPort {
        host_address: Some(port.host_ip).filter(|&address| address != every),
        host: port.host_port,
        guest: port.container_port,
    }
}

pub(super) struct Started {
    pub(super) nic: Option<Nic>,
    /// To be watched together with the VMM's processes.
    pub(super) processes: Vec<Process>,
    pub(super) seen: SandboxNetwork,
}

/// The confinement of the network's processes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confinement<'a> {
    /// The pod's unique id.
    pub(super) id: &'a str,
    pub(super) requirement: Requirement,
    pub(super) cgroup: &'a Result<Cgroup, String>,
}

/// Starts the network of a VM.
pub(super) fn start(network: &Settled, config: &VmConfig) -> Result<Started, RuntimeError> {
    let JailOptions { requirement, cgroup } = &config.jail;
    let jail = Confinement { id: &config.id, requirement: *requirement, cgroup };
    start_for(network, jail, PodSide::Vmm)
}

/// A pod with nothing but loopback.
pub(super) fn none(network: &Settled) -> Started {
    Started {
        nic: None,
        processes: Vec::new(),
        seen: SandboxNetwork {
            addresses: network.addresses(),
            host_address: network.host_address,
            reports: None,
            messages: ConsoleTail::default(),
        },
    }
}

/// Starts the network of a pod with this side of the filter.
pub(super) fn start_for(
    network: &Settled,
    jail: Confinement<'_>,
    pod: PodSide,
) -> Result<Started, RuntimeError> {
    let mut started = none(network);
    let nic = match (&network.chain, &network.plan, network.mode) {
        (Some((rules, carrier)), Some(plan), _) => {
            let chain = chain::make(rules, carrier, pod).map_err(NetError::Start)?;
            for helper in chain.helpers {
                started.processes.push(start_helper(helper, jail, &started.seen.messages)?);
            }
            started.seen.reports = Some(chain.reports);
            let Some(vmm) = chain.vmm else { return Ok(started) };
            Nic::Stream { mac: plan.mac, mtu: plan.mtu, socket: Arc::new(vmm) }
        }
        (None, Some(plan), Mode::User) => {
            let mut network = GATEWAY_6.segments();
            network[7] = 0;
            let network_6 = format!("{}/{PREFIX_6}", Ipv6Addr::from(network));
            Nic::User { mac: plan.mac, network_6 }
        }
        (_, _, Mode::Tsi) => Nic::Tsi,
        _ => return Ok(started),
    };
    started.nic = Some(nic);
    Ok(started)
}

fn start_helper(helper: Helper, jail: Confinement<'_>, tail: &ConsoleTail) -> Result<Process, RuntimeError> {
    let Helper { role, name, start, inherits, input } = helper;
    let mut process = match start {
        Start::Jailed(verb) => {
            let mut command = jail::command().map_err(NetError::Start)?;
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            jail::spawn_jailed(role, name, &mut command, &jail_of(verb, jail, &inherits), &[])
                .map_err(VmmError::Jail)?
        }
        Start::Itself(mut command) => {
            let given: Vec<_> = inherits.iter().map(|(fd, number)| (fd, *number)).collect();
            process::spawn_with(role, name, &mut command, &given).map_err(VmmError::Process)?
        }
    };
    process::tell(&mut process, &input).map_err(NetError::Start)?;
    if let Some(stderr) = process.child.stderr.take() {
        let tail = tail.clone();
        thread::start("stderr", move || tail.keep_too(stderr))?;
    }
    Ok(process)
}

/// The jail of the filter, which has its descriptors and nothing else, or of the NAT, which has the host's network too.
fn jail_of(verb: &str, jail: Confinement<'_>, inherits: &[(OwnedFd, i32)]) -> JailSpec {
    const FILTER: Limits = Limits { pids: 512, open_files: 64 };
    /// More than the caps of its tables together, so that a guest meets those first.
    const NAT: Limits = Limits { pids: 512, open_files: 4096 };
    let descriptor = |(fd, number): &(OwnedFd, i32)| Descriptor { here: fd.as_raw_fd(), there: *number };
    let (network, filter, limits) = match verb {
        NAT_VERB => (HostNetwork::Kept, SyscallFilter::Nat, NAT),
        _ => (HostNetwork::None, SyscallFilter::NetFilter, FILTER),
    };
    JailSpec {
        inside: Inside::Verb(verb.to_owned()),
        mounts: Vec::new(),
        devices: Vec::new(),
        procfs: Procfs::Absent,
        working_dir: PathBuf::from("/"),
        network,
        identity: jail::identity(jail.id, &[]),
        filter,
        limits,
        cgroup: jail.cgroup.clone(),
        descriptors: inherits.iter().map(descriptor).collect(),
        requirement: jail.requirement,
    }
}
