//! The kind of an address, from the view of a sender on the host. Pure.

use super::{GATEWAY_4, GATEWAY_6, GUEST_4, GUEST_6, PREFIX_4, PREFIX_6, Reach};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Metadata services of clouds: most of them; Google over IPv6; Amazon over IPv6; Alibaba; Azure; Oracle.
const METADATA: [IpAddr; 6] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// A special kind of address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The host's loopback, in any notation.
    Loopback,
    /// An address of the host.
    Host,
    LinkLocal,
    /// Where a cloud gives a VM its secrets.
    Metadata,
    Multicast,
    /// The pod's network, which contains only its gateway and its name server.
    OwnNetwork,
    /// Used by nobody, or another notation of an address that must be written plainly.
    Reserved,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "the host's loopback",
            Self::Host => "an address of the host",
            Self::LinkLocal => "link-local",
            Self::Metadata => "a cloud's metadata",
            Self::Multicast => "multicast",
            Self::OwnNetwork => "nobody in the pod's network",
            Self::Reserved => "a reserved address",
        })
    }
}

impl Place {
    /// The setting that opens it, if there is one.
    pub fn opened_by(self) -> Option<Reach> {
        match self {
            Self::Loopback => Some(Reach::Loopback),
            Self::Host => Some(Reach::Host),
            Self::LinkLocal => Some(Reach::LinkLocal),
            Self::Metadata => Some(Reach::Metadata),
            Self::Multicast | Self::OwnNetwork | Self::Reserved => None,
        }
    }
}

/// The kind of this address on a host with these addresses; `None` for an ordinary address.
pub fn of(address: IpAddr, host: &BTreeSet<IpAddr>) -> Option<Place> {
    if METADATA.contains(&address) {
        return Some(Place::Metadata);
    }
    if address == GATEWAY_4 || address == GATEWAY_6 {
        return Some(Place::Loopback);
    }
    let place = match address {
        IpAddr::V4(four) => of_4(four),
        IpAddr::V6(six) => of_6(six, host),
    };
    // The host may have an address within 169.254.0.0/16 or the like. It is open only if both kinds are open.
    place.or_else(|| host.contains(&address).then_some(Place::Host))
}

fn same_network(a: &[u8], b: &[u8], prefix: u8) -> bool {
    let bytes = usize::from(prefix / 8);
    a[..bytes] == b[..bytes]
}

fn of_4(address: Ipv4Addr) -> Option<Place> {
    let [first, second, ..] = address.octets();
    match first {
        // 0.0.0.0 also means this host, and Linux treats it as its loopback.
        0 | 127 => Some(Place::Loopback),
        169 if second == 254 => Some(Place::LinkLocal),
        224..=239 => Some(Place::Multicast),
        240..=254 => Some(Place::Reserved),
        255 if address == Ipv4Addr::BROADCAST => Some(Place::Multicast),
        255 => Some(Place::Reserved),
        _ => same_network(&address.octets(), &GUEST_4.octets(), PREFIX_4).then_some(Place::OwnNetwork),
    }
}

fn of_6(address: Ipv6Addr, host: &BTreeSet<IpAddr>) -> Option<Place> {
    let octets = address.octets();
    let at = |from: usize| -> Option<IpAddr> {
        let four: [u8; 4] = octets.get(from..from + 4)?.try_into().ok()?;
        Some(IpAddr::V4(four.into()))
    };
    if address == Ipv6Addr::UNSPECIFIED || address == Ipv6Addr::LOCALHOST {
        return Some(Place::Loopback);
    }
    match octets {
        [0xff, ..] => Some(Place::Multicast),
        [0xfe, second, ..] if second & 0xc0 == 0x80 => Some(Place::LinkLocal),
        // IPv4 embedded in IPv6 (mapped, compatible): a socket of the host would unwrap it.
        [0, 0, 0, 0, 0, 0, 0, 0, ..] => at(12).and_then(|four| of(four, host)).or(Some(Place::Reserved)),
        // A translator or tunnel may unwrap these, so the embedded address counts (64:ff9b::/96, 64:ff9b:1::/48 with its layouts,
        // 2002::/16).
        [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, ..] => at(12).and_then(|four| of(four, host)),
        [0, 0x64, 0xff, 0x9b, ..] => Some(Place::Reserved),
        [0x20, 0x02, ..] => at(2).and_then(|four| of(four, host)),
        _ => same_network(&octets, &GUEST_6.octets(), PREFIX_6).then_some(Place::OwnNetwork),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(text: &str) -> Option<Place> {
        let host = BTreeSet::from(["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()]);
        of(text.parse().unwrap(), &host)
    }

    #[test]
    fn every_notation_of_a_place_is_known() {
        let cases: [(Place, &[&str]); 7] = [
            (
                Place::Loopback,
                &[
                    "127.0.0.1",
                    "127.255.1.1",
                    "0.0.0.0",
                    "0.1.2.3",
                    "::1",
                    "::",
                    "::ffff:127.0.0.1",
                    "::127.0.0.1",
                    "64:ff9b::7f00:1",
                    "2002:7f00:1::1",
                    "10.0.2.2",
                    "fd6d:616b:766d::2",
                    "::ffff:0.0.0.0",
                ],
            ),
            (Place::Host, &["192.0.2.2", "2001:db8::2", "::ffff:192.0.2.2", "64:ff9b::c000:202"]),
            (Place::LinkLocal, &["169.254.1.1", "fe80::1", "febf::1", "::ffff:169.254.3.4"]),
            (
                Place::Metadata,
                &[
                    "169.254.169.254",
                    "fd00:ec2::254",
                    "::ffff:169.254.169.254",
                    "64:ff9b::a9fe:a9fe",
                    "fd20:ce::254",
                ],
            ),
            (Place::Multicast, &["224.0.0.251", "239.1.1.1", "255.255.255.255", "ff02::1"]),
            (Place::OwnNetwork, &["10.0.2.3", "10.0.2.255", "fd6d:616b:766d::99"]),
            (
                Place::Reserved,
                &["240.0.0.1", "255.1.1.1", "::ffff:8.8.8.8", "::8.8.8.8", "64:ff9b:1::7f00:1"],
            ),
        ];
        for (expected, addresses) in cases {
            for address in addresses {
                assert_eq!(place(address), Some(expected), "{address}");
            }
        }
        for somewhere in ["8.8.8.8", "10.0.3.3", "192.168.1.1", "2001:db8::3", "fd00::1", "64:ff9b::808:808"]
        {
            assert_eq!(place(somewhere), None, "{somewhere}");
        }
    }

    proptest! {
        #[test]
        fn what_ipv4_is_its_ipv6_notation_is_too(four: u32) {
            let plain = of(Ipv4Addr::from(four).into(), &BTreeSet::new());
            let mapped = of(Ipv4Addr::from(four).to_ipv6_mapped().into(), &BTreeSet::new());
            prop_assert_eq!(mapped, plain.or(Some(Place::Reserved)));
        }
    }
}
