//! Ports of the host that lead to the pod: `hostPort` of a manifest and `--publish` of the command line.

use super::k8s::Written;
pub use super::plan::PublishedPort;
use super::plan::{PodPlan, Protocol};
use super::problem::{ProblemCollector, quote};
use crate::net::Provider;
use magikvm_proto::lifecycle::Role;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// Why the port of an init container is not published, as in Kubernetes.
const INIT_PORT: &str = "no port of the host leads to an init container that ends before the pod runs";

/// Why a port cannot be published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The text does not have this form.
    #[error("{0:?} is not [IP:]HOST:CONTAINER[/tcp|/udp]")]
    Form(String),
    /// The address is invalid.
    #[error("{0:?} is not an IP address; write IPv6 addresses in brackets, and no names")]
    Address(String),
    /// The port is invalid.
    #[error("{0:?} is not a port (1 to 65535)")]
    Port(String),
    /// The transport cannot be published.
    #[error("{0:?} is not a protocol that can be published: tcp or udp")]
    Protocol(String),
    /// The same port of the host twice.
    #[error("{0} and {1} are the same port of the host")]
    Twice(String, String),
    /// The pod's ports are the host's already.
    #[error(
        "{0}: the pod has the network of the host (spec.hostNetwork), so that its ports are ports of the host"
    )]
    HostNetwork(String),
}

impl PublishError {
    /// What to do about a port that cannot be added to a pod.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::HostNetwork(_) => "Leave it out: the pod's ports are open on the host without it.",
            _ => "Omit one of the two ports, or choose another port of the host.",
        }
    }
}

impl PublishedPort {
    /// Whether the two conflict: the same port at the same address, or one of them at all addresses.
    fn clashes(&self, other: &Self) -> bool {
        let all = |one: &IpAddr, other: &IpAddr| one.is_unspecified() && (one.is_ipv6() || other.is_ipv4());
        self.host_port != 0
            && self.host_port == other.host_port
            && self.protocol == other.protocol
            && (self.host_ip == other.host_ip
                || all(&self.host_ip, &other.host_ip)
                || all(&other.host_ip, &self.host_ip))
    }
}

impl FromStr for PublishedPort {
    type Err = PublishError;

    /// Parses `[IP:]HOST:CONTAINER[/tcp|/udp]`; an empty or missing HOST or 0 means any free port.
    fn from_str(text: &str) -> Result<Self, PublishError> {
        let (rest, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, name)) if name.eq_ignore_ascii_case("tcp") => (rest, Protocol::Tcp),
            Some((rest, name)) if name.eq_ignore_ascii_case("udp") => (rest, Protocol::Udp),
            Some((_, name)) => return Err(PublishError::Protocol(name.to_owned())),
        };
        let form = || PublishError::Form(text.to_owned());
        let (ip, ports) = match rest.strip_prefix('[').map(|rest| rest.split_once("]:")) {
            Some(Some((ip, ports))) => (Some(ip), ports),
            Some(None) => return Err(form()),
            None => match rest.match_indices(':').count() {
                0 | 1 => (None, rest),
                2 => rest.split_once(':').map(|(ip, ports)| (Some(ip), ports)).ok_or_else(form)?,
                _ => return Err(PublishError::Address(rest.to_owned())),
            },
        };
        let host_ip = match ip {
            None => Ipv4Addr::UNSPECIFIED.into(),
            Some(ip) => ip.parse().map_err(|_| PublishError::Address(ip.to_owned()))?,
        };
        let number = |text: &str| text.parse::<u16>().map_err(|_| PublishError::Port(text.to_owned()));
        let (host, container) = ports.split_once(':').unwrap_or(("", ports));
        let host_port = if host.is_empty() { 0 } else { number(host)? };
        let container_port = match number(container)? {
            0 => return Err(PublishError::Port(container.to_owned())),
            port => port,
        };
        Ok(Self { host_ip, host_port, container_port, protocol, origin: format!("--publish {text}") })
    }
}

impl PodPlan {
    /// Adds ports of the command line to those of the manifest.
    pub fn publish(&mut self, ports: Vec<PublishedPort>) -> Result<(), PublishError> {
        for port in ports {
            if self.network.provider == Provider::Host {
                return Err(PublishError::HostNetwork(port.origin));
            }
            if let Some(other) = self.published.iter().find(|other| other.clashes(&port)) {
                return Err(PublishError::Twice(port.origin, other.origin.clone()));
            }
            self.published.push(port);
        }
        Ok(())
    }
}

/// The ports of the manifest. A `hostPort` of 0 means none, as in Kubernetes; a `hostIP` without a port has no effect. Nothing leads to a pod
/// that has the host's network.
pub(super) fn published(written: &Written, report: &mut ProblemCollector) -> Vec<PublishedPort> {
    let mut published: Vec<PublishedPort> = Vec::new();
    for (list, number, container) in super::build::listed(&written.pod.spec) {
        for (index, port) in container.ports.iter().enumerate() {
            let at = format!("{}.ports[{index}]", list.at(number));
            if list.role(container) == Role::Init && port.host_port.is_some_and(|port| port != 0) {
                report.ignore(INIT_PORT, "spec.initContainers[].ports[].hostPort");
                continue;
            }
            let mut problem = |field: &str, message: String, hint: &str| {
                report.add(&written.place(&format!("{at}.{field}")), message, hint);
            };
            let host_ip = match port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
                None => Some(Ipv4Addr::UNSPECIFIED.into()),
                Some(text) => match text.parse::<IpAddr>() {
                    Ok(ip) => Some(ip),
                    Err(_) => {
                        problem("hostIP", format!("{} is not an IP address", quote(text)), "");
                        None
                    }
                },
            };
            let asked = port.host_port.filter(|&host_port| host_port != 0);
            let Some(host_port) = asked else { continue };
            let Ok(host_port) = u16::try_from(host_port) else {
                problem("hostPort", format!("must be 1 to 65535, not {host_port}"), "");
                continue;
            };
            let protocol = match port.protocol.as_deref() {
                None | Some("" | "TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some(_) => {
                    problem("hostPort", "is supported for TCP and UDP only".to_owned(), "");
                    continue;
                }
            };
            // Problems of the container's port are reported where that is read.
            let container_port = port.container_port.and_then(|port| u16::try_from(port).ok());
            let (Some(host_ip), Some(container_port @ 1..)) = (host_ip, container_port) else { continue };
            if written.pod.spec.host_network {
                if host_port != container_port {
                    let message = format!(
                        "is {host_port} and containerPort is {container_port}: with hostNetwork: true they are the same port"
                    );
                    problem("hostPort", message, "write the same number, or leave hostPort out");
                }
                continue;
            }
            let new = PublishedPort {
                host_ip,
                host_port,
                container_port,
                protocol,
                origin: format!("{at}.hostPort"),
            };
            if let Some(other) = published.iter().find(|other| other.clashes(&new)) {
                let message = format!("is the same port of the host as {}", other.origin);
                problem("hostPort", message, "choose another one, or another hostIP");
            }
            published.push(new);
        }
    }
    published
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn port(text: &str) -> PublishedPort {
        text.parse().unwrap()
    }

    #[test]
    fn what_may_be_published_is_understood() {
        let seen = |text: &str| {
            let port = port(text);
            (port.host_ip.to_string(), port.host_port, port.container_port, port.protocol)
        };
        assert_eq!(seen("8080:80"), ("0.0.0.0".to_owned(), 8080, 80, Protocol::Tcp));
        assert_eq!(seen("127.0.0.1:8080:80/tcp"), ("127.0.0.1".to_owned(), 8080, 80, Protocol::Tcp));
        assert_eq!(seen("[::1]:53:5353/udp"), ("::1".to_owned(), 53, 5353, Protocol::Udp));
        for free in ["80", ":80", "0:80", "0.0.0.0::80", "0.0.0.0:0:80"] {
            assert_eq!(seen(free), ("0.0.0.0".to_owned(), 0, 80, Protocol::Tcp), "{free}");
        }
        assert_eq!(port("8080:80").origin, "--publish 8080:80");
    }

    #[test]
    fn what_may_not_is_refused_with_its_reason() {
        let why = |text: &str| text.parse::<PublishedPort>().unwrap_err();
        assert_eq!(why("8080:80/sctp"), PublishError::Protocol("sctp".to_owned()));
        assert_eq!(why("8080:0"), PublishError::Port("0".to_owned()));
        assert_eq!(why("8080:"), PublishError::Port(String::new()));
        assert_eq!(why("70000:80"), PublishError::Port("70000".to_owned()));
        assert_eq!(why("localhost:8080:80"), PublishError::Address("localhost".to_owned()));
        assert_eq!(why("::1:8080:80"), PublishError::Address("::1:8080:80".to_owned()));
        assert_eq!(why("[::1:80"), PublishError::Form("[::1:80".to_owned()));
        assert_eq!(why(""), PublishError::Port(String::new()));
    }

    #[test]
    fn one_port_of_this_machine_is_had_once() {
        let clash = |one: &str, other: &str| port(one).clashes(&port(other));
        assert!(clash("80:1", "80:2") && clash("80:1", "127.0.0.1:80:2") && clash("[::]:80:1", "80:1"));
        assert!(clash("127.0.0.1:80:1", "127.0.0.1:80:1"));
        assert!(!clash("127.0.0.1:80:1", "127.0.0.2:80:1") && !clash("80:1", "81:1"));
        assert!(!clash("80:1", "80:1/udp") && !clash(":80", ":80") && !clash("80:1", "[::1]:80:1"));
    }

    fn pod(ports: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  - name: a\n    image: b:1\n    ports: {ports}\n"
        )
    }

    #[test]
    fn host_ports_of_a_manifest_are_published() {
        let text = pod(
            "[{containerPort: 80, hostPort: 8080}, {containerPort: 53, hostPort: 53, hostIP: '::1', protocol: UDP}, {containerPort: 1, hostPort: 0}]",
        );
        let mut plan = manifest::parse(text.as_bytes(), "-").unwrap();
        let seen: Vec<_> = plan
            .published
            .iter()
            .map(|port| (port.host_ip.to_string(), port.host_port, port.container_port))
            .collect();
        assert_eq!(seen, [("0.0.0.0".to_owned(), 8080, 80), ("::1".to_owned(), 53, 53)]);
        assert_eq!(plan.published[0].origin, "spec.containers[0].ports[0].hostPort");
        assert_eq!(plan.published[1].protocol, Protocol::Udp);
        let clash = plan.publish(vec![port("127.0.0.1:8080:1")]).unwrap_err();
        assert_eq!(
            clash.to_string(),
            "--publish 127.0.0.1:8080:1 and spec.containers[0].ports[0].hostPort are the same port of the host"
        );
        plan.publish(vec![port(":80"), port(":80")]).unwrap();
        assert_eq!(plan.published.len(), 4);
    }

    #[test]
    fn ports_of_a_pod_with_the_network_of_the_host_are_the_hosts() {
        let text = |ports: &str| {
            pod(ports).replace("spec:\n", "spec:\n  runtimeClassName: pod-containers\n  hostNetwork: true\n")
        };
        let mut plan =
            manifest::parse(text("[{containerPort: 80, hostPort: 80}, {containerPort: 81}]").as_bytes(), "-")
                .unwrap();
        assert!(plan.published.is_empty());
        assert_eq!(
            plan.publish(vec![port("8080:80")]).unwrap_err(),
            PublishError::HostNetwork("--publish 8080:80".to_owned())
        );
        let other =
            manifest::parse(text("[{containerPort: 80, hostPort: 8080}]").as_bytes(), "-").unwrap_err();
        let said = other.to_string();
        assert!(said.contains("ports[0].hostPort: is 8080 and containerPort is 80"), "{said}");
    }

    #[test]
    fn host_ports_that_cannot_be_are_refused() {
        let problems = |ports: &str| manifest::parse(pod(ports).as_bytes(), "-").unwrap_err().to_string();
        let says = |ports: &str, text: &str| {
            let found = problems(ports);
            assert!(found.contains(text), "{ports}: {found}");
        };
        says("[{containerPort: 80, hostPort: 65536}]", "ports[0].hostPort: must be 1 to 65535, not 65536");
        says(
            "[{containerPort: 80, hostPort: 1, hostIP: nowhere}]",
            "ports[0].hostIP: \"nowhere\" is not an IP address",
        );
        says(
            "[{containerPort: 80, hostPort: 1, protocol: SCTP}]",
            "ports[0].hostPort: is supported for TCP and UDP only",
        );
        says(
            "[{containerPort: 80, hostPort: 1}, {containerPort: 81, hostPort: 1}]",
            "ports[1].hostPort: is the same port of the host as spec.containers[0].ports[0].hostPort",
        );
    }
}
