//! What each container sees of the pod's volumes, bound anew at each start. Containers are hostile and may change a volume during a path
//! lookup, so every path is looked up once and what was opened is bound. Must not know: how volumes are mounted, the
//! wire.

use libcontainer::oci_spec::runtime::{Mount, Spec};
use magikvm_proto::plan::ContainerPlan;
use magikvm_proto::site::Site;
use magikvm_proto::volume::{self, Access, MountPlan, Part};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, umask};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How often a lookup is repeated that concurrent renames or mounts disturbed.
const LOOKUPS: u32 = 128;

/// Why a container can't see part of a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The part of the volume does not exist or leads out of the volume.
    #[error("mount at {destination}: cannot use {path:?} of its volume")]
    Part {
        /// Mount point in the container.
        destination: String,
        path: String,
        #[source]
        source: io::Error,
    },
    /// The part could not be bound.
    #[error("mount at {destination}: cannot bind {}", path.display())]
    Bind {
        /// Mount point in the container.
        destination: String,
        /// Where the supervisor was about to bind it first.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Binds what a container sees of the volumes to private places, and adds them to its configuration. Binds of an earlier run are removed.
pub(crate) fn attach(site: &Site, plan: &ContainerPlan, spec: &mut Spec) -> Result<(), VolumeError> {
    let mounts = spec.mounts_mut().get_or_insert_default();
    for (number, wanted) in plan.mounts.iter().enumerate() {
        let source = find(site, wanted)?;
        let place = site.mount(&plan.name, number);
        bind(&source, &place).map_err(|error| VolumeError::Bind {
            destination: wanted.destination.clone(),
            path: place.clone(),
            source: error,
        })?;
        mounts.push(entry(wanted, place));
    }
    Ok(())
}

fn entry(wanted: &MountPlan, place: PathBuf) -> Mount {
    let access = match wanted.access {
        Access::ReadOnly => "ro",
        Access::ReadWrite => "rw",
    };
    let options = ["rbind", "rprivate", "nodev", access].map(str::to_owned).to_vec();
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(&wanted.destination))
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(place))
        .set_options(Some(options));
    mount
}

/// Opens what a mount shows.
fn find(site: &Site, wanted: &MountPlan) -> Result<OwnedFd, VolumeError> {
    let volume = site.volume(wanted.volume);
    let (part, found) = match &wanted.part {
        Part::Whole => (String::new(), open_volume(&volume)),
        Part::Path(path) => (path.clone(), open_volume(&volume).and_then(|root| open_or_make(&root, path))),
        Part::Shared(entry) => {
            let name = entry.to_string();
            let found = open_volume(&site.shared()).and_then(|root| open_beneath(&root, &name));
            (name, found)
        }
    };
    found.and_then(known_kind).map_err(|source| VolumeError::Part {
        destination: wanted.destination.clone(),
        path: part,
        source,
    })
}

fn open_volume(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Only directories and regular files are mounted.
fn known_kind(fd: OwnedFd) -> io::Result<OwnedFd> {
    match kind(&fd)? {
        SFlag::S_IFDIR | SFlag::S_IFREG => Ok(fd),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is neither a directory nor a regular file")),
    }
}

fn kind(fd: &impl AsFd) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT)
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

/// Binds something to a place that no container reaches.
fn bind(source: &OwnedFd, place: &Path) -> io::Result<()> {
    // One unmount for each earlier run whose bind was left.
    while umount2(place, MntFlags::MNT_DETACH).is_ok() {}
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    // The part may have changed between a file and a directory since the last run.
    fs::remove_dir(place).or_else(|_| fs::remove_file(place)).ok();
    if kind(source)? == SFlag::S_IFDIR {
        fs::create_dir(place)?;
    } else {
        File::create_new(place)?;
    }
    let from = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount(Some(from.as_str()), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
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
        assert_eq!(kind(&open_or_make(&root, "file").unwrap()).unwrap(), SFlag::S_IFREG);
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
            assert!(open_or_make(&root, bad).is_err(), "{bad}");
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
