//! The host's network as far as a pod's network depends on it.

use nix::ifaddrs::getifaddrs;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;

/// Bytes of `/etc/resolv.conf` and `/etc/hosts` that are read.
const MAX_FILE: u64 = 64 << 10;

/// `/etc/resolv.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolv {
    /// Name servers, in order.
    pub nameservers: Vec<IpAddr>,
    /// Suffixes that are tried for short names.
    pub searches: Vec<String>,
    /// The `options`.
    pub options: Vec<String>,
}

impl Resolv {
    /// Parses like resolv.conf(5): the last `search` or `domain` counts, options add up, and invalid parts are skipped.
    pub fn parse(text: &str) -> Self {
        let mut resolv = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                // A server with a zone (`fe80::1%eth0`) is reachable only from the host.
                Some("nameserver") => {
                    resolv.nameservers.extend(words.next().and_then(|text| text.parse::<IpAddr>().ok()))
                }
                Some("search" | "domain") => resolv.searches = words.collect(),
                Some("options") => resolv.options.extend(words),
                _ => {}
            }
        }
        resolv
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.nameservers {
            text += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            text += &format!("options {}\n", self.options.join(" "));
        }
        text
    }
}

#[derive(Debug, Clone, Default)]
pub struct HostNetwork {
    /// Addresses of its interfaces, including loopback.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether it has an IPv4 default route.
    pub routes_4: bool,
    /// Whether it has an IPv6 default route.
    pub routes_6: bool,
    /// The groups whose processes may make ping sockets.
    pub ping_groups: Option<RangeInclusive<u32>>,
    pub resolv: Resolv,
    pub files: HostFiles,
}

/// What a pod in the host's network has of the host beside that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFiles {
    /// The host's name.
    pub hostname: String,
    /// `/etc/hosts`.
    pub hosts: String,
}

impl HostNetwork {
    /// Reads the host's network. What cannot be read counts as absent.
    pub fn look() -> Self {
        let read = |path: &str| {
            let mut text = String::new();
            match File::open(Path::new(path)).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)) {
                Ok(_) => text,
                Err(_) => String::new(),
            }
        };
        #[cfg(target_os = "linux")]
        let (routes_4, routes_6) =
            (has_default_4(&read("/proc/self/net/route")), has_default_6(&read("/proc/self/net/ipv6_route")));
        #[cfg(not(target_os = "linux"))]
        let (routes_4, routes_6) = (has_route(PUBLIC_4), has_route(PUBLIC_6));
        Self {
            addresses: addresses(),
            routes_4,
            routes_6,
            ping_groups: ping_groups(&read("/proc/sys/net/ipv4/ping_group_range")),
            resolv: Resolv::parse(&read("/etc/resolv.conf")),
            files: HostFiles {
                hostname: nix::unistd::gethostname()
                    .map(|name| name.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                hosts: read("/etc/hosts"),
            },
        }
    }

    /// An address of the host by which others reach it: neither loopback nor link-local.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| match address {
            IpAddr::V4(four) => v4 && !four.is_loopback() && !four.is_link_local(),
            IpAddr::V6(six) => !v4 && !six.is_loopback() && six.segments()[0] & 0xffc0 != 0xfe80,
        })
    }

    /// Such an address, of IPv4 if there is one.
    pub fn any_address(&self) -> Option<IpAddr> {
        self.address(true).or_else(|| self.address(false))
    }

    /// Whether pods can have IPv4: that needs a default route and an address.
    pub fn has_4(&self) -> bool {
        self.routes_4 && self.address(true).is_some()
    }

    /// Whether pods can have IPv6.
    pub fn has_6(&self) -> bool {
        self.routes_6 && self.address(false).is_some()
    }
}

fn addresses() -> BTreeSet<IpAddr> {
    let all = getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
    all.filter_map(|address| {
        let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
    })
    .collect()
}

fn ping_groups(text: &str) -> Option<RangeInclusive<u32>> {
    let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
    Some(numbers.next()?..=numbers.next()?)
}

/// Public addresses that only a default route leads to.
#[cfg(any(test, not(target_os = "linux")))]
const PUBLIC_4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 41, 0, 4));
#[cfg(any(test, not(target_os = "linux")))]
const PUBLIC_6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30));

/// Whether a route leads to an address: connecting a UDP socket looks for one and sends nothing.
#[cfg(any(test, not(target_os = "linux")))]
fn has_route(to: IpAddr) -> bool {
    const DISCARD: u16 = 9;
    let any: IpAddr = match to {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    std::net::UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((to, DISCARD))).is_ok()
}

/// Whether a table like `/proc/net/route` has a default route.
#[cfg(target_os = "linux")]
fn has_default_4(table: &str) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
    })
}

/// Whether a table like `/proc/net/ipv6_route` has a default route that does not reject.
#[cfg(target_os = "linux")]
fn has_default_6(table: &str) -> bool {
    const REJECT: u32 = 0x200;
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let flags = fields.get(8).and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(REJECT);
        let is_default = fields.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0'))
            && fields.get(1) == Some(&"00");
        is_default && flags & REJECT == 0 && fields.get(9) != Some(&"lo")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read_as_the_library_does() {
        let text = "# c\nnameserver 192.0.2.1 # x\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\ndomain a\n\
                    search b.example c.example\noptions ndots:2\noptions timeout:1 edns0\nnonsense\nnameserver\n";
        let resolv = Resolv::parse(text);
        assert_eq!(
            resolv.nameservers,
            ["192.0.2.1", "2001:db8::1"].map(|text| text.parse::<IpAddr>().unwrap())
        );
        assert_eq!(resolv.searches, ["b.example", "c.example"]);
        assert_eq!(resolv.options, ["ndots:2", "timeout:1", "edns0"]);
        assert_eq!(Resolv::parse(&resolv.text()), resolv);
    }

    #[test]
    fn the_range_of_groups_may_be_empty() {
        assert_eq!(ping_groups("0\t2147483647\n"), Some(0..=2_147_483_647));
        assert!(ping_groups("1\t0\n").unwrap().is_empty());
        assert_eq!(ping_groups(""), None);
    }

    #[test]
    fn a_route_is_found_by_connecting() {
        assert!(has_route(IpAddr::from([127, 0, 0, 1])));
        // The tables and the socket agree about this host.
        let host = HostNetwork::look();
        assert_eq!(has_route(PUBLIC_4), host.routes_4);
        assert!(!has_route(PUBLIC_6) || host.routes_6);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn default_routes_are_found_in_the_kernels_tables() {
        let four = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\nlo 0000007F 0 1 0 0 0 000000FF\n";
        assert!(!has_default_4(four));
        assert!(has_default_4(&format!("{four}eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n")));
        let zero = "0".repeat(32);
        let six = |flags: &str, device: &str| {
            format!("{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 {flags} {device}\n")
        };
        assert!(!has_default_6(&six("00200200", "lo")));
        assert!(!has_default_6(&six("00200200", "eth0")));
        assert!(has_default_6(&six("00000003", "eth0")));
        assert!(!has_default_6("nonsense\n"));
    }
}
