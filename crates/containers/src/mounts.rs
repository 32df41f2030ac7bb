//! Mounts of one container, made by its worker in a private mount namespace, which the container's own namespace is a copy of. libcontainer would
//! follow a dangling link nowhere, and could not tell which mount failed. It makes only the mounts that need the container's other namespaces.
//!
//! Each mount point is resolved when the mounts before it are there, so a volume can be mounted within another one. Read-only volumes become
//! read-only after all mount points have been made.

use crate::cgroup::View;
use crate::mount_point::{self, Kind, MountPoint, PointError, kind_of, open_plain};
use crate::rootfs;
use crate::sys::Users;
use crate::volumes::{self, VolumeError};
use libcontainer::oci_spec::runtime::{Mount, Spec};
use magikvm_proto::plan::ContainerPlan;
use magikvm_proto::service_directory::{self, DirectoryAccess};
use magikvm_proto::site::Site;
use magikvm_proto::volume::{Access, MountPlan, Part, PathError, check_destination};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Why a container's file systems can't be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    #[error("cannot make a private mount namespace")]
    Namespace(#[source] Errno),
    #[error("cannot open the container's root {}", path.display())]
    Root {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The kernel's file systems can't be at another place.
    #[error("mount at {0}: the image has a link or a file there instead of a directory")]
    NotADirectory(PathBuf),
    #[error("mount at {}: cannot use its mount point", destination.display())]
    Point {
        destination: PathBuf,
        #[source]
        source: PointError,
    },
    /// Links of the image lead where nothing may be mounted.
    #[error("mount at {}: it leads to {}, which {reason}", destination.display(), path.display())]
    Reserved { destination: PathBuf, path: PathBuf, reason: PathError },
    #[error("mount at {}", destination.display())]
    Mount {
        destination: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the working directory")]
    WorkingDirectory(#[source] PointError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// What is to be mounted.
struct Wanted {
    destination: PathBuf,
    what: What,
    flags: MsFlags,
    place: Place,
    read_only: ReadOnly,
    /// The number of a mount of the pod's own files.
    layer: Option<usize>,
}

enum What {
    /// A directory or file that exists.
    Bind(OwnedFd),
    New {
        fstype: String,
        data: String,
    },
}

/// What the image may have at a mount point.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The place is beneath another mount of ours.
    Known,
    /// Anything: what can't be mounted over is replaced in the container's own layer.
    Replaced,
    /// What fits, or an empty directory where a file is mounted.
    Volume,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadOnly {
    No,
    AtOnce,
    /// Once all mount points have been made.
    AtEnd,
}

/// A mount that was made.
struct Made {
    path: PathBuf,
    top: OwnedFd,
    read_only: ReadOnly,
    /// If mount points can be made in a layer above it: the number of the mount.
    layer: Option<usize>,
}

struct Mounts<'a> {
    site: &'a Site,
    plan: &'a ContainerPlan,
    users: Users,
    root: OwnedFd,
    made: Vec<Made>,
}

/// What a container sees besides its configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Further<'a> {
    pub(crate) users: Users,
    /// Its groups in the hierarchies of cgroup v1, or none without groups; `None` with version 2. libcontainer would mount them, and the place for
    /// them, writable.
    pub(crate) groups: Option<&'a [View]>,
    /// The file for its termination message.
    pub(crate) message: &'a Path,
}

/// Makes the mounts of a configuration, except those that stay in it, then those of the volumes, and at last the
/// service directory and the container's termination message.
pub(crate) fn make(
    site: &Site,
    plan: &ContainerPlan,
    spec: &mut Spec,
    rootfs: &Path,
    further: Further<'_>,
) -> Result<(), MountError> {
    let Further { users, groups, message } = further;
    unshare(CloneFlags::CLONE_NEWNS).map_err(MountError::Namespace)?;
    let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(MountError::Namespace)?;
    // Opened in the new namespace: a descriptor of the old one can't be mounted on.
    let root =
        rootfs::open_root(rootfs).map_err(|source| MountError::Root { path: rootfs.to_owned(), source })?;
    let mut mounts = Mounts { site, plan, users, root, made: Vec::new() };
    let (kept, ours): (Vec<Mount>, Vec<Mount>) =
        spec.mounts_mut().take().unwrap_or_default().into_iter().partition(|one| {
            match one.typ().as_deref() {
                Some("proc") => true,
                // The network namespace is the one of this process.
                Some("sysfs" | "cgroup") => groups.is_none(),
                _ => false,
            }
        });
    for one in kept.iter().chain(&ours).filter(|one| one.destination().components().count() == 2) {
        mounts.check_directory(one.destination())?;
    }
    for one in &ours {
        match one.typ().as_deref() {
            Some("cgroup") => mounts.make_groups(one.destination(), groups.unwrap_or_default())?,
            _ => mounts.make(of_configuration(one)?)?,
        }
    }
    for (number, mount) in plan.mounts.iter().enumerate() {
        let place = site.mount(&plan.name, number);
        mounts.make(of_volume(site, number, mount, &place)?)?;
    }
    if plan.directory == DirectoryAccess::Socket {
        mounts.make(of_service_directory(site, plan)?)?;
    }
    mounts.make(of_message(plan, message)?)?;
    if let Some(process) = spec.process() {
        mounts.make_point(process.cwd(), Kind::Directory).map_err(MountError::WorkingDirectory)?;
    }
    mounts.finish()?;
    spec.set_mounts(Some(kept));
    Ok(())
}

fn failed(destination: &Path) -> impl FnOnce(Errno) -> MountError {
    let destination = destination.to_owned();
    move |errno| MountError::Mount { destination, source: errno.into() }
}

/// A mount of the host's configuration, whose options are those of mount(8).
fn of_configuration(one: &Mount) -> Result<Wanted, MountError> {
    let destination = one.destination().clone();
    let (mut flags, mut data, mut read_only) = (MsFlags::empty(), Vec::new(), ReadOnly::No);
    for option in one.options().iter().flatten() {
        match option.as_str() {
            "bind" | "rbind" | "private" | "rprivate" | "rw" => {}
            "ro" => read_only = ReadOnly::AtOnce,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            other => data.push(other),
        }
    }
    let source = one.source().clone().unwrap_or_default();
    let fstype = one.typ().clone().unwrap_or_default();
    let what = if fstype == "bind" {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        What::Bind(open(&source, flags, Mode::empty()).map_err(failed(&destination))?)
    } else {
        What::New { fstype, data: data.join(",") }
    };
    let is_known = destination.starts_with("/dev") || is_of_kernel(one);
    let place = if is_known { Place::Known } else { Place::Replaced };
    Ok(Wanted { destination, what, flags, place, read_only, layer: None })
}

/// Whether it is the kernel's view of devices, which is a mount of the supervisor's where the pod has the host's network.
fn is_of_kernel(one: &Mount) -> bool {
    one.typ().as_deref() == Some("sysfs") || one.destination() == Path::new("/sys")
}

fn of_volume(site: &Site, number: usize, plan: &MountPlan, place: &Path) -> Result<Wanted, MountError> {
    let shared = matches!(plan.part, Part::Shared(_));
    Ok(Wanted {
        destination: PathBuf::from(&plan.destination),
        what: What::Bind(volumes::find(site, plan, place)?),
        flags: MsFlags::MS_NODEV,
        place: Place::Volume,
        read_only: match plan.access {
            Access::ReadWrite => ReadOnly::No,
            // A container that may not write to the host's files makes no mount points in them either.
            Access::ReadOnly if shared => ReadOnly::AtOnce,
            Access::ReadOnly => ReadOnly::AtEnd,
        },
        layer: (!shared).then_some(number),
    })
}

/// The directory of the container's socket of the service directory. With its mount, what is in it cannot be replaced.
fn of_service_directory(site: &Site, plan: &ContainerPlan) -> Result<Wanted, MountError> {
    let destination = PathBuf::from(service_directory::MOUNT);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let source =
        open(&site.service_directory(&plan.name), flags, Mode::empty()).map_err(failed(&destination))?;
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let (place, read_only) = (Place::Volume, ReadOnly::AtOnce);
    Ok(Wanted { destination, what: What::Bind(source), flags, place, read_only, layer: None })
}

fn of_message(plan: &ContainerPlan, file: &Path) -> Result<Wanted, MountError> {
    let destination = PathBuf::from(&plan.termination_message.path);
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let what = What::Bind(open(file, flags, Mode::empty()).map_err(failed(&destination))?);
    let place = if destination.starts_with("/dev") { Place::Known } else { Place::Volume };
    let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    Ok(Wanted { destination, what, flags, place, read_only: ReadOnly::No, layer: None })
}

impl Mounts<'_> {
    /// Fails unless there is a directory, or nothing.
    fn check_directory(&self, path: &Path) -> Result<(), MountError> {
        match open_plain(&self.root, path).and_then(|fd| kind_of(&fd)) {
            Ok(SFlag::S_IFDIR) | Err(Errno::ENOENT) => Ok(()),
            _ => Err(MountError::NotADirectory(path.to_owned())),
        }
    }

    fn make(&mut self, wanted: Wanted) -> Result<(), MountError> {
        let Wanted { destination, what, flags, place, read_only, layer } = wanted;
        let failed = |errno: Errno| failed(&destination)(errno);
        let kind = match &what {
            What::Bind(source) if kind_of(source).map_err(failed)? != SFlag::S_IFDIR => Kind::File,
            _ => Kind::Directory,
        };
        let point = self.point(&destination, kind, place)?;
        let target = by_number(&point.fd);
        match &what {
            What::Bind(source) => {
                // With what is mounted beneath it, which a user namespace may not leave out.
                let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(Some(&by_number(source)), &target, None::<&str>, flags, None::<&str>)
            }
            What::New { fstype, data } => {
                let data = Some(data.as_str()).filter(|data| !data.is_empty());
                mount(Some(fstype.as_str()), &target, Some(fstype.as_str()), flags, data)
            }
        }
        .map_err(failed)?;
        let top = open_plain(&self.root, &point.path).map_err(failed)?;
        let flags = if read_only == ReadOnly::AtOnce { flags | MsFlags::MS_RDONLY } else { flags };
        add_flags(&top, flags).map_err(failed)?;
        self.made.push(Made { path: point.path, top, read_only, layer });
        Ok(())
    }

    /// Shows the groups of the container, one for each hierarchy, which it cannot change.
    fn make_groups(&mut self, destination: &Path, groups: &[View]) -> Result<(), MountError> {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let wanted = |destination: PathBuf, what| {
            let (place, read_only) = (Place::Known, ReadOnly::AtEnd);
            Wanted { destination, what, flags, place, read_only, layer: None }
        };
        let place = What::New { fstype: "tmpfs".to_owned(), data: "mode=0755,size=64k".to_owned() };
        self.make(wanted(destination.to_owned(), place))?;
        for View { name, controllers, dir } in groups {
            let source = open(dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed(dir))?;
            self.make(wanted(destination.join(name), What::Bind(source)))?;
            // A hierarchy of several controllers has the names of each, too.
            let place = open_plain(&self.root, destination).map_err(failed(destination))?;
            for controller in controllers.iter().filter(|controller| *controller != name) {
                symlinkat(name.as_str(), &place, controller.as_str()).map_err(failed(destination))?;
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), MountError> {
        let mut late = self.made.iter().filter(|made| made.read_only == ReadOnly::AtEnd);
        late.try_for_each(|made| add_flags(&made.top, MsFlags::MS_RDONLY).map_err(failed(&made.path)))
    }

    /// The place to mount at, unless nothing may be mounted there.
    fn point(&mut self, destination: &Path, kind: Kind, place: Place) -> Result<MountPoint, MountError> {
        match self.checked_point(destination, kind, place) {
            Err(_) if kind == Kind::File && place != Place::Known && self.make_way(destination, place) => {
                self.checked_point(destination, kind, place)
            }
            other => other,
        }
    }

    fn checked_point(
        &mut self,
        destination: &Path,
        kind: Kind,
        place: Place,
    ) -> Result<MountPoint, MountError> {
        let failed = |source| MountError::Point { destination: destination.to_owned(), source };
        // Looked at first: nothing may be made where nothing may be mounted.
        let path = mount_point::resolve(&self.root, destination, kind).map_err(failed)?;
        match check_destination(&path.to_string_lossy()) {
            Err(reason) if place != Place::Known => {
                Err(MountError::Reserved { destination: destination.to_owned(), path, reason })
            }
            _ => self.make_point(destination, kind).map_err(failed),
        }
    }

    /// Removes what the image has at a path where a file has to be mounted and can't: an empty directory, or anything if the place is
    /// replaced. Only the container's own layer is changed. Returns whether something was removed.
    fn make_way(&self, destination: &Path, place: Place) -> bool {
        let (Some(parent), Some(name)) = (destination.parent(), destination.file_name()) else {
            return false;
        };
        let Ok(parent) = mount_point::make(&self.root, parent, Kind::Directory) else { return false };
        let own = |fd: &OwnedFd| fstat(fd).map(|stat| stat.st_dev);
        if own(&parent.fd) != own(&self.root) {
            return false;
        }
        if unlinkat(&parent.fd, name, UnlinkatFlags::RemoveDir).is_ok() {
            return true;
        }
        let entry = by_number(&parent.fd).join(name);
        place == Place::Replaced && (fs::remove_file(&entry).is_ok() || fs::remove_dir_all(&entry).is_ok())
    }

    /// Finds or makes a mount point. One in a read-only file system of the pod is made in a layer above it, which only this container sees.
    fn make_point(&mut self, destination: &Path, kind: Kind) -> Result<MountPoint, PointError> {
        loop {
            let error = match mount_point::make(&self.root, destination, kind) {
                Err(error) if error.is(Errno::EROFS) => error,
                other => return other,
            };
            let within = self.made.iter_mut().rev().find(|made| error.at.starts_with(&made.path));
            let Some((made, number)) = within.and_then(|made| made.layer.take().map(|number| (made, number)))
            else {
                return Err(error);
            };
            let place = self.site.mount(&self.plan.name, number);
            add_layer(&made.top, &place, self.users).map_err(|source| PointError { at: error.at, source })?;
            made.top = open_plain(&self.root, &made.path)
                .map_err(|errno| PointError { at: made.path.clone(), source: errno.into() })?;
        }
    }
}

/// Mounts a writable layer over a read-only directory. The layer is kept in memory beneath `place`.
fn add_layer(lower: &OwnedFd, place: &Path, users: Users) -> io::Result<()> {
    fs::create_dir_all(place)?;
    mount(Some("layer"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    let (upper, work) = (place.join("upper"), place.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    rootfs::take_attributes(lower, &upper)?;
    let options = rootfs::overlay_options(&by_number(lower), &upper, &work, users);
    mount(Some("volume"), &by_number(lower), Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))?;
    Ok(())
}

/// Adds flags to a mount, whose root is given.
fn add_flags(top: &OwnedFd, flags: MsFlags) -> Result<(), Errno> {
    let kept = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    // These flags of statvfs(3) and of mount(2) have the same numbers.
    let now = MsFlags::from_bits_truncate(fstatvfs(top)?.flags().bits()) & kept;
    if now.contains(flags & kept) {
        return Ok(());
    }
    let flags = now | (flags & kept) | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, &by_number(top), None::<&str>, flags, None::<&str>)
}

/// A path of what a descriptor has open, whatever is at its name now.
fn by_number(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}
