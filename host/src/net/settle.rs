//! Decides which network a pod has on this host, from its manifest and the host's abilities. Pure.

use super::host::{HostFiles, HostNetwork, Resolv};
use super::nat::NatConfig;
use super::passt::{PasstError, UdpPort, Wanted};
use super::rules::Rules;
use super::{
    DNS_4, DNS_6, Egress, GATEWAY_4, GATEWAY_6, GUEST_4, GUEST_6, GUEST_MAC, MTU, Mode, PASST_MAC, PREFIX_4,
    PREFIX_6, Reach,
};
use magikvm_proto::plan::{InterfaceAddress, MacAddress, Neighbour, NetworkPlan};
use std::net::IpAddr;
use std::path::PathBuf;

/// The MTU of QEMU's user network.
const USER_MTU: u32 = 1500;

/// The network devices of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ways {
    pub nic: bool,
    /// Sockets of the host (TSI).
    pub tsi: bool,
    pub user: bool,
}

/// Why a pod cannot have the network that it asks for.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error(
        "metadata.annotations.magikvm.dev/network: passt cannot be used: install it with `apt-get install passt`, or write nat"
    )]
    Passt(#[source] PasstError),
    #[error(
        "metadata.annotations.magikvm.dev/network: {} needs a default route, and the host has none for IPv4 or IPv6: \
         write none", .0.as_str()
    )]
    NoRoute(Mode),
    #[error("metadata.annotations.magikvm.dev/network: this VM has no network device for {0}")]
    NoDevice(&'static str),
    #[error(
        "metadata.annotations.magikvm.dev/network: tsi needs the kernel of libkrunfw: run with `--vmm krun --kernel libkrunfw`, or write nat"
    )]
    Tsi,
    #[error(
        "metadata.annotations.magikvm.dev/network: user is QEMU's own network: run with `--vmm qemu`, or write nat"
    )]
    User,
    /// An allow list without a filter.
    #[error("metadata.annotations.magikvm.dev/egress-allow: only the networks nat and passt have a filter")]
    NoFilter,
    /// UDP ports in a network that does not carry them.
    #[error("{origin}: only the networks nat and passt carry UDP ports, and the pod has the network {}", .mode.as_str())]
    NoDatagrams {
        /// Where the port was requested.
        origin: String,
        /// The network of the pod.
        mode: Mode,
    },
    /// A process of the network could not be started.
    #[error("cannot start the pod's network")]
    Start(#[source] std::io::Error),
}

/// Who carries the pod's packets to the host's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carrier {
    /// Our NAT, and the published UDP ports that are bound for it.
    Nat(NatConfig, Vec<UdpPort>),
    Passt(Wanted),
}

/// The network of a pod.
#[derive(Debug, Clone)]
pub struct Settled {
    pub mode: Mode,
    /// A warning for the user.
    pub warning: Option<String>,
    pub plan: Option<NetworkPlan>,
    /// The addresses of a pod whose interfaces others have set up.
    pub given: Vec<IpAddr>,
    /// Those of the host, for a pod in its network.
    pub files: Option<HostFiles>,
    /// The settings of the filter and of the carrier behind it.
    pub chain: Option<(Rules, Carrier)>,
    /// The containers' DNS settings, before those of the manifest.
    pub resolv: Resolv,
    /// The host's name servers behind the pod's forwarders. The pod asks these servers through the forwarders only: they may be on the host's
    /// loopback, and passt lets all their answers come from the forwarder, whichever was asked.
    pub forwarded: Vec<(IpAddr, IpAddr)>,
    /// An address of the host.
    pub host_address: Option<IpAddr>,
}

impl Settled {
    pub fn addresses(&self) -> Vec<IpAddr> {
        let planned = self.plan.iter().flat_map(|plan| &plan.addresses).map(|one| one.address);
        planned.chain(self.given.iter().copied()).collect()
    }

    /// The host name of the pod: that of its plan, unless it has the host's.
    pub fn hostname<'a>(&'a self, planned: &'a str) -> &'a str {
        match &self.files {
            Some(HostFiles { hostname, .. }) if !hostname.is_empty() => hostname,
            _ => planned,
        }
    }

    pub fn none(warning: Option<String>) -> Self {
        Self {
            mode: Mode::None,
            warning,
            plan: None,
            given: Vec::new(),
            files: None,
            chain: None,
            resolv: Resolv::default(),
            forwarded: Vec::new(),
            host_address: None,
        }
    }
}

/// Decides the network. `passt` is the program if it can be used.
pub fn settle(
    egress: &Egress,
    published_udp: &[UdpPort],
    ways: Ways,
    host: &HostNetwork,
    passt: impl FnOnce() -> Result<PathBuf, PasstError>,
) -> Result<Settled, NetError> {
    let unfiltered = || if egress.allow.is_some() { Err(NetError::NoFilter) } else { Ok(()) };
    match egress.mode {
        Some(Mode::None) => Ok(Settled::none(None)),
        Some(Mode::Host) => Ok(of_host(host)),
        Some(Mode::Cni) => Ok(given(Vec::new(), Resolv::default(), host)),
        Some(Mode::Tsi) if !ways.tsi => Err(NetError::Tsi),
        Some(Mode::Tsi) => unfiltered().map(|()| tsi(host)),
        Some(Mode::User) if !ways.user => Err(NetError::User),
        Some(Mode::User) => unfiltered().map(|()| user(host)),
        Some(mode @ (Mode::Nat | Mode::Passt)) if !ways.nic => Err(NetError::NoDevice(mode.as_str())),
        Some(Mode::Nat) => filtered(egress, published_udp, host, None).ok_or(NetError::NoRoute(Mode::Nat)),
        Some(Mode::Passt) => {
            let program = passt().map_err(NetError::Passt)?;
            filtered(egress, published_udp, host, Some(program)).ok_or(NetError::NoRoute(Mode::Passt))
        }
        None if !ways.nic => Ok(Settled::none(None)),
        None => Ok(filtered(egress, published_udp, host, None).unwrap_or_else(|| {
            let why = "the pod has no network, since the host has no default route; \
                       the annotation magikvm.dev/network: none says that none is wanted";
            Settled::none(Some(why.to_owned()))
        })),
    }
}

fn plan(host: &HostNetwork, mtu: u32, mac: Option<MacAddress>) -> NetworkPlan {
    let neighbour = |address: IpAddr| Neighbour { address, mac };
    let mut plan =
        NetworkPlan { mac: GUEST_MAC, mtu, addresses: vec![], gateways: vec![], neighbours: vec![] };
    if host.has_4() {
        plan.addresses.push(InterfaceAddress { address: GUEST_4.into(), prefix: PREFIX_4 });
        plan.gateways.push(neighbour(GATEWAY_4.into()));
        plan.neighbours.push(neighbour(DNS_4.into()));
    }
    if host.has_6() {
        plan.addresses.push(InterfaceAddress { address: GUEST_6.into(), prefix: PREFIX_6 });
        plan.gateways.push(neighbour(GATEWAY_6.into()));
        plan.neighbours.push(neighbour(DNS_6.into()));
    }
    plan
}

/// The host's first name server of each family, and the pod's forwarder that asks it.
fn forwarded(host: &HostNetwork) -> Vec<(IpAddr, IpAddr)> {
    let first = |v4: bool| host.resolv.nameservers.iter().copied().find(|server| server.is_ipv4() == v4);
    let four = first(true).filter(|_| host.has_4()).map(|server| (server, IpAddr::V4(DNS_4)));
    let six = first(false).filter(|_| host.has_6()).map(|server| (server, IpAddr::V6(DNS_6)));
    four.into_iter().chain(six).collect()
}

fn forwarders(host: &HostNetwork) -> Vec<IpAddr> {
    forwarded(host).into_iter().map(|(_, forwarder)| forwarder).collect()
}

/// A network behind the filter, over our NAT or over this passt. `None` if the host has no default route.
fn filtered(
    egress: &Egress,
    published_udp: &[UdpPort],
    host: &HostNetwork,
    passt: Option<PathBuf>,
) -> Option<Settled> {
    /// Permits answers longer than 512 bytes, where the forwarder has no TCP for a retry.
    const LONG_ANSWERS: &str = "edns0";
    let plan = plan(host, MTU, Some(PASST_MAC));
    if plan.addresses.is_empty() {
        return None;
    }
    let mode = if passt.is_some() { Mode::Passt } else { Mode::Nat };
    // With an allow-list the filter is the resolver, and it reads UDP.
    let dns_by_tcp = mode == Mode::Nat && egress.allow.is_none();
    let mut resolv = Resolv { nameservers: forwarders(host), ..host.resolv.clone() };
    if !dns_by_tcp && !resolv.options.iter().any(|option| option == LONG_ANSWERS) {
        resolv.options.push(LONG_ANSWERS.to_owned());
    }
    let nameservers = resolv.nameservers.iter().copied().chain(egress.nameservers.iter().flatten().copied());
    let rules = Rules {
        guest: plan.addresses.iter().map(|one| one.address).collect(),
        nameservers: nameservers.collect(),
        dns_by_tcp,
        host: host.addresses.clone(),
        reach: egress.reach.iter().copied().collect(),
        allow: egress.allow.clone(),
        published_udp: published_udp.iter().map(|port| port.guest).collect(),
    };
    let carrier = match passt {
        None => {
            let config = NatConfig {
                gateway_is_loopback: egress.reach.contains(&Reach::Loopback),
                forwarders: forwarded(host)
                    .into_iter()
                    .map(|(server, forwarder)| (forwarder, server))
                    .collect(),
                published: published_udp.iter().map(|port| port.guest).collect(),
            };
            Carrier::Nat(config, published_udp.to_vec())
        }
        Some(program) => Carrier::Passt(Wanted {
            program,
            v4: host.has_4(),
            v6: host.has_6(),
            // Answers to UDP packets from the host itself also return through the loopback.
            maps_loopback: egress.reach.contains(&Reach::Loopback) || !published_udp.is_empty(),
            published_udp: published_udp.to_vec(),
        }),
    };
    Some(Settled {
        mode,
        warning: None,
        plan: Some(plan),
        chain: Some((rules, carrier)),
        resolv,
        forwarded: forwarded(host),
        host_address: host.any_address(),
        ..Settled::none(None)
    })
}

/// The network of the host itself.
pub fn of_host(host: &HostNetwork) -> Settled {
    let warning = "spec.hostNetwork: the pod shares the network of the host: nothing filters what it sends, it reaches every service of the host, \
                   also those on its loopback and on abstract Unix sockets, and its ports are ports of the host";
    Settled {
        mode: Mode::Host,
        warning: Some(warning.to_owned()),
        given: [true, false].into_iter().filter_map(|v4| host.address(v4)).collect(),
        files: Some(host.files.clone()),
        resolv: host.resolv.clone(),
        host_address: host.any_address(),
        ..Settled::none(None)
    }
}

/// A network that others have set up. Without name servers of its own it has those of the host that it can reach.
pub fn given(addresses: Vec<IpAddr>, dns: Resolv, host: &HostNetwork) -> Settled {
    let mut of_host = host.resolv.clone();
    of_host.nameservers.retain(|server| !server.is_loopback());
    let resolv = if dns.nameservers.is_empty() { of_host } else { dns };
    Settled {
        mode: Mode::Cni,
        given: addresses,
        resolv,
        host_address: host.any_address(),
        ..Settled::none(None)
    }
}

fn tsi(host: &HostNetwork) -> Settled {
    let warning = "magikvm.dev/network: tsi: the pod's sockets are the host's, and reach everything that the host reaches, including its loopback";
    Settled {
        mode: Mode::Tsi,
        warning: Some(warning.to_owned()),
        resolv: host.resolv.clone(),
        host_address: host.any_address(),
        ..Settled::none(None)
    }
}

fn user(host: &HostNetwork) -> Settled {
    let warning =
        "magikvm.dev/network: user: QEMU's own network has no filter, and its gateway is the host's loopback";
    let resolv = Resolv { nameservers: forwarders(host), ..host.resolv.clone() };
    Settled {
        mode: Mode::User,
        warning: Some(warning.to_owned()),
        plan: Some(plan(host, USER_MTU, None)),
        resolv,
        host_address: host.any_address(),
        ..Settled::none(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::allow::AllowList;
    use std::path::PathBuf;

    const ALL: Ways = Ways { nic: true, tsi: true, user: true };

    fn host() -> HostNetwork {
        HostNetwork {
            addresses: ["127.0.0.1", "::1", "192.0.2.2", "fe80::1", "2001:db8::2"]
                .map(|text| text.parse().unwrap())
                .into(),
            routes_4: true,
            routes_6: true,
            ping_groups: None,
            resolv: Resolv::parse("nameserver 127.0.0.53\nsearch lan\n"),
            files: HostFiles::default(),
        }
    }

    #[test]
    fn the_network_of_the_host_is_shared_as_it_is() {
        let settled = of_host(&host());
        let addresses = ["192.0.2.2", "2001:db8::2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!((settled.mode, settled.addresses()), (Mode::Host, addresses.to_vec()));
        assert_eq!(settled.host_address, Some(addresses[0]));
        assert_eq!(settled.resolv.text(), "search lan\nnameserver 127.0.0.53\n");
        assert!(settled.plan.is_none() && settled.chain.is_none() && settled.warning.is_some());
    }

    fn there() -> Result<PathBuf, PasstError> {
        Ok("/usr/bin/passt".into())
    }

    fn asking(mode: Option<Mode>) -> Egress {
        Egress { mode, ..Egress::default() }
    }

    #[test]
    fn a_network_of_others_has_its_name_servers_or_the_hosts() {
        let own = Resolv::parse("nameserver 10.9.0.1\n");
        let settled = given(vec!["10.9.0.2".parse().unwrap()], own.clone(), &host());
        assert_eq!((settled.mode, settled.resolv), (Mode::Cni, own));
        // The host's only server is on its loopback.
        let settled = given(Vec::new(), Resolv::default(), &host());
        assert_eq!(settled.resolv.text(), "search lan\n");
    }

    #[test]
    fn our_nat_is_the_default() {
        let settled = settle(&asking(None), &[], ALL, &host(), || Err(PasstError::Missing)).unwrap();
        assert_eq!((settled.mode, settled.warning), (Mode::Nat, None));
        assert_eq!(settled.plan.unwrap().addresses.len(), 2);
        assert_eq!(settled.resolv.text(), "search lan\nnameserver 10.0.2.3\n");
        let (rules, carrier) = settled.chain.unwrap();
        assert!(rules.dns_by_tcp);
        assert_eq!(rules.nameservers.into_iter().collect::<Vec<_>>(), [IpAddr::V4(DNS_4)]);
        let config = NatConfig {
            gateway_is_loopback: false,
            forwarders: vec![(DNS_4.into(), "127.0.0.53".parse().unwrap())],
            published: Vec::new(),
        };
        assert_eq!(carrier, Carrier::Nat(config, Vec::new()));
        let listed = Egress { allow: Some(AllowList::default()), ..asking(None) };
        let settled = settle(&listed, &[], ALL, &host(), there).unwrap();
        assert!(settled.resolv.text().ends_with("options edns0\n") && !settled.chain.unwrap().0.dns_by_tcp);
    }

    #[test]
    fn passt_is_there_when_asked_for() {
        let settled = settle(&asking(Some(Mode::Passt)), &[], ALL, &host(), there).unwrap();
        assert_eq!((settled.mode, settled.warning), (Mode::Passt, None));
        assert_eq!(settled.resolv.text(), "search lan\nnameserver 10.0.2.3\noptions edns0\n");
        let (rules, carrier) = settled.chain.unwrap();
        let Carrier::Passt(wanted) = carrier else { panic!("{carrier:?}") };
        assert!(!wanted.maps_loopback && wanted.v4 && wanted.v6 && !rules.dns_by_tcp);
    }

    #[test]
    fn without_a_way_out_there_is_none_with_a_warning() {
        let settled = settle(&asking(None), &[], ALL, &HostNetwork::default(), there).unwrap();
        assert!(settled.plan.is_none() && settled.warning.unwrap().contains("no default route"));
    }

    #[test]
    fn what_is_asked_for_and_can_not_be_is_an_error() {
        let missing = || Err(PasstError::Missing);
        let none = Ways { nic: false, tsi: false, user: false };
        let wanted = |mode, ways| settle(&asking(Some(mode)), &[], ways, &host(), there);
        assert!(matches!(
            settle(&asking(Some(Mode::Passt)), &[], ALL, &host(), missing),
            Err(NetError::Passt(_))
        ));
        assert!(matches!(wanted(Mode::Tsi, none), Err(NetError::Tsi)));
        assert!(matches!(wanted(Mode::User, none), Err(NetError::User)));
        for mode in [Mode::Nat, Mode::Passt] {
            assert!(matches!(wanted(mode, none), Err(NetError::NoDevice(_))));
            let offline = settle(&asking(Some(mode)), &[], ALL, &HostNetwork::default(), there);
            assert!(matches!(offline, Err(NetError::NoRoute(_))));
        }
        for mode in [Mode::Tsi, Mode::User] {
            let listed = Egress { allow: Some(AllowList::default()), ..asking(Some(mode)) };
            assert!(matches!(settle(&listed, &[], ALL, &host(), there), Err(NetError::NoFilter)));
        }
    }

    #[test]
    fn a_pod_has_the_families_that_the_host_has() {
        let only_6 = HostNetwork { routes_4: false, ..host() };
        let settled = settle(&asking(None), &[], ALL, &only_6, there).unwrap();
        assert_eq!(settled.addresses(), [IpAddr::V6(GUEST_6)]);
        assert!(settled.resolv.nameservers.is_empty(), "its only server is one of IPv4");
    }
}
