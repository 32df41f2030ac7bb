//! Reads the result of a plugin of CNI. Pure: a plugin may print anything.

use crate::net::allow::HostName;
use crate::net::host::Resolv;
use serde::Deserialize;
use std::net::IpAddr;

/// Most addresses, interfaces, name servers, search domains and options of a result.
const MAX_ENTRIES: usize = 64;
/// Longest option of `resolv.conf`.
const MAX_OPTION: usize = 63;

/// Why a result cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultError {
    #[error("it is not the JSON of a result")]
    Json(#[source] serde_json::Error),
    #[error("it has {found} {what}, at most {MAX_ENTRIES} are possible")]
    Count { what: &'static str, found: usize },
    #[error("{0:?} is not an address with a prefix length")]
    Address(String),
    /// As in results of versions before 0.3.0.
    #[error("it gives the pod no address")]
    NoAddress,
}

/// What a network gave a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pub addresses: Vec<IpAddr>,
    pub dns: Resolv,
}

#[derive(Debug, Deserialize)]
struct Raw {
    #[serde(default)]
    interfaces: Vec<RawInterface>,
    #[serde(default)]
    ips: Vec<RawAddress>,
    #[serde(default)]
    dns: RawDns,
}

#[derive(Debug, Deserialize)]
struct RawInterface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct RawAddress {
    address: String,
    interface: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
struct RawDns {
    #[serde(default)]
    nameservers: Vec<String>,
    domain: Option<String>,
    #[serde(default)]
    search: Vec<String>,
    #[serde(default)]
    options: Vec<String>,
}

pub fn parse(bytes: &[u8]) -> Result<Given, ResultError> {
    let Raw { interfaces, ips, dns } = serde_json::from_slice(bytes).map_err(ResultError::Json)?;
    for (what, found) in [
        ("interfaces", interfaces.len()),
        ("ips", ips.len()),
        ("dns.nameservers", dns.nameservers.len()),
        ("dns.search", dns.search.len()),
        ("dns.options", dns.options.len()),
    ] {
        if found > MAX_ENTRIES {
            return Err(ResultError::Count { what, found });
        }
    }
    let mut addresses = Vec::new();
    for RawAddress { address, interface } in ips {
        let is_outside = interface
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| interfaces.get(index))
            .is_some_and(|interface| interface.sandbox.is_empty());
        let parsed = address.split_once('/').and_then(|(address, prefix)| {
            let address: IpAddr = address.parse().ok()?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            prefix.parse::<u8>().ok().filter(|prefix| *prefix <= longest).map(|_| address)
        });
        let parsed = parsed.ok_or(ResultError::Address(address))?;
        if !is_outside {
            addresses.push(parsed);
        }
    }
    if addresses.is_empty() {
        return Err(ResultError::NoAddress);
    }
    Ok(Given { addresses, dns: dns.into_resolv() })
}

impl RawDns {
    /// What can be in `resolv.conf`. The rest is skipped, as the resolver would.
    fn into_resolv(self) -> Resolv {
        let is_option = |text: &String| {
            !text.is_empty() && text.len() <= MAX_OPTION && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let searches = if self.search.is_empty() { Vec::from_iter(self.domain) } else { self.search };
        Resolv {
            nameservers: self.nameservers.iter().filter_map(|text| text.parse().ok()).collect(),
            searches: searches.into_iter().filter(|text| HostName::new(text).is_some()).collect(),
            options: self.options.into_iter().filter(is_option).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_addresses_of_the_pod_are_read_and_those_of_the_host_are_not() {
        let text = br#"{"cniVersion":"0.4.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/run/x"}],
            "ips":[{"version":"4","interface":1,"address":"10.9.0.2/24","gateway":"10.9.0.1"},
                   {"interface":0,"address":"10.9.0.1/24"},{"address":"fd00::2/64"}],
            "dns":{"nameservers":["10.9.0.1","x\nnameserver 6.6.6.6"],"domain":"lan","options":["ndots:2","a b"]}}"#;
        let given = parse(text).unwrap();
        let expected = ["10.9.0.2", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap());
        assert_eq!(given.addresses, expected);
        assert_eq!(given.dns.text(), "search lan\nnameserver 10.9.0.1\noptions ndots:2\n");
    }

    #[test]
    fn what_is_not_a_result_is_refused() {
        let says = |text: &str, words: &str| {
            let said = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        };
        says("", "not the JSON");
        says(r#"{"ip4":{"ip":"10.0.0.2/24"}}"#, "gives the pod no address");
        says(r#"{"ips":[{"address":"10.0.0.2"}]}"#, "\"10.0.0.2\" is not an address");
        says(r#"{"ips":[{"address":"10.0.0.2/33"}]}"#, "not an address");
        let many = format!(r#"{{"ips":[{}]}}"#, vec![r#"{"address":"10.0.0.2/24"}"#; 65].join(","));
        says(&many, "it has 65 ips");
    }

    proptest! {
        #[test]
        fn whatever_a_plugin_prints_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes).ok();
        }
    }
}
