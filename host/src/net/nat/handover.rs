//! Hands the bound sockets of published UDP ports to the NAT's process. There may be more of them than a process can inherit under numbers.
#![allow(unsafe_code, reason = "received descriptors are numbers at first")]

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Descriptors in one message; the kernel permits 253.
const BATCH: usize = 64;

/// Puts these into a new socket and returns its end for [`receive`].
pub(in crate::net) fn send(sockets: &[OwnedFd]) -> io::Result<OwnedFd> {
    let (here, there) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::empty())?;
    for batch in sockets.chunks(BATCH) {
        let numbers: Vec<RawFd> = batch.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(here.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::MSG_DONTWAIT, None)?;
    }
    Ok(there)
}

/// Takes `count` descriptors that were put in.
pub(super) fn receive(from: &OwnedFd, count: usize) -> nix::Result<Vec<OwnedFd>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let mut byte = [0];
        let mut space = [IoSliceMut::new(&mut byte)];
        let mut room = cmsg_space!([RawFd; BATCH]);
        let message = recvmsg::<()>(from.as_raw_fd(), &mut space, Some(&mut room), MsgFlags::MSG_DONTWAIT)?;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = part {
                // SAFETY: the kernel has just created these descriptors for this process.
                taken.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn many_sockets_arrive_in_their_order() {
        let sockets: Vec<UdpSocket> = (0..150).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        let end = send(&sockets.into_iter().map(OwnedFd::from).collect::<Vec<_>>()).unwrap();
        let taken = receive(&end, ports.len()).unwrap().into_iter().map(UdpSocket::from);
        assert_eq!(taken.map(|socket| socket.local_addr().unwrap().port()).collect::<Vec<_>>(), ports);
        assert!(receive(&end, 1).is_err());
    }
}
