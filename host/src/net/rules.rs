//! The rules of the filter: the guest's addresses, its name servers, and its permitted destinations.

use super::Reach;
use super::allow::AllowList;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// All rules. The monitor writes them to the filter's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub guest: BTreeSet<IpAddr>,
    /// The name servers of the guest: its forwarders, and the pod's own servers.
    pub nameservers: BTreeSet<IpAddr>,
    /// Whether the forwarders answer over TCP too.
    pub dns_by_tcp: bool,
    pub host: BTreeSet<IpAddr>,
    /// Destinations that are open in addition to the default.
    pub reach: BTreeSet<Reach>,
    /// The only open destinations, if there is an allow list.
    pub allow: Option<AllowList>,
    /// UDP ports of the guest that are published: answers from them may leave.
    pub published_udp: BTreeSet<u16>,
}
