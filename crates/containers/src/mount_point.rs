//! Mount points beneath a container's root. The image, and other containers that share a volume, may put any links in the way: each is followed
//! within the root, and what is missing is made, so that a mount point is never outside. Must not know: what is mounted.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Links on the way to a mount point (the kernel's limit).
const MAX_LINKS: usize = 40;
/// How often a step is repeated that others disturb.
const MAX_REPEATS: usize = 128;

/// What is mounted, and so must be at the mount point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

/// A place to mount at.
#[derive(Debug)]
pub(crate) struct MountPoint {
    pub(crate) fd: OwnedFd,
    /// Its path from the root, absolute and without links.
    pub(crate) path: PathBuf,
}

/// Why there is no mount point.
#[derive(Debug, thiserror::Error)]
#[error("{}", at.display())]
pub(crate) struct PointError {
    /// What was being opened or made, without links.
    pub(crate) at: PathBuf,
    #[source]
    pub(crate) source: io::Error,
}

impl PointError {
    fn new(at: &Path, errno: Errno) -> Self {
        Self { at: Path::new("/").join(at), source: errno.into() }
    }

    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

/// What is at a path, which is not resolved any further.
pub(crate) fn kind_of(fd: &impl AsFd) -> Result<SFlag, Errno> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT)
}

/// Opens the path beneath the root without following any link; a link at its end is opened itself.
pub(crate) fn open_plain(root: &impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    for _ in 0..MAX_REPEATS {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::EAGAIN)
}

/// Where a mount point is or would be made: an absolute path without links.
pub(crate) fn resolve(root: &impl AsFd, destination: &Path, kind: Kind) -> Result<PathBuf, PointError> {
    walk(root, destination, kind, Missing::Assumed).map(|(_, path)| path)
}

/// Finds a mount point, and makes what is missing of it: directories with mode 0755, an empty file with mode 0644.
pub(crate) fn make(root: &impl AsFd, destination: &Path, kind: Kind) -> Result<MountPoint, PointError> {
    walk(root, destination, kind, Missing::Made).map(|(fd, path)| MountPoint { fd, path })
}

/// What happens to a part of the path that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Made,
    /// It is taken for a directory, or for what has to be at the end. The descriptor is that of the last part that exists.
    Assumed,
}

fn walk(
    root: &impl AsFd,
    destination: &Path,
    kind: Kind,
    missing: Missing,
) -> Result<(OwnedFd, PathBuf), PointError> {
    let mut left: VecDeque<OsString> = VecDeque::new();
    prepend(&mut left, destination);
    let mut done = PathBuf::new();
    let mut here = open_plain(root, &done).map_err(|errno| PointError::new(&done, errno))?;
    let (mut links, mut made) = (0, 0);
    while let Some(name) = left.pop_front() {
        let next = if name == ".." { parent(&done) } else { done.join(&name) };
        let failed = |errno| PointError::new(&next, errno);
        let found = match open_plain(root, &next) {
            Ok(found) => found,
            Err(Errno::ENOENT) if missing == Missing::Assumed => {
                done = next;
                if left.is_empty() {
                    return Ok((here, Path::new("/").join(done)));
                }
                continue;
            }
            Err(Errno::ENOENT) => {
                let file = left.is_empty() && kind == Kind::File;
                // Somebody else may make it or remove it at the same time.
                match if file { make_file(&here, &name) } else { make_directory(&here, &name) } {
                    Ok(()) | Err(Errno::EEXIST) if made < MAX_REPEATS => made += 1,
                    Ok(()) => return Err(failed(Errno::EAGAIN)),
                    Err(errno) => return Err(failed(errno)),
                }
                left.push_front(name);
                continue;
            }
            Err(errno) => return Err(failed(errno)),
        };
        match kind_of(&found).map_err(failed)? {
            SFlag::S_IFDIR => (here, done) = (found, next),
            SFlag::S_IFLNK => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(failed(Errno::ELOOP));
                }
                let target = PathBuf::from(readlinkat(&found, "").map_err(failed)?);
                if target.is_absolute() {
                    done = PathBuf::new();
                    here = open_plain(root, &done).map_err(failed)?;
                }
                prepend(&mut left, &target);
            }
            _ if left.is_empty() && kind == Kind::File => {
                return Ok((found, Path::new("/").join(next)));
            }
            _ => return Err(failed(Errno::ENOTDIR)),
        }
    }
    match kind {
        Kind::Directory => Ok((here, Path::new("/").join(done))),
        Kind::File => Err(PointError::new(&done, Errno::EISDIR)),
    }
}

/// The directory above. That of the root is the root.
fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// Puts the names of a path before those that are left.
fn prepend(left: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => left.push_front(name.to_owned()),
            Component::ParentDir => left.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

fn make_directory(parent: &impl AsFd, name: &OsString) -> Result<(), Errno> {
    mkdirat(parent, name.as_os_str(), Mode::from_bits_truncate(0o755))
}

fn make_file(parent: &impl AsFd, name: &OsString) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o644)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::open_root;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    struct Tree {
        dir: tempfile::TempDir,
        root: OwnedFd,
    }

    impl Tree {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("root/etc")).unwrap();
            let root = open_root(&dir.path().join("root")).unwrap();
            Self { dir, root }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join("root").join(path.trim_start_matches('/'))
        }

        fn link(&self, path: &str, target: &str) {
            symlink(target, self.at(path)).unwrap();
        }

        fn make(&self, destination: &str, kind: Kind) -> Result<String, Errno> {
            let made = make(&self.root, Path::new(destination), kind);
            made.map(|point| point.path.display().to_string())
                .map_err(|error| Errno::from_raw(error.source.raw_os_error().unwrap()))
        }
    }

    #[test]
    fn links_lead_within_the_root_and_what_is_missing_is_made() {
        let tree = Tree::new();
        for dir in ["run", "tmp/run2", "var"] {
            fs::create_dir_all(tree.at(dir)).unwrap();
        }
        tree.link("var/run", "/run");
        tree.link("run2", "/tmp/run2");
        tree.link("var/run2", "/run2");
        tree.link("var/relative", "../run");
        tree.link("data", "/mnt/./nowhere/");
        tree.link("etc/localtime", "../usr/share/zoneinfo/Asia/Somewhere");
        tree.link("etc/resolv.conf", "/../../run/systemd/stub.conf");
        for (destination, kind, path) in [
            ("/plain/new", Kind::Directory, "/plain/new"),
            ("/var/run/secrets/x", Kind::Directory, "/run/secrets/x"),
            ("/var/run2/secrets/x", Kind::Directory, "/tmp/run2/secrets/x"),
            ("/var/run2", Kind::Directory, "/tmp/run2"),
            ("/var/relative/y", Kind::Directory, "/run/y"),
            ("/data", Kind::Directory, "/mnt/nowhere"),
            ("/data/z", Kind::File, "/mnt/nowhere/z"),
            ("/etc/localtime", Kind::File, "/usr/share/zoneinfo/Asia/Somewhere"),
            ("/etc/resolv.conf", Kind::File, "/run/systemd/stub.conf"),
        ] {
            let resolved = resolve(&tree.root, Path::new(destination), kind).unwrap();
            assert_eq!(resolved, Path::new(path), "{destination}");
            // The second time everything is there.
            for _ in 0..2 {
                assert_eq!(tree.make(destination, kind).as_deref(), Ok(path), "{destination}");
            }
            assert_eq!(tree.at(path).is_dir(), kind == Kind::Directory, "{path}");
        }
    }

    #[test]
    fn hostile_links_end_in_an_error_or_inside() {
        let tree = Tree::new();
        let outside = tree.dir.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        let absolute = outside.display().to_string();
        tree.link("up", "../../../../outside");
        tree.link("absolute", &absolute);
        tree.link("a", "b");
        tree.link("b", "a");
        tree.link("self", "self/self");
        tree.link("proc", "/proc/self/root");
        assert_eq!(tree.make("/up", Kind::File).as_deref(), Ok("/outside"));
        assert_eq!(tree.make("/absolute", Kind::File).as_deref(), Ok(absolute.as_str()));
        assert_eq!(tree.make("/a/x", Kind::Directory), Err(Errno::ELOOP));
        assert_eq!(tree.make("/self", Kind::Directory), Err(Errno::ELOOP));
        fs::write(tree.at("file"), "").unwrap();
        assert_eq!(tree.make("/file/x", Kind::Directory), Err(Errno::ENOTDIR));
        assert_eq!(tree.make("/file", Kind::Directory), Err(Errno::ENOTDIR));
        assert_eq!(tree.make("/etc", Kind::File), Err(Errno::EISDIR));
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        let long = "/".to_owned() + &"x".repeat(300);
        assert_eq!(tree.make(&long, Kind::Directory), Err(Errno::ENAMETOOLONG));
    }

    proptest! {
        #[test]
        fn nothing_is_ever_made_outside(
            links in prop::collection::vec(("[a-c](/[a-c]){0,2}", "(/|(\\.\\./){0,4})[a-c.]{1,2}(/[a-c]|/\\.\\.){0,3}"), 0..6),
            destination in "(/[a-c]){1,4}",
            directory in any::<bool>(),
        ) {
            let tree = Tree::new();
            for (path, target) in links {
                let at = tree.dir.path().join("root").join(path);
                // Only within the real directories of the tree.
                if at.parent().is_some_and(|parent| fs::canonicalize(parent).is_ok_and(|real| real == parent)) {
                    symlink(target, at).ok();
                }
            }
            let kind = if directory { Kind::Directory } else { Kind::File };
            let resolved = resolve(&tree.root, Path::new(&destination), kind).ok();
            if let Ok(path) = tree.make(&destination, kind) {
                let real = fs::canonicalize(tree.at(&path)).unwrap();
                prop_assert_eq!(resolved, Some(PathBuf::from(&path)));
                prop_assert!(real.starts_with(fs::canonicalize(tree.at("")).unwrap()));
            }
            let names: Vec<_> = fs::read_dir(tree.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            prop_assert_eq!(names, ["root"]);
        }
    }
}
