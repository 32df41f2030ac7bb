//! What an exec asks of the container's user database: another user, or a shell. Runs in the container's mount namespace, whose files the
//! container may have written.

use crate::{rootfs, user};
use libcontainer::oci_spec::runtime::Process;
use magikvm_supervisor::{Failure, FailureKind};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, access};
use std::path::Path;

/// Shells to try if the user's own is missing.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

fn read(file: &str) -> Result<Vec<u8>, Failure> {
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    match rootfs::read_file(&root, Path::new(file), user::MAX_USER_FILE) {
        Ok(bytes) => Ok(bytes.unwrap_or_default()),
        Err(error) => Err(Failure::new(FailureKind::Other, format!("cannot read {file}: {error}"))),
    }
}

/// The process as this user (`USER[:GROUP]`, names or numbers), with the groups and the home directory of that user. Capabilities stay those
/// of the container; the kernel drops them for another user than root.
pub(super) fn assume(process: &mut Process, text: &str) -> Result<(), Failure> {
    let user = user::resolve(text, &read("/etc/passwd")?, &read("/etc/group")?, user::Listed::UnlessGiven)
        .map_err(|error| Failure::new(FailureKind::Other, error.to_string()))?;
    process
        .user_mut()
        .set_uid(user.uid)
        .set_gid(user.gid)
        .set_additional_gids(Some(user.groups).filter(|groups| !groups.is_empty()));
    let env = process.env_mut().get_or_insert_default();
    env.retain(|entry| !entry.starts_with("HOME="));
    env.push(format!("HOME={}", user.home));
    Ok(())
}

/// The shell of the process's user, or one that the container has.
pub(super) fn shell(process: &Process) -> Result<String, Failure> {
    let own = user::shell(process.user().uid(), &read("/etc/passwd")?);
    let candidates = own.into_iter().chain(SHELLS.map(str::to_owned));
    let is_there = |shell: &String| access(shell.as_str(), AccessFlags::X_OK).is_ok();
    candidates.into_iter().find(is_there).ok_or_else(|| {
        Failure::new(FailureKind::NoProgram, "the container has no shell: neither /bin/bash nor /bin/sh")
    })
}
