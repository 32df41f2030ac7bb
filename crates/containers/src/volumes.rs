//! What each container sees of the pod's volumes, found anew at each start. Containers are hostile and may change a volume during a path
//! lookup, so every path is looked up once and what was opened is mounted. Must not know: how volumes are mounted, the
//! wire.

use crate::mount_point::kind_of;
use crate::rootfs;
use magikvm_proto::site::Site;
use magikvm_proto::volume::{self, MountPlan, Part};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, umask};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How often a lookup is repeated that concurrent renames or mounts disturbed.
const LOOKUPS: u32 = 128;

/// Why a container can't see part of a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// openat2(2) says so by EXDEV.
    #[error(
        "mount at {destination}: subPath {path:?} leaves its volume: a link on the way leads out of it; links within the volume have to be relative"
    )]
    Outside { destination: String, path: String },
    /// The part of the volume cannot be opened or made.
    #[error("mount at {destination}: cannot use {path:?} of its volume")]
    Part {
        /// Mount point in the container.
        destination: String,
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Opens what a mount shows. `place` is a path that no container reaches, for what the volume lacks and can't get.
pub(crate) fn find(site: &Site, wanted: &MountPlan, place: &Path) -> Result<OwnedFd, VolumeError> {
    let volume = site.volume(wanted.volume);
    let (part, found) = match &wanted.part {
        Part::Whole => (String::new(), open_volume(&volume)),
        Part::Path(path) => (path.clone(), open_volume(&volume).and_then(|root| part(&root, path, place))),
        Part::Shared(entry) => {
            let name = entry.to_string();
            let found = open_volume(&site.shared()).and_then(|root| open_beneath(&root, &name));
            (name, found)
        }
    };
    found.and_then(known_kind).map_err(|source| part_error(wanted.destination.clone(), part, source))
}

fn part_error(destination: String, path: String, source: io::Error) -> VolumeError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EXDEV) => VolumeError::Outside { destination, path },
        _ => VolumeError::Part { destination, path, source },
    }
}

/// Opens a part of a volume. A missing one becomes a directory, beside the volume if that is read-only.
fn part(root: &OwnedFd, path: &str, place: &Path) -> io::Result<OwnedFd> {
    match open_or_make(root, path) {
        Err(error) if error.raw_os_error() == Some(Errno::EROFS as i32) => {
            let missing = place.join("missing");
            fs::create_dir_all(&missing)?;
            rootfs::take_attributes(root, &missing)?;
            open_volume(&missing)
        }
        other => other,
    }
}

fn open_volume(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Only directories and regular files are mounted.
fn known_kind(fd: OwnedFd) -> io::Result<OwnedFd> {
    match kind_of(&fd)? {
        SFlag::S_IFDIR | SFlag::S_IFREG => Ok(fd),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a directory nor a regular file")),
    }
}

/// Opens a path beneath a directory. A link that leads out of the directory is an error.
fn open_beneath(root: &impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    for _ in 0..LOOKUPS {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::EAGAIN.into())
}

/// Like [`open_beneath`], but makes missing directories, with the mode of the volume.
fn open_or_make(root: &impl AsFd, path: &str) -> io::Result<OwnedFd> {
    match open_beneath(root, path) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
        other => return other,
    }
    let mode = Mode::from_bits_truncate(fstat(root)?.st_mode & 0o7777);
    let mut parent = open_beneath(root, ".")?;
    let mut so_far = PathBuf::new();
    for name in volume::names(path) {
        so_far.push(name);
        let here = so_far.to_string_lossy();
        parent = match open_beneath(root, &here) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {
                // Another process may have made it first, or a link is dangling: the next lookup tells.
                let before = umask(Mode::empty());
                let made = mkdirat(&parent, name, mode);
                umask(before);
                match made {
                    Ok(()) | Err(Errno::EEXIST) => open_beneath(root, &here)?,
                    Err(errno) => return Err(errno.into()),
                }
            }
            other => other?,
        };
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn what_is_missing_is_made_beneath_the_volume_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        fs::set_permissions(&volume, Permissions::from_mode(0o2775)).unwrap();
        let root = open_volume(&volume).unwrap();
        open_or_make(&root, "a/./b//c").unwrap();
        for made in ["a", "a/b", "a/b/c"] {
            assert_eq!(
                fs::metadata(volume.join(made)).unwrap().permissions().mode() & 0o7777,
                0o2775,
                "{made}"
            );
        }
        fs::write(volume.join("file"), "x").unwrap();
        assert_eq!(kind_of(&open_or_make(&root, "file").unwrap()).unwrap(), SFlag::S_IFREG);
        assert!(open_or_make(&root, "file/x").is_err());
    }

    #[test]
    fn no_link_leads_out_of_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir(&volume).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::create_dir(volume.join("inside")).unwrap();
        symlink("../outside", volume.join("up")).unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("../outside/new", volume.join("dangling")).unwrap();
        symlink("inside", volume.join("fine")).unwrap();
        let root = open_volume(&volume).unwrap();
        for bad in ["up", "up/new", "absolute", "absolute/new", "dangling", "dangling/new"] {
            let error = open_or_make(&root, bad).unwrap_err();
            let told = part_error("/data".to_owned(), bad.to_owned(), error).to_string();
            assert!(
                told.starts_with(&format!("mount at /data: subPath {bad:?} leaves its volume")),
                "{told}"
            );
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        open_or_make(&root, "fine/new").unwrap();
        assert!(volume.join("inside/new").is_dir());
    }

    #[test]
    fn only_directories_and_files_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
        let root = open_volume(dir.path()).unwrap();
        assert!(open_or_make(&root, "pipe").and_then(known_kind).is_err());
    }
}
