//! Whether a state directory can be trusted: nobody but root and the caller may be able to replace what is in it, since its records say what
//! is removed and which processes are killed. The rules are those of OpenSSH for its files.

use nix::unistd::{Gid, Uid, getegid, geteuid};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Longest chain of links that is followed.
const MAX_LINKS: usize = 40;

/// Why a directory is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A directory, or a link to one, of another user.
    #[error("permission denied for the state directory: {} belongs to another user (uid {uid})", path.display())]
    Owner { path: PathBuf, uid: u32 },
    /// A directory in which others may replace entries.
    #[error("permission denied for the state directory: others may write to {} (mode {mode:o})", path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("cannot look at {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} leads through too many links", .0.display())]
    Links(PathBuf),
}

#[derive(Debug, Clone, Copy)]
struct Caller {
    uid: Uid,
    gid: Gid,
}

/// Checks every directory and link on the way to an absolute path, as far as it exists. What does not exist yet will be the caller's.
pub fn check(path: &Path) -> Result<(), TrustError> {
    let caller = Caller { uid: geteuid(), gid: getegid() };
    let mut links = 0;
    caller.walk(path, &mut links)
}

impl Caller {
    fn walk(self, path: &Path, links: &mut usize) -> Result<(), TrustError> {
        let mut here = PathBuf::from("/");
        let mut is_shared = self.directory(&here, &look(&here)?)?;
        for part in path.components() {
            let Component::Normal(name) = part else {
                if part == Component::ParentDir {
                    here.pop();
                    is_shared = self.directory(&here, &look(&here)?)?;
                }
                continue;
            };
            let entry = here.join(name);
            let there = match entry.symlink_metadata() {
                Ok(there) => there,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    return Ok(());
                }
                Err(source) => return Err(TrustError::Look { path: entry, source }),
            };
            // In a directory with the sticky bit, an entry is safe from all but its owner.
            if is_shared == Shared::Yes {
                self.owner(&entry, &there)?;
            }
            if !there.is_symlink() {
                is_shared = self.directory(&entry, &there)?;
                here = entry;
                continue;
            }
            *links += 1;
            if *links > MAX_LINKS {
                return Err(TrustError::Links(entry));
            }
            let failed = |source| TrustError::Look { path: entry.clone(), source };
            let target = fs::read_link(&entry).map_err(failed)?;
            self.walk(&here.join(target), links)?;
            here = match fs::canonicalize(&entry) {
                Ok(target) => target,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(source) => return Err(failed(source)),
            };
            is_shared = self.directory(&here, &look(&here)?)?;
        }
        Ok(())
    }

    /// Checks a directory that exists.
    fn directory(self, path: &Path, there: &Metadata) -> Result<Shared, TrustError> {
        self.owner(path, there)?;
        let mode = there.mode();
        // The private group of a user has no other members; root's group is root's.
        let is_own_group =
            there.gid() == 0 || (there.gid() == self.gid.as_raw() && self.gid.as_raw() == self.uid.as_raw());
        let others = if is_own_group { 0o002 } else { 0o022 };
        match (mode & others != 0, mode & 0o1000 != 0) {
            (false, _) => Ok(Shared::No),
            (true, true) => Ok(Shared::Yes),
            (true, false) => Err(TrustError::Writable { path: path.to_owned(), mode: mode & 0o7777 }),
        }
    }

    fn owner(self, path: &Path, there: &Metadata) -> Result<(), TrustError> {
        let uid = there.uid();
        if uid == 0 || uid == self.uid.as_raw() {
            return Ok(());
        }
        Err(TrustError::Owner { path: path.to_owned(), uid })
    }
}

/// Whether others may make entries of their own in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shared {
    No,
    Yes,
}

fn look(path: &Path) -> Result<Metadata, TrustError> {
    path.symlink_metadata().map_err(|source| TrustError::Look { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    fn judged(path: &Path) -> &'static str {
        match check(path) {
            Ok(()) => "fine",
            Err(TrustError::Owner { .. }) => "owner",
            Err(TrustError::Writable { .. }) => "writable",
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_directory_on_the_way_counts() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        fs::create_dir_all(base.join("a/b/c")).unwrap();
        let mode = |name: &str, mode| {
            fs::set_permissions(base.join(name), Permissions::from_mode(mode)).unwrap();
        };
        symlink("a/b", base.join("link")).unwrap();
        let paths = ["a/b/c", "a/b/c/new", "link/c", "a/b/c/../c"];
        for path in paths {
            assert_eq!(judged(&base.join(path)), "fine", "{path}");
        }
        mode("a", 0o777);
        for path in paths {
            assert_eq!(judged(&base.join(path)), "writable", "{path}");
        }
        // As /tmp: what is the caller's in it is safe.
        mode("a", 0o1777);
        for path in paths {
            assert_eq!(judged(&base.join(path)), "fine", "{path}");
        }
        if geteuid().is_root() {
            chown(base.join("a/b"), Some(65534), None).unwrap();
            for path in paths {
                assert_eq!(judged(&base.join(path)), "owner", "{path}");
            }
            chown(base.join("a/b"), Some(0), None).unwrap();
            std::os::unix::fs::lchown(base.join("link"), Some(65534), None).unwrap();
            fs::rename(base.join("link"), base.join("a/link")).unwrap();
            assert_eq!(judged(&base.join("a/link/x")), "owner", "a stranger's link in a shared directory");
        }
        assert_eq!(judged(Path::new("/tmp")), "fine");
    }
}
