//! Removes a directory with everything in it, and names what cannot be removed. Follows no link.

use super::atomic::FileError;
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
    // Now one by one.
    make_accessible(path)?;
    let mut first_left = None;
    for entry in fs::read_dir(path).map_err(FileError::at("remove", path))? {
        let removed =
            entry.map_err(FileError::at("remove", path)).and_then(|entry| remove_tree(&entry.path()));
        first_left = first_left.or(removed.err());
    }
    match (gone(fs::remove_dir(path)), first_left) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(left)) => Err(left),
        (Err(error), None) => Err(FileError::at("remove", path)(error)),
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
