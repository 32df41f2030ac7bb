//! Programs that the tests need, temporary mounts, and comparison of directory trees.

use rustix::fs::{lgetxattr, llistxattr};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program. A failure shows all of its output, and a missing program is named with its package.
#[track_caller]
pub fn run(program: &str, args: &[&dyn AsRef<OsStr>]) -> String {
    let mut command = Command::new(program);
    command.args(args.iter().map(|arg| (*arg).as_ref()));
    let output = command.output().unwrap_or_else(|error| {
        let package = match program {
            "fsck.erofs" | "dump.erofs" => "erofs-utils",
            "setcap" => "libcap2-bin",
            "setfattr" => "attr",
            "mount" | "umount" => "mount",
            program => program,
        };
        panic!("cannot run {program} ({error}); it is in the package {package}: apt-get install {package}")
    });
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed: {text}");
    text
}

/// A mounted file system, unmounted when this is dropped.
#[derive(Debug)]
pub struct Mounted(tempfile::TempDir);

impl Mounted {
    /// Mounts an EROFS file read-only, after `fsck.erofs` has found nothing wrong with it.
    pub fn erofs(file: &Path) -> Self {
        let fsck = run("fsck.erofs", &[&file]);
        assert!(!fsck.to_lowercase().contains("error"), "{fsck}");
        run("dump.erofs", &[&"-s", &file]);
        let dir = tempfile::tempdir().unwrap();
        run("mount", &[&"-t", &"erofs", &"-o", &"ro", &file, &dir.path()]);
        Self(dir)
    }

    /// A small file system in memory.
    pub fn tmpfs(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run("mount", &[&"-t", &"tmpfs", &"-o", &format!("size={size}"), &"tmpfs", &dir.path()]);
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0.path()).status());
    }
}

/// Everything that can be seen of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    pub device: u64,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// Of a file, or the target of a symbolic link.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Names of this inode; 0 for a directory.
    pub nlink: u64,
    /// The first path with the same inode.
    pub first: PathBuf,
}

/// A tree, by relative path; the root is "".
pub fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let path = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let mut content = Vec::new();
        if kind.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| relative.join(entry.unwrap().file_name())));
        } else if kind.is_file() {
            content = fs::read(&path).unwrap();
        } else if kind.is_symlink() {
            content = fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec();
        }
        let is_device = kind.is_char_device() || kind.is_block_device();
        let first = inodes.entry(metadata.ino()).or_insert_with(|| relative.clone());
        if *first > relative {
            first.clone_from(&relative);
        }
        let size = if kind.is_dir() { 0 } else { metadata.size() };
        let one = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            device: if is_device { metadata.rdev() } else { 0 },
            size,
            content,
            xattrs: xattrs(&path),
            nlink: if kind.is_dir() { 0 } else { metadata.nlink() },
            first: PathBuf::new(),
        };
        seen.insert(relative, (metadata.ino(), one));
    }
    seen.into_iter().map(|(path, (ino, one))| (path, Seen { first: inodes[&ino].clone(), ..one })).collect()
}

/// Every file below a directory, relative, sorted. Empty directories are not in it.
pub fn files(root: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        // Other processes may remove directories and files meanwhile.
        for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            } else {
                files.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    files.sort();
    files
}

fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0u8; 65_536];
    let length = llistxattr(path, &mut names[..]).unwrap();
    names.truncate(length);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let name = OsStr::from_bytes(name);
            let mut value = vec![0u8; 65_536];
            let length = lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_owned(), value)
        })
        .collect()
}

/// Compares two trees file by file. `added`: paths that only the second may have.
#[track_caller]
pub fn assert_same(expected: &Path, found: &Path, added: &[&str]) {
    let (expected, mut found) = (look(expected), look(found));
    for path in added {
        if !expected.contains_key(Path::new(path)) {
            assert!(found.remove(Path::new(path)).is_some(), "{path} was to be added");
        }
    }
    let names = |tree: &BTreeMap<PathBuf, Seen>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&expected), names(&found));
    for (path, one) in &expected {
        let other = &found[path];
        if one != other {
            let short = |seen: &Seen| {
                let mut seen = seen.clone();
                seen.content.truncate(100);
                format!("{seen:?}")
            };
            panic!("{} differs:\n  {}\n  {}", path.display(), short(one), short(other));
        }
    }
}
