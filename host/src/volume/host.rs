//! Finds files on the host. Others may change them meanwhile, so nothing is looked up by its path twice.

use super::VolumeError;
use crate::volume::HostPathKind;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Attempts at a lookup that concurrent renames and mounts disturb.
const LOOKUPS: u32 = 128;
/// A descriptor that only refers to a file.
const POINT: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// An open file or directory of the host, whatever its path means later.
#[derive(Debug)]
pub struct OpenedPath {
    path: PathBuf,
    pub(super) fd: OwnedFd,
}

impl OpenedPath {
    /// Opens the file at this absolute path, or creates it if allowed.
    pub fn open(path: &Path, wanted: HostPathKind) -> Result<Self, VolumeError> {
        let failed = |source: io::Error| VolumeError::Open { path: path.to_owned(), source };
        let fd = match point(path) {
            Err(Errno::NOENT) => match wanted {
                HostPathKind::DirectoryOrCreate => make_directories(path),
                HostPathKind::FileOrCreate => make_file(path),
                HostPathKind::Any | HostPathKind::Directory | HostPathKind::File => {
                    return Err(failed(Errno::NOENT.into()));
                }
            }
            .map_err(|errno| VolumeError::Make { path: path.to_owned(), source: errno.into() })?,
            found => found.map_err(|errno| failed(errno.into()))?,
        };
        let found = file_type(&fd).map_err(failed)?;
        let (fine, word) = match wanted {
            HostPathKind::Any => (is_shared(found), "a directory or a regular file"),
            HostPathKind::Directory | HostPathKind::DirectoryOrCreate => {
                (found == FileType::Directory, "a directory")
            }
            HostPathKind::File | HostPathKind::FileOrCreate => {
                (found == FileType::RegularFile, "a regular file")
            }
        };
        if !fine {
            return Err(VolumeError::Kind { path: path.to_owned(), found: describe(found), wanted: word });
        }
        Ok(Self { path: path.to_owned(), fd })
    }

    /// Checks whether the path could be opened. What would be created is not.
    pub fn check(path: &Path, wanted: HostPathKind) -> Result<(), VolumeError> {
        let is_made = matches!(wanted, HostPathKind::DirectoryOrCreate | HostPathKind::FileOrCreate);
        if is_made && matches!(point(path), Err(Errno::NOENT)) {
            return Ok(());
        }
        Self::open(path, wanted).map(|_| ())
    }

    /// Opens a path within it, which no link can lead out of. A missing one is created as a directory.
    pub fn within(&self, sub_path: &str) -> Result<Self, VolumeError> {
        let failed = |source: io::Error| VolumeError::SubPath {
            path: self.path.clone(),
            sub_path: sub_path.to_owned(),
            source,
        };
        let fd = open_or_make(&self.fd, Path::new(sub_path)).map_err(|errno| match errno {
            // openat2(2) tells so that a link leads out of the root.
            Errno::XDEV => VolumeError::Outside { path: self.path.clone(), sub_path: sub_path.to_owned() },
            errno => failed(errno.into()),
        })?;
        let found = file_type(&fd).map_err(failed)?;
        let path = self.path.join(sub_path);
        if !is_shared(found) {
            let wanted = "a directory or a regular file";
            return Err(VolumeError::Kind { path, found: describe(found), wanted });
        }
        Ok(Self { path, fd })
    }
}

fn point(path: &Path) -> Result<OwnedFd, Errno> {
    openat(rustix::fs::CWD, path, POINT, Mode::empty())
}

fn file_type(fd: &OwnedFd) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

fn is_shared(found: FileType) -> bool {
    matches!(found, FileType::Directory | FileType::RegularFile)
}

fn describe(found: FileType) -> &'static str {
    match found {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "something unknown",
    }
}

/// Creates a directory and its parents. Links on the way are followed, as the kubelet does.
fn make_directories(path: &Path) -> Result<OwnedFd, Errno> {
    let mut here = point(Path::new("/"))?;
    for component in path.components() {
        let name: &OsStr = match component {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
        };
        let open = |here: &OwnedFd| openat(here, name, POINT | OFlags::DIRECTORY, Mode::empty());
        here = match open(&here) {
            Err(Errno::NOENT) => {
                match mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
                    // Another process may have been faster. A dangling link is not followed.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open(&here)?
            }
            found => found?,
        };
    }
    Ok(here)
}

/// Creates an empty file in an existing directory without writing through a link.
fn make_file(path: &Path) -> Result<OwnedFd, Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let parent = point(parent)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => openat(&parent, name, POINT, Mode::empty()),
        Err(errno) => Err(errno),
    }
}

/// Opens a path beneath a directory. A link that leads out of it is an error.
fn open_beneath(root: &impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..LOOKUPS {
        match openat2(root, path, POINT, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a path beneath a directory and creates what is missing, with directories of the root's mode.
fn open_or_make(root: &impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    match open_beneath(root, path) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let mode = Mode::from_raw_mode(fstat(root)?.st_mode & 0o7777);
    let mut parent = open_beneath(root, Path::new("."))?;
    let mut so_far = PathBuf::new();
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
        };
        so_far.push(name);
        parent = match open_beneath(root, &so_far) {
            Err(Errno::NOENT) => match mkdirat(&parent, name, mode) {
                Ok(()) | Err(Errno::EXIST) => open_beneath(root, &so_far)?,
                Err(errno) => return Err(errno),
            },
            other => other?,
        };
    }
    Ok(parent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::sync::atomic::{AtomicBool, Ordering};

    fn ino(found: &OpenedPath) -> u64 {
        fstat(&found.fd).unwrap().st_ino
    }

    #[test]
    fn what_is_there_must_be_what_was_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "x").unwrap();
        symlink("dir", at("link")).unwrap();
        symlink("none", at("dangling")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        use HostPathKind::{Any, Directory, DirectoryOrCreate, File, FileOrCreate};
        for kind in [Any, Directory, DirectoryOrCreate] {
            assert_eq!(
                ino(&OpenedPath::open(&at("link"), kind).unwrap()),
                fs::metadata(at("dir")).unwrap().ino()
            );
            assert!(OpenedPath::open(&at("socket"), kind).is_err());
        }
        for kind in [Any, File, FileOrCreate] {
            assert_eq!(
                ino(&OpenedPath::open(&at("file"), kind).unwrap()),
                fs::metadata(at("file")).unwrap().ino()
            );
        }
        for (name, kind) in
            [("file", Directory), ("file", DirectoryOrCreate), ("dir", File), ("dir", FileOrCreate)]
        {
            assert!(
                matches!(OpenedPath::open(&at(name), kind), Err(VolumeError::Kind { .. })),
                "{name} {kind:?}"
            );
        }
        for kind in [Any, Directory, File] {
            assert!(matches!(OpenedPath::open(&at("none"), kind), Err(VolumeError::Open { .. })));
        }
        // Nothing is created through a link, and no directory in place of a file.
        for (name, kind) in
            [("dangling", FileOrCreate), ("dangling", DirectoryOrCreate), ("a/b", FileOrCreate)]
        {
            assert!(
                matches!(OpenedPath::open(&at(name), kind), Err(VolumeError::Make { .. })),
                "{name} {kind:?}"
            );
        }
        assert!(!at("none").exists());
        OpenedPath::open(&at("new/deep"), DirectoryOrCreate).unwrap();
        OpenedPath::open(&at("new/file"), FileOrCreate).unwrap();
        assert!(at("new/deep").is_dir() && fs::read(at("new/file")).unwrap().is_empty());
    }

    #[test]
    fn no_part_of_it_is_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("in/deep")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        for (name, to) in [("up", "../outside"), ("fine", "in/deep"), ("dangling", "../outside/new")] {
            symlink(to, root.join(name)).unwrap();
        }
        symlink(&outside, root.join("far")).unwrap();
        let volume = OpenedPath::open(&root, HostPathKind::Directory).unwrap();
        for bad in ["up", "up/new", "far", "far/new", "dangling", "dangling/new"] {
            let error = volume.within(bad).unwrap_err();
            let says = format!("subPath {bad:?} leaves hostPath {}: a link on the way", root.display());
            assert!(error.to_string().starts_with(&says), "{error}");
            assert!(std::error::Error::source(&error).is_none(), "no number of the kernel says more");
        }
        assert!(matches!(volume.within("file/x"), Err(VolumeError::SubPath { .. })));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(ino(&volume.within("fine").unwrap()), fs::metadata(root.join("in/deep")).unwrap().ino());
        assert_eq!(ino(&volume.within("file").unwrap()), fs::metadata(root.join("file")).unwrap().ino());
        volume.within("fine/new/one").unwrap();
        assert!(root.join("in/deep/new/one").is_dir());
        let file = OpenedPath::open(&root.join("file"), HostPathKind::File).unwrap();
        assert!(file.within("x").is_err());
    }

    /// Another thread constantly swaps a directory of the volume for a link out of it, and back.
    #[test]
    fn nothing_outside_is_found_or_created_whatever_the_race() {
        let lookups: u32 = std::env::var("MAGIKVM_TEST_RACES").map_or(20_000, |text| text.parse().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(outside.join("b")).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        let secret = fs::metadata(outside.join("b")).unwrap().ino();
        let volume = OpenedPath::open(&root, HostPathKind::Directory).unwrap();
        let stop = AtomicBool::new(false);
        let (mut found, mut refused) = (0u32, 0u32);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (a, link) = (root.join("a"), root.join("link"));
                while !stop.load(Ordering::Relaxed) {
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(rustix::fs::CWD, &a, rustix::fs::CWD, &link, exchange).unwrap();
                }
            });
            for number in 0..lookups {
                for part in ["a/b".to_owned(), format!("a/new{}", number % 100)] {
                    match volume.within(&part) {
                        Ok(inside) => {
                            assert_ne!(ino(&inside), secret);
                            found += 1;
                        }
                        Err(_) => refused += 1,
                    }
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was made outside");
        assert!(found > 0 && refused > 0, "{found} found, {refused} refused: there was no race");
    }
}
