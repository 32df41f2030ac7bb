//! The group of all files of a volume that outlives the pod (`fsGroup`), set before the first container runs. An earlier pod may have left
//! anything in the volume: no link is followed, and directories may be nested to any depth.

use magikvm_proto::volume::Regroup;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat};
use nix::unistd::{Gid, fchown, fchownat};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;

/// Additional permissions of files, and those of directories, whose new files get the group too (the kubelet's `SetVolumeOwnership`).
const FILE: u32 = 0o660;
const DIRECTORY: u32 = 0o2770;

/// A directory that is being looked through: its identity, and the directories in it that are still to be done.
struct Level {
    identity: (u64, u64),
    left: Vec<CString>,
}

/// Gives the group to everything in the directory, and lets its members read and write.
pub(crate) fn set(root: &Path, group: u32, regroup: Regroup) -> Result<(), Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut here = open(root, flags, Mode::empty())?;
    let found = fstat(&here)?;
    if regroup == Regroup::OnRootMismatch && has(&found, group, DIRECTORY) {
        return Ok(());
    }
    let mut levels = vec![level(&here, &found, group)?];
    while let Some(last) = levels.last_mut() {
        if let Some(name) = last.left.pop() {
            let inner = openat(&here, name.as_c_str(), flags, Mode::empty())?;
            let found = fstat(&inner)?;
            levels.push(level(&inner, &found, group)?);
            here = inner;
            continue;
        }
        // After its content, so that a run that was cut off is not taken for a complete one.
        let found = fstat(&here)?;
        if !has(&found, group, DIRECTORY) {
            fchown(&here, None, Some(Gid::from_raw(group)))?;
            fchmod(&here, Mode::from_bits_truncate(found.st_mode | DIRECTORY))?;
        }
        levels.pop();
        let Some(above) = levels.last() else { break };
        here = openat(&here, c"..", flags, Mode::empty())?;
        if identity(&fstat(&here)?) != above.identity {
            return Err(Errno::EAGAIN);
        }
    }
    Ok(())
}

fn identity(found: &FileStat) -> (u64, u64) {
    (found.st_dev, found.st_ino)
}

fn has(found: &FileStat, group: u32, mode: u32) -> bool {
    found.st_gid == group && found.st_mode & mode == mode
}

/// Sets the group of everything in a directory but the directories, which it returns.
fn level(dir: &OwnedFd, found: &FileStat, group: u32) -> Result<Level, Errno> {
    let mut left = Vec::new();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = Dir::openat(dir, c".", flags, Mode::empty())?;
    for entry in entries.iter() {
        let entry = entry?;
        let name: &CStr = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let found = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            left.push(name.to_owned());
            continue;
        }
        if kind == SFlag::S_IFREG && has(&found, group, FILE) {
            continue;
        }
        fchownat(dir, name, None, Some(Gid::from_raw(group)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if kind == SFlag::S_IFREG {
            // Nobody can put a link in its place: no container runs yet.
            let mode = Mode::from_bits_truncate(found.st_mode | FILE);
            fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
        }
    }
    Ok(Level { identity: identity(found), left })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn everything_gets_the_group_however_deep_it_is() {
        let base = tempfile::tempdir().unwrap();
        let (data, outside) = (base.path().join("data"), base.path().join("outside"));
        fs::create_dir(&data).unwrap();
        fs::write(&outside, "").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, data.join("link")).unwrap();
        fs::write(data.join("file"), "").unwrap();
        fs::set_permissions(data.join("file"), Permissions::from_mode(0o500)).unwrap();
        let deep = "d/".repeat(600);
        fs::create_dir_all(data.join(&deep)).unwrap();
        fs::write(data.join(&deep).join("last"), "").unwrap();
        let group = if nix::unistd::geteuid().is_root() { 4321 } else { nix::unistd::getegid().as_raw() };
        set(&data, group, Regroup::Always).unwrap();
        let look = |name: &str| {
            let found = fs::symlink_metadata(data.join(name)).unwrap();
            (found.gid(), found.mode() & 0o7777)
        };
        assert_eq!(look("file"), (group, 0o760));
        assert_eq!((look(&deep).0, look(&deep).1 & 0o2770), (group, 0o2770));
        assert_eq!(look(&format!("{deep}last")).0, group);
        assert_eq!((look(".").1 & 0o2770, look("link").0), (0o2770, group));
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(data.join("file"), Permissions::from_mode(0o600)).unwrap();
        set(&data, group, Regroup::OnRootMismatch).unwrap();
        assert_eq!(look("file").1, 0o600);
    }
}
