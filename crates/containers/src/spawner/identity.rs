//! What an exec asks of the container's user database: another user, or a shell. Runs in the container's mount namespace, whose files the
//! container may have written.

use crate::rootfs;
use crate::user::{self, IdMaps, User, UserError};
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
pub(super) fn assume(process: &mut Process, text: &str, ids: &IdMaps) -> Result<(), Failure> {
    let user = find(text, &read("/etc/passwd")?, &read("/etc/group")?, ids)?;
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

fn find(text: &str, passwd: &[u8], group: &[u8], ids: &IdMaps) -> Result<User, Failure> {
    let refused = |error: UserError| Failure::new(FailureKind::Other, format!("--user {text}: {error}"));
    let user = user::resolve(text, passwd, group, user::Listed::UnlessGiven).map_err(refused)?;
    ids.check(user.uid, user.groups.iter().copied().chain([user.gid])).map_err(refused)?;
    Ok(user)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_the_pod_does_not_have_are_refused_before_they_are_used() {
        // That of a pod with 65536 ids, read as a container's own would be.
        let ids = IdMaps::of_text("0 1895825408 65536\n");
        let (passwd, group) = (b"far:x:7:70001::/:\n", b"wide:x:70002:web\nweb:x:8:\n");
        let passwd = [&passwd[..], b"web:x:8:8::/:\n"].concat();
        let says = |text: &str| find(text, &passwd, group, &ids).unwrap_err().message;
        assert_eq!(
            says("70000"),
            "--user 70000: user 70000 does not exist in the pod, whose users are 0 to 65535"
        );
        assert_eq!(
            says("0:70000"),
            "--user 0:70000: group 70000 does not exist in the pod, whose groups are 0 to 65535"
        );
        // Its own group, and one that has it as a member.
        assert!(says("far").contains("group 70001 does not exist"));
        assert!(says("web").contains("group 70002 does not exist"));
        assert!(find("65535:65535", &passwd, group, &ids).is_ok());
        assert!(says("nobody").starts_with("--user nobody: user \"nobody\" is not in"));
    }
}
