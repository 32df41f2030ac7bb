//! The root directory of a jail: a small file system in memory that holds the given files at their outside paths and is read-only itself.
#![allow(
    unsafe_code,
    reason = "mount_setattr has no function in the C library, and its argument is a structure"
)]

use super::failed::{Failed, at, step};
use super::spec::{Access, Identity, Inside, JailMount, JailSpec, MountSource, Procfs, Submounts};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, major, makedev, minor, mknod};
use rustix::fs::{OFlags, ResolveFlags, openat2};
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

/// Files that programs need in addition. Those that exist are visible, read-only and executable.
const LIBRARIES: [&str; 7] =
    ["/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache"];
/// Stores of systems that keep their libraries elsewhere.
const STORES: [&str; 2] = ["/nix/store", "/gnu/store"];
/// Candidates for the place where the new root is assembled. The files there are hidden meanwhile and were opened before.
const PLACES: [&str; 4] = ["/tmp", "/run", "/dev", "/usr"];
/// Options of the file system that holds only names and device nodes.
const ROOT_OPTIONS: &str = "mode=0755,size=1m,nr_inodes=8k";

/// Attributes that are added to those of a mount.
const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;
const NO_PROGRAMS: u64 = libc::MOUNT_ATTR_NOEXEC;

/// An opened item of the new root.
#[derive(Debug)]
struct Item {
    source: OwnedFd,
    target: PathBuf,
    attributes: u64,
    submounts: Submounts,
    is_dir: bool,
}

/// The opened files of the host that the process may see.
#[derive(Debug)]
pub(super) struct Root {
    items: Vec<Item>,
    links: Vec<(PathBuf, PathBuf)>,
    devices: Vec<PathBuf>,
}

impl Root {
    /// Opens everything. Mounts must already be private and must not be changed.
    pub(super) fn collect(spec: &JailSpec) -> Result<Self, Failed> {
        let mut items = Vec::new();
        let mut links = Vec::new();
        for mount in &spec.mounts {
            items.push(given(mount)?);
        }
        if let Inside::Program { path, .. } = &spec.inside {
            for library in libraries(path) {
                match fs::symlink_metadata(&library) {
                    Ok(meta) if meta.is_symlink() => {
                        let to = at("read", &library, fs::read_link(&library))?;
                        links.push((library, to));
                    }
                    Ok(_) => items.push(executable(&library)?),
                    Err(_) => {}
                }
            }
            items.push(executable(path)?);
        }
        // A directory precedes what is mounted in it.
        items.sort_by_key(|item| item.target.components().count());
        Ok(Self { items, links, devices: spec.devices.clone() })
    }

    /// Assembles the root and enters it.
    pub(super) fn enter(self, spec: &JailSpec) -> Result<(), Failed> {
        let place = PLACES.into_iter().map(Path::new).find(|place| place.is_dir());
        let place = place.ok_or_else(|| Failed::new("find a place for its root", None, Errno::ENOENT))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        at(
            "mount a file system on",
            place,
            mount(Some("jail"), place, Some("tmpfs"), flags, Some(ROOT_OPTIONS)),
        )?;
        let root = at("open", place, open(place))?;
        for item in &self.items {
            attach(&root, item)?;
        }
        for (link, to) in &self.links {
            let there = below(place, link);
            at("make", &there, there.parent().map_or(Ok(()), fs::create_dir_all))?;
            at("link", &there, symlink(to, &there))?;
        }
        for device in &self.devices {
            make_device(&root, place, device, &spec.identity)?;
        }
        if spec.procfs == Procfs::OwnProcesses {
            let there = below(place, Path::new("/proc"));
            at("make", &there, fs::create_dir_all(&there))?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            at(
                "mount",
                Path::new("/proc"),
                mount(Some("proc"), &there, Some("proc"), flags, Some("subset=pid")),
            )?;
        }
        pivot(place)
    }
}

/// The directories that may hold the libraries of a program.
pub(super) fn libraries(program: &Path) -> Vec<PathBuf> {
    let store = STORES.into_iter().find(|store| program.starts_with(store));
    LIBRARIES.into_iter().chain(store).map(PathBuf::from).collect()
}

/// Whether this process can open a device, tested without any effect on the device.
fn can_open(device: &Path) -> bool {
    fs::File::options().read(true).write(true).open(device).is_ok()
}

/// Makes the new root the only one.
fn pivot(place: &Path) -> Result<(), Failed> {
    at("go to", place, nix::unistd::chdir(place))?;
    step("make it the root", nix::unistd::pivot_root(".", "."))?;
    step("take the old root away", umount2(".", MntFlags::MNT_DETACH))?;
    step("go to the root", nix::unistd::chdir("/"))?;
    let root = at("open", Path::new("/"), open(Path::new("/")))?;
    at("protect", Path::new("/"), protect(root.as_fd(), READ_ONLY, Submounts::Without))
}

fn given(mount: &JailMount) -> Result<Item, Failed> {
    let source = match &mount.source {
        MountSource::Path(path) => at("open", path, open(path))?,
        MountSource::Fd(number) => reopen(*number, &mount.target)?,
    };
    let read_only = match mount.access {
        Access::ReadOnly => READ_ONLY,
        Access::ReadWrite => 0,
    };
    let attributes = read_only | NO_SUID | NO_DEVICES | NO_PROGRAMS;
    item(source, &mount.target, attributes, mount.submounts)
}

fn executable(path: &Path) -> Result<Item, Failed> {
    let source = at("open", path, open(path))?;
    item(source, path, READ_ONLY | NO_SUID | NO_DEVICES, Submounts::Without)
}

fn item(source: OwnedFd, target: &Path, attributes: u64, submounts: Submounts) -> Result<Item, Failed> {
    let meta = at("look at", target, fs::metadata(link(source.as_fd())))?;
    Ok(Item { is_dir: meta.is_dir(), source, target: target.to_owned(), attributes, submounts })
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty())
}

/// A descriptor from outside belongs to a mount of the outside, which cannot be mounted here. So the file is opened once more and must be
/// the same one.
fn reopen(number: i32, target: &Path) -> Result<OwnedFd, Failed> {
    // SAFETY: it was handed over to this process, which closes it only after this.
    let theirs = unsafe { BorrowedFd::borrow_raw(number) };
    let path = at("find", target, fs::read_link(link(theirs)))?;
    let ours = at("open", &path, open(&path))?;
    let of = |fd: BorrowedFd<'_>| fs::metadata(link(fd)).map(|meta| (meta.dev(), meta.ino()));
    if at("look at", target, of(theirs))? != at("look at", &path, of(ours.as_fd()))? {
        return Err(Failed::new("find again what was checked:", Some(&path), Errno::ESTALE));
    }
    Ok(ours)
}

/// A path that refers to an open file.
fn link(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Mounts an item at a target that is created for it. Links in files that were mounted before cannot lead elsewhere.
fn attach(root: &OwnedFd, item: &Item) -> Result<(), Failed> {
    let target = &item.target;
    let there = make_target(root, target, item.is_dir)?;
    let submounts = match item.submounts {
        Submounts::With => MsFlags::MS_REC,
        Submounts::Without => MsFlags::empty(),
    };
    let (source, on) = (link(item.source.as_fd()), link(there.as_fd()));
    at("mount", target, mount(Some(&source), &on, None::<&str>, MsFlags::MS_BIND | submounts, None::<&str>))?;
    let mounted = at("open", target, find(root, target))?;
    at("protect", target, protect(mounted.as_fd(), item.attributes, item.submounts))
}

fn find(root: &OwnedFd, target: &Path) -> rustix::io::Result<OwnedFd> {
    let path = target.strip_prefix("/").unwrap_or(target);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty(), resolve)
}

/// Creates a directory or an empty file as a mount point if none exists.
fn make_target(root: &OwnedFd, target: &Path, is_dir: bool) -> Result<OwnedFd, Failed> {
    let found = find(root, target);
    if !matches!(found, Err(rustix::io::Errno::NOENT)) {
        return at("find", target, found);
    }
    let parent = target.parent().unwrap_or(Path::new("/"));
    let dir = make_target(root, parent, true)?;
    let name = target.file_name().unwrap_or_default();
    // Modes of mount points do not matter; directories on the way must let everybody pass.
    let mode = rustix::fs::Mode::from_raw_mode(if is_dir { 0o755 } else { 0o644 });
    if is_dir {
        at("make", target, rustix::fs::mkdirat(&dir, name, mode))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        drop(at("make", target, rustix::fs::openat(&dir, name, flags, mode))?);
    }
    at("find", target, find(root, target))
}

/// Provides a device: a private node that belongs to the process's user, or the host's node where none can be created.
fn make_device(root: &OwnedFd, place: &Path, device: &Path, identity: &Identity) -> Result<(), Failed> {
    let meta = at("look at", device, fs::metadata(device))?;
    if !meta.file_type().is_char_device() {
        return Err(Failed::new("find the device", Some(device), Errno::ENODEV));
    }
    let there = below(place, device);
    if let Identity::Nobody(user) = identity {
        at("make", &there, there.parent().map_or(Ok(()), fs::create_dir_all))?;
        let number = makedev(major(meta.rdev()), minor(meta.rdev()));
        match mknod(&there, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), number) {
            Ok(()) => {
                at("give away", device, lchown(&there, Some(user.id()), Some(user.id())))?;
                // Some systems allow creating nodes but not opening them.
                if can_open(&there) {
                    return Ok(());
                }
                at("remove", &there, fs::remove_file(&there))?;
            }
            Err(Errno::EPERM) => {}
            Err(errno) => return Err(Failed::new("make", Some(device), errno)),
        }
    }
    let source = at("open", device, open(device))?;
    attach(root, &item(source, device, NO_SUID | NO_PROGRAMS, Submounts::Without)?)
}

fn protect(mounted: BorrowedFd<'_>, attributes: u64, submounts: Submounts) -> nix::Result<()> {
    let change = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let recursive = match submounts {
        Submounts::With => libc::AT_RECURSIVE,
        Submounts::Without => 0,
    };
    let empty = CString::default();
    // SAFETY: the string and the structure outlive the call, whose last argument is the size of the structure.
    let done = Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mounted.as_raw_fd(),
            empty.as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &change,
            size_of::<libc::mount_attr>(),
        )
    });
    match done {
        Err(Errno::ENOSYS) if submounts == Submounts::Without => remount(mounted, attributes),
        done => done.map(drop),
    }
}

/// For kernels before 5.12, which replace all attributes.
fn remount(mounted: BorrowedFd<'_>, attributes: u64) -> nix::Result<()> {
    let path = link(mounted);
    let now = nix::sys::statvfs::statvfs(&path)?.flags();
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    use nix::sys::statvfs::FsFlags;
    for (attribute, had, flag) in [
        (READ_ONLY, FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (NO_SUID, FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (NO_DEVICES, FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (NO_PROGRAMS, FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        if attributes & attribute != 0 || now.contains(had) {
            flags |= flag;
        }
    }
    mount(None::<&str>, &path, None::<&str>, flags, None::<&str>)
}
