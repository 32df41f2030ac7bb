//! The sandbox's side of the conversation with the host while it is made.

use crate::sys;
use magikvm_proto::sandbox::{FromSandbox, MAX_SANDBOX_MESSAGE, ToSandbox};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

#[derive(Debug)]
pub(super) struct Talk(pub(super) OwnedFd);

impl Talk {
    pub(super) fn tell(&self, message: &FromSandbox, descriptors: &[&OwnedFd]) -> io::Result<()> {
        let raw: Vec<_> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        sys::send_message(&self.0, &serde_json::to_vec(message)?, &raw)
    }

    /// Tells something and waits for the answer.
    pub(super) fn ask(&self, message: &FromSandbox) -> io::Result<ToSandbox> {
        self.tell(message, &[])?;
        let mut buffer = vec![0; MAX_SANDBOX_MESSAGE];
        let (length, _) = sys::receive_message(&self.0, &mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&buffer[..length])?)
    }
}
