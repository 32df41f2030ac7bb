//! Writes a stream of files of a guest to this host. The guest is hostile: whatever it sends, nothing is made or changed outside the
//! destination, no link is followed, and no more is written than the user allows.
//!
//! Every item is made in a directory that is open, by a name that the format allows, with calls that follow no link. Files appear with their whole
//! content by a rename.

use crate::cli::ui;
use crate::store::text::ignore;
use magikvm_platform::tree::set_mode_and_time;
use magikvm_proto::files::{Entry, FilesError, Item, ItemReader};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Most items of one copy.
const MAX_ITEMS: u64 = 1_000_000;

/// Where a copy goes.
#[derive(Debug)]
pub(super) struct Destination<'a> {
    pub(super) path: &'a Path,
    /// The content of the root goes into the directory at the path.
    pub(super) contents: bool,
    /// The name that the user has given the root; the one that the guest sends does not count.
    pub(super) name: Option<&'a OsStr>,
    pub(super) max_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error(transparent)]
    Stream(#[from] FilesError),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the copy has more than {0} bytes")]
    Size(u64),
    #[error("the copy has more than {MAX_ITEMS} files and directories")]
    Items,
    /// The path in the pod has none, as `..`.
    #[error("the source has no name that the copy could have")]
    Nameless,
}

/// What became of a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// How much was left out, which was shown.
    pub(super) left_out: u64,
}

/// A directory that is being filled.
struct Around {
    directory: File,
    path: PathBuf,
    /// Mode and time that it gets at its end, if it is new.
    finish: Option<(u32, i64)>,
}

pub(super) struct Receiver<'a, R> {
    from: ItemReader<R>,
    to: Destination<'a>,
    received: Received,
    left_out: ui::LeftOut,
    items: u64,
    progress: &'a mut dyn FnMut(&Received),
}

fn failed(path: &Path) -> impl Fn(Errno) -> ReceiveError {
    move |errno| ReceiveError::Write { path: path.to_owned(), source: errno.into() }
}

fn unwritable(path: &Path) -> impl Fn(io::Error) -> ReceiveError {
    move |source| ReceiveError::Write { path: path.to_owned(), source }
}

/// Opens a directory that the user has named. Links on the way to it are the user's own.
fn open(path: &Path) -> Result<File, ReceiveError> {
    let opened = File::open(path).map_err(unwritable(path))?;
    let there = opened.metadata().map_err(unwritable(path))?;
    if there.is_dir() { Ok(opened) } else { Err(unwritable(path)(ErrorKind::NotADirectory.into())) }
}

impl<'a, R: Read> Receiver<'a, R> {
    pub(super) fn new(from: R, to: Destination<'a>, progress: &'a mut dyn FnMut(&Received)) -> Self {
        Self {
            from: ItemReader::new(from),
            to,
            received: Received::default(),
            left_out: ui::LeftOut::default(),
            items: 0,
            progress,
        }
    }

    pub(super) fn receive(mut self) -> Result<Received, ReceiveError> {
        let path = self.to.path;
        let is_directory = path.is_dir();
        match self.item()? {
            Item::Directory(entry) if self.to.contents => {
                if !is_directory {
                    fs::create_dir(path).map_err(unwritable(path))?;
                }
                let finish = (!is_directory).then_some((entry.mode, entry.modified));
                let root = Around { directory: open(path)?, path: path.to_owned(), finish };
                self.directory(root)?;
            }
            Item::Directory(entry) => {
                let (around, name) = self.place(is_directory)?;
                let root = make(&around, &name, &entry)?;
                self.directory(root)?;
            }
            Item::File { entry, .. } => {
                if !is_directory && path.as_os_str().as_bytes().ends_with(b"/") {
                    return Err(unwritable(path)(ErrorKind::NotADirectory.into()));
                }
                let (around, name) = self.place(is_directory)?;
                self.file(&around, &name, &entry)?;
            }
            Item::Link { .. } | Item::Up | Item::Problem(_) | Item::End => {
                return Err(FilesError::Violation("no file and no directory").into());
            }
        }
        match self.item()? {
            Item::End => Ok(self.received),
            _ => Err(FilesError::Violation("more than one file or directory").into()),
        }
    }

    /// The directory and the name of the root.
    fn place(&self, is_directory: bool) -> Result<(Around, OsString), ReceiveError> {
        let path = self.to.path;
        if is_directory {
            let around = Around { directory: open(path)?, path: path.to_owned(), finish: None };
            let name = self.to.name.ok_or(ReceiveError::Nameless)?;
            return Ok((around, name.to_owned()));
        }
        let Some(name) = path.file_name() else {
            return Err(unwritable(path)(ErrorKind::NotFound.into()));
        };
        let parent = path.parent().unwrap_or(Path::new(""));
        let here = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let around = Around { directory: open(here)?, path: parent.to_owned(), finish: None };
        Ok((around, name.to_owned()))
    }

    fn item(&mut self) -> Result<Item, ReceiveError> {
        self.items += 1;
        if self.items > MAX_ITEMS {
            return Err(ReceiveError::Items);
        }
        Ok(self.from.item()?)
    }

    fn directory(&mut self, root: Around) -> Result<(), ReceiveError> {
        let mut around = vec![root];
        while let Some(here) = around.last() {
            match self.item()? {
                Item::Directory(entry) => {
                    let name = OsStr::from_bytes(&entry.name).to_owned();
                    let inner = make(here, &name, &entry)?;
                    around.push(inner);
                }
                Item::File { entry, .. } => {
                    let name = OsStr::from_bytes(&entry.name).to_owned();
                    self.file(here, &name, &entry)?;
                }
                Item::Link { name, target } => {
                    let (name, target) = (OsStr::from_bytes(&name), Path::new(OsStr::from_bytes(&target)));
                    if stays(around.len() - 1, target) {
                        link(here, name, target)?;
                        self.received.files += 1;
                    } else {
                        let path = here.path.join(name);
                        self.left_out(&format!(
                            "{}: the link leads out of the copy, to {}",
                            path.display(),
                            target.display()
                        ));
                    }
                }
                Item::Problem(message) => self.left_out(&message),
                Item::Up => {
                    if let Some(Around { directory, finish: Some((mode, modified)), .. }) = around.pop() {
                        ignore(set_mode_and_time(&directory, mode, modified), "its content is there");
                    }
                }
                Item::End => return Err(FilesError::Violation("an end within a directory").into()),
            }
        }
        Ok(())
    }

    fn left_out(&mut self, message: &str) {
        self.left_out.tell(message);
        self.received.left_out = self.left_out.count;
    }

    fn file(&mut self, around: &Around, name: &OsStr, entry: &Entry) -> Result<(), ReceiveError> {
        let path = around.path.join(name);
        let part = Part::new(around).map_err(failed(&path))?;
        let mut file = &part.file;
        let mut piece = Vec::new();
        loop {
            match self.from.piece(&mut piece) {
                Ok(true) => {}
                Ok(false) => break,
                // The problem follows as an item, and the file is not made.
                Err(FilesError::Unreadable { .. }) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            self.received.bytes += u64::try_from(piece.len()).unwrap_or(0);
            if self.received.bytes > self.to.max_bytes {
                return Err(ReceiveError::Size(self.to.max_bytes));
            }
            file.write_all(&piece).map_err(unwritable(&path))?;
            (self.progress)(&self.received);
        }
        set_mode_and_time(&part.file, entry.mode, entry.modified).map_err(unwritable(&path))?;
        part.become_file(name).map_err(failed(&path))?;
        self.received.files += 1;
        (self.progress)(&self.received);
        Ok(())
    }
}

/// A file without its name yet, which vanishes unless it gets it.
struct Part<'a> {
    around: &'a Around,
    name: OsString,
    file: File,
}

impl<'a> Part<'a> {
    fn new(around: &'a Around) -> Result<Self, Errno> {
        let name = OsString::from(format!(".magikvm-cp-{}", uuid::Uuid::new_v4()));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(&around.directory, name.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(Self { around, name, file: File::from(file) })
    }

    /// Replaces what has the name, unless it is a directory.
    fn become_file(mut self, name: &OsStr) -> Result<(), Errno> {
        let directory = &self.around.directory;
        renameat(directory, self.name.as_os_str(), directory, name)?;
        self.name.clear();
        Ok(())
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            let removed = unlinkat(&self.around.directory, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
            ignore(removed, "the copy has failed, which is reported");
        }
    }
}

/// Makes a directory, or opens the one that is there.
fn make(around: &Around, name: &OsStr, entry: &Entry) -> Result<Around, ReceiveError> {
    let path = around.path.join(name);
    let is_new = match mkdirat(&around.directory, name, Mode::S_IRWXU) {
        Ok(()) => true,
        Err(Errno::EEXIST) => false,
        Err(errno) => return Err(failed(&path)(errno)),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened: OwnedFd = openat(&around.directory, name, flags, Mode::empty()).map_err(failed(&path))?;
    Ok(Around { directory: File::from(opened), path, finish: is_new.then_some((entry.mode, entry.modified)) })
}

/// Makes a link in the place of a file or link that has its name.
fn link(around: &Around, name: &OsStr, target: &Path) -> Result<(), ReceiveError> {
    let path = around.path.join(name);
    match unlinkat(&around.directory, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(failed(&path)(errno)),
    }
    symlinkat(target, &around.directory, name).map_err(failed(&path))
}

/// Whether a link at this depth beneath the root leads to somewhere beneath the root. It may only go up first, which real directories are
/// around it for, and then down: behind a name, which may be another link's, nobody knows where `..` leads. So every link on the way of a link
/// that stays is one that stays, too.
fn stays(depth: usize, target: &Path) -> bool {
    let (mut above, mut goes_down) = (depth, false);
    for part in target.components() {
        match part {
            Component::Normal(_) => goes_down = true,
            Component::CurDir => {}
            Component::ParentDir if goes_down => return false,
            Component::ParentDir => match above.checked_sub(1) {
                Some(further) => above = further,
                None => return false,
            },
            Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::files::ItemWriter;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn entry(name: &str) -> Entry {
        Entry { name: name.into(), mode: 0o644, modified: 1 }
    }

    /// A stream of these items; files have their name as content.
    fn stream(items: &[Item]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = ItemWriter::new(&mut bytes);
        for item in items {
            writer.item(item).unwrap();
            if let Item::File { entry, .. } = item {
                writer.piece(&entry.name).unwrap();
                writer.piece(b"").unwrap();
            }
        }
        bytes
    }

    fn directory(name: &str) -> Item {
        Item::Directory(entry(name))
    }

    fn file(name: &str) -> Item {
        Item::File { entry: entry(name), size: 0 }
    }

    fn link_to(name: &str, target: &str) -> Item {
        Item::Link { name: name.into(), target: target.into() }
    }

    fn receive(bytes: &[u8], path: &Path, contents: bool) -> Result<Received, ReceiveError> {
        // As a guest that tells the truth.
        let name = match ItemReader::new(bytes).item() {
            Ok(Item::Directory(entry) | Item::File { entry, .. }) => entry.name,
            _ => b"name".to_vec(),
        };
        receive_as(bytes, path, contents, OsStr::from_bytes(&name))
    }

    fn receive_as(bytes: &[u8], path: &Path, contents: bool, name: &OsStr) -> Result<Received, ReceiveError> {
        let to = Destination { path, contents, name: Some(name), max_bytes: 1000 };
        Receiver::new(bytes, to, &mut |_| {}).receive()
    }

    #[test]
    fn the_guest_chooses_no_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".profile"), "mine").unwrap();
        let sent = stream(&[file(".profile"), Item::End]);
        receive_as(&sent, dir.path(), false, OsStr::new("report")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(".profile")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(dir.path().join("report")).unwrap(), ".profile");
        let sent = stream(&[directory(".ssh"), file("keys"), Item::Up, Item::End]);
        receive_as(&sent, dir.path(), false, OsStr::new("tree")).unwrap();
        assert!(dir.path().join("tree/keys").is_file() && !dir.path().join(".ssh").exists());
        let to = Destination { path: dir.path(), contents: false, name: None, max_bytes: 1000 };
        let nameless = Receiver::new(sent.as_slice(), to, &mut |_| {}).receive();
        assert!(matches!(nameless, Err(ReceiveError::Nameless)));
    }

    /// A container makes links whose words stay within the copy, and which together lead out of it.
    #[test]
    fn no_chain_of_links_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let tree = [
            directory("t"),
            directory("s"),
            directory("s"),
            link_to("up", "../.."),
            Item::Up,
            Item::Up,
            link_to("b", "s/s/up/../out"),
            link_to("c", "s/s/up/s"),
            Item::Up,
            Item::End,
        ];
        assert_eq!(receive(&stream(&tree), &to, false).unwrap().left_out, 1);
        assert!(to.join("t/b").symlink_metadata().is_err());
        assert!(to.join("t/c").canonicalize().unwrap().starts_with(to.canonicalize().unwrap()));
    }

    #[test]
    fn a_tree_arrives_where_it_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let tree = [
            directory("src"),
            directory("sub"),
            file("f"),
            Item::Up,
            link_to("l", "sub/f"),
            Item::Up,
            Item::End,
        ];
        let received = receive(&stream(&tree), &dir.path().join("new"), false).unwrap();
        assert_eq!(received, Received { files: 2, bytes: 1, left_out: 0 });
        fs::create_dir(dir.path().join("there")).unwrap();
        receive(&stream(&tree), &dir.path().join("there"), false).unwrap();
        receive(&stream(&tree), &dir.path().join("there"), true).unwrap();
        for place in ["new", "there/src", "there"] {
            let place = dir.path().join(place);
            assert_eq!(fs::read_to_string(place.join("l")).unwrap(), "f", "{}", place.display());
            assert_eq!(fs::metadata(place.join("sub/f")).unwrap().permissions().mode() & 0o7777, 0o644);
        }
        let names: Vec<_> = fs::read_dir(dir.path().join("new/sub")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing but the file");
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (out, to) = (dir.path().join("out"), dir.path().join("to"));
        fs::create_dir(&out).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(out.join("f"), "kept").unwrap();
        let outside = out.to_str().unwrap();
        // A link of the stream itself, with and without a way back into the copy.
        for target in [outside, "../out", "../../out", "x/../../../out"] {
            let through = [
                directory("a"),
                link_to("l", target),
                directory("l"),
                file("f"),
                Item::Up,
                Item::Up,
                Item::End,
            ];
            let received = receive(&stream(&through), &to, false).unwrap();
            assert_eq!(received.left_out, 1, "{target}");
            assert!(to.join("a/l").symlink_metadata().unwrap().is_dir(), "a directory in its place");
            fs::remove_dir_all(to.join("a")).unwrap();
        }
        let inside =
            [directory("a"), link_to("l", "."), directory("l"), file("f"), Item::Up, Item::Up, Item::End];
        assert!(receive(&stream(&inside), &to, false).is_err(), "a link is no directory");
        fs::remove_dir_all(to.join("a")).unwrap();
        // Links that were there before.
        symlink(&out, to.join("a")).unwrap();
        assert!(receive(&stream(&[directory("a"), file("f"), Item::Up, Item::End]), &to, false).is_err());
        symlink(out.join("f"), to.join("g")).unwrap();
        receive(&stream(&[file("g"), Item::End]), &to, false).unwrap();
        assert_eq!(fs::read_to_string(to.join("g")).unwrap(), "g");
        assert!(to.join("g").symlink_metadata().unwrap().is_file(), "the link is replaced");
        assert_eq!(fs::read_to_string(out.join("f")).unwrap(), "kept");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
    }

    #[test]
    fn a_stream_that_lies_is_refused_and_leaves_no_half_file() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path();
        for items in [
            &[link_to("l", "x"), Item::End][..],
            &[file("a"), file("b"), Item::End],
            &[directory("a"), Item::End],
            &[Item::End],
            &[Item::Up],
            &[file("a")],
        ] {
            assert!(receive(&stream(items), to, false).is_err(), "{items:?}");
        }
        let mut endless = Vec::new();
        let mut writer = ItemWriter::new(&mut endless);
        writer.item(&file("endless")).unwrap();
        (0..20).for_each(|_| writer.piece(&[0; 100]).unwrap());
        assert!(matches!(receive(&endless, to, false), Err(ReceiveError::Size(1000))));
        let cut = &stream(&[file("cut"), Item::End])[..20];
        assert!(receive(cut, to, false).is_err());
        let broken = {
            let mut bytes = Vec::new();
            let mut writer = ItemWriter::new(&mut bytes);
            writer.item(&directory("d")).unwrap();
            writer.item(&file("broken")).unwrap();
            writer.piece(b"x").unwrap();
            writer.broken().unwrap();
            [Item::Problem("broken: \x1b[2J".to_owned()), Item::Up, Item::End]
                .iter()
                .for_each(|item| writer.item(item).unwrap());
            bytes
        };
        assert_eq!(receive(&broken, to, false).unwrap().left_out, 1);
        let mut left: Vec<_> = fs::read_dir(to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["a", "d"], "the first of two files, and directories");
        assert_eq!(fs::read_dir(to.join("d")).unwrap().count(), 0);
    }

    #[test]
    fn links_stay_in_the_copy() {
        for (depth, target, stay) in [
            (0, "a", true),
            (0, "a/../b", false),
            (1, "../a/..", false),
            (2, "./.././../a/./b", true),
            (0, "..", false),
            (1, "../a", true),
            (1, "../../a", false),
            (2, "../../a", true),
            (0, "/etc", false),
            (0, "a/../../b", false),
        ] {
            assert_eq!(stays(depth, Path::new(target)), stay, "{depth} {target}");
        }
    }
}
