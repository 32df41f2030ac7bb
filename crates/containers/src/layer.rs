//! The writable layer of a container's root file system: empty at the start of each run, in memory or on the scratch disk. Must not know: images,
//! bundles, quotas of a file system.

use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::Layer;
use magikvm_proto::site::Site;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Passes over what is left of a layer. Only processes of other containers that hold directories of an ended container open can make a second one
/// necessary, and they must not keep this one from starting.
const PASSES: u32 = 100_000;

/// Why there is no writable layer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LayerError {
    #[error("cannot make {}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot mount {}", path.display())]
    Mount {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    /// The layer of the run before is in the way.
    #[error("cannot remove the earlier {}", path.display())]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Two empty directories of one file system, for overlayfs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// Makes an empty layer and removes that of an earlier run, whose overlay must be unmounted. `memory` is where a layer in memory is mounted.
pub(crate) fn make(
    site: &Site,
    container: &ContainerName,
    layer: Layer,
    memory: &Path,
) -> Result<Made, LayerError> {
    let dir = match layer {
        Layer::Memory { size_bytes } => {
            mount_memory(memory, size_bytes)?;
            memory.to_owned()
        }
        Layer::Disk { partition } => {
            let dir = site.layer(partition, container);
            remove(&dir).map_err(|source| LayerError::Remove { path: dir.clone(), source })?;
            dir
        }
    };
    let made = Made { upper: dir.join("upper"), work: dir.join("work") };
    for path in [&made.upper, &made.work] {
        fs::create_dir_all(path).map_err(|source| LayerError::Make { path: path.clone(), source })?;
    }
    Ok(made)
}

/// A separate tmpfs: unmounting it frees everything at once.
fn mount_memory(path: &Path, size_bytes: Option<u64>) -> Result<(), LayerError> {
    umount2(path, MntFlags::MNT_DETACH).ok();
    fs::create_dir_all(path).map_err(|source| LayerError::Make { path: path.to_owned(), source })?;
    let size = size_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let options = format!("mode=0755{size}");
    mount(Some("layer"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|source| LayerError::Mount { path: path.to_owned(), source })
}

/// Removes a layer that a container has filled, however deep it nested its directories: every directory is first moved to the top of a heap, so that
/// no path is ever longer than two names. Nothing is followed. The heap is made with the first layer and stays, because a full file system has no
/// room for a directory. What another container keeps busy stays in it until the next run.
fn remove(layer: &Path) -> io::Result<()> {
    let heap = layer.with_extension("old");
    let mut count = 0_u64;
    if let Some(parent) = heap.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::create_dir(&heap) {
        // There was no layer before.
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    match fs::rename(layer, next(&heap, &mut count)?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for _ in 0..PASSES {
        let mut changed = false;
        for entry in fs::read_dir(&heap)? {
            let path = entry?.path();
            // It may be a directory or, if it was exchanged in the meantime, anything else.
            changed |= match flatten(&path, &heap, &mut count) {
                Ok(changed) => changed,
                Err(_) => fs::remove_file(&path).is_ok(),
            };
        }
        if !changed {
            break;
        }
    }
    Ok(())
}

/// An unused name in the heap.
fn next(heap: &Path, count: &mut u64) -> io::Result<PathBuf> {
    loop {
        *count += 1;
        let path = heap.join(count.to_string());
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
}

/// Removes the files of a directory, moves its directories into the heap, and removes it. Returns whether any of this succeeded: on a full file
/// system the heap may have no room for a name before files are removed.
fn flatten(dir: &Path, heap: &Path, count: &mut u64) -> io::Result<bool> {
    let mut changed = false;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let done = if entry.file_type()?.is_dir() {
            // Most are empty.
            fs::remove_dir(&path).or_else(|_| fs::rename(&path, next(heap, count)?))
        } else {
            fs::remove_file(&path)
        };
        changed |= done.is_ok();
    }
    Ok(changed | fs::remove_dir(dir).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn site(dir: &Path) -> (Site, ContainerName, Layer) {
        (Site::beneath(dir, "/pod"), "web".parse().unwrap(), Layer::Disk { partition: 1 })
    }

    #[test]
    fn each_run_begins_with_an_empty_layer() {
        let dir = tempfile::tempdir().unwrap();
        let (site, name, layer) = site(dir.path());
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let made = make(&site, &name, layer, Path::new("/nowhere")).unwrap();
        assert!(made.upper.starts_with(site.scratch(1)) && made.work.is_dir());
        symlink(&outside, made.upper.join("link")).unwrap();
        for n in 0..50 {
            fs::create_dir_all(made.upper.join(format!("a/{n}/b"))).unwrap();
            fs::write(made.upper.join(format!("a/{n}/b/file")), "x").unwrap();
        }
        assert_eq!(make(&site, &name, layer, Path::new("/nowhere")).unwrap(), made);
        assert_eq!(fs::read_dir(&made.upper).unwrap().count(), 0);
        let heap = made.upper.parent().unwrap().with_extension("old");
        assert_eq!(fs::read_dir(&heap).unwrap().count(), 0, "nothing of the old one is left");
        assert_eq!(
            fs::read_dir(site.scratch(1).join("layers")).unwrap().count(),
            2,
            "the layer and the heap"
        );
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn no_depth_keeps_a_layer_from_being_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (site, name, layer) = site(dir.path());
        let made = make(&site, &name, layer, Path::new("/nowhere")).unwrap();
        // Deeper than the longest path: the top moves beneath a new directory again and again.
        let (inner, outer) = (made.upper.join("in"), made.upper.join("out"));
        fs::create_dir(&inner).unwrap();
        for _ in 0..3000 {
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("x")).unwrap();
            fs::rename(&outer, &inner).unwrap();
        }
        make(&site, &name, layer, Path::new("/nowhere")).unwrap();
        assert_eq!(fs::read_dir(&made.upper).unwrap().count(), 0);
        assert_eq!(fs::read_dir(made.upper.parent().unwrap().with_extension("old")).unwrap().count(), 0);
    }
}
