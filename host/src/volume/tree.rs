//! The tree that a pod is given of this machine: entries `0`, `1`, …, each a directory or a file, to be changed or only read. It is mounts in
//! a mount namespace that only the process which serves it has, so nothing of it is left when that ends.
#![allow(unsafe_code, reason = "system calls about mounts that no crate wraps, and descriptors for a child")]

use super::host::Found;
use magikvm_proto::volume::Access;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Descriptors for a child have at least this number, out of the way of those that it is given by their number.
const FIRST_FD: RawFd = 64;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
}

/// Everything that a pod is given of this machine.
#[derive(Debug, Default)]
pub struct Shared {
    entries: Vec<(OwnedFd, Entry)>,
}

/// One entry, as the process that serves it is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Descriptor that was found.
    pub fd: RawFd,
    /// What it is.
    pub kind: Kind,
    /// Whether it can be changed.
    pub access: Access,
}

impl Shared {
    /// Adds what was found; returns its number.
    pub fn add(&mut self, found: &Found, access: Access) -> io::Result<u32> {
        let fd = fcntl(&found.fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_FD))?;
        // SAFETY: the kernel has just made it; nobody else owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(fd) };
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push((owned, Entry { fd, kind: found.kind, access }));
        Ok(number)
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries, in their order.
    pub fn entries(&self) -> Vec<Entry> {
        self.entries.iter().map(|(_, entry)| *entry).collect()
    }

    /// Lets a child have the descriptors, under their own numbers. They must stay open until it is started.
    pub fn give(&self, command: &mut Command) {
        give(command, self.entries.iter().map(|(fd, _)| fd.as_raw_fd()).collect());
    }
}

/// Lets a child have these descriptors, which must stay open until it is started.
pub(super) fn give(command: &mut Command, fds: Vec<RawFd>) {
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            for &fd in &fds {
                if nix::libc::fcntl(fd, nix::libc::F_SETFD, FdFlag::empty().bits()) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
}

#[cfg(target_os = "linux")]
pub use linux::compose;

#[cfg(target_os = "linux")]
mod linux {
    use super::{Access, Entry, Kind};
    use nix::errno::Errno;
    use nix::libc;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use std::fs::{self, File};
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
    use std::path::Path;

    /// Makes the tree at a directory, in a mount namespace of its own. For a process that has one thread.
    pub fn compose(entries: &[Entry], at: &Path) -> io::Result<()> {
        // In the namespace where they were found; in another one they could not be.
        let detached = entries.iter().map(detach).collect::<io::Result<Vec<OwnedFd>>>()?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let safe = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("shared"), at, Some("tmpfs"), safe, Some("mode=0755,size=1m"))?;
        for (number, (entry, tree)) in entries.iter().zip(detached).enumerate() {
            let target = at.join(number.to_string());
            match entry.kind {
                Kind::Directory => fs::create_dir(&target)?,
                Kind::File => File::create_new(&target).map(drop)?,
            }
            attach(&tree, &target)?;
        }
        mount(None::<&str>, at, None::<&str>, safe | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)?;
        Ok(())
    }

    /// A copy of what is mounted at an entry and beneath it, that nothing comes to or goes from any more.
    fn detach(entry: &Entry) -> io::Result<OwnedFd> {
        let flags = libc::AT_EMPTY_PATH as libc::c_uint
            | libc::AT_RECURSIVE as libc::c_uint
            | libc::OPEN_TREE_CLONE
            | libc::OPEN_TREE_CLOEXEC;
        // SAFETY: the path is a string that ends in NUL.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, entry.fd, c"".as_ptr(), flags) };
        let fd =
            RawFd::try_from(Errno::result(fd)?).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        // SAFETY: the kernel has just made it; nobody else owns it.
        let tree = unsafe { OwnedFd::from_raw_fd(fd) };
        let attr_set = match entry.access {
            Access::ReadOnly => libc::MOUNT_ATTR_RDONLY,
            Access::ReadWrite => 0,
        };
        let attributes = libc::mount_attr {
            attr_set: attr_set | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID,
            attr_clr: 0,
            propagation: libc::MS_PRIVATE,
            userns_fd: 0,
        };
        let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
        // SAFETY: the path ends in NUL, the attributes live through the call and have the size that is told.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                tree.as_raw_fd(),
                c"".as_ptr(),
                flags,
                &raw const attributes,
                size_of::<libc::mount_attr>(),
            )
        })?;
        Ok(tree)
    }

    fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
        use std::os::unix::ffi::OsStrExt;
        let target = std::ffi::CString::new(target.as_os_str().as_bytes())?;
        // SAFETY: both paths end in NUL and live through the call.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                tree.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                libc::MOVE_MOUNT_F_EMPTY_PATH,
            )
        })?;
        Ok(())
    }
}
