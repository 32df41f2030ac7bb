//! Replaces a guest image's directory atomically: the new one is built beside its destination and then renamed.

use crate::files::{self, FileError};
use magikvm_proto::guest_image::MANIFEST;
use nix::errno::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Why an image can't be put at its destination.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The destination is not a guest image and must not be replaced.
    #[error("{} exists and is not a guest image (it has no {MANIFEST}), so it is not replaced", .0.display())]
    NotAnImage(PathBuf),
    /// The path cannot be a separate directory.
    #[error("{} cannot hold a guest image", .0.display())]
    NoPlace(PathBuf),
}

/// A directory that is not at its destination before [`StagedDirectory::commit`]. Dropping it removes it.
#[derive(Debug)]
pub struct StagedDirectory {
    dir: PathBuf,
    target: PathBuf,
    /// Locked while the directory is in use, so that the next builder can tell it from one left by a killed builder.
    _lock: File,
}

impl StagedDirectory {
    /// Creates a new directory beside `target`, and removes those that killed builders left there.
    pub fn new(target: &Path) -> Result<Self, StageError> {
        let target = resolve(target)?;
        check_replaceable(&target)?;
        let (parent, prefix) = (parent_of(&target)?, prefix_of(&target)?);
        sweep(parent, &prefix)?;
        loop {
            let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
            let dir = dir.map_err(FileError::at("create a directory in", parent))?.keep();
            fs::set_permissions(&dir, Permissions::from_mode(0o755))
                .map_err(FileError::at("set the mode of", &dir))?;
            let lock = File::open(&dir).map_err(FileError::at("open", &dir))?;
            lock.lock().map_err(FileError::at("lock", &dir))?;
            // Another builder may have removed the directory before it was locked; then create another one.
            if is_still(&dir, &lock) {
                return Ok(Self { dir, target, _lock: lock });
            }
        }
    }

    /// The directory before it is committed.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Puts the directory at its destination atomically, and removes the image that was there.
    pub fn commit(mut self) -> Result<PathBuf, StageError> {
        files::sync_dir(&self.dir)?;
        let parent = parent_of(&self.target)?.to_owned();
        if let Err(error) = fs::rename(&self.dir, &self.target) {
            if !matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENOTEMPTY | Errno::EEXIST)) {
                return Err(FileError::at("create", &self.target)(error).into());
            }
            check_replaceable(&self.target)?;
            exchange(&self.dir, &self.target)?;
        }
        files::sync_dir(&parent)?;
        // The staging path now holds the old image, if there was one; dropping `self` removes it.
        Ok(std::mem::take(&mut self.target))
    }
}

impl Drop for StagedDirectory {
    fn drop(&mut self) {
        // An error can't be reported here; the next builder tries again.
        let _removed = fs::remove_dir_all(&self.dir).is_ok();
    }
}

/// Resolves links in the path and creates its parents. Its last component need not exist.
fn resolve(target: &Path) -> Result<PathBuf, StageError> {
    let no_place = || StageError::NoPlace(target.to_owned());
    if let Ok(there) = target.canonicalize() {
        return Ok(there);
    }
    let name = target.file_name().ok_or_else(no_place)?;
    let parent = match target.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(FileError::at("create directory", parent))?;
    Ok(parent.canonicalize().map_err(FileError::at("resolve", parent))?.join(name))
}

fn parent_of(target: &Path) -> Result<&Path, StageError> {
    target.parent().ok_or_else(|| StageError::NoPlace(target.to_owned()))
}

fn prefix_of(target: &Path) -> Result<OsString, StageError> {
    let name = target.file_name().ok_or_else(|| StageError::NoPlace(target.to_owned()))?;
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".staging-");
    Ok(prefix)
}

/// Nothing, an empty directory or a guest image may be replaced.
fn check_replaceable(target: &Path) -> Result<(), StageError> {
    let mut entries = match fs::read_dir(target) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(StageError::NotAnImage(target.to_owned()));
        }
        Err(error) => return Err(FileError::at("read directory", target)(error).into()),
    };
    if target.join(MANIFEST).is_file() || entries.next().is_none() {
        Ok(())
    } else {
        Err(StageError::NotAnImage(target.to_owned()))
    }
}

fn exchange(new: &Path, old: &Path) -> Result<(), StageError> {
    match swap(new, old) {
        Ok(()) => Ok(()),
        // The file system does not support an exchange: two renames, with a short gap between them.
        Err(Errno::EINVAL | Errno::ENOSYS) => {
            let mut aside = new.as_os_str().to_owned();
            aside.push(".old");
            fs::rename(old, &aside).map_err(FileError::at("rename", old))?;
            fs::rename(new, old).map_err(FileError::at("create", old))?;
            Ok(fs::remove_dir_all(&aside).map_err(FileError::at("remove", Path::new(&aside)))?)
        }
        Err(errno) => Err(FileError::at("replace", old)(errno.into()).into()),
    }
}

#[cfg(target_os = "linux")]
fn swap(one: &Path, two: &Path) -> nix::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, one, AT_FDCWD, two, RenameFlags::RENAME_EXCHANGE)
}

/// Supported on Linux only.
#[cfg(not(target_os = "linux"))]
fn swap(_one: &Path, _two: &Path) -> nix::Result<()> {
    Err(Errno::ENOSYS)
}

fn is_still(dir: &Path, open: &File) -> bool {
    match (fs::symlink_metadata(dir), open.metadata()) {
        (Ok(named), Ok(held)) => (named.dev(), named.ino()) == (held.dev(), held.ino()),
        _ => false,
    }
}

/// Removes staging directories whose builder has ended: those that are not locked.
fn sweep(parent: &Path, prefix: &OsStr) -> Result<(), StageError> {
    let entries = fs::read_dir(parent).map_err(FileError::at("read directory", parent))?;
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let path = entry.path();
        let Ok(dir) = File::open(&path) else { continue };
        if dir.try_lock().is_ok() {
            fs::remove_dir_all(&path).map_err(FileError::at("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn put(target: &Path, text: &str) -> PathBuf {
        let stage = StagedDirectory::new(target).unwrap();
        files::write(&stage.dir().join(MANIFEST), text.as_bytes(), 0o644).unwrap();
        stage.commit().unwrap()
    }

    #[test]
    fn an_image_is_put_at_a_new_place_into_an_empty_directory_and_over_an_old_image() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/guest");
        put(&target, "1");
        put(&target, "2");
        assert_eq!(fs::read_to_string(target.join(MANIFEST)).unwrap(), "2");
        assert_eq!(names(&dir.path().join("deep")), ["guest"], "nothing is left beside it");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        put(&empty, "3");
        assert_eq!(names(&empty), [MANIFEST]);
    }

    #[test]
    fn a_stage_that_is_not_committed_leaves_the_old_image_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("guest");
        put(&target, "old");
        let stage = StagedDirectory::new(&target).unwrap();
        files::write(&stage.dir().join(MANIFEST), b"half", 0o644).unwrap();
        drop(stage);
        assert_eq!(fs::read_to_string(target.join(MANIFEST)).unwrap(), "old");
        assert_eq!(names(dir.path()), ["guest"]);
    }

    #[test]
    fn what_is_not_an_image_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        files::write(&home.join("letter"), b"dear", 0o644).unwrap();
        assert!(matches!(StagedDirectory::new(&home), Err(StageError::NotAnImage(_))));
        assert!(matches!(StagedDirectory::new(&home.join("letter")), Err(StageError::NotAnImage(_))));
        assert!(matches!(
            StagedDirectory::new(Path::new("/")),
            Err(StageError::NotAnImage(_) | StageError::NoPlace(_))
        ));
        assert_eq!(names(dir.path()), ["home"]);
    }

    #[test]
    fn a_link_is_followed_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        put(&dir.path().join("v1"), "1");
        std::os::unix::fs::symlink("v1", dir.path().join("current")).unwrap();
        put(&dir.path().join("current"), "2");
        assert!(dir.path().join("current").is_symlink());
        assert_eq!(fs::read_to_string(dir.path().join("v1").join(MANIFEST)).unwrap(), "2");
    }

    #[test]
    fn the_stage_of_a_killed_builder_is_removed_and_that_of_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("guest");
        let living = StagedDirectory::new(&target).unwrap();
        fs::create_dir(dir.path().join(".guest.staging-dead")).unwrap();
        files::write(&dir.path().join(".guest.staging-dead/vmlinux"), b"half", 0o644).unwrap();
        fs::create_dir(dir.path().join(".other.staging-dead")).unwrap();
        let second = StagedDirectory::new(&target).unwrap();
        assert!(living.dir().is_dir() && second.dir().is_dir());
        assert!(!dir.path().join(".guest.staging-dead").exists());
        assert!(dir.path().join(".other.staging-dead").exists(), "of another target");
    }
}
