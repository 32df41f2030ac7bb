//! The connection of a pod with the network. Inbound: ports of the host that lead to ports of the pod ([`ports`], [`relay`]). Outbound:
//! the kind of network on this host ([`settle`]), what the pod may reach ([`rules`]), and the processes that carry its frames ([`chain`]:
//! our [`nat`] or passt, and our [`filter`] before it).
//!
//! Owns: frames, addresses, names, and how to start and configure the two processes. Must not know: pods, VMs and what runs them.

pub mod allow;
#[cfg(feature = "vmm")]
pub mod chain;
pub mod cni;
pub mod filter;
pub mod frames;
pub mod host;
pub mod names;
pub mod nat;
pub mod packet;
pub mod passt;
pub mod place;
pub mod ports;
#[cfg(feature = "vmm")]
mod process;
pub mod relay;
pub mod report;
pub mod rules;
pub mod settle;
mod stream;

#[cfg(feature = "vmm")]
pub use nat::process::{NAT_VERB, main as nat_main};
#[cfg(feature = "vmm")]
pub use process::{NET_VERB, main};

use magikvm_proto::plan::MacAddress;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The guest's address. Every pod has the same, since each is alone in its network.
pub const GUEST_4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway.
pub const GATEWAY_4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const DNS_4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Prefix length of its network.
pub const PREFIX_4: u8 = 24;
/// The guest's IPv6 address.
pub const GUEST_6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x616b, 0x766d, 0, 0, 0, 0, 0x15);
/// The IPv6 gateway.
pub const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x616b, 0x766d, 0, 0, 0, 0, 2);
pub const DNS_6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x616b, 0x766d, 0, 0, 0, 0, 3);
/// Prefix length of its IPv6 network.
pub const PREFIX_6: u8 = 64;
pub const GUEST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 2, 15]);
/// The MAC address of the NAT or of passt, the only other member of the network.
pub const PASST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 2, 2]);
/// The largest MTU of passt and the NAT. Larger packets mean fewer of them.
pub const MTU: u32 = 65_520;

/// Who provides the network of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// We do, as `magikvm.dev/network` says.
    #[default]
    Magikvm,
    /// The pod has the host's network (core/v1 `PodSpec.hostNetwork`).
    Host,
    /// The plugins of this network of CNI (`magikvm.dev/cni`).
    Cni(cni::NetworkName),
}

/// How a pod is connected (`magikvm.dev/network`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Through our NAT, behind our filter.
    Nat,
    /// Through passt, behind our filter.
    Passt,
    None,
    /// libkrun creates the guest's sockets on the host.
    Tsi,
    User,
    /// The pod has the host's network. `magikvm.dev/network` does not ask for this one and the next.
    Host,
    /// Others connect the pod.
    Cni,
}

impl Mode {
    /// Names in a manifest.
    pub const TABLE: [(&'static str, Self); 5] = [
        ("nat", Self::Nat),
        ("passt", Self::Passt),
        ("none", Self::None),
        ("tsi", Self::Tsi),
        ("user", Self::User),
    ];

    /// Whether the filter stands between the pod and the network.
    pub fn has_filter(self) -> bool {
        matches!(self, Self::Nat | Self::Passt)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Passt => "passt",
            Self::None => "none",
            Self::Tsi => "tsi",
            Self::User => "user",
            Self::Host => "host",
            Self::Cni => "cni",
        }
    }
}

/// Destinations that a pod may reach in addition to the default (`magikvm.dev/egress-reach`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The host's loopback, through the gateway's address.
    Loopback,
    Host,
    LinkLocal,
    /// Where clouds give a VM its secrets.
    Metadata,
}

impl Reach {
    /// Names in a manifest.
    pub const TABLE: [(&'static str, Self); 4] = [
        ("loopback", Self::Loopback),
        ("host", Self::Host),
        ("link-local", Self::LinkLocal),
        ("metadata", Self::Metadata),
    ];
}

/// The manifest's settings for outbound traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// `magikvm.dev/network`, if given.
    pub mode: Option<Mode>,
    /// `magikvm.dev/egress-allow`, if given: everything else is refused.
    pub allow: Option<allow::AllowList>,
    /// `magikvm.dev/egress-reach`.
    pub reach: Vec<Reach>,
    /// Custom name servers of the pod, if it does not use the host's.
    pub nameservers: Option<Vec<IpAddr>>,
}

/// The addresses of the pod, the gateway and the name server in this family.
pub fn family(of: IpAddr) -> [IpAddr; 3] {
    match of {
        IpAddr::V4(_) => [GUEST_4.into(), GATEWAY_4.into(), DNS_4.into()],
        IpAddr::V6(_) => [GUEST_6.into(), GATEWAY_6.into(), DNS_6.into()],
    }
}
