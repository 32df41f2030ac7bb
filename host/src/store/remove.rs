//! Removes a directory with everything in it, and names what cannot be removed. Follows no link.

use super::atomic::FileError;
use magikvm_platform::helper;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Removes what is at `path`, which may be gone already. Continues after a failure; the error names the first thing that is left.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(FileError::at("remove", path)(error)),
    };
    if !there.is_dir() {
        return gone(fs::remove_file(path)).map_err(FileError::at("remove", path));
    }
    if gone(fs::remove_dir_all(path)).is_ok() {
        return Ok(());
    }
    remove_deep(path)
}

/// Removes a directory that a guest may have filled, however deep it is. Nothing may write to it any more.
pub fn remove_deep(path: &Path) -> Result<(), FileError> {
    match remove_own(path) {
        // What belongs to users of an ordinary user's pod, only the helper can remove.
        Err(error) if helper::removes(path, &error.source) => Ok(()),
        removed => removed,
    }
}

fn remove_own(path: &Path) -> Result<(), FileError> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => {}
        _ => return remove_tree(path),
    }
    // What lies too deep for one descent is moved up and removed in the next round.
    loop {
        let mut round = Round { top: path, moved: 0, first_left: None };
        round.clear(path, 0)?;
        match (gone(fs::remove_dir(path)), round.first_left) {
            (Ok(()), _) => return Ok(()),
            (Err(_), _) if round.moved > 0 => {}
            (Err(_), Some(left)) => return Err(left),
            (Err(error), None) => return Err(FileError::at("remove", path)(error)),
        }
    }
}

/// Levels of one descent, so that neither the stack nor the length of a path limits the depth of a tree.
const LEVELS: usize = 8;

/// One descent into a tree that cannot be removed at once.
struct Round<'a> {
    top: &'a Path,
    /// Directories that were moved to the top.
    moved: u64,
    first_left: Option<FileError>,
}

impl Round<'_> {
    /// Removes what is in a directory, as far as possible.
    fn clear(&mut self, dir: &Path, level: usize) -> Result<(), FileError> {
        make_accessible(dir)?;
        // No descriptor stays open for a level.
        let entries = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        for entry in entries.map_err(FileError::at("remove", dir))? {
            let path = entry.path();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() && level < LEVELS => self
                    .clear(&path, level + 1)
                    .and_then(|()| gone(fs::remove_dir(&path)).map_err(FileError::at("remove", &path))),
                Ok(kind) if kind.is_dir() => self.move_up(&path),
                Ok(_) => gone(fs::remove_file(&path)).map_err(FileError::at("remove", &path)),
                Err(error) => Err(FileError::at("look at", &path)(error)),
            };
            if let Err(error) = removed {
                self.first_left.get_or_insert(error);
            }
        }
        Ok(())
    }

    fn move_up(&mut self, dir: &Path) -> Result<(), FileError> {
        make_accessible(dir)?;
        let place = self.top.join(format!(".deep-{}", uuid::Uuid::new_v4()));
        fs::rename(dir, &place).map_err(FileError::at("move", dir))?;
        self.moved += 1;
        Ok(())
    }
}

/// Lets the owner of a directory into it, if its mode keeps him out. Returns whether it did.
pub fn make_accessible(dir: &Path) -> Result<bool, FileError> {
    let there = fs::symlink_metadata(dir).map_err(FileError::at("look at", dir))?;
    if !there.is_dir() || there.permissions().mode() & 0o700 == 0o700 {
        return Ok(false);
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(FileError::at("set the mode of", dir))?;
    Ok(true)
}

fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_goes_however_deep_it_is() {
        let base = tempfile::tempdir().unwrap();
        let (top, next) = (base.path().join("top"), base.path().join("next"));
        // Each round puts the tree so far below new levels, so that no path is too long.
        fs::create_dir(&top).unwrap();
        for _ in 0..8 {
            let below: std::path::PathBuf = std::iter::repeat_n("d", 200).collect();
            fs::create_dir_all(next.join(&below)).unwrap();
            fs::rename(&top, next.join(&below).join("d")).unwrap();
            fs::rename(&next, &top).unwrap();
        }
        fs::write(top.join("d/file"), "").unwrap();
        let mut round = Round { top: &top, moved: 0, first_left: None };
        round.clear(&top, 0).unwrap();
        assert!(round.moved > 0, "one descent does not reach the bottom");
        remove_deep(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn everything_goes_whatever_its_mode_and_links_are_not_followed() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        fs::create_dir_all(at("tree/locked/deep")).unwrap();
        fs::create_dir(at("kept")).unwrap();
        fs::write(at("kept/file"), "").unwrap();
        fs::write(at("tree/locked/deep/file"), "").unwrap();
        std::os::unix::fs::symlink(at("kept"), at("tree/link")).unwrap();
        fs::set_permissions(at("tree/locked"), Permissions::from_mode(0o0)).unwrap();
        remove_tree(&at("tree")).unwrap();
        remove_tree(&at("tree")).unwrap();
        assert!(!at("tree").exists() && at("kept/file").exists());
    }
}
