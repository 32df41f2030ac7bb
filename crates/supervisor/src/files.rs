//! Carries out a [`FileTask`]: copies files into a container or out of it, with the rights of whoever calls this. It needs no program of the
//! container's image.

use crate::text::chain;
use magikvm_platform::tree::{self, set_mode_and_time};
use magikvm_proto::files::{Entry, FileTask, FilesError, Item, ItemReader};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// Bytes that are written at once.
const BUFFER: usize = 64 << 10;

/// Carries out a task, with its paths beneath `root`. The error is a message for people.
pub fn carry_out(task: &FileTask, root: &Path, input: impl Read, output: impl Write) -> Result<(), String> {
    let path = root.join(task.path().trim_start_matches('/'));
    let done = match task {
        FileTask::Read { .. } => tree::send(&path, BufWriter::with_capacity(BUFFER, output), &mut |_| {}),
        FileTask::Write { contents, path: wanted } => {
            let is_directory = *contents || wanted.ends_with('/');
            Receiver::new(BufReader::with_capacity(BUFFER, input)).receive(&path, *contents, is_directory)
        }
    };
    done.map_err(|error| {
        let text = chain(&error);
        // The root is nobody's business.
        let root = root.to_string_lossy();
        if root == "/" { text } else { text.replace(root.as_ref(), "") }
    })
}

struct Receiver<R> {
    from: ItemReader<R>,
    problems: Vec<String>,
}

/// Most problems that are told.
const MAX_PROBLEMS: usize = 20;

fn unwritable(path: &Path) -> impl Fn(io::Error) -> FilesError {
    move |source| FilesError::Unwritable { path: path.display().to_string(), source }
}

impl<R: Read> Receiver<R> {
    fn new(from: R) -> Self {
        Self { from: ItemReader::new(from), problems: Vec::new() }
    }

    fn receive(mut self, path: &Path, contents: bool, is_directory: bool) -> Result<(), FilesError> {
        let root = self.from.item()?;
        let is_there = path.is_dir();
        let name = |entry: &Entry| path.join(OsStr::from_bytes(&entry.name));
        match root {
            Item::Directory(entry) => {
                let place = if is_there && !contents { name(&entry) } else { path.to_owned() };
                self.directory(place, &entry)?;
            }
            Item::File { entry, .. } => {
                if is_directory && !is_there {
                    return Err(unwritable(path)(io::Error::from(ErrorKind::NotADirectory)));
                }
                let place = if is_there { name(&entry) } else { path.to_owned() };
                if let Err(error) = self.file(&place, &entry) {
                    return Err(unwritable(&place)(error?));
                }
            }
            Item::Link { .. } | Item::Up | Item::Problem(_) | Item::End => {
                return Err(FilesError::Violation("no file and no directory"));
            }
        }
        if !matches!(self.from.item()?, Item::End) {
            return Err(FilesError::Violation("more than one file or directory"));
        }
        match self.problems.first() {
            None => Ok(()),
            Some(_) => Err(FilesError::Partial(self.problems.join("\n"))),
        }
    }

    fn problem(&mut self, path: &Path, error: &io::Error) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(format!("cannot write {}: {error}", path.display()));
        }
    }

    fn directory(&mut self, root: PathBuf, entry: &Entry) -> Result<(), FilesError> {
        make(&root).map_err(unwritable(&root))?;
        let mut around = vec![(root, entry.mode, entry.modified)];
        while let Some((here, mode, modified)) = around.last() {
            match self.from.item()? {
                Item::Directory(entry) => {
                    let place = here.join(OsStr::from_bytes(&entry.name));
                    if let Err(error) = make(&place) {
                        self.problem(&place, &error);
                    }
                    around.push((place, entry.mode, entry.modified));
                }
                Item::File { entry, .. } => {
                    let place = here.join(OsStr::from_bytes(&entry.name));
                    match self.file(&place, &entry) {
                        Ok(()) => {}
                        Err(Ok(error)) => self.problem(&place, &error),
                        Err(Err(error)) => return Err(error),
                    }
                }
                Item::Link { name, target } => {
                    let place = here.join(OsStr::from_bytes(&name));
                    let made = remove(&place).and_then(|()| symlink(OsStr::from_bytes(&target), &place));
                    if let Err(error) = made {
                        self.problem(&place, &error);
                    }
                }
                Item::Up => {
                    finish(here, *mode, *modified).ok();
                    around.pop();
                }
                // The sender tells its user itself.
                Item::Problem(_) => {}
                Item::End => return Err(FilesError::Violation("an end within a directory")),
            }
        }
        Ok(())
    }

    /// The inner result of an error tells whether the stream goes on.
    fn file(&mut self, place: &Path, entry: &Entry) -> Result<(), Result<io::Error, FilesError>> {
        let opened = remove(place)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(place));
        let (mut file, mut failed) = match opened {
            Ok(file) => (Some(file), None),
            Err(error) => (None, Some(error)),
        };
        let mut piece = Vec::new();
        loop {
            match self.from.piece(&mut piece) {
                Ok(true) => {}
                Ok(false) => break,
                Err(FilesError::Unreadable { .. }) => {
                    fs::remove_file(place).ok();
                    return Ok(());
                }
                Err(error) => return Err(Err(error)),
            }
            if let Some(open) = &mut file
                && let Err(error) = open.write_all(&piece)
            {
                (file, failed) = (None, Some(error));
            }
        }
        let finished = file.map_or(Ok(()), |file| set_mode_and_time(&file, entry.mode, entry.modified));
        match failed {
            Some(error) => Err(Ok(error)),
            None => finished.map_err(Ok),
        }
    }
}

/// Makes a directory, unless it is there.
fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made,
    }
}

/// Removes a file or link that is to be replaced.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => Err(io::Error::from(ErrorKind::IsADirectory)),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn finish(directory: &Path, mode: u32, modified: i64) -> io::Result<()> {
    set_mode_and_time(&File::open(directory)?, mode, modified)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn read(root: &Path, path: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        carry_out(&FileTask::Read { path: path.to_owned() }, root, io::empty(), &mut bytes).map(|()| bytes)
    }

    fn write(root: &Path, path: &str, contents: bool, bytes: &[u8]) -> Result<(), String> {
        let task = FileTask::Write { path: path.to_owned(), contents };
        carry_out(&task, root, bytes, io::sink())
    }

    #[test]
    fn a_tree_is_copied_with_modes_times_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/sub/empty")).unwrap();
        fs::write(root.join("a/file"), "text").unwrap();
        fs::write(root.join("a/sub/large"), vec![7; 300_000]).unwrap();
        fs::set_permissions(root.join("a/file"), Permissions::from_mode(0o751)).unwrap();
        symlink("../file", root.join("a/sub/link")).unwrap();
        fs::set_permissions(root.join("a/sub"), Permissions::from_mode(0o555)).unwrap();
        let bytes = read(root, "/a").unwrap();
        write(root, "/b", false, &bytes).unwrap();
        fs::create_dir(root.join("c")).unwrap();
        write(root, "/c", false, &bytes).unwrap();
        write(root, "/d/", true, &bytes).unwrap();
        for copy in ["b", "c/a", "d"] {
            let copy = root.join(copy);
            assert_eq!(fs::read_to_string(copy.join("file")).unwrap(), "text");
            assert_eq!(fs::read(copy.join("sub/large")).unwrap(), vec![7; 300_000]);
            assert_eq!(fs::read_link(copy.join("sub/link")).unwrap(), Path::new("../file"));
            assert!(copy.join("sub/empty").is_dir());
            let mode = |path: &str| fs::metadata(copy.join(path)).unwrap().permissions().mode() & 0o7777;
            assert_eq!((mode("file"), mode("sub")), (0o751, 0o555));
            let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
            let age = time(&root.join("a/file")).duration_since(time(&copy.join("file"))).unwrap_or_default();
            assert!(age < Duration::from_secs(1));
        }
    }

    #[test]
    fn a_file_replaces_a_file_and_never_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::write(root.join("new"), "new").unwrap();
        fs::write(root.join("old"), "old").unwrap();
        fs::write(root.join("kept"), "kept").unwrap();
        symlink("kept", root.join("link")).unwrap();
        let bytes = read(root, "new").unwrap();
        write(root, "/old", false, &bytes).unwrap();
        write(root, "/link", false, &bytes).unwrap();
        assert_eq!(fs::read_to_string(root.join("old")).unwrap(), "new");
        assert_eq!(fs::read_to_string(root.join("kept")).unwrap(), "kept", "no link is followed");
        fs::create_dir_all(root.join("dir/new")).unwrap();
        let error = write(root, "/dir", false, &bytes).unwrap_err();
        assert!(error.contains("/dir/new") && error.contains("directory"), "{error}");
        assert!(write(root, "/nowhere/x", false, &bytes).unwrap_err().contains("/nowhere/x"));
        assert!(write(root, "/nodir/", false, &bytes).is_err());
        assert!(read(root, "/nothing").unwrap_err().contains("cannot read /nothing"));
    }
}
