//! The group of a claim's files (`fsGroup`), set on the host before its pod starts. A container may have left anything in the claim, so no
//! link is followed.

use super::super::GroupChange;
use super::ClaimError;
use crate::store::atomic::FileError;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, Stat, chownat, fchmod, fchown, fstat, openat, statat,
};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Additional permissions of files, and those of directories, whose new files get the group too (the kubelet's `SetVolumeOwnership`).
const FILE: RawMode = 0o660;
const DIRECTORY: RawMode = 0o2770;

/// A directory that is being looked through: its identity, and the directories in it that are still to be done.
struct Level {
    identity: (u64, u64),
    left: Vec<CString>,
}

/// Gives the group to everything in the directory, and lets its members read and write.
pub fn set_group(data: &Path, group: u32, change: GroupChange) -> Result<(), ClaimError> {
    Ok(set(data, group, change).map_err(|errno| FileError::at("set the group of", data)(errno.into()))?)
}

/// Directories may be nested to any depth: only one is open at a time, and the way back is the one that was taken.
fn set(data: &Path, group: u32, change: GroupChange) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = openat(rustix::fs::CWD, data, flags, Mode::empty())?;
    let found = fstat(&here)?;
    if change == GroupChange::OnRootMismatch && has(&found, group, DIRECTORY) {
        return Ok(());
    }
    let mut levels = vec![level(&here, &found, group)?];
    while let Some(last) = levels.last_mut() {
        if let Some(name) = last.left.pop() {
            let inner = match openat(&here, name.as_c_str(), flags, Mode::empty()) {
                // Another pod has removed it, or put something else in its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                inner => inner?,
            };
            let found = fstat(&inner)?;
            levels.push(level(&inner, &found, group)?);
            here = inner;
            continue;
        }
        // After its content, so that a run that was cut off is not taken for a complete one.
        set_directory(&here, &fstat(&here)?, group)?;
        levels.pop();
        let Some(above) = levels.last() else { break };
        here = openat(&here, c"..", flags, Mode::empty())?;
        // Another pod may have moved the directory, even out of the volume's.
        if identity(&fstat(&here)?) != above.identity {
            return Err(Errno::AGAIN);
        }
    }
    Ok(())
}

#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_fallible_conversions,
    reason = "the types differ between systems"
)]
fn identity(found: &Stat) -> (u64, u64) {
    (u64::try_from(found.st_dev).unwrap_or_default(), found.st_ino)
}

fn mode_of(found: &Stat) -> RawMode {
    found.st_mode & 0o7777
}

fn has(found: &Stat, group: u32, mode: RawMode) -> bool {
    found.st_gid == group && mode_of(found) & mode == mode
}

fn set_directory(dir: &OwnedFd, found: &Stat, group: u32) -> Result<(), Errno> {
    if has(found, group, DIRECTORY) {
        return Ok(());
    }
    fchown(dir, None, Some(Gid::from_raw(group)))?;
    fchmod(dir, Mode::from_raw_mode(mode_of(found) | DIRECTORY))
}

/// Sets the group of everything in a directory but the directories, which it returns.
fn level(dir: &OwnedFd, found: &Stat, group: u32) -> Result<Level, Errno> {
    let mut left = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let found = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Another pod has removed it.
            Err(Errno::NOENT) => continue,
            found => found?,
        };
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory => left.push(name.to_owned()),
            FileType::RegularFile if !has(&found, group, FILE) => {
                chownat(dir, name, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW)?;
                // Opened for nothing but its identity: a link in its place is not followed.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(dir, name, flags, Mode::empty())?;
                if FileType::from_raw_mode(fstat(&file)?.st_mode) == FileType::RegularFile {
                    fchmod(&file, Mode::from_raw_mode(mode_of(&found) | FILE))?;
                }
            }
            FileType::RegularFile => {}
            _ => chownat(dir, name, None, Some(Gid::from_raw(group)), AtFlags::SYMLINK_NOFOLLOW)?,
        }
    }
    Ok(Level { identity: identity(found), left })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// Only root may give files away; a user has at least a group of its own.
    #[test]
    fn members_of_the_group_may_use_everything_and_no_link_is_followed() {
        let base = tempfile::tempdir().unwrap();
        let (data, outside) = (base.path().join("data"), base.path().join("outside"));
        fs::create_dir_all(data.join("dir/deep")).unwrap();
        fs::write(&outside, "").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        fs::write(data.join("dir/file"), "").unwrap();
        fs::set_permissions(data.join("dir/file"), Permissions::from_mode(0o500)).unwrap();
        symlink(&outside, data.join("link")).unwrap();
        let deep = data.join("d/".repeat(700));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("last"), "").unwrap();
        let group = if nix::unistd::geteuid().is_root() { 4321 } else { nix::unistd::getegid().as_raw() };
        set_group(&data, group, GroupChange::Always).unwrap();
        let look = |name: &str| {
            let found = fs::symlink_metadata(data.join(name)).unwrap();
            (found.gid(), found.permissions().mode() & 0o7777)
        };
        assert_eq!(look("dir/file"), (group, 0o760));
        assert_eq!((look("dir").0, look("dir").1 & 0o2770), (group, 0o2770));
        assert_eq!((look("dir/deep").0, look(".").1 & 0o2770), (group, 0o2770));
        assert_eq!(fs::metadata(deep.join("last")).unwrap().gid(), group);
        assert_eq!(fs::metadata(&outside).unwrap().permissions().mode() & 0o777, 0o600);
        // The root has the group already.
        fs::set_permissions(data.join("dir/file"), Permissions::from_mode(0o600)).unwrap();
        set_group(&data, group, GroupChange::OnRootMismatch).unwrap();
        assert_eq!(look("dir/file").1, 0o600);
        set_group(&data, group, GroupChange::Always).unwrap();
        assert_eq!(look("dir/file").1, 0o660);
    }
}
