//! Where magikvm keeps things, and the configuration that it finds there.

use super::check::Check;
use super::host::User;
use crate::image::{Policy, PolicyError};
use crate::store::text::chain;
use nix::unistd::{AccessFlags, access};
use std::path::{Path, PathBuf};

/// Less than this for images, and the next one may not find room.
const LOW_IMAGES: u64 = 1 << 30;
/// Less than this for pods, whose directories hold logs, and often are in memory.
const LOW_PODS: u64 = 64 << 20;
const NEEDED_FOR: &str = "keeping pods and images";

/// What was found of a directory, which may be yet to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Directory {
    path: PathBuf,
    /// The nearest one that is there.
    nearest: PathBuf,
    access: Access,
    free: u64,
    low: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Writable,
    Denied,
    NoDirectory,
}

impl Directory {
    fn look(path: &Path, low: u64) -> Self {
        let there = path.ancestors().find(|dir| dir.symlink_metadata().is_ok());
        let nearest = there.unwrap_or(Path::new("/")).to_owned();
        let may = AccessFlags::W_OK | AccessFlags::X_OK;
        let access = match (nearest.is_dir(), access(&nearest, may)) {
            (false, _) => Access::NoDirectory,
            (true, Ok(())) => Access::Writable,
            (true, Err(_)) => Access::Denied,
        };
        #[allow(clippy::useless_conversion, reason = "not everywhere are these of one type")]
        // One that can't tell is not said to be full.
        let free = nix::sys::statvfs::statvfs(&nearest).map_or(u64::MAX, |file_system| {
            u64::from(file_system.blocks_available()).saturating_mul(file_system.fragment_size())
        });
        Self { path: path.to_owned(), nearest, access, free, low }
    }
}

/// Whether pods and images can be written where they are to be.
pub(super) fn directories(pods: &Path, images: &Path, user: &User) -> Check {
    judge(&[Directory::look(pods, LOW_PODS), Directory::look(images, LOW_IMAGES)], user)
}

/// Whether root file systems and emptyDir volumes can be on disk.
pub(super) fn scratch() -> Check {
    let name = "scratch disks";
    match crate::vmm::scratch::program() {
        Some(program) => Check::ok(name, program.display().to_string()),
        None => {
            let found = "mkfs.ext4 is not installed".to_owned();
            Check::missing(
                name,
                "changes to root file systems, and emptyDir volumes on disk",
                found,
                "run `apt-get install e2fsprogs`, or keep them in memory with the annotation `magikvm.dev/root: memory`"
                    .to_owned(),
            )
            .required()
        }
    }
}

fn judge(dirs: &[Directory], user: &User) -> Check {
    let name = "state directories";
    if let Some(dir) = dirs.iter().find(|dir| dir.access != Access::Writable) {
        let (path, nearest) = (dir.path.display(), dir.nearest.display());
        let other = "choose another directory with `--root DIR` or MAGIKVM_ROOT";
        let (found, remedy) = match (dir.access, user) {
            (Access::NoDirectory, _) => {
                (format!("{path} cannot be created: {nearest} is not a directory"), other.to_owned())
            }
            (_, User::Ordinary { name, .. }) if dir.path == dir.nearest => {
                (format!("{path} is not writable"), format!("run `sudo chown -R {name} {path}`, or {other}"))
            }
            _ => {
                (format!("{path} cannot be created or written: {nearest} is not writable"), other.to_owned())
            }
        };
        return Check::missing(name, NEEDED_FOR, found, remedy).required();
    }
    if let Some(dir) = dirs.iter().find(|dir| dir.free < dir.low) {
        let found = format!("{} has {} MiB left", dir.path.display(), dir.free >> 20);
        let remedy = "remove images with `magikvm image prune --all` and ended pods with `magikvm rm NAME`, or choose another directory with `--root DIR`";
        return Check::missing(name, NEEDED_FOR, found, remedy);
    }
    let paths: Vec<String> = dirs.iter().map(|dir| dir.path.display().to_string()).collect();
    Check::ok(name, paths.join(" and "))
}

/// Whether the policy for images can be read. In doubt no image is used.
pub(super) fn policy(path: &Path) -> Check {
    judge_policy(path, Policy::load(path).map(drop))
}

fn judge_policy(path: &Path, loaded: Result<(), PolicyError>) -> Check {
    let name = "image policy";
    match loaded {
        Ok(()) if path.exists() => Check::ok(name, path.display().to_string()),
        Ok(()) => Check::ok(name, format!("there is no {}, so every image may be used", path.display())),
        Err(error) => Check::missing(
            name,
            "every pod: the policy determines which images may be used",
            chain(&error),
            format!("correct {} (see docs/policy.md)", path.display()),
        )
        .required(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;
    use std::fs;

    fn ada() -> User {
        User::Ordinary { uid: 1000, name: "ada".to_owned() }
    }

    #[test]
    fn a_directory_yet_to_be_made_is_fine_and_one_below_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        let check = directories(&below, &below, &User::Root);
        assert!(check.found.contains("a/b"), "{check:?}");
        assert_ne!(check.state, State::Fail);
        fs::write(dir.path().join("a"), "").unwrap();
        let check = directories(&below, &below, &User::Root);
        assert_eq!(check.state, State::Fail);
        assert!(check.found.ends_with("a is not a directory"), "{check:?}");
    }

    #[test]
    fn what_may_not_be_written_is_given_to_the_user_or_is_elsewhere() {
        let dir = |nearest: &str, access| Directory {
            path: "/x/y".into(),
            nearest: nearest.into(),
            access,
            free: 1 << 40,
            low: LOW_IMAGES,
        };
        let own = judge(&[dir("/x/y", Access::Writable), dir("/x/y", Access::Denied)], &ada());
        assert_eq!(own.state, State::Fail);
        assert!(own.remedy.unwrap().starts_with("run `sudo chown -R ada /x/y`, or "));
        let above = judge(&[dir("/x", Access::Denied)], &ada());
        assert_eq!(above.found, "/x/y cannot be created or written: /x is not writable");
        assert!(above.remedy.unwrap().contains("--root DIR"));
    }

    #[test]
    fn little_room_is_a_warning_only() {
        let dir = |free| Directory {
            path: "/x".into(),
            nearest: "/x".into(),
            access: Access::Writable,
            free,
            low: LOW_IMAGES,
        };
        assert!(judge(&[dir(LOW_IMAGES), dir(u64::MAX)], &ada()).is_ok());
        let low = judge(&[dir(u64::MAX), dir(LOW_IMAGES - 1)], &ada());
        assert_eq!((low.state, low.found.as_str()), (State::Warn, "/x has 1023 MiB left"));
        assert!(low.remedy.unwrap().contains("magikvm image prune"));
    }

    #[test]
    fn a_policy_in_doubt_stops_every_pod() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("policy.toml");
        assert!(policy(&path).found.contains("every image may be used"));
        fs::write(&path, "default = \"reject\"\n").unwrap();
        assert_eq!(policy(&path), Check::ok("image policy", path.display().to_string()));
        fs::write(&path, "default = \n").unwrap();
        let check = policy(&path);
        assert!(check.state == State::Fail && check.remedy.is_some(), "{check:?}");
    }
}
