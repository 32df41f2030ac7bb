//! Small file systems for tests of full disks. They need root.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A mounted tmpfs, which goes with the value.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts it at a directory, which is made.
    pub fn at(dir: &Path, options: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options))
            .expect("mount a tmpfs (the tests need root)");
        Self(dir.to_owned())
    }

    pub fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).expect("remount");
    }

    /// Fills it to the last byte with one file.
    pub fn fill(&self) -> Filler {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for piece in [&[0; 1 << 20][..], &[0; 4096], &[0]] {
            while file.write_all(piece).is_ok() {}
        }
        Filler(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).expect("unmount");
    }
}

/// A file that fills a disk, and goes with the value.
#[derive(Debug)]
pub struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("remove the file that fills the disk");
    }
}
