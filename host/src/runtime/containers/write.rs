//! The pod's own files in a directory of the host, with the owners that the pod's users see.

use super::super::RuntimeError;
use crate::image::erofs::SmallFile;
use crate::store::atomic::FileError;
use magikvm_proto::sandbox::GroupOfFile;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Writes them. `root` is the host's id of the pod's root, if they can be given to it; otherwise the groups that remain to be set are returned.
pub(super) fn pod_files(
    dir: &Path,
    files: Vec<(String, SmallFile)>,
    root: Option<u32>,
) -> Result<Vec<GroupOfFile>, RuntimeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RuntimeError::File(FileError::at("write", &path)(source))
    };
    let own = |path: &Path, gid: u32| match root {
        Some(root) => chown(path, Some(root), Some(root.saturating_add(gid))),
        None => Ok(()),
    };
    let make_dir = |path: &Path| {
        fs::create_dir(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        own(path, 0)
    };
    make_dir(dir).map_err(failed(dir))?;
    let mut groups = Vec::new();
    for (path, file) in files {
        let mut so_far = dir.to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let dirs = match &file {
            SmallFile::Directory => parts.len(),
            SmallFile::File { .. } => parts.len() - 1,
        };
        for part in &parts[..dirs] {
            so_far.push(part);
            match make_dir(&so_far) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failed(&so_far))?,
            }
        }
        if let SmallFile::File { mode, gid, content } = file {
            so_far.push(parts[dirs]);
            fs::write(&so_far, content)
                .and_then(|()| own(&so_far, gid))
                .and_then(|()| fs::set_permissions(&so_far, Permissions::from_mode(mode.into())))
                .map_err(failed(&so_far))?;
            if root.is_none() && gid != 0 {
                groups.push(GroupOfFile { path: PathBuf::from(&path), gid });
            }
        }
    }
    Ok(groups)
}
