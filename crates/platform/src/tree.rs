//! Sends a tree of files as the stream of `magikvm_proto::files`, for both ends of `cp`. Others may change the tree meanwhile: every file and
//! directory is opened by its name in a directory that is open, no link is followed but the first one, and what was opened decides what it is.

use magikvm_proto::files::{
    Entry, FilesError, Item, ItemWriter, MAX_DEPTH, MAX_PIECE, MAX_TARGET, PERMISSIONS, root_name,
};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, readlinkat, statat};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Why something is left out that was something else a moment ago.
const CHANGED: &str = "it was changed meanwhile";

/// Gives a file or directory its permissions and its time, in seconds since 1970.
pub fn set_mode_and_time(file: &File, mode: u32, modified: i64) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))?;
    let since = Duration::from_secs(u64::try_from(modified).unwrap_or(0));
    file.set_modified(SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH))
}

/// Sends what is at a path. A link at the path itself is followed, no other one is. What cannot be read of a directory is left out, the stream
/// says so, and `tell` is called with it.
pub fn send(path: &Path, to: impl Write, tell: &mut dyn FnMut(&str)) -> Result<(), FilesError> {
    let unreadable = |source| FilesError::Unreadable { path: path.display().to_string(), source };
    let kind = fs::metadata(path).map_err(unreadable)?.file_type();
    // Devices do something when they are opened.
    if !kind.is_dir() && !kind.is_file() {
        return Err(FilesError::Kind(path.display().to_string()));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty()).map_err(|errno| unreadable(errno.into()))?;
    let opened = File::from(opened);
    let there = opened.metadata().map_err(unreadable)?;
    let mut sender = Sender { to: ItemWriter::new(to), buffer: vec![0; MAX_PIECE], tell };
    let name = root_name(path);
    if there.is_dir() {
        sender.directory(&opened, path, name, &there, 1)?;
    } else if there.is_file() {
        sender.file(opened, path, name, &there)?;
    } else {
        return Err(FilesError::Kind(path.display().to_string()));
    }
    sender.to.item(&Item::End)
}

fn entry(name: &OsStr, there: &Metadata) -> Entry {
    Entry { name: name.as_bytes().to_vec(), mode: there.mode() & PERMISSIONS, modified: there.mtime() }
}

/// The names in a directory, sorted.
fn names(directory: &File) -> Result<Vec<std::ffi::CString>, Errno> {
    let mut names = Vec::new();
    for found in Dir::read_from(directory)? {
        let found = found?;
        if ![c".", c".."].contains(&found.file_name()) {
            names.push(found.file_name().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

struct Sender<'a, W> {
    to: ItemWriter<W>,
    buffer: Vec<u8>,
    tell: &'a mut dyn FnMut(&str),
}

impl<W: Write> Sender<'_, W> {
    fn problem(&mut self, path: &Path, why: &dyn std::fmt::Display) -> Result<(), FilesError> {
        let message = format!("{}: {why}", path.display());
        (self.tell)(&message);
        self.to.item(&Item::Problem(message))
    }

    fn directory(
        &mut self,
        directory: &File,
        path: &Path,
        name: &OsStr,
        there: &Metadata,
        depth: usize,
    ) -> Result<(), FilesError> {
        if depth > MAX_DEPTH {
            return self.problem(path, &"it is nested too deeply");
        }
        self.to.item(&Item::Directory(entry(name, there)))?;
        match names(directory) {
            Ok(names) => {
                for name in names {
                    let path = path.join(OsStr::from_bytes(name.to_bytes()));
                    self.any(directory, &name, &path, depth + 1)?;
                }
            }
            Err(errno) => self.problem(path, &io::Error::from(errno))?,
        }
        self.to.item(&Item::Up)
    }

    fn any(&mut self, around: &File, name: &CStr, path: &Path, depth: usize) -> Result<(), FilesError> {
        let kind = match statat(around, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            // It has vanished meanwhile.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return self.problem(path, &io::Error::from(errno)),
        };
        let text = OsStr::from_bytes(name.to_bytes());
        let what = match kind {
            FileType::Directory | FileType::RegularFile => {
                let flags =
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let opened = match openat(around, name, flags, Mode::empty()) {
                    Ok(opened) => File::from(opened),
                    Err(Errno::NOENT) => return Ok(()),
                    Err(Errno::LOOP) => return self.problem(path, &CHANGED),
                    Err(errno) => return self.problem(path, &io::Error::from(errno)),
                };
                return match opened.metadata() {
                    Ok(there) if there.is_dir() => self.directory(&opened, path, text, &there, depth),
                    Ok(there) if there.is_file() => self.file(opened, path, text, &there),
                    Ok(_) => self.problem(path, &CHANGED),
                    Err(error) => self.problem(path, &error),
                };
            }
            FileType::Symlink => {
                return match readlinkat(around, name, Vec::new()) {
                    Ok(target) if target.to_bytes().len() <= MAX_TARGET => self
                        .to
                        .item(&Item::Link { name: name.to_bytes().to_vec(), target: target.into_bytes() }),
                    Ok(_) => self.problem(path, &"its target is too long"),
                    Err(Errno::INVAL) => self.problem(path, &CHANGED),
                    Err(errno) => self.problem(path, &io::Error::from(errno)),
                };
            }
            FileType::Socket => "a socket is not copied",
            FileType::Fifo => "a FIFO is not copied",
            _ => "a device is not copied",
        };
        self.problem(path, &what)
    }

    fn file(
        &mut self,
        mut file: File,
        path: &Path,
        name: &OsStr,
        there: &Metadata,
    ) -> Result<(), FilesError> {
        self.to.item(&Item::File { entry: entry(name, there), size: there.len() })?;
        loop {
            match file.read(&mut self.buffer) {
                Ok(read) => {
                    self.to.piece(&self.buffer[..read])?;
                    if read == 0 {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.to.broken()?;
                    return self.problem(path, &error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::files::ItemReader;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Every name and content that was sent, a directory with a slash, a link with its target.
    fn sent(path: &Path) -> Vec<String> {
        let mut bytes = Vec::new();
        send(path, &mut bytes, &mut |_| {}).unwrap();
        let mut reader = ItemReader::new(bytes.as_slice());
        let mut all = Vec::new();
        loop {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            match reader.item().unwrap() {
                Item::Directory(entry) => all.push(text(&entry.name) + "/"),
                Item::File { entry, .. } => {
                    let (mut content, mut piece) = (Vec::new(), Vec::new());
                    while reader.piece(&mut piece).unwrap() {
                        content.extend_from_slice(&piece);
                    }
                    all.push(format!("{}={}", text(&entry.name), text(&content)));
                }
                Item::Link { name, target } => all.push(format!("{}->{}", text(&name), text(&target))),
                Item::Up => {}
                Item::Problem(problem) => all.push(format!("!{}", problem.rsplit('/').next().unwrap())),
                Item::End => return all,
            }
        }
    }

    #[test]
    fn a_tree_is_sent_with_its_links_as_links() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), "text").unwrap();
        symlink("b/c", dir.path().join("a/l")).unwrap();
        symlink("/etc", dir.path().join("a/m")).unwrap();
        symlink("a", dir.path().join("root")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("a/fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let all = ["root/", "b/", "c=text", "!fifo: a FIFO is not copied", "l->b/c", "m->/etc"];
        assert_eq!(sent(&dir.path().join("root")), all);
        assert!(matches!(
            send(&dir.path().join("a/fifo"), io::sink(), &mut |_| {}),
            Err(FilesError::Kind(_))
        ));
        assert!(matches!(
            send(&dir.path().join("none"), io::sink(), &mut |_| {}),
            Err(FilesError::Unreadable { .. })
        ));
    }

    /// A user who may change a directory must not get what only the caller may read.
    #[test]
    fn nothing_behind_a_link_is_sent_whatever_the_race() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        fs::create_dir_all(base.join("tree/d")).unwrap();
        fs::create_dir_all(base.join("secrets")).unwrap();
        for place in ["tree/f", "tree/d/x"] {
            fs::write(base.join(place), "mine").unwrap();
        }
        for place in ["secret", "secrets/x"] {
            fs::write(base.join(place), "SECRET").unwrap();
        }
        symlink("../secret", base.join("tree/other")).unwrap();
        symlink("../secrets", base.join("tree/others")).unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let tree = File::open(base.join("tree")).unwrap();
                while !ended.load(Ordering::Relaxed) {
                    for (one, two) in [("f", "other"), ("d", "others")] {
                        exchange(&tree, one, two);
                    }
                }
            });
            let seen = (0..2000)
                .map(|_| std::panic::catch_unwind(|| sent(&base.join("tree"))))
                .find(|all| all.as_ref().map_or(true, |all| all.iter().any(|text| text.contains("SECRET"))));
            // The other thread ends before anything fails.
            ended.store(true, Ordering::Relaxed);
            assert!(seen.is_none(), "{seen:?}");
        });
    }

    #[cfg(target_os = "linux")]
    fn exchange(dir: &File, one: &str, two: &str) {
        rustix::fs::renameat_with(dir, one, dir, two, rustix::fs::RenameFlags::EXCHANGE).unwrap();
    }

    #[cfg(not(target_os = "linux"))]
    fn exchange(dir: &File, one: &str, two: &str) {
        for (from, to) in [(one, "between"), (two, one), ("between", two)] {
            rustix::fs::renameat(dir, from, dir, to).unwrap();
        }
    }
}
