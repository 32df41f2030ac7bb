//! Has the calling process enter an AppArmor profile. A process may change only its own, by files of /proc, which are those of the supervisor: what a
//! container has at that path may be anything.
//!
//! The first process of a container enters its profile by libcontainer, which looks at the container's /proc before anybody else can.

use magikvm_supervisor::{Failure, FailureKind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::write;
use std::os::fd::OwnedFd;

/// The directory of processes in the supervisor's mount namespace.
pub(super) struct Processes(OwnedFd);

impl Processes {
    /// To be called before the calling process enters another mount namespace.
    pub(super) fn open() -> Result<Self, Failure> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open("/proc", flags, Mode::empty())?))
    }

    /// Opens a file with attributes of the calling process. Kernels before 5.8 have only the second path.
    fn attribute(&self, name: &str) -> nix::Result<OwnedFd> {
        let open =
            |path: String| openat(&self.0, path.as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty());
        match open(format!("self/attr/apparmor/{name}")) {
            Err(Errno::ENOENT) => open(format!("self/attr/{name}")),
            opened => opened,
        }
    }
}

/// A profile by its name.
pub(super) struct Profile<'a> {
    pub(super) name: &'a str,
    pub(super) processes: Processes,
}

impl Profile<'_> {
    /// Enters it when the calling process executes its next program.
    pub(super) fn enter_with_program(self) -> Result<(), Failure> {
        self.change("exec", "exec")
    }

    pub(super) fn enter_now(self) -> Result<(), Failure> {
        self.change("current", "changeprofile")
    }

    fn change(&self, attribute: &str, verb: &str) -> Result<(), Failure> {
        let change =
            || write(&self.processes.attribute(attribute)?, format!("{verb} {}", self.name).as_bytes());
        let why = match change() {
            Ok(_) => return Ok(()),
            Err(Errno::ENOENT) => "it is not loaded any more",
            Err(errno) => errno.desc(),
        };
        let message = format!("cannot enter the AppArmor profile {:?}: {why}", self.name);
        Err(Failure::new(FailureKind::Other, message))
    }
}
