//! Between a pod and [`crate::net`]: what its network is, and its processes, which are the machine's.

use super::{RuntimeError, SandboxNetwork};
use crate::manifest::PodPlan;
use crate::net::chain::{self, Helper};
use crate::net::host::HostNetwork;
use crate::net::settle::{NetError, Settled, Ways};
use crate::net::{GATEWAY_6, Mode, PREFIX_6, passt, settle};
use crate::vmm::console::ConsoleTail;
use crate::vmm::nic::Nic;
use crate::vmm::process::{self, Process};
use crate::vmm::{KernelChoice, VmmKind, find_program};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::Arc;

/// What a driver can give a machine.
pub(super) fn ways(kind: VmmKind, kernel: KernelChoice) -> Ways {
    match kind {
        VmmKind::Krun => Ways { nic: true, tsi: kernel == KernelChoice::Libkrunfw, user: false },
        VmmKind::Qemu => Ways { nic: true, tsi: false, user: true },
        #[cfg(feature = "testing")]
        VmmKind::Fake => Ways { nic: false, tsi: false, user: false },
    }
}

/// What the pod's network is on this host.
pub(super) fn settle(plan: &PodPlan, ways: Ways) -> Result<Settled, NetError> {
    let host = HostNetwork::look();
    let passt = || {
        let named = std::env::var_os("MAGIKVM_PASST").map(PathBuf::from);
        passt::check(named.or_else(|| find_program("passt")).as_deref()).map(ToOwned::to_owned)
    };
    settle::settle(&plan.network.egress, &[], ways, &host, passt)
}

/// A network whose processes run.
pub(super) struct Started {
    /// For the VMM.
    pub(super) nic: Option<Nic>,
    /// To be watched with the VMM's.
    pub(super) processes: Vec<Process>,
    /// For the monitor.
    pub(super) seen: SandboxNetwork,
}

/// Starts it. What its processes complain of goes with the console's lines.
pub(super) fn start(network: &Settled, tail: &ConsoleTail) -> Result<Started, RuntimeError> {
    let mut started = Started {
        nic: None,
        processes: Vec::new(),
        seen: SandboxNetwork {
            addresses: network.addresses(),
            host_address: network.host_address,
            reports: None,
        },
    };
    let nic = match (&network.chain, &network.plan, network.mode) {
        (Some((rules, wanted)), Some(plan), _) => {
            let program = std::env::current_exe().map_err(NetError::Start)?;
            let chain = chain::make(&program, rules, wanted).map_err(NetError::Start)?;
            for helper in chain.helpers {
                started.processes.push(start_helper(helper, tail)?);
            }
            started.seen.reports = Some(chain.reports);
            Nic::Stream { mac: plan.mac, mtu: plan.mtu, socket: Arc::new(chain.vmm) }
        }
        (None, Some(plan), Mode::User) => {
            let mut network = GATEWAY_6.segments();
            network[7] = 0;
            let network_6 = format!("{}/{PREFIX_6}", std::net::Ipv6Addr::from(network));
            Nic::User { mac: plan.mac, network_6 }
        }
        (_, _, Mode::Tsi) => Nic::Tsi,
        _ => return Ok(started),
    };
    started.nic = Some(nic);
    Ok(started)
}

fn start_helper(helper: Helper, tail: &ConsoleTail) -> Result<Process, RuntimeError> {
    let Helper { name, mut command, inherits, input } = helper;
    let given: Vec<_> = inherits.iter().map(|(fd, number)| (fd, *number)).collect();
    let mut process = process::spawn_with(name, &mut command, &given)?;
    if let Some(mut stdin) = process.child.stdin.take() {
        match stdin.write_all(&input) {
            // It has ended already; how, is seen by whoever waits for it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written.map_err(NetError::Start)?,
        }
    }
    if let Some(stderr) = process.child.stderr.take() {
        let tail = tail.clone();
        std::thread::spawn(move || tail.keep_too(stderr));
    }
    Ok(process)
}
