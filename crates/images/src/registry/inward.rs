//! Addresses that a registry must not lead to: the host itself, its link, and the metadata services of clouds, which give secrets to
//! whoever asks from the inside.
//!
//! A redirect or a token server's address is checked when it is written as an address, and again when its name is resolved for the
//! connection, so that no name and no change of it leads there. A registry that is at such an address itself may lead to others of the
//! same kind. Names that a proxy resolves are out of reach.

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kind of addresses that only the host itself should reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Inside {
    /// 127.0.0.0/8, `::1`, and the unspecified addresses, which Linux connects to the host itself.
    Host,
    /// 169.254.0.0/16 and fe80::/10.
    Link,
    /// Metadata services of clouds.
    Metadata,
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "the host itself",
            Self::Link => "the host's own link",
            Self::Metadata => "a cloud's metadata service",
        })
    }
}

/// An address inside, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inward {
    pub(super) address: IpAddr,
    pub(super) inside: Inside,
}

impl fmt::Display for Inward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is an address of {}", self.address, self.inside)
    }
}

impl Error for Inward {}

/// Metadata services: AWS, Azure, Google and others; AWS; Alibaba; Oracle; Azure's host agent.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// AWS and Google.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Where an address is, if it is inside.
fn inside(address: IpAddr) -> Option<Inside> {
    let address = match address {
        IpAddr::V6(address) => embedded(address).map_or(IpAddr::V6(address), IpAddr::V4),
        address => address,
    };
    match address {
        IpAddr::V4(address) if METADATA_V4.contains(&address) => Some(Inside::Metadata),
        IpAddr::V6(address) if METADATA_V6.contains(&address) => Some(Inside::Metadata),
        // 0.0.0.0/8 is "this host".
        IpAddr::V4(address) if address.is_loopback() || address.octets()[0] == 0 => Some(Inside::Host),
        IpAddr::V6(address) if address.is_loopback() || address.is_unspecified() => Some(Inside::Host),
        IpAddr::V4(address) if address.is_link_local() => Some(Inside::Link),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some(Inside::Link),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped (::ffff:0:0/96), compatible (::/96), NAT64 (64:ff9b::/96), 6to4 (2002::/16).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    let of = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => Some(of(high, low)),
        // `::` and `::1` are not IPv4.
        [0, 0, 0, 0, 0, 0] if high != 0 => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

/// Decides which addresses one registry may lead to, and resolves names for its connections.
#[derive(Debug, Clone)]
pub(super) struct Guard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The registry's host, as in its address.
    home: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The kinds that the registry itself is at; `None` while its name was not resolved yet.
    home: Option<BTreeSet<Inside>>,
    /// Names that the registry led to.
    led_to: BTreeSet<String>,
}

impl Guard {
    pub(super) fn new(home: &Url) -> Self {
        let classes = literal(home).map(|address| inside(address).into_iter().collect());
        let state = Mutex::new(State { home: classes, led_to: BTreeSet::new() });
        Self(Arc::new(Shared { home: host(home), state }))
    }

    /// Checks an address before a request goes there, and has its name checked when it is resolved.
    pub(super) fn admit(&self, url: &Url) -> Result<(), Inward> {
        let name = host(url);
        if name == self.0.home {
            return Ok(());
        }
        if let Some(address) = literal(url) {
            return self.0.check(address);
        }
        self.0.state().led_to.insert(name);
        Ok(())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, address: IpAddr) -> Result<(), Inward> {
        let state = self.state();
        match inside(address) {
            Some(inside) if !state.home.as_ref().is_some_and(|home| home.contains(&inside)) => {
                Err(Inward { address, inside })
            }
            _ => Ok(()),
        }
    }

    /// The addresses of a name that may be used.
    fn usable(&self, name: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Inward> {
        {
            let mut state = self.state();
            if name == self.home {
                // The first answer says where the registry is; a later one cannot move it inside.
                let classes = || found.iter().filter_map(|address| inside(address.ip())).collect();
                state.home.get_or_insert_with(classes);
            } else if !state.led_to.contains(name) {
                // A proxy of the environment.
                return Ok(found);
            }
        }
        let mut refused = None;
        let usable: Vec<_> = found
            .into_iter()
            .filter(|address| self.check(address.ip()).map_err(|inward| refused = Some(inward)).is_ok())
            .collect();
        match refused {
            Some(inward) if usable.is_empty() => Err(inward),
            _ => Ok(usable),
        }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let name = name.as_str().to_ascii_lowercase();
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let usable: Addrs = Box::new(shared.usable(&name, found)?.into_iter());
            Ok(usable)
        })
    }
}

/// The host of an address, in the form in which its name is resolved.
fn host(url: &Url) -> String {
    url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase()
}

fn literal(url: &Url) -> Option<IpAddr> {
    host(url).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::block_on;
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn addresses_inside_are_known_in_all_their_forms() {
        let of = |text: &str| inside(text.parse().unwrap());
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
        ] {
            assert_eq!(of(host), Some(Inside::Host), "{host}");
        }
        for link in ["169.254.1.1", "fe80::1", "febf::1", "::ffff:169.254.1.1"] {
            assert_eq!(of(link), Some(Inside::Link), "{link}");
        }
        for metadata in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fd00:ec2::254",
            "100.100.100.200",
            "2002:a9fe:a9fe::1",
        ] {
            assert_eq!(of(metadata), Some(Inside::Metadata), "{metadata}");
        }
        for outside in
            ["192.0.2.1", "10.0.0.1", "192.168.1.1", "2001:db8::1", "fd00::1", "fec0::1", "169.253.0.1"]
        {
            assert_eq!(of(outside), None, "{outside}");
        }
    }

    #[test]
    fn a_registry_leads_only_to_its_own_kind_of_place() {
        let outside = Guard::new(&url("https://192.0.2.1/"));
        let local = Guard::new(&url("http://127.0.0.1:5000/"));
        let link = Guard::new(&url("http://[fe80::1]:5000/"));
        // Browsers' and URLs' spellings of an address are one address.
        for spelled in
            ["http://127.0.0.1/", "http://127.1/", "http://0x7f000001/", "http://[::1]/", "http://0/"]
        {
            let target = url(spelled);
            assert!(outside.admit(&target).is_err() && link.admit(&target).is_err(), "{spelled}");
            local.admit(&target).unwrap();
        }
        let metadata = url("http://169.254.169.254/latest/meta-data/");
        for guard in [&outside, &local, &link] {
            let error = guard.admit(&metadata).unwrap_err();
            assert_eq!(error.to_string(), "169.254.169.254 is an address of a cloud's metadata service");
            guard.admit(&url("https://10.0.0.1/")).unwrap();
        }
        assert!(
            link.admit(&url("http://169.254.3.4/")).is_ok()
                && local.admit(&url("http://[fe80::2]/")).is_err()
        );
    }

    #[test]
    fn names_are_judged_by_what_they_resolve_to() {
        let resolve = |guard: &Guard, name: &str| {
            let found = block_on(guard.resolve(name.parse().unwrap()));
            found.map(|found| found.count()).map_err(|error| *error.downcast::<Inward>().unwrap())
        };
        let outside = Guard::new(&url("https://registry.example/"));
        // A proxy may be on the host.
        assert!(resolve(&outside, "localhost").unwrap() > 0);
        outside.admit(&url("https://LOCALHOST:8080/token")).unwrap();
        assert_eq!(resolve(&outside, "localhost").unwrap_err().inside, Inside::Host);
        let local = Guard::new(&url("http://localhost:5000/"));
        assert!(resolve(&local, "localhost").unwrap() > 0);
        local.admit(&url("http://127.0.0.1:9/")).unwrap();
    }

    #[test]
    fn a_registry_that_moves_inside_later_is_not_followed() {
        let guard = Guard::new(&url("https://registry.example/"));
        let at = |text: &str| vec![SocketAddr::new(text.parse().unwrap(), 0)];
        assert_eq!(guard.0.usable("registry.example", at("192.0.2.1")).unwrap(), at("192.0.2.1"));
        assert_eq!(guard.0.usable("registry.example", at("127.0.0.1")).unwrap_err().inside, Inside::Host);
        // Addresses outside are used, whatever else a name has.
        guard.admit(&url("https://cdn.example/")).unwrap();
        let both = [at("169.254.169.254"), at("192.0.2.2")].concat();
        assert_eq!(guard.0.usable("cdn.example", both).unwrap(), at("192.0.2.2"));
    }
}
