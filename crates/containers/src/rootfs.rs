//! Access to a container's root file system without leaving it. The image may hold any symbolic link.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

fn open_beneath(root: &impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Opens a root file system's directory.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Reads a regular file beneath `root`; `None` when it does not exist. A file longer than the cap is an error.
pub(crate) fn read_file(root: &impl AsFd, path: &Path, cap: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match open_beneath(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
        Ok(file) => file,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFREG {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    read_capped(File::from(file), cap).map(Some)
}

/// Reads a whole file of at most `cap` bytes.
pub fn read_capped(file: File, cap: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(cap + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= cap) {
        Ok(bytes)
    } else {
        Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("over {cap} bytes")))
    }
}

/// Makes a directory and its parents beneath `root`, owned by root, mode 0755. Existing ones stay unchanged.
pub(crate) fn make_directory(root: &impl AsFd, path: &Path) -> io::Result<()> {
    let mut parent = open_beneath(root, Path::new("."), OFlag::O_PATH | OFlag::O_DIRECTORY)?;
    let mut so_far = PathBuf::new();
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::RootDir | Component::CurDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        };
        so_far.push(name);
        let open = |root| open_beneath(root, &so_far, OFlag::O_PATH | OFlag::O_DIRECTORY);
        parent = match open(root) {
            Err(Errno::ENOENT) => {
                mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
                open(root)?
            }
            other => other?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_never_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root_path = dir.path().join("root");
        fs::create_dir_all(root_path.join("etc")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink("../../secret", root_path.join("etc/passwd")).unwrap();
        symlink("/etc/real", root_path.join("etc/group")).unwrap();
        fs::write(root_path.join("etc/real"), "inside").unwrap();
        let root = open_root(&root_path).unwrap();
        assert_eq!(read_file(&root, Path::new("etc/passwd"), 100).unwrap(), None);
        assert_eq!(read_file(&root, Path::new("etc/group"), 100).unwrap().unwrap(), b"inside");
        assert!(read_file(&root, Path::new("etc/real"), 3).is_err());
        assert!(read_file(&root, Path::new("etc"), 100).is_err());
    }

    #[test]
    fn directories_are_made_inside_only() {
        let dir = tempfile::tempdir().unwrap();
        let root_path = dir.path().join("root");
        fs::create_dir_all(root_path.join("var/real")).unwrap();
        symlink("/var/real", root_path.join("srv")).unwrap();
        symlink("/../../../outside", root_path.join("dangling")).unwrap();
        let root = open_root(&root_path).unwrap();
        make_directory(&root, Path::new("/srv/a/b")).unwrap();
        assert!(root_path.join("var/real/a/b").is_dir());
        make_directory(&root, Path::new("/")).unwrap();
        assert!(make_directory(&root, Path::new("/dangling/x")).is_err());
        assert!(make_directory(&root, Path::new("/a/../../b")).is_err());
        assert!(!dir.path().join("outside").exists());
    }
}
