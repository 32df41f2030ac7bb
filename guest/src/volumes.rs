//! The pod's volumes: mounted once when the pod is loaded, one directory each; and what each container sees of them, bound anew at each of
//! its starts. Containers are hostile and may change a volume while a path in it is looked up, so nothing is ever looked up twice: what was
//! opened is what is bound. Must not know: the supervisor, the wire.

use crate::load::{self, LoadError, file_error};
use libcontainer::oci_spec::runtime::{Mount, Spec};
use magikvm_proto::path;
use magikvm_proto::plan::{ContainerPlan, GuestPlan};
use magikvm_proto::volume::{self, Access, MountPlan, Part, VolumePlan, VolumeSource};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, umask};
use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Where file systems of the scratch disk are mounted, hidden from containers.
const SCRATCH: &str = "/run/scratch";
/// Mode of an emptyDir, as the kubelet makes it.
const EMPTY_DIR_MODE: u32 = 0o777;
/// A lookup that renames and mounts elsewhere disturbed is tried so often.
const LOOKUPS: u32 = 128;

/// Why a container can't see what it is to see of a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The part of the volume is not there, or leads out of it.
    #[error("mount at {destination}: cannot use {path:?} of its volume")]
    Part {
        /// Where the container was to see it.
        destination: String,
        /// Which part.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not be bound.
    #[error("mount at {destination}: cannot bind {}", path.display())]
    Bind {
        /// Where the container was to see it.
        destination: String,
        /// Where it was to be bound first.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Mounts all volumes, each at a directory of its own.
pub(crate) fn mount_all(plan: &GuestPlan) -> Result<(), LoadError> {
    let partitions: BTreeSet<u32> = plan
        .volumes
        .iter()
        .filter_map(|volume| match volume.source {
            VolumeSource::Disk { partition } => Some(partition),
            _ => None,
        })
        .collect();
    for partition in partitions {
        let target = Path::new(SCRATCH).join(partition.to_string());
        make_dir(&target)?;
        let device = format!("{}{partition}", path::SCRATCH_DISK);
        // What is freed goes back to the host's disk.
        load::mount_device(&device, &target, "ext4", MsFlags::MS_NODEV, Some("discard"))?;
    }
    if plan.volumes.iter().any(|volume| volume.source == VolumeSource::Shared) {
        let target = shared();
        make_dir(&target)?;
        mount_at(path::SHARED_TAG, &target, Some("virtiofs"), MsFlags::MS_NODEV, None)?;
    }
    plan.volumes.iter().enumerate().try_for_each(|(index, volume)| mount_volume(index, volume))
}

fn mount_volume(index: usize, volume: &VolumePlan) -> Result<(), LoadError> {
    let target = Path::new(path::GUEST_VOLUMES).join(index.to_string());
    let bind = MsFlags::MS_BIND;
    match &volume.source {
        VolumeSource::Shared => return Ok(()),
        VolumeSource::Memory { size_bytes } => {
            make_dir(&target)?;
            let size = size_bytes.map(|bytes| format!("size={bytes},")).unwrap_or_default();
            let options = format!("{size}mode={EMPTY_DIR_MODE:o}");
            mount_at("volume", &target, Some("tmpfs"), MsFlags::MS_NODEV, Some(&options))?;
        }
        VolumeSource::Disk { partition } => {
            make_dir(&target)?;
            let source = Path::new(SCRATCH).join(partition.to_string()).join(index.to_string());
            make_dir(&source)?;
            fs::set_permissions(&source, Permissions::from_mode(EMPTY_DIR_MODE))
                .map_err(file_error(&source))?;
            mount_at(&source.to_string_lossy(), &target, None, bind, None)?;
        }
        VolumeSource::Files => {
            make_dir(&target)?;
            return mount_at(&path::volume_files(index), &target, None, bind, None);
        }
    }
    if let Some(group) = volume.group {
        chown(&target, None, Some(group)).map_err(file_error(&target))?;
        let mode = Permissions::from_mode(0o2000 | EMPTY_DIR_MODE);
        fs::set_permissions(&target, mode).map_err(file_error(&target))?;
    }
    Ok(())
}

fn shared() -> PathBuf {
    Path::new(path::GUEST_VOLUMES).join("shared")
}

fn make_dir(path: &Path) -> Result<(), LoadError> {
    fs::create_dir_all(path).map_err(file_error(path))
}

fn mount_at(
    source: &str,
    target: &Path,
    fstype: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), LoadError> {
    mount(Some(source), target, fstype, flags, data).map_err(|errno| LoadError::Mount {
        source_path: source.to_owned(),
        target: target.to_owned(),
        source: errno,
    })
}

/// Binds what a container sees of the volumes to places of its own, and adds them to its configuration. What an earlier run had goes.
pub(crate) fn attach(plan: &ContainerPlan, spec: &mut Spec) -> Result<(), VolumeError> {
    let mounts = spec.mounts_mut().get_or_insert_default();
    for (number, wanted) in plan.mounts.iter().enumerate() {
        let source = find(wanted)?;
        let place = Path::new(path::GUEST_MOUNTS).join(plan.name.as_str()).join(number.to_string());
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
fn find(wanted: &MountPlan) -> Result<OwnedFd, VolumeError> {
    let volume = Path::new(path::GUEST_VOLUMES).join(wanted.volume.to_string());
    let (part, found) = match &wanted.part {
        Part::Whole => (String::new(), open_volume(&volume)),
        Part::Path(path) => (path.clone(), open_volume(&volume).and_then(|root| open_or_make(&root, path))),
        Part::Shared(entry) => {
            let name = entry.to_string();
            let found = open_volume(&shared()).and_then(|root| open_beneath(&root, &name));
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

/// Opens what is at a path beneath a directory. A link that leads out of it is an error.
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

/// The same; what is missing is made, directories of the volume's own mode.
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
                // Somebody else may have been faster, or a link leads to nothing: the next look says.
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

/// Makes something visible at a place that only vminit reaches.
fn bind(source: &OwnedFd, place: &Path) -> io::Result<()> {
    // One unmount for each earlier run that was not cleaned up.
    while umount2(place, MntFlags::MNT_DETACH).is_ok() {}
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    // A part may have become a file, or a directory, since the last run.
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
    use std::os::unix::fs::symlink;

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
