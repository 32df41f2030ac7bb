//! Ports of the host: bound before a pod boots, so that a conflict is found before anything is created.

use crate::store::text::ignore;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{Backlog, listen};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Backlog of connections that arrive while the pod starts.
const BACKLOG: i32 = 1024;

/// Open files of a process that carries connections, and of a VMM: two for each connection, and some that libkrun keeps for a while.
const FILES: u64 = 16 << 10;

/// Why a port of the host could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug)]
pub struct Door {
    pub listener: TcpListener,
    /// The address on the host; its port is not 0.
    pub address: SocketAddr,
    pub port: u16,
}

impl Door {
    /// Binds an address; port 0 means any free port. Nothing is accepted yet, but clients that connect are kept waiting.
    pub fn bind(address: SocketAddr, port: u16) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let backlog = Backlog::new(BACKLOG).map_err(|errno| failed(errno.into()))?;
        listen(&listener, backlog).map_err(|errno| failed(errno.into()))?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, port })
    }
}

/// Checks whether a UDP port is free, without keeping it.
pub fn try_udp(address: SocketAddr) -> Result<SocketAddr, BindError> {
    UdpSocket::bind(address).map(|_| address).map_err(|source| BindError { address, source })
}

/// Raises the limit of open files of this process and its children to what connections may need.
pub fn allow_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, soft.max(FILES.min(hard)), hard));
    ignore(raised, "then there are fewer connections at once");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_is_found_and_a_taken_one_is_named() {
        let door = Door::bind("127.0.0.1:0".parse().unwrap(), 80).unwrap();
        assert_ne!(door.address.port(), 0);
        let error = Door::bind(door.address, 80).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(error.to_string(), format!("cannot listen on {}", door.address));
    }
}
