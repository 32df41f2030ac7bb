//! The side of the process that starts another one in a jail. It hands over the specification, maps ids (which a process cannot do for
//! itself), decides whether the layers suffice, and then listens for system calls that are not on the list.
#![allow(
    unsafe_code,
    reason = "pre_exec is the only place where a child can be told which descriptors it keeps"
)]

use super::channel::{Channel, FromInside, FromOutside};
use super::spec::{Identity, JailSpec, MountSource, Requirement};
use super::{JAIL_VERB, JailError, Jailed, filter, ids};
use crate::process::Watch;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Descriptors in transfer to a jail are numbered from here, so that no assignment overwrites another.
pub(super) const FIRST_TRANSFER: RawFd = 100;

/// A process that is about to be started in a jail.
#[derive(Debug)]
pub struct Handover {
    channel: Channel,
    theirs: OwnedFd,
    transfers: Vec<OwnedFd>,
    spec: JailSpec,
}

impl Handover {
    pub fn new(spec: &JailSpec) -> Result<Self, JailError> {
        spec.check()?;
        let mut spec = spec.clone();
        let (channel, theirs) = Channel::pair().map_err(JailError::Channel)?;
        let theirs = transfer(theirs.as_raw_fd()).map_err(JailError::Channel)?;
        let mut transfers = Vec::new();
        let sources = spec.mounts.iter_mut().filter_map(|mount| match &mut mount.source {
            MountSource::Fd(number) => Some(number),
            MountSource::Path(_) => None,
        });
        for number in sources.chain(spec.descriptors.iter_mut().map(|descriptor| &mut descriptor.here)) {
            let own = transfer(*number).map_err(JailError::Channel)?;
            *number = own.as_raw_fd();
            transfers.push(own);
        }
        Ok(Self { channel, theirs, transfers, spec })
    }

    /// Attaches it to a command of [`super::command`].
    pub fn attach(&self, command: &mut Command) {
        let numbers: Vec<RawFd> =
            std::iter::once(&self.theirs).chain(&self.transfers).map(AsRawFd::as_raw_fd).collect();
        command.arg(JAIL_VERB).arg(self.theirs.as_raw_fd().to_string());
        #[cfg(feature = "testing")]
        if let Some(file) = std::env::var_os(filter::MEASURE) {
            command.env(filter::MEASURE, file);
        }
        // SAFETY: between fork and exec only fcntl is called, and the descriptors are open in this process until the child has been
        // started.
        unsafe {
            command.pre_exec(move || {
                for &number in &numbers {
                    if libc::fcntl(number, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
    }

    /// Completes the jail of the child that was started. That child may end meanwhile and be replaced by another one: the caller reaps the
    /// first one.
    pub fn complete(self, pid: i32) -> Result<Jailed, JailError> {
        let Self { mut channel, theirs, transfers, spec } = self;
        drop((theirs, transfers));
        let mut now = pid;
        let outcome = converse(&mut channel, &spec, &mut now);
        if outcome.is_err() && now != pid {
            // The process notices that nobody talks to it any more; the signal is for one that cannot.
            if kill(Pid::from_raw(now), Signal::SIGKILL).is_ok() {
                while nix::sys::wait::waitpid(Pid::from_raw(now), None) == Err(nix::errno::Errno::EINTR) {}
            }
        }
        outcome
    }
}

fn converse(channel: &mut Channel, spec: &JailSpec, now: &mut i32) -> Result<Jailed, JailError> {
    match channel.send(spec, None) {
        // The process has already ended and may have said why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent.map_err(JailError::Channel)?,
    }
    let mut layers = None;
    let mut watch = None;
    let mut fewer_ids = None;
    loop {
        let said = channel.receive::<FromInside>().map_err(JailError::Channel)?;
        match said {
            Some(FromInside::Forked { pid }) => *now = pid,
            Some(FromInside::Ids) => {
                let mapped = ids::map(*now, &spec.identity);
                let failure = mapped.as_ref().err().cloned();
                fewer_ids = mapped.ok().flatten();
                answer(channel, &FromOutside::Mapped { failure })?;
            }
            Some(FromInside::Walled { layers: mut stand }) => {
                stand.fewer_ids = fewer_ids.take();
                if spec.requirement == Requirement::Require
                    && let Some(missing) = stand.missing.first()
                {
                    return Err(JailError::Missing(missing.clone()));
                }
                layers = Some(stand);
                answer(channel, &FromOutside::Go)?;
            }
            Some(FromInside::Filtered) => {
                if let Some(listener) = channel.take_descriptor() {
                    let noted = Watch::default();
                    filter::listen(listener, *now, spec, noted.clone()).map_err(JailError::Channel)?;
                    watch = Some(noted);
                }
            }
            Some(FromInside::Failed { step, path, errno }) => {
                return Err(JailError::Step { step, path, source: io::Error::from_raw_os_error(errno) });
            }
            // It closes its end last, by executing a program or explicitly.
            None => {
                return layers.map(|layers| Jailed { pid: *now, layers, watch }).ok_or(JailError::Ended);
            }
        }
    }
}

fn answer(channel: &Channel, message: &FromOutside) -> Result<(), JailError> {
    match channel.send(message, None) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        sent => sent.map_err(JailError::Channel),
    }
}

/// The same open file under another number.
fn transfer(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the caller of the jail keeps it open, and the kernel refuses a number that is not open.
    let given = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = fcntl(given, FcntlArg::F_DUPFD_CLOEXEC(FIRST_TRANSFER))?;
    // SAFETY: the kernel has just created it, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

impl JailSpec {
    fn check(&self) -> Result<(), JailError> {
        let wrong = |what: String| Err(JailError::Spec(what));
        if let Some(mount) = self.mounts.iter().find(|mount| !is_plain(&mount.target)) {
            return wrong(format!("{} is not an absolute path without `.` and `..`", mount.target.display()));
        }
        if let Some(other) = self.descriptors.iter().find(|one| !(4..64).contains(&one.there)) {
            return wrong(format!("descriptor {} is not from 4 to 63", other.there));
        }
        if !is_plain(&self.working_dir) {
            return wrong(format!("{} is not an absolute path", self.working_dir.display()));
        }
        if matches!(self.identity, Identity::FileServer)
            && matches!(self.inside, super::Inside::Program { .. })
        {
            return wrong("another program would lose the capabilities of a file server".to_owned());
        }
        Ok(())
    }
}

fn is_plain(path: &std::path::Path) -> bool {
    use std::path::Component;
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}
