//! A VM's connection to a network.

use magikvm_proto::plan::MacAddress;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The descriptor of the connection in a VM's process.
pub(super) const NIC_FD: i32 = 8;

#[derive(Debug, Clone)]
pub enum Nic {
    /// One network device, whose frames go through a stream, each behind its length in 4 big-endian bytes.
    Stream { mac: MacAddress, mtu: u32, socket: Arc<OwnedFd> },
    /// One network device, connected to QEMU's user network.
    User {
        mac: MacAddress,
        /// The IPv6 prefix of that network.
        network_6: String,
    },
    /// No device: libkrun makes the guest's sockets on the host (TSI), for which the guest's kernel must be libkrunfw's.
    Tsi,
}

impl Nic {
    /// The descriptors that a VM's process inherits.
    pub(super) fn inherits(&self) -> Vec<(&OwnedFd, i32)> {
        match self {
            Self::Stream { socket, .. } => vec![(socket.as_ref(), NIC_FD)],
            Self::User { .. } | Self::Tsi => Vec::new(),
        }
    }
}
