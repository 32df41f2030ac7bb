//! The network device that smoltcp sees: one packet of the guest, and the frames to the guest. Their Ethernet headers are always the same.

use super::super::packet::{ETHERNET, TYPE_4, TYPE_6};
use super::super::{GUEST_MAC, MTU, PASST_MAC};
use super::OUTPUT_FULL;
use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// Length of the field with a frame's length.
const HEADER: usize = 4;

#[derive(Debug)]
pub(super) struct Device<'d> {
    pub(super) incoming: Option<&'d [u8]>,
    pub(super) out: &'d mut Vec<u8>,
}

impl smoltcp::phy::Device for Device<'_> {
    type RxToken<'a>
        = Incoming<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Outgoing<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        Some((Incoming(self.incoming.take()?), Outgoing(self.out)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        // Packets that find no room wait in their connections.
        (self.out.len() < OUTPUT_FULL).then_some(Outgoing(self.out))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::try_from(MTU).unwrap_or(usize::MAX);
        // Nothing between the guest and this process changes a bit, and drivers that compute no checksums may leave them out.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

#[derive(Debug)]
pub(super) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

#[derive(Debug)]
pub(super) struct Outgoing<'a>(&'a mut Vec<u8>);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let Self(out) = self;
        let at = out.len();
        out.resize(at + HEADER + ETHERNET + length, 0);
        let result = f(&mut out[at + HEADER + ETHERNET..]);
        let kind = if out[at + HEADER + ETHERNET] >> 4 == 4 { TYPE_4 } else { TYPE_6 };
        let size = u32::try_from(ETHERNET + length).unwrap_or(0);
        out[at..at + HEADER].copy_from_slice(&size.to_be_bytes());
        let header = [&GUEST_MAC.0[..], &PASST_MAC.0, &kind].concat();
        out[at + HEADER..at + HEADER + ETHERNET].copy_from_slice(&header);
        result
    }
}
