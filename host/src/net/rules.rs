//! What the filter is told: who the guest is, whom it may ask for names, and where it may go.

use super::Reach;
use super::allow::AllowList;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// All of it. Written by the monitor to the filter's standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    pub guest: BTreeSet<IpAddr>,
    /// Whom the guest asks for names: passt's forwarder, or the pod's own servers.
    pub nameservers: BTreeSet<IpAddr>,
    pub host: BTreeSet<IpAddr>,
    /// What is open that is closed by default.
    pub reach: BTreeSet<Reach>,
    /// What alone is open, if that was said.
    pub allow: Option<AllowList>,
    /// Ports of the guest that datagrams come in by: their answers may go out.
    pub published_udp: BTreeSet<u16>,
}
