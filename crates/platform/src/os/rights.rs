//! Descriptors that travel over a Unix socket, the same on both systems.
#![allow(unsafe_code, reason = "taking a descriptor by its number is an unsafe call")]

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most descriptors that one call receives. The kernel closes the ones beyond.
const MAX_RECEIVED: usize = 4;

#[cfg(target_os = "linux")]
const SEND: MsgFlags = MsgFlags::MSG_NOSIGNAL;
#[cfg(target_os = "linux")]
const RECEIVE: MsgFlags = MsgFlags::MSG_CMSG_CLOEXEC;
#[cfg(not(target_os = "linux"))]
const SEND: MsgFlags = MsgFlags::empty();
#[cfg(not(target_os = "linux"))]
const RECEIVE: MsgFlags = MsgFlags::empty();

/// Sends bytes, with a descriptor if there is one, and returns how many were sent. The descriptor travels with the first byte.
pub fn send_with(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let numbers: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, SEND, None) {
            Err(Errno::EINTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// Receives bytes, and the descriptors that travel with them. They are closed in executed programs.
pub fn receive_with(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    received: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = cmsg_space!([RawFd; MAX_RECEIVED]);
    loop {
        let mut parts = [IoSliceMut::new(buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), RECEIVE) {
            Ok(message) => {
                for control in message.cmsgs()? {
                    let ControlMessageOwned::ScmRights(numbers) = control else { continue };
                    for number in numbers {
                        // SAFETY: the kernel has just created this descriptor for this process; nothing else owns its number.
                        let fd = unsafe { OwnedFd::from_raw_fd(number) };
                        #[cfg(not(target_os = "linux"))]
                        nix::fcntl::fcntl(
                            &fd,
                            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
                        )?;
                        received.push(fd);
                    }
                }
                return Ok(message.bytes);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_with_its_bytes_and_is_the_same_file() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut kept, given) = UnixStream::pair().unwrap();
        assert_eq!(send_with(ours.as_fd(), b"take", Some(given.as_fd())).unwrap(), 4);
        drop(given);
        let (mut buffer, mut received) = ([0; 16], Vec::new());
        assert_eq!(receive_with(theirs.as_fd(), &mut buffer, &mut received).unwrap(), 4);
        assert_eq!((&buffer[..4], received.len()), (b"take".as_slice(), 1));
        UnixStream::from(received.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(ours);
        assert_eq!(receive_with(theirs.as_fd(), &mut buffer, &mut received).unwrap(), 0);
    }
}
