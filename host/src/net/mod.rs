//! What connects a pod with the network. Inwards: ports of this machine that lead to ports of the pod ([`ports`], [`relay`]). Outwards: which kind it has on this host ([`settle`]), what it may reach ([`rules`]), the processes that carry its frames
//! ([`chain`]: passt, and before it a filter of ours, [`filter`]).
//!
//! Owns: frames, addresses, names, and how the two processes are started and told what to do. Must not know: pods, machines and what runs them.

pub mod allow;
pub mod chain;
pub mod filter;
pub mod frames;
pub mod host;
pub mod names;
pub mod packet;
pub mod passt;
pub mod place;
pub mod ports;
mod process;
pub mod relay;
pub mod report;
pub mod rules;
pub mod settle;

pub use process::{NET_VERB, main};

use magikvm_proto::plan::MacAddress;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses are the same in every pod: each is alone in its network.
pub const GUEST_4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The way out of it.
pub const GATEWAY_4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const DNS_4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Bits of its network.
pub const PREFIX_4: u8 = 24;
/// The same for IPv6.
pub const GUEST_6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x616b, 0x766d, 0, 0, 0, 0, 0x15);
/// The way out of it.
pub const GATEWAY_6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x616b, 0x766d, 0, 0, 0, 0, 2);
pub const DNS_6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x616b, 0x766d, 0, 0, 0, 0, 3);
/// Bits of its network.
pub const PREFIX_6: u8 = 64;
pub const GUEST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 2, 15]);
/// Of everybody else in its network, which is passt.
pub const PASST_MAC: MacAddress = MacAddress([2, 0, 0, 0, 2, 2]);
/// What passt takes at most. The larger the packets, the fewer of them.
pub const MTU: u32 = 65_520;

/// How a pod is connected (`magikvm.dev/network`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By passt, behind our filter.
    Passt,
    None,
    /// The guest's sockets are made on the host by libkrun.
    Tsi,
    User,
}

impl Mode {
    /// Names in a manifest.
    pub const TABLE: [(&'static str, Self); 4] =
        [("passt", Self::Passt), ("none", Self::None), ("tsi", Self::Tsi), ("user", Self::User)];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passt => "passt",
            Self::None => "none",
            Self::Tsi => "tsi",
            Self::User => "user",
        }
    }
}

/// What a pod may reach that it can't by default (`magikvm.dev/egress-reach`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The host's loopback, as the gateway's address.
    Loopback,
    Host,
    LinkLocal,
    /// Where clouds tell a machine its secrets.
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

/// What a manifest says of the ways out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// `magikvm.dev/network`, if it is there.
    pub mode: Option<Mode>,
    /// `magikvm.dev/egress-allow`, if it is there: all else is refused.
    pub allow: Option<allow::AllowList>,
    /// `magikvm.dev/egress-reach`.
    pub reach: Vec<Reach>,
    /// Name servers of the pod's own, if it does not have the host's.
    pub nameservers: Option<Vec<IpAddr>>,
}

/// The pod's address of a family, the gateway's, the name server's.
pub fn family(of: IpAddr) -> [IpAddr; 3] {
    match of {
        IpAddr::V4(_) => [GUEST_4.into(), GATEWAY_4.into(), DNS_4.into()],
        IpAddr::V6(_) => [GUEST_6.into(), GATEWAY_6.into(), DNS_6.into()],
    }
}
