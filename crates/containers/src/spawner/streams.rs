//! The owner of standard streams. A program opens its own streams again by `/dev/stdout` and the like, which the kernel permits to the owner of the
//! pipe or terminal only.

use magikvm_supervisor::Failure;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Uid, fchown};
use std::os::fd::OwnedFd;

/// Gives pipes and terminals to a user. Their groups stay: that of a terminal may write to it. Devices such as /dev/null belong to everybody.
pub(super) fn give(streams: &[OwnedFd], user: u32) -> Result<(), Failure> {
    for stream in streams {
        let stat = fstat(stream)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let terminal = kind == SFlag::S_IFCHR && nix::unistd::isatty(stream).unwrap_or(false);
        if (kind == SFlag::S_IFIFO || terminal) && stat.st_uid != user {
            fchown(stream, Some(Uid::from_raw(user)), None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::OFlag;
    use nix::pty::openpty;
    use nix::unistd::{getegid, geteuid, pipe2};
    use std::fs::File;

    #[test]
    fn pipes_and_terminals_get_their_user_and_devices_stay() {
        // Only root may give something away.
        let user = if geteuid().is_root() { 1234 } else { geteuid().as_raw() };
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let terminal = openpty(None, None).unwrap();
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        let before = fstat(&null).unwrap();
        let streams = [read, write, terminal.slave, null];
        for _ in 0..2 {
            give(&streams, user).unwrap();
        }
        let owners: Vec<u32> = streams.iter().map(|stream| fstat(stream).unwrap().st_uid).collect();
        assert_eq!(owners, [user, user, user, before.st_uid]);
        assert_eq!(fstat(&streams[0]).unwrap().st_gid, getegid().as_raw());
    }
}
