//! The pod's service directory in the plan: which containers may ask it, and the ports that it lists of each. Owns: where a container finds the
//! socket. Must not know: how the directory is asked.

use crate::limits::{MAX_LISTED_PORTS, MAX_PORT_NAME_LEN};
use serde::{Deserialize, Serialize};

/// The directory of a container in which [`SOCKET`] is. The container can't change it.
pub const MOUNT: &str = "/run/magikvm";
/// The socket's name.
pub const SOCKET: &str = "directory.sock";

/// Whether a container may ask the service directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DirectoryAccess {
    #[default]
    None,
    /// It sees the socket at [`MOUNT`].
    Socket,
}

impl DirectoryAccess {
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// A port that a container says it listens on (core/v1 `ContainerPort`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedPort {
    /// At most [`MAX_PORT_NAME_LEN`] lower-case letters, digits and hyphens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// 1 to 65535.
    pub port: u16,
    pub protocol: PortProtocol,
}

/// The transport protocol of a port, as Kubernetes writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PortProtocol {
    Tcp,
    Udp,
    Sctp,
}

/// Why the ports of a container can't be listed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListedPortsError {
    #[error("it lists {0} ports, at most {MAX_LISTED_PORTS} are allowed")]
    Count(usize),
    #[error("its port {0} has the number 0 or a name that no port can have")]
    Port(usize),
}

pub(crate) fn check(ports: &[ListedPort]) -> Result<(), ListedPortsError> {
    if ports.len() > MAX_LISTED_PORTS {
        return Err(ListedPortsError::Count(ports.len()));
    }
    let is_fine = |port: &ListedPort| port.port != 0 && port.name.as_deref().is_none_or(is_port_name);
    ports.iter().position(|port| !is_fine(port)).map_or(Ok(()), |index| Err(ListedPortsError::Port(index)))
}

fn is_port_name(name: &str) -> bool {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_PORT_NAME_LEN).contains(&name.len()) && name.bytes().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u16, name: Option<&str>) -> ListedPort {
        ListedPort { name: name.map(str::to_owned), port, protocol: PortProtocol::Tcp }
    }

    #[test]
    fn ports_are_few_and_plain() {
        assert_eq!(check(&vec![port(80, Some("http-1")); MAX_LISTED_PORTS]), Ok(()));
        let over = MAX_LISTED_PORTS + 1;
        assert_eq!(check(&vec![port(80, None); over]), Err(ListedPortsError::Count(over)));
        let long = "a".repeat(MAX_PORT_NAME_LEN + 1);
        for bad in
            [port(0, None), port(1, Some("")), port(1, Some("A")), port(1, Some("a\"")), port(1, Some(&long))]
        {
            assert_eq!(check(&[port(1, None), bad]), Err(ListedPortsError::Port(1)));
        }
    }
}
