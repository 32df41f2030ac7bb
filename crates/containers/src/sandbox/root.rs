//! The root file system of the sandbox's first process: a small tmpfs with the pod's files, images and volumes, and nothing else of the host. Mounted
//! with the rights of the process that makes the sandbox, before it gives them up.

use super::loop_device::{self, Use};
use super::spaces::Spaces;
use super::sys::{self, Attributes};
use super::{Failed, Unmappable, at};
use crate::cgroup::Hierarchies;
use crate::mount_table;
use magikvm_proto::sandbox::{
    ImagePlace, NetworkSpace, SandboxSettings, ScratchMount, ScratchPlace, SharedMount, Users,
};
use magikvm_proto::site::Site;
use magikvm_proto::volume::Access;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{SFlag, fstat};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, chown, lchown};
use std::path::{Path, PathBuf};

/// Devices that every program needs and that hold nothing.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Other file systems are mounted in directories of `/sys` and in those of these, not deeper.
const DEPTH_OF_VIEW: u32 = 2;
/// As for the disks of VMs: tables of inodes are zeros on a new disk, and bitmaps are read when they are needed.
const SCRATCH_OPTIONS: [&CStr; 2] = [c"noinit_itable", c"no_prefetch_block_bitmaps"];

pub(super) struct Root<'a> {
    settings: &'a SandboxSettings,
    spaces: &'a Spaces,
    site: &'a Site,
}

impl<'a> Root<'a> {
    /// Mounts everything. The calling process has a mount namespace of its own afterwards.
    pub(super) fn make(
        settings: &'a SandboxSettings,
        spaces: &'a Spaces,
        site: &'a Site,
        hierarchies: &Hierarchies,
        sources: &[Source],
    ) -> Result<(), Failed> {
        let root = Self { settings, spaces, site };
        unshare(CloneFlags::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(at("keep mounts out of the host's namespace"))?;
        root.mount_tmpfs()?;
        for dir in [&site.run, &site.images, &site.bundles, &site.empty, &site.files] {
            root.dir(dir)?;
        }
        for dir in ["/proc", "/sys", "/dev", "/tmp"] {
            root.dir(Path::new(dir))?;
        }
        root.mount_etc()?;
        root.devices()?;
        root.kernel(hierarchies)?;
        root.attach_copy(
            &settings.files,
            &site.files,
            Attributes { read_only: true, no_suid: true, no_devices: true },
        )?;
        root.groups()?;
        root.images()?;
        settings.scratch.iter().try_for_each(|scratch| root.scratch(scratch))?;
        sources.iter().try_for_each(|source| root.shared(source))
    }

    /// A path of the sandbox, before it is the root.
    fn outside(&self, path: &Path) -> PathBuf {
        self.settings.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn owner(&self) -> Option<u32> {
        match self.settings.users {
            Users::Host | Users::Caller => None,
            Users::Own { root } => Some(root),
        }
    }

    fn mount_tmpfs(&self) -> Result<(), Failed> {
        let owner = self.owner().unwrap_or(0);
        let options = format!("mode=0755,size=64m,uid={owner},gid={owner}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("root"), &self.settings.root, Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(at("mount the sandbox's root"))
    }

    /// Containers may write to these files, and must not fill the root of their supervisor.
    fn mount_etc(&self) -> Result<(), Failed> {
        let (etc, owner) = (self.site.etc(), self.owner().unwrap_or(0));
        self.dir(&etc)?;
        let options = format!("mode=0755,size=1m,nr_inodes=64,uid={owner},gid={owner}");
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("etc"), &self.outside(&etc), Some("tmpfs"), flags, Some(options.as_str()))
            .map_err(at("mount the place of the pod's /etc files"))
    }

    /// Makes a directory and those above it, for the pod's root.
    fn dir(&self, path: &Path) -> Result<(), Failed> {
        let mut so_far = self.settings.root.clone();
        for name in path.strip_prefix("/").unwrap_or(path) {
            so_far.push(name);
            match fs::create_dir(&so_far) {
                Ok(()) => self.give(&so_far)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(at("make a directory of the sandbox")(error)),
            }
        }
        Ok(())
    }

    fn give(&self, path: &Path) -> Result<(), Failed> {
        match self.owner() {
            Some(owner) => chown(path, Some(owner), Some(owner)).map_err(at("give a file to the pod's root")),
            None => Ok(()),
        }
    }

    fn file(&self, path: &Path) -> Result<(), Failed> {
        File::create_new(self.outside(path)).map_err(at("make a file of the sandbox"))?;
        self.give(&self.outside(path))
    }

    fn attach_copy(&self, source: &Path, target: &Path, attributes: Attributes) -> Result<(), Failed> {
        let copied = sys::copy_of_path(source)
            .map_err(|error| Failed::of(format!("use {}", source.display()), error))?;
        sys::change_mount(&copied, attributes, None)
            .map_err(|error| Failed::of(format!("confine {}", source.display()), error))?;
        sys::attach(&copied, &self.outside(target))
            .map_err(|error| Failed::of(format!("mount {}", source.display()), error))
    }

    fn devices(&self) -> Result<(), Failed> {
        for name in DEVICES {
            let path = Path::new("/dev").join(name);
            self.file(&path)?;
            self.attach_copy(&path, &path, Attributes { no_suid: true, ..Attributes::default() })?;
        }
        Ok(())
    }

    /// The kernel's view of devices, and the pod's control group in place of the first one of each hierarchy. The sandbox mounts processes itself.
    fn kernel(&self, hierarchies: &Hierarchies) -> Result<(), Failed> {
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let none = None::<&str>;
        let failed = at("mount the view of the pod's devices");
        let view = |place: &Path| {
            mount(Some("sysfs"), &self.outside(place), Some("sysfs"), safe, none).map_err(&failed)
        };
        match self.settings.network {
            // Its containers cannot mount their own: the network namespace is not theirs. Nothing is mounted beneath the one that they get.
            NetworkSpace::Host => {
                for place in [Path::new("/sys"), self.site.kernel_view().as_path()] {
                    self.dir(place)?;
                    if self.settings.users == Users::Caller {
                        // Who does not own the network namespace gets what the user sees.
                        self.parts_of_view(place)?;
                        continue;
                    }
                    view(place)?;
                    // The mount and not the file system, which is that of the host.
                    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | safe;
                    mount(none, &self.outside(place), none, flags, none).map_err(&failed)?;
                }
            }
            NetworkSpace::Isolated | NetworkSpace::Tap { .. } | NetworkSpace::Given => {
                view(Path::new("/sys"))?;
            }
        }
        if let Hierarchies::Legacy(_) = hierarchies {
            // libcontainer takes an empty one for a system without controllers.
            let target = self.outside(Path::new("/sys/fs/cgroup"));
            mount(Some("cgroup"), &target, Some("tmpfs"), safe, Some("mode=0755,size=64k"))
                .map_err(at("mount a place for control groups"))?;
        }
        let Some(cgroup) = &self.settings.cgroup else { return Ok(()) };
        for root in hierarchies.roots() {
            if let Hierarchies::Legacy(_) = hierarchies {
                fs::create_dir_all(self.outside(root)).map_err(at("make a place for control groups"))?;
            }
            let group = root.join(cgroup.trim_start_matches('/'));
            self.attach_copy(&group, root, Attributes { no_suid: true, no_devices: true, read_only: false })?;
        }
        Ok(())
    }

    /// The parts of the host's `/sys`, without what is mounted beneath it: the kernel lets nobody take the whole without that who has not mounted it.
    fn parts_of_view(&self, place: &Path) -> Result<(), Failed> {
        let target = self.outside(place);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let options = Some("mode=0755,size=1m");
        let failed = at("mount the view of the host's devices");
        mount(Some("sysfs"), &target, Some("tmpfs"), flags, options).map_err(&failed)?;
        attach_parts(Path::new("/sys"), &target, DEPTH_OF_VIEW)
            .and_then(|()| fs::create_dir_all(target.join("fs/cgroup")))
            .map_err(at("copy the view of the host's devices"))?;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
        mount(None::<&str>, &target, None::<&str>, flags, None::<&str>).map_err(&failed)
    }

    /// Sets what an ordinary user of the host could not.
    fn groups(&self) -> Result<(), Failed> {
        for file in &self.settings.groups {
            let path = self.settings.files.join(&file.path);
            lchown(path, None, Some(file.gid)).map_err(at("give a file of the pod to its group"))?;
        }
        Ok(())
    }

    fn images(&self) -> Result<(), Failed> {
        for image in &self.settings.images {
            let target = self.site.image(image.partition);
            self.dir(&target)?;
            let (ImagePlace::File(source) | ImagePlace::Directory(source)) = &image.place;
            let failed = |what: &'static str| {
                let source = source.display().to_string();
                move |error: io::Error| Failed::of(format!("{what} the image {source}"), error)
            };
            let mounted = match &image.place {
                ImagePlace::File(file) => mount_image(file),
                ImagePlace::Directory(dir) => sys::copy_of_path(dir),
            };
            let mounted = mounted.map_err(failed("mount"))?;
            let attributes = Attributes { read_only: true, no_suid: false, no_devices: true };
            sys::change_mount(&mounted, attributes, self.spaces.users())
                .map_err(failed("map the owners of files of"))?;
            sys::attach(&mounted, &self.outside(&target)).map_err(failed("mount"))?;
        }
        Ok(())
    }

    fn scratch(&self, scratch: &ScratchMount) -> Result<(), Failed> {
        let target = self.site.scratch(scratch.partition);
        self.dir(&target)?;
        let attributes = Attributes { no_devices: true, ..Attributes::default() };
        match &scratch.place {
            ScratchPlace::Directory(dir) => self.attach_copy(dir, &target, attributes),
            ScratchPlace::Disk(file) => {
                let device = loop_device::attach(file, Use::Write)
                    .map_err(at("attach the disk of a storage limit to a loop device"))?;
                let mounted = sys::new_mount(c"ext4", &device.path, &SCRATCH_OPTIONS)
                    .map_err(at("mount the disk of a storage limit"))?;
                sys::change_mount(&mounted, attributes, self.spaces.users())
                    .map_err(at("map the owners of files of the disk of a storage limit"))?;
                sys::attach(&mounted, &self.outside(&target)).map_err(at("mount the disk of a storage limit"))
            }
        }
    }

    fn shared(&self, source: &Source) -> Result<(), Failed> {
        let target = self.site.shared().join(source.entry.to_string());
        match source.kind {
            Kind::Directory => self.dir(&target)?,
            Kind::File => {
                self.dir(&self.site.shared())?;
                self.file(&target)?;
            }
        }
        let read_only = source.access == Access::ReadOnly;
        let attributes = Attributes { read_only, no_suid: false, no_devices: true };
        sys::change_mount(&source.mount, attributes, self.spaces.users()).map_err(|error| Failed {
            unmappable: self.spaces.users().and_then(|users| source.unmappable(users)),
            ..at("map the owners of files of a volume of the host")(error)
        })?;
        sys::attach(&source.mount, &self.outside(&target)).map_err(at("mount a volume of the host"))
    }
}

/// Attaches copies of the directories in a directory of the host, read-only. One with mounts beneath it cannot be copied without them; of it the
/// directories are, and so on.
fn attach_parts(source: &Path, target: &Path, depth: u32) -> io::Result<()> {
    let attributes = Attributes { read_only: true, no_suid: true, no_devices: true };
    let device = fs::metadata(source)?.dev();
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        fs::create_dir(&to)?;
        if fs::metadata(&from)?.dev() != device {
            // Another file system is mounted here.
            continue;
        }
        match sys::copy_of_path(&from) {
            Ok(copy) => {
                sys::change_mount(&copy, attributes, None)?;
                sys::attach(&copy, &to)?;
            }
            // What the user cannot look into stays empty.
            Err(_) if depth > 0 => match attach_parts(&from, &to, depth - 1) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                other => other?,
            },
            Err(_) => {}
        }
    }
    Ok(())
}

/// A mount of an EROFS file, mounted nowhere yet.
pub(super) fn mount_image(file: &Path) -> io::Result<OwnedFd> {
    match sys::new_mount(c"erofs", file, &[c"ro"]) {
        // A kernel before 6.12 mounts only block devices.
        Err(error) if error.raw_os_error() == Some(libc::ENOTBLK) => {
            let device = loop_device::attach(file, Use::Read)?;
            sys::new_mount(c"erofs", &device.path, &[c"ro"])
        }
        other => other,
    }
}

/// Whose mounts the calling process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mounts {
    /// Those in which files of the host were opened.
    OfHost,
    /// Copies of them.
    Own,
}

/// A copy of the mount of a file or directory of the host, mounted nowhere yet.
pub(super) struct Source {
    entry: u32,
    access: Access,
    kind: Kind,
    mount: OwnedFd,
    /// Its path when it was opened, for messages.
    path: PathBuf,
}

enum Kind {
    Directory,
    File,
}

impl Source {
    pub(super) fn of(shared: &SharedMount, opened: &OwnedFd, mounts: Mounts) -> Result<Self, Failed> {
        let found = fstat(opened).map_err(at("use a volume of the host"))?;
        let kind = match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => Kind::Directory,
            _ => Kind::File,
        };
        let copied = match mounts {
            Mounts::OfHost => sys::copy_of_opened(opened),
            Mounts::Own => sys::opened_again(opened).and_then(|again| sys::copy_of_opened(&again)),
        };
        let mount = copied.map_err(at("copy the mount of a volume of the host"))?;
        let path = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).unwrap_or_default();
        Ok(Self { entry: shared.entry, access: shared.access, kind, mount, path })
    }

    /// The first mount at or beneath it whose file system cannot have other owners.
    fn unmappable(&self, users: BorrowedFd<'_>) -> Option<Unmappable> {
        let mounts = mount_table::read().ok()?;
        // Of several at one place the last one is seen, and is the one that is found.
        let around = mounts.iter().filter(|mount| self.path.starts_with(&mount.point));
        let own = around.max_by_key(|mount| mount.point.components().count())?;
        let beneath =
            mounts.iter().filter(|mount| mount.point != self.path && mount.point.starts_with(&self.path));
        let mut places = std::iter::once((&self.path, own)).chain(beneath.map(|mount| (&mount.point, mount)));
        let (path, mount) = places.find(|(path, _)| {
            let copied = sys::copy_of_path(path);
            copied.is_ok_and(|copy| sys::change_mount(&copy, Attributes::default(), Some(users)).is_err())
        })?;
        Some(Unmappable { entry: self.entry, path: path.clone(), file_system: mount.kind.clone() })
    }
}
