//! Ports of this machine: bound before a pod boots, so that a conflict is found before anything is made.

use crate::store::text::ignore;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{Backlog, listen};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Connections that wait until they are accepted: those that come while the pod starts.
const BACKLOG: i32 = 1024;

/// Files that a process which carries connections, and a VMM, may have open: two for each connection, and some of libkrun's for a while after.
const FILES: u64 = 16 << 10;

/// Why a port of this machine could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

/// A port of this machine that leads to one of the pod.
#[derive(Debug)]
pub struct Door {
    pub listener: TcpListener,
    /// Where it is; its port is not 0.
    pub address: SocketAddr,
    pub port: u16,
}

impl Door {
    /// Binds an address; its port may be 0, for any that is free. Nothing is accepted yet, but who connects is kept waiting.
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

/// Sees whether a port of UDP can be had. It is not kept.
pub fn try_datagrams(address: SocketAddr) -> Result<SocketAddr, BindError> {
    UdpSocket::bind(address).map(|_| address).map_err(|source| BindError { address, source })
}

/// Lets this process and those it starts have as many files open as connections may need.
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
