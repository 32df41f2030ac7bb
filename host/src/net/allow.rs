//! `magikvm.dev/egress-allow`: the only destinations that a pod may reach. Pure.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// Most entries of a list.
pub const MAX_ENTRIES: usize = 256;
/// Longest name (RFC 1035) and label.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Why a list is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    #[error("has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// Nothing between two commas.
    #[error("has an empty entry")]
    Empty,
    #[error("{0:?} has no port from 1 to 65535 after its colon")]
    Port(String),
    /// An IPv6 address with a port, which would be read as a part of the address.
    #[error("{0:?} is not a network; a port of an IPv6 network is written [NETWORK]:PORT")]
    Network(String),
    /// Bits after the prefix.
    #[error("{entry:?} has bits after its prefix; the network is {network}")]
    Bits { entry: String, network: Network },
    #[error("{0:?} is not a host name")]
    Name(String),
}

/// A network: addresses with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

fn number(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(four) => (u128::from(four.to_bits()), 32),
        IpAddr::V6(six) => (six.to_bits(), 128),
    }
}

impl Network {
    /// Whether an address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        let ((own, bits), (other, other_bits)) = (number(self.address), number(address));
        let rest = u32::from(bits.saturating_sub(self.prefix));
        bits == other_bits && own.checked_shr(rest).unwrap_or(0) == other.checked_shr(rest).unwrap_or(0)
    }

    /// Parses `ADDRESS` or `ADDRESS/PREFIX`. `None`: not even an address.
    fn parse(entry: &str, text: &str) -> Option<Result<Self, AllowError>> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address.parse().ok()?, Some(prefix)),
            None => (text.parse().ok()?, None),
        };
        let (value, bits) = number(address);
        let network = || AllowError::Network(entry.to_owned());
        let prefix = match prefix {
            None => bits,
            Some(digits) => match digits.parse().ok().filter(|&prefix: &u8| prefix <= bits) {
                Some(prefix) if digits.bytes().all(|byte| byte.is_ascii_digit()) => prefix,
                _ => return Some(Err(network())),
            },
        };
        let rest = u32::from(bits - prefix);
        let first = value.checked_shr(rest).unwrap_or(0).checked_shl(rest).unwrap_or(0);
        if first != value {
            let address = match address {
                IpAddr::V4(_) => IpAddr::V4(u32::try_from(first).unwrap_or(0).into()),
                IpAddr::V6(_) => IpAddr::V6(first.into()),
            };
            let network = Self { address, prefix };
            return Some(Err(AllowError::Bits { entry: entry.to_owned(), network }));
        }
        Some(Ok(Self { address, prefix }))
    }
}

/// A host name in lower case without the last dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostName(String);

impl HostName {
    /// Accepts letters, digits, `-` and `_`, in labels of at most 63.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        (text.len() <= MAX_NAME && text.split('.').all(label)).then(|| Self(text.to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it matches `*.suffix`.
    fn is_below(&self, suffix: &Self) -> bool {
        self.0.strip_suffix(&suffix.0).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Target {
    /// All addresses of a network.
    Network(Network),
    /// The addresses of this name, when the pod looks it up.
    Name(HostName),
    /// The addresses of names below this one.
    Below(HostName),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    target: Target,
    /// All ports if absent.
    port: Option<u16>,
}

/// The open ports of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// All ports, and protocols without ports.
    All,
    One(u16),
}

impl Ports {
    /// Whether this port is open. `None`: a protocol without ports, such as ICMP echo.
    pub fn contains(self, port: Option<u16>) -> bool {
        match self {
            Self::All => true,
            Self::One(open) => port == Some(open),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowList(Vec<Entry>);

impl AllowList {
    /// `host[:port],*.suffix[:port],CIDR[:port],[IPv6 CIDR]:port`. An empty text allows nothing.
    pub fn parse(text: &str) -> Result<Self, Vec<AllowError>> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let mut list = Vec::new();
        let mut wrong = Vec::new();
        for entry in text.split(',').map(str::trim) {
            match parse_entry(entry) {
                Ok(_) if list.len() == MAX_ENTRIES => {
                    wrong.push(AllowError::TooMany);
                    break;
                }
                Ok(entry) => list.push(entry),
                Err(error) => wrong.push(error),
            }
        }
        if wrong.is_empty() { Ok(Self(list)) } else { Err(wrong) }
    }

    /// Whether an address is in one of its networks.
    pub fn has_address(&self, address: IpAddr, port: Option<u16>) -> bool {
        self.0.iter().any(|entry| match entry.target {
            Target::Network(network) => network.contains(address) && entry.ports().contains(port),
            Target::Name(_) | Target::Below(_) => false,
        })
    }

    /// The open ports of a name's addresses; empty when the list does not contain the name.
    pub fn ports_of(&self, name: &HostName) -> Vec<Ports> {
        let mut ports: Vec<Ports> = self
            .0
            .iter()
            .filter(|entry| match &entry.target {
                Target::Name(own) => own == name,
                Target::Below(suffix) => name.is_below(suffix),
                Target::Network(_) => false,
            })
            .map(Entry::ports)
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

impl Entry {
    fn ports(&self) -> Ports {
        self.port.map_or(Ports::All, Ports::One)
    }
}

fn parse_entry(entry: &str) -> Result<Entry, AllowError> {
    if entry.is_empty() {
        return Err(AllowError::Empty);
    }
    let port = |digits: &str| {
        let number = digits.parse().ok().filter(|&port: &u16| port != 0);
        number
            .filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .ok_or_else(|| AllowError::Port(entry.to_owned()))
    };
    let network = |text: &str| {
        Network::parse(entry, text).unwrap_or_else(|| Err(AllowError::Network(entry.to_owned())))
    };
    if let Some(rest) = entry.strip_prefix('[') {
        let Some((inner, rest)) = rest.split_once(']') else {
            return Err(AllowError::Network(entry.to_owned()));
        };
        let port = match rest.strip_prefix(':') {
            Some(digits) => Some(port(digits)?),
            None if rest.is_empty() => None,
            None => return Err(AllowError::Network(entry.to_owned())),
        };
        return Ok(Entry { target: Target::Network(network(inner)?), port });
    }
    if entry.matches(':').count() > 1 {
        return Ok(Entry { target: Target::Network(network(entry)?), port: None });
    }
    let (target, port) = match entry.split_once(':') {
        Some((target, digits)) => (target, Some(port(digits)?)),
        None => (entry, None),
    };
    let last = target.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    // The last label of a name is never a number: 10.0.0.256 is a mistake and not a name.
    let numeric = target.contains('/') || last.bytes().all(|byte| byte.is_ascii_digit());
    let name = |text: &str| HostName::new(text).ok_or_else(|| AllowError::Name(entry.to_owned()));
    let target = match target.strip_prefix("*.") {
        _ if numeric => Target::Network(network(target)?),
        Some(suffix) => Target::Below(name(suffix)?),
        None => Target::Name(name(target)?),
    };
    Ok(Entry { target, port })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> AllowList {
        AllowList::parse(text).unwrap()
    }

    fn ports(list: &AllowList, name: &str) -> Vec<Ports> {
        list.ports_of(&HostName::new(name).unwrap())
    }

    #[test]
    fn names_stand_for_themselves_and_stars_for_what_is_below() {
        let list = list("Example.com, example.com:53,*.svc.example:443,a.b.");
        assert_eq!(ports(&list, "EXAMPLE.com."), [Ports::All, Ports::One(53)]);
        assert_eq!(ports(&list, "x.svc.example"), [Ports::One(443)]);
        assert_eq!(ports(&list, "x.y.svc.example"), [Ports::One(443)]);
        assert_eq!(ports(&list, "a.b"), [Ports::All]);
        for other in ["svc.example", "xsvc.example", "www.example.com", "example.com.evil", "b", "com"] {
            assert!(ports(&list, other).is_empty(), "{other}");
        }
    }

    #[test]
    fn networks_have_ports_or_all_of_them() {
        let list = list("10.0.0.0/8:443,192.0.2.1,2001:db8::/32,[2001:db9::1]:80,[::/0]:53");
        let cases = [
            ("10.1.2.3", Some(443), true),
            ("10.1.2.3", Some(80), false),
            ("10.1.2.3", None, false),
            ("192.0.2.1", Some(1), true),
            ("192.0.2.1", None, true),
            ("192.0.2.2", Some(1), false),
            ("2001:db8:ffff::1", Some(22), true),
            ("2001:db9::1", Some(80), true),
            ("2001:db9::1", Some(81), false),
            ("2001:dba::", Some(53), true),
            ("11.0.0.1", Some(53), false),
        ];
        for (address, port, open) in cases {
            assert_eq!(list.has_address(address.parse().unwrap(), port), open, "{address} {port:?}");
        }
        assert!(!AllowList::parse("").unwrap().has_address("1.1.1.1".parse().unwrap(), Some(1)));
    }

    #[test]
    fn mistakes_are_all_told() {
        let wrong =
            AllowList::parse("10.0.0.1/8,,a b,x:0,y:99999,10.0.0.256,1.2.3.4/33,*,*.1.2.3.4,::1:zz,[::1")
                .unwrap_err();
        let said: Vec<String> = wrong.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 11, "{said:#?}");
        assert_eq!(said[0], "\"10.0.0.1/8\" has bits after its prefix; the network is 10.0.0.0/8");
        let many = vec!["a"; MAX_ENTRIES + 1].join(",");
        assert_eq!(AllowList::parse(&many), Err(vec![AllowError::TooMany]));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[a-z0-9.:/*,\\[\\] -]{0,60}") {
            drop(AllowList::parse(&text));
        }

        #[test]
        fn a_network_has_what_begins_like_it(address: u128, prefix in 0u8..=128, other: u128) {
            let mask = u128::MAX.checked_shl(u32::from(128 - prefix)).unwrap_or(0);
            let text = format!("{}/{prefix}", std::net::Ipv6Addr::from(address & mask));
            let list = AllowList::parse(&text).unwrap();
            let inside = (address & mask) | (other & !mask);
            prop_assert!(list.has_address(IpAddr::V6(inside.into()), None));
            prop_assert_eq!(list.has_address(IpAddr::V6(other.into()), None), other & mask == address & mask);
        }
    }
}
