//! Access to a container's root file system without leaving it. The image may hold any symbolic link.

use crate::sys::Users;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

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

/// Gives a directory the owner and mode of another one, which overlayfs shows as those of the whole.
pub(crate) fn take_attributes(from: &impl AsFd, to: &Path) -> io::Result<()> {
    let stat = fstat(from)?;
    chown(to, Some(stat.st_uid), Some(stat.st_gid))?;
    // After the owner, whose change can clear mode bits.
    fs::set_permissions(to, Permissions::from_mode(stat.st_mode & 0o7777))
}

/// The options of an overlay. One in a user namespace keeps its marks in attributes that users may set.
pub(crate) fn overlay_options(lower: &Path, upper: &Path, work: &Path, users: Users) -> String {
    let escaped = |path: &Path| {
        path.display().to_string().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
    };
    let marks = match users {
        Users::Host => "",
        Users::Own => ",userxattr",
    };
    format!("lowerdir={},upperdir={},workdir={}{marks}", escaped(lower), escaped(upper), escaped(work))
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn a_directory_takes_owner_and_mode_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for (mode, path) in [(0o1777, &from), (0o700, &to)] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        take_attributes(&open_root(&from).unwrap(), &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o7777, 0o1777);
    }

    #[test]
    fn paths_are_escaped_in_options() {
        let options = overlay_options(Path::new("/a:b"), Path::new("/c,d"), Path::new("/e"), Users::Host);
        assert_eq!(options, "lowerdir=/a\\:b,upperdir=/c\\,d,workdir=/e");
    }
}
