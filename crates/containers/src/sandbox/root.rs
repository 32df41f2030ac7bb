//! The root file system of the sandbox's first process: a small tmpfs with the pod's files, images and volumes, and nothing else of the host. Mounted
//! with the rights of the process that makes the sandbox, before it gives them up.

use super::loop_device::{self, Use};
use super::spaces::Spaces;
use super::sys::{self, Attributes};
use super::{Failed, at};
use crate::cgroup::Hierarchies;
use magikvm_proto::sandbox::{NetworkSpace, SandboxSettings, ScratchMount, ScratchPlace, SharedMount, Users};
use magikvm_proto::site::Site;
use magikvm_proto::volume::Access;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{SFlag, fstat};
use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// Devices that every program needs and that hold nothing.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
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
            Users::Host => None,
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
            let target = self.outside(Path::new("/sys/fs/cgroup"));
            mount(Some("cgroup"), &target, Some("tmpfs"), safe, Some("mode=0755,size=64k"))
                .map_err(at("mount a place for control groups"))?;
        }
        for root in hierarchies.roots() {
            if let Hierarchies::Legacy(_) = hierarchies {
                fs::create_dir_all(self.outside(root)).map_err(at("make a place for control groups"))?;
            }
            let group = root.join(self.settings.cgroup.trim_start_matches('/'));
            self.attach_copy(&group, root, Attributes { no_suid: true, no_devices: true, read_only: false })?;
        }
        Ok(())
    }

    fn images(&self) -> Result<(), Failed> {
        for image in &self.settings.images {
            let target = self.site.image(image.partition);
            self.dir(&target)?;
            let failed = |what: &'static str| {
                let file = image.file.display().to_string();
                move |error: io::Error| Failed::of(format!("{what} the image {file}"), error)
            };
            let mounted = match sys::new_mount(c"erofs", &image.file, &[c"ro"]) {
                // A kernel before 6.12 mounts only block devices.
                Err(error) if error.raw_os_error() == Some(libc::ENOTBLK) => {
                    let device = loop_device::attach(&image.file, Use::Read);
                    device.and_then(|device| sys::new_mount(c"erofs", &device.path, &[c"ro"]))
                }
                other => other,
            };
            let mounted = mounted.map_err(failed("mount"))?;
            // Device files of an image mean nothing in a user namespace.
            let no_devices = self.spaces.users().is_some();
            let attributes = Attributes { read_only: true, no_suid: false, no_devices };
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
        sys::change_mount(&source.mount, attributes, self.spaces.users())
            .map_err(at("map the owners of files of a volume of the host"))?;
        sys::attach(&source.mount, &self.outside(&target)).map_err(at("mount a volume of the host"))
    }
}

/// A copy of the mount of a file or directory of the host, mounted nowhere yet.
pub(super) struct Source {
    entry: u32,
    access: Access,
    kind: Kind,
    mount: OwnedFd,
}

enum Kind {
    Directory,
    File,
}

impl Source {
    pub(super) fn of(shared: &SharedMount, opened: &OwnedFd) -> Result<Self, Failed> {
        let found = fstat(opened).map_err(at("use a volume of the host"))?;
        let kind = match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFDIR => Kind::Directory,
            _ => Kind::File,
        };
        let mount = sys::copy_of_opened(opened).map_err(at("copy the mount of a volume of the host"))?;
        Ok(Self { entry: shared.entry, access: shared.access, kind, mount })
    }
}
