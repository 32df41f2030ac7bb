//! A machine's way to a network.

use magikvm_proto::plan::MacAddress;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Under this number a machine's process has its end of the connection.
pub(super) const NIC_FD: i32 = 8;

#[derive(Debug, Clone)]
pub enum Nic {
    /// One network device. Its frames go through a stream, each behind its length in 4 bytes, the highest first.
    Stream {
        mac: MacAddress,
        /// Bytes of a packet.
        mtu: u32,
        socket: Arc<OwnedFd>,
    },
    /// One network device, with QEMU's own network behind it.
    User {
        mac: MacAddress,
        /// That network's part of IPv6.
        network_6: String,
    },
    /// No device: libkrun makes the guest's sockets on the host (TSI), for which the guest's kernel must be libkrunfw's.
    Tsi,
}

impl Nic {
    /// What a machine's process is to be given.
    pub(super) fn inherits(&self) -> Vec<(&OwnedFd, i32)> {
        match self {
            Self::Stream { socket, .. } => vec![(socket.as_ref(), NIC_FD)],
            Self::User { .. } | Self::Tsi => Vec::new(),
        }
    }
}
