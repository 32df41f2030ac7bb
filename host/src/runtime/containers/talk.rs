//! The host's side of the conversation with a sandbox while it is made.

use super::ContainersError;
use super::trial::Tried;
use super::users::PodUsers;
use magikvm_proto::sandbox::{Feature, FromSandbox, MAX_SANDBOX_MESSAGE, ToSandbox};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send, socketpair,
};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// How long the sandbox may take to be made.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a trial may take. A kernel that loads modules for it takes some time.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);

/// A sandbox whose first process runs.
#[derive(Debug)]
pub(super) struct Made {
    /// The pod's first process.
    pub(super) pid: i32,
    /// The other end of its interface.
    pub(super) tap: Option<OwnedFd>,
}

enum Said {
    Network,
    Made(Made),
}

#[derive(Debug)]
pub(super) struct Talk(OwnedFd);

impl Talk {
    /// This side, and the one for the sandbox.
    pub(super) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        Ok((Self(ours), theirs))
    }

    /// Answers until the sandbox has a network namespace that others have to connect.
    pub(super) fn until_network(&self, users: &PodUsers, volumes: &[String]) -> Result<(), ContainersError> {
        match self.listen(users, volumes)? {
            Said::Network => Ok(()),
            Said::Made(_) => Err(ContainersError::OutOfTurn),
        }
    }

    /// The pod is connected, and its files are written.
    pub(super) fn connected(&self) -> Result<(), ContainersError> {
        self.answer(&ToSandbox::Connected)
    }

    /// Answers until the sandbox is made. `volumes` are the names of the volumes that its shared files and directories belong to.
    pub(super) fn until_made(&self, users: &PodUsers, volumes: &[String]) -> Result<Made, ContainersError> {
        match self.listen(users, volumes)? {
            Said::Made(made) => Ok(made),
            Said::Network => Err(ContainersError::OutOfTurn),
        }
    }

    fn answer(&self, answer: &ToSandbox) -> Result<(), ContainersError> {
        let answer = serde_json::to_vec(answer).map_err(ContainersError::Nonsense)?;
        // A sandbox that has ended says so next.
        send(self.0.as_raw_fd(), &answer, MsgFlags::MSG_NOSIGNAL).ok();
        Ok(())
    }

    /// Answers what needs no one else.
    fn listen(&self, users: &PodUsers, volumes: &[String]) -> Result<Said, ContainersError> {
        let volume = |entry: u32| {
            let known = usize::try_from(entry).ok().and_then(|entry| volumes.get(entry));
            known.cloned().unwrap_or_default()
        };
        let deadline = Instant::now() + LIMIT;
        let mut tap = None;
        loop {
            let (message, descriptor) = self.receive(deadline)?;
            match message {
                FromSandbox::Users { pid } => self.map(users, pid)?,
                FromSandbox::Tried { .. } => return Err(ContainersError::OutOfTurn),
                FromSandbox::Network => return Ok(Said::Network),
                FromSandbox::Tap => tap = descriptor,
                FromSandbox::Made { pid } => return Ok(Said::Made(Made { pid, tap })),
                FromSandbox::Unmappable { entry, path, file_system } => {
                    return Err(ContainersError::Unmappable { volume: volume(entry), path, file_system });
                }
                FromSandbox::Failed { step, errno: _, detail } => {
                    return Err(ContainersError::Step { step, detail });
                }
            }
        }
    }

    /// Answers until a trial has told the outcome of each feature.
    pub(super) fn until_tried(&self, users: &PodUsers) -> Result<Vec<Tried>, ContainersError> {
        let deadline = Instant::now() + TRIAL_LIMIT;
        let mut tried = Vec::with_capacity(Feature::ALL.len());
        while tried.len() < Feature::ALL.len() {
            match self.receive(deadline)?.0 {
                FromSandbox::Users { pid } => self.map(users, pid)?,
                FromSandbox::Tried { feature, error } => tried.push(Tried { feature, error }),
                FromSandbox::Failed { step, errno: _, detail } => {
                    return Err(ContainersError::Step { step, detail });
                }
                FromSandbox::Network
                | FromSandbox::Tap
                | FromSandbox::Made { .. }
                | FromSandbox::Unmappable { .. } => {
                    return Err(ContainersError::OutOfTurn);
                }
            }
        }
        Ok(tried)
    }

    /// Maps the ids of a process of the sandbox.
    fn map(&self, users: &PodUsers, pid: i32) -> Result<(), ContainersError> {
        users.map(pid).map_err(ContainersError::Ids)?;
        self.answer(&ToSandbox::Mapped)
    }

    #[allow(unsafe_code, reason = "a received descriptor has no owner yet")]
    fn receive(&self, deadline: Instant) -> Result<(FromSandbox, Option<OwnedFd>), ContainersError> {
        let failed = ContainersError::io("hear from the sandbox");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Err(ContainersError::Silent),
                Ok(_) => break,
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        let mut buffer = vec![0; MAX_SANDBOX_MESSAGE];
        let mut space = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags)
            .map_err(|errno| failed(errno.into()))?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs().into_iter().flatten() {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just installed these descriptors for us; nobody else owns them.
                descriptors.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = message.bytes;
        if length == 0 {
            return Err(ContainersError::Ended("it closed its connection".to_owned()));
        }
        let said = serde_json::from_slice(&buffer[..length]).map_err(ContainersError::Nonsense)?;
        Ok((said, descriptors.pop()))
    }
}
