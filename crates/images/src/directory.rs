//! Unpacks a root file system into a directory, for hosts that cannot mount EROFS.
//!
//! Owns how an image's inodes are created on a file system: order, owners, and what a user without privileges cannot create. Every
//! operation takes one name in an open directory and follows no link, so nothing can be created outside, and paths may be longer than the
//! kernel allows. Few files are open at a time, however deep the tree is. Must not know where images are kept. Nothing is made durable,
//! and after an error the caller removes the incomplete result with [`clear_unpacked`].

mod clear;

pub use clear::clear_unpacked;

use super::cancel::{Cancel, Stopped};
use super::erofs::read::{Inode, InodeKind, NamedXattr, ReadAt, ReadError, Reader, Visitor, walk};
use super::tree::{Device, text};
use magikvm_platform::os::{Unopened, make_special};
use rustix::fs::{
    AtFlags, CWD, Dev, Dir, FileType, Gid, Mode, OFlags, RawMode, Timespec, Timestamps, Uid, XattrFlags,
    chownat, fchmod, fchown, fsetxattr, fstat, futimens, linkat, makedev, mkdirat, openat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Runs of this many zeros become holes.
const HOLE: usize = 4096;
/// File capabilities: like setuid, a user cannot grant them.
const CAPABILITY: &[u8] = b"security.capability";

/// The owner of the created files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// The image's owners. Needs the privileges of root.
    AsInImage,
    /// The caller owns everything. No device is created, and no file keeps setuid, setgid or capabilities.
    Mine,
}

/// What was created, and what was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnpackedSummary {
    /// Number of files, directories and all other entries, including the directory itself.
    pub inodes: u64,
    /// Bytes of all regular files, holes included.
    pub bytes: u64,
    /// Number of devices that were not created.
    pub skipped_devices: u64,
    /// Number of extended attributes that could not be set.
    pub skipped_xattrs: u64,
}

/// Why an image could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The target directory failed.
    #[error("cannot unpack into {path}")]
    Open {
        path: String,
        #[source]
        source: io::Error,
    },
    /// The target directory is not empty.
    #[error("cannot unpack into {path}: it is not empty")]
    NotEmpty { path: String },
    /// An entry could not be created.
    #[error("cannot {action} {path:?}")]
    Make {
        action: &'static str,
        /// The path in the image.
        path: String,
        #[source]
        source: io::Error,
    },
    /// No file can have this owner.
    #[error("{path:?} belongs to the user or group 4294967295, which does not exist")]
    Owner {
        /// The path in the image.
        path: String,
    },
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A directory was moved while it was being filled.
    #[error("the directory {path:?} was moved while it was being unpacked")]
    Moved {
        /// The path in the image.
        path: String,
    },
}

/// Unpacks an image into an empty directory.
pub fn unpack(
    image: &File,
    dir: &Path,
    owners: Owners,
    cancel: &Cancel,
) -> Result<UnpackedSummary, DirectoryError> {
    let path = || dir.display().to_string();
    let at_open = |source: Errno| DirectoryError::Open { path: path(), source: source.into() };
    let image = Reader::open(image)?;
    let root = openat(CWD, dir, DIRECTORY, Mode::empty()).map_err(at_open)?;
    for entry in Dir::read_from(&root).map_err(at_open)? {
        if !matches!(entry.map_err(at_open)?.file_name().to_bytes(), b"." | b"..") {
            return Err(DirectoryError::NotEmpty { path: path() });
        }
    }
    let here = openat(&root, ".", DIRECTORY, Mode::empty()).map_err(at_open)?;
    let maker =
        Maker { owners, names: Vec::new(), summary: UnpackedSummary::default(), cancel: cancel.clone() };
    let mut unpacker = Unpacker { maker, root, here, above: Vec::new(), links: None };
    walk(&image, &mut unpacker)?;
    Ok(unpacker.maker.summary)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Nobody else may open unfinished files.
const PRIVATE_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Creates one entry after another.
struct Maker {
    owners: Owners,
    /// Names from below the root to the current directory, for messages.
    names: Vec<Box<[u8]>>,
    summary: UnpackedSummary,
    cancel: Cancel,
}

impl Maker {
    fn path(&self, name: &[u8]) -> String {
        let parts: Vec<&[u8]> = self.names.iter().map(|name| &**name).chain([name]).collect();
        text(&parts.join(&b'/'))
    }

    /// For `map_err`.
    fn error<'a, E: Into<io::Error>>(
        &'a self,
        action: &'static str,
        name: &'a [u8],
    ) -> impl FnOnce(E) -> DirectoryError + 'a {
        move |source| DirectoryError::Make { action, path: self.path(name), source: source.into() }
    }

    /// A device, without the privileges to create it.
    fn is_skipped(&self, inode: &Inode) -> bool {
        self.owners == Owners::Mine
            && matches!(inode.kind, InodeKind::CharDevice(_) | InodeKind::BlockDevice(_))
    }

    fn mode(&self, inode: &Inode) -> Mode {
        let kept = match self.owners {
            Owners::AsInImage => 0o7777,
            Owners::Mine => 0o1777,
        };
        Mode::from_raw_mode(RawMode::from(inode.mode & kept))
    }

    fn owner(&self, inode: &Inode, name: &[u8]) -> Result<Option<(Uid, Gid)>, DirectoryError> {
        if self.owners == Owners::Mine {
            return Ok(None);
        }
        // For chown: keeps the owner.
        if inode.uid == u32::MAX || inode.gid == u32::MAX {
            return Err(DirectoryError::Owner { path: self.path(name) });
        }
        Ok(Some((Uid::from_raw(inode.uid), Gid::from_raw(inode.gid))))
    }

    /// Sets the possible attributes and counts the others.
    fn set_xattrs(
        &mut self,
        xattrs: &[NamedXattr],
        name: &[u8],
        set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
    ) -> Result<(), DirectoryError> {
        for (key, value) in xattrs {
            let mine = self.owners == Owners::Mine && key == CAPABILITY;
            match if mine { Err(Errno::PERM) } else { set(key, value) } {
                Ok(()) => {}
                // Missing privileges, an unsupported attribute on this file system, or a value that this kernel refuses.
                Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL) => {
                    self.summary.skipped_xattrs += 1;
                }
                Err(error) => return Err(self.error("set an extended attribute of", name)(error)),
            }
        }
        Ok(())
    }

    /// Sets everything but the data of an open file. Times come last, since every other change updates them, and a change of owner clears
    /// setuid and capabilities.
    fn finish<S: ReadAt>(
        &mut self,
        image: &Reader<S>,
        fd: BorrowedFd<'_>,
        name: &[u8],
        inode: &Inode,
    ) -> Result<(), DirectoryError> {
        if let Some((uid, gid)) = self.owner(inode, name)? {
            fchown(fd, Some(uid), Some(gid)).map_err(self.error("set the owner of", name))?;
        }
        self.set_xattrs(&image.xattrs(inode)?, name, |key, value| {
            fsetxattr(fd, key, value, XattrFlags::empty())
        })?;
        fchmod(fd, self.mode(inode)).map_err(self.error("set the mode of", name))?;
        futimens(fd, &times(inode)).map_err(self.error("set the time of", name))
    }

    /// Like `finish`, for entries that cannot be opened.
    fn finish_unopened<S: ReadAt>(
        &mut self,
        image: &Reader<S>,
        dir: BorrowedFd<'_>,
        (name, shown): (&[u8], &[u8]),
        inode: &Inode,
    ) -> Result<(), DirectoryError> {
        if let Some((uid, gid)) = self.owner(inode, shown)? {
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(self.error("set the owner of", shown))?;
        }
        let xattrs = image.xattrs(inode)?;
        if !xattrs.is_empty() || inode.kind != InodeKind::Symlink {
            let found = Unopened::find(dir, name, OFlags::empty()).map_err(self.error("open", shown))?;
            self.set_xattrs(&xattrs, shown, |key, value| found.set_xattr(key, value))?;
            if inode.kind != InodeKind::Symlink {
                found.set_mode(self.mode(inode)).map_err(self.error("set the mode of", shown))?;
            }
        }
        utimensat(dir, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.error("set the time of", shown))
    }

    /// Creates anything but a directory as `name` in `dir`; `shown` is its first name in the image.
    fn make<S: ReadAt>(
        &mut self,
        image: &Reader<S>,
        dir: BorrowedFd<'_>,
        (name, shown): (&[u8], &[u8]),
        inode: &Inode,
    ) -> Result<(), DirectoryError> {
        let special = |kind, device: Option<Device>| {
            let device = device.map_or(0, |device| makedev(device.major(), device.minor()));
            make_special(dir, name, kind, PRIVATE_FILE, device)
        };
        let made = match inode.kind {
            InodeKind::Regular => return self.make_file(image, dir, (name, shown), inode),
            InodeKind::Directory => return Ok(()),
            InodeKind::Symlink => symlinkat(image.target(inode)?, dir, name),
            InodeKind::Fifo => special(FileType::Fifo, None),
            InodeKind::CharDevice(device) => special(FileType::CharacterDevice, Some(device)),
            InodeKind::BlockDevice(device) => special(FileType::BlockDevice, Some(device)),
        };
        made.map_err(self.error("make", shown))?;
        self.finish_unopened(image, dir, (name, shown), inode)
    }

    fn make_file<S: ReadAt>(
        &mut self,
        image: &Reader<S>,
        dir: BorrowedFd<'_>,
        (name, shown): (&[u8], &[u8]),
        inode: &Inode,
    ) -> Result<(), DirectoryError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, name, flags, PRIVATE_FILE).map_err(self.error("make the file", shown))?;
        let file = File::from(file);
        if inode.size > 0 {
            file.set_len(inode.size).map_err(self.error("set the size of", shown))?;
            image.data(inode, &mut |offset, bytes| {
                self.cancel.check()?;
                write_sparse(&file, offset, bytes).map_err(self.error("write the file", shown))
            })?;
        }
        self.summary.bytes += inode.size;
        self.finish(image, file.as_fd(), shown, inode)
    }
}

struct Unpacker {
    maker: Maker,
    root: OwnedFd,
    /// The directory being filled.
    here: OwnedFd,
    /// Device and inode numbers of its ancestors, which are closed and found again through `..`.
    above: Vec<Identity>,
    links: Option<Links>,
}

/// A directory in the root where files with several names are created, each named after its inode number, so that another name needs no
/// path to the first one.
struct Links {
    dir: OwnedFd,
    name: String,
    made: Vec<u32>,
}

impl Links {
    fn new(root: &OwnedFd, uuid: &[u8; 16], maker: &Maker) -> Result<Self, DirectoryError> {
        // No image can contain this name, because it depends on the image.
        let uuid: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!(".magikvm-links-{uuid}");
        let dir = make_directory(root, name.as_bytes())
            .map_err(maker.error("make the directory", name.as_bytes()))?;
        Ok(Self { dir, name, made: Vec::new() })
    }

    fn remove(self, root: &OwnedFd, maker: &Maker) -> Result<(), DirectoryError> {
        let Self { dir, name, made } = self;
        let name = name.as_bytes();
        for nid in made {
            unlinkat(&dir, nid.to_string(), AtFlags::empty())
                .map_err(maker.error("remove what is in", name))?;
        }
        unlinkat(root, name, AtFlags::REMOVEDIR).map_err(maker.error("remove the directory", name))
    }
}

impl<S: ReadAt> Visitor<S> for Unpacker {
    type Error = DirectoryError;

    fn enter(&mut self, _: &Reader<S>, name: &[u8], directory: &Inode) -> Result<(), DirectoryError> {
        self.maker.cancel.check()?;
        self.maker.summary.inodes += 1;
        // Detected before anything is created in it.
        self.maker.owner(directory, name)?;
        // The root already exists.
        if name.is_empty() {
            return Ok(());
        }
        let made = identity(&self.here).and_then(|above| Ok((above, make_directory(&self.here, name)?)));
        let (above, here) = made.map_err(self.maker.error("make the directory", name))?;
        self.here = here;
        self.above.push(above);
        self.maker.names.push(name.into());
        Ok(())
    }

    fn leave(&mut self, image: &Reader<S>, directory: &Inode) -> Result<(), DirectoryError> {
        let Some(above) = self.above.pop() else {
            if let Some(links) = self.links.take() {
                links.remove(&self.root, &self.maker)?;
            }
            return self.maker.finish(image, self.root.as_fd(), b"", directory);
        };
        // Opens the parent first, which may need a permission that this directory is about to lose.
        let name = self.maker.names.pop().unwrap_or_default();
        let back = openat(&self.here, "..", DIRECTORY, Mode::empty());
        let back = back.and_then(|back| Ok((identity(&back)?, back)));
        let (found, back) = back.map_err(self.maker.error("find the directory above", &name))?;
        if found != above {
            return Err(DirectoryError::Moved { path: self.maker.path(&name) });
        }
        let done = std::mem::replace(&mut self.here, back);
        self.maker.finish(image, done.as_fd(), &name, directory)
    }

    fn file(&mut self, image: &Reader<S>, name: &[u8], inode: &Inode) -> Result<(), DirectoryError> {
        if self.maker.is_skipped(inode) {
            self.maker.summary.skipped_devices += 1;
            return Ok(());
        }
        self.maker.cancel.check()?;
        self.maker.summary.inodes += 1;
        if inode.nlink == 1 {
            return self.maker.make(image, self.here.as_fd(), (name, name), inode);
        }
        let links = match &mut self.links {
            Some(links) => links,
            None => self.links.insert(Links::new(&self.root, image.uuid(), &self.maker)?),
        };
        links.made.push(inode.nid);
        let number = inode.nid.to_string();
        self.maker.make(image, links.dir.as_fd(), (number.as_bytes(), name), inode)?;
        self.link(image, name, inode)
    }

    fn link(&mut self, _: &Reader<S>, name: &[u8], inode: &Inode) -> Result<(), DirectoryError> {
        if self.maker.is_skipped(inode) {
            return Ok(());
        }
        // Its first name created it.
        let Some(links) = &self.links else {
            return Err(ReadError::Inode { nid: inode.nid, problem: "it has more names than it says" }.into());
        };
        linkat(&links.dir, inode.nid.to_string(), &self.here, name, AtFlags::empty())
            .map_err(self.maker.error("link", name))
    }
}

fn times(inode: &Inode) -> Timestamps {
    let time = Timespec { tv_sec: inode.mtime.seconds, tv_nsec: inode.mtime.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Device and inode number.
type Identity = (Dev, u64);

fn identity(directory: &OwnedFd) -> Result<Identity, Errno> {
    fstat(directory).map(|stat| (stat.st_dev, stat.st_ino))
}

fn make_directory(above: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    mkdirat(above, name, Mode::RWXU)?;
    openat(above, name, DIRECTORY, Mode::empty())
}

/// Writes bytes that begin at a multiple of [`HOLE`], skipping runs of zeros.
fn write_sparse(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut start = 0;
    for (number, block) in bytes.chunks(HOLE).enumerate() {
        let at = number * HOLE;
        if block.iter().all(|byte| *byte == 0) {
            file.write_all_at(&bytes[start..at], offset + start as u64)?;
            start = at + block.len();
        }
    }
    file.write_all_at(&bytes[start..], offset + start as u64)
}

#[cfg(test)]
mod tests {
    use super::super::erofs::RootfsCompression;
    use super::super::rootfs::build_in_memory;
    use super::*;
    use std::io::Write;

    #[test]
    fn only_an_empty_directory_is_taken() {
        let (image, dir) = (tempfile::tempfile().unwrap(), tempfile::tempdir().unwrap());
        (&image).write_all(&build_in_memory(&[], RootfsCompression::None, 1 << 20).unwrap()).unwrap();
        let mine = |dir: &Path| unpack(&image, dir, Owners::Mine, &Cancel::new());
        assert!(matches!(mine(&dir.path().join("missing")), Err(DirectoryError::Open { .. })));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(".", &link).unwrap();
        assert!(matches!(mine(&link), Err(DirectoryError::Open { .. })));
        assert!(matches!(mine(dir.path()), Err(DirectoryError::NotEmpty { .. })));
        std::fs::remove_file(link).unwrap();
        let given_up = Cancel::new();
        given_up.cancel();
        let stopped = unpack(&image, dir.path(), Owners::Mine, &given_up);
        assert!(matches!(stopped, Err(DirectoryError::Stopped(Stopped::Cancelled))));
        assert_eq!(mine(dir.path()).unwrap().inodes, 9);
        assert!(dir.path().join("etc/hosts").is_file());
    }

    #[test]
    fn holes_are_found_at_both_ends_and_between() {
        let file = tempfile::tempfile().unwrap();
        for pattern in 0..32u32 {
            let blocks = (0..5).flat_map(|bit| vec![u8::from(pattern >> bit & 1 == 1); HOLE]);
            let bytes: Vec<u8> = blocks.chain([0, 0, 1].into_iter().take(pattern as usize % 4)).collect();
            file.set_len(0).unwrap();
            file.set_len(HOLE as u64 + bytes.len() as u64).unwrap();
            write_sparse(&file, HOLE as u64, &bytes).unwrap();
            let mut found = vec![1; HOLE + bytes.len()];
            FileExt::read_exact_at(&file, &mut found, 0).unwrap();
            assert!(found[..HOLE].iter().all(|byte| *byte == 0));
            assert_eq!(found[HOLE..], bytes);
        }
    }
}
