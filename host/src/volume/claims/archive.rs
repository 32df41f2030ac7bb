//! The content of a claim as a tar archive, and a disk as a whole.

use super::{ClaimError, Claims, DISK, Terms};
use crate::store::atomic::FileError;
use crate::store::regular::{self, Access};
use crate::volume::ClaimForm;
use magikvm_platform::tree::set_mode_and_time;
use magikvm_proto::id::PodId;
use nix::sys::stat::Mode;
use rustix::fs::{OFlags, SeekFrom};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;
/// Permissions of a directory while its content is unpacked.
const UNPACKING: u32 = 0o700;

impl Claims<'_> {
    /// Writes everything in a claim that no pod uses, with owners, permissions, times and links, but without extended attributes, sockets and devices.
    /// What cannot be read is left out, and `left_out` is told, so that nothing that a pod has made keeps the rest from being exported.
    pub fn export(
        &self,
        id: &PodId,
        to: impl Write,
        left_out: &mut dyn FnMut(&FileError),
    ) -> Result<(), ClaimError> {
        let (found, _exporting) = self.begin_export(id)?;
        if found.record.form == ClaimForm::Disk {
            return Err(ClaimError::NoFiles(id.clone()));
        }
        let data = found.data();
        let mut archive = tar::Builder::new(to);
        archive.follow_symlinks(false);
        fs::read_dir(&data).map_err(FileError::at("list", &data))?;
        let mut exporter = Exporter { archive, seen: HashMap::new(), left_out };
        exporter.add(&data, Path::new("."))?;
        let archive = exporter.archive;
        archive.into_inner().and_then(|mut to| to.flush()).map_err(ClaimError::Write)
    }

    /// Copies the disk of a claim that no pod uses to an empty file, without what is empty in it. Returns its size.
    pub fn export_disk(&self, id: &PodId, to: &File) -> Result<u64, ClaimError> {
        let (found, _exporting) = self.begin_export(id)?;
        if found.record.form == ClaimForm::Directory {
            return Err(ClaimError::NoDisk(id.clone()));
        }
        let path = found.disk();
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Err(ClaimError::NotMade(id.clone()));
        }
        let from = regular::open(&path, Access::Read)?;
        copy_sparse(&from, to).map_err(ClaimError::Write)
    }

    /// Makes a claim of a disk, which nobody looks into. If that fails, there is no claim.
    pub fn import_disk(&self, id: &PodId, terms: &Terms, from: &File) -> Result<(), ClaimError> {
        self.import_with(id, terms, |dir| {
            let path = dir.join(DISK);
            let to = File::options().write(true).create_new(true).mode(0o600).open(&path);
            let to = to.map_err(FileError::at("create", &path))?;
            let copied = copy_sparse(from, &to).and_then(|_| to.sync_all());
            Ok(copied.map_err(FileError::at("write", &path))?)
        })
    }

    /// Makes a claim with the content of an archive. If that fails, there is no claim.
    pub fn import(&self, id: &PodId, terms: &Terms, from: impl Read) -> Result<(), ClaimError> {
        self.import_with(id, terms, |dir| unpack(&dir.join("data"), from))
    }

    fn import_with(
        &self,
        id: &PodId,
        terms: &Terms,
        fill: impl FnOnce(&Path) -> Result<(), ClaimError>,
    ) -> Result<(), ClaimError> {
        let exists = || ClaimError::Exists(id.clone());
        let turn = self.turn()?;
        if fs::symlink_metadata(self.place(id)).is_ok() {
            return Err(exists());
        }
        let staging = self.stage(id, terms)?;
        drop(turn);
        fill(&staging.dir)?;
        let _turn = self.turn()?;
        if fs::symlink_metadata(self.place(id)).is_ok() {
            return Err(exists());
        }
        staging.publish(&self.place(id))
    }
}

/// The permissions and time of a directory of an archive, set once it is complete.
#[derive(Clone, Copy)]
struct Unfinished {
    mode: u32,
    modified: u64,
}

impl Unfinished {
    fn of(header: &tar::Header) -> io::Result<Self> {
        Ok(Self { mode: header.mode()? & 0o7777, modified: header.mtime()? })
    }

    fn finish(self, path: &Path) -> io::Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?);
        set_mode_and_time(&directory, self.mode, i64::try_from(self.modified).unwrap_or(0))
    }
}

/// Unpacks an archive into an empty directory that nobody else can reach.
fn unpack(data: &Path, from: impl Read) -> Result<(), ClaimError> {
    let mut archive = tar::Archive::new(from);
    let is_root = nix::unistd::geteuid().is_root();
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(is_root);
    archive.set_unpack_xattrs(false);
    // By their paths, so that of two entries of one directory the later one counts.
    let mut directories = BTreeMap::new();
    for entry in archive.entries().map_err(ClaimError::Archive)? {
        let mut entry = entry.map_err(ClaimError::Archive)?;
        let path = entry.path().map_err(ClaimError::Archive)?.into_owned();
        if path.components().all(|part| part == Component::CurDir) {
            root_as(data, entry.header()).map_err(FileError::at("set the owner and mode of", data))?;
            directories.insert(data.to_owned(), Unfinished::of(entry.header()).map_err(ClaimError::Archive)?);
            continue;
        }
        let kind = entry.header().entry_type();
        if let Some(kind) = special(kind) {
            return Err(ClaimError::Special { path, kind });
        }
        let header = entry.header().clone();
        let Some(inside) = inside(&path).filter(|inside| !is_behind_link(data, inside)) else {
            return Err(ClaimError::Outside(path));
        };
        let there = data.join(inside);
        let is_directory = kind == EntryType::Directory || entry.path_bytes().ends_with(b"/");
        // The reader would set the permissions of what a link leads to.
        let is_link = is_directory && fs::symlink_metadata(&there).is_ok_and(|found| found.is_symlink());
        if is_link || !entry.unpack_in(data).map_err(ClaimError::Archive)? {
            // The reader leaves out what leads out of its directory, without a word.
            return Err(ClaimError::Outside(path));
        }
        let unfinished = Unfinished::of(&header).map_err(ClaimError::Archive)?;
        let mode = unfinished.mode;
        match kind {
            EntryType::Directory => {
                fs::set_permissions(&there, Permissions::from_mode(mode | UNPACKING))
                    .map_err(FileError::at("set the mode of", &there))?;
                directories.insert(there, unfinished);
            }
            EntryType::Fifo => {
                make_fifo(&there, &header, mode, is_root).map_err(FileError::at("make", &there))?;
            }
            _ => {}
        }
    }
    // A directory is searched on the way to those within it, which are behind it in the order.
    for (path, unfinished) in directories.iter().rev() {
        unfinished.finish(path).map_err(FileError::at("set the mode of", path))?;
    }
    Ok(())
}

/// The path of an entry beneath the directory that it is unpacked into. The reader would leave out the slash of an absolute one, and everybody
/// else would take it for a path of the host.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}

/// Whether a link is on the way to this path. Later entries may give the link another target, so that nobody knows where the path leads then.
fn is_behind_link(data: &Path, inside: &Path) -> bool {
    let mut above = inside.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
    above.any(|above| fs::symlink_metadata(data.join(above)).is_ok_and(|found| found.is_symlink()))
}

/// What has no place on a volume.
fn special(kind: EntryType) -> Option<&'static str> {
    match kind {
        EntryType::Char => Some("a character device"),
        EntryType::Block => Some("a block device"),
        EntryType::Regular
        | EntryType::Continuous
        | EntryType::GNUSparse
        | EntryType::Link
        | EntryType::Symlink
        | EntryType::Directory
        | EntryType::Fifo
        | EntryType::XGlobalHeader => None,
        _ => Some("of a kind that tar does not define"),
    }
}

/// Makes a FIFO of what the reader of archives has made of it: an empty file.
fn make_fifo(path: &Path, header: &tar::Header, mode: u32, is_root: bool) -> io::Result<()> {
    fs::remove_file(path)?;
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    if is_root {
        let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
        lchown(path, Some(id(header.uid()?)?), Some(id(header.gid()?)?))?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Copies what is not a hole, and returns the size of the file.
fn copy_sparse(from: &File, to: &File) -> io::Result<u64> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(at))?.min(size);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let chunk = &mut buffer[..most];
            from.read_exact_at(chunk, at)?;
            to.write_all_at(chunk, at)?;
            at += u64::try_from(most).unwrap_or(u64::MAX);
        }
    }
    Ok(size)
}

/// Gives the root of a claim the mode that it has in an archive, and its owners if this user may.
fn root_as(data: &Path, header: &tar::Header) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        let id = |id: u64| u32::try_from(id).map_err(io::Error::other);
        chown(data, Some(id(header.uid()?)?), Some(id(header.gid()?)?))?;
    }
    fs::set_permissions(data, Permissions::from_mode(header.mode()? & 0o7777 | UNPACKING))
}

struct Exporter<'a, W: Write> {
    archive: tar::Builder<W>,
    /// The first name of each file that has several.
    seen: HashMap<(u64, u64), PathBuf>,
    left_out: &'a mut dyn FnMut(&FileError),
}

impl<W: Write> Exporter<'_, W> {
    /// Adds what is at a path, which is `name` in the archive, and everything beneath it.
    fn add(&mut self, path: &Path, name: &Path) -> Result<(), ClaimError> {
        match self.entry(path, name)? {
            Ok(names) => names.iter().try_for_each(|entry| self.add(&path.join(entry), &name.join(entry))),
            Err(error) => {
                (self.left_out)(&error);
                Ok(())
            }
        }
    }

    /// Adds what is at a path. Returns the names in it, or why it cannot be read.
    fn entry(&mut self, path: &Path, name: &Path) -> Result<Result<Vec<OsString>, FileError>, ClaimError> {
        let nothing = Ok(Ok(Vec::new()));
        let found = match fs::symlink_metadata(path).map_err(FileError::at("look at", path)) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let kind = found.file_type();
        // Devices on a volume do not act as such.
        if kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
            return nothing;
        }
        if kind.is_dir() {
            let list =
                || fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>();
            let mut names = match list().map_err(FileError::at("list", path)) {
                Ok(names) => names,
                Err(error) => return Ok(Err(error)),
            };
            names.sort();
            self.archive.append_dir(name, path).map_err(ClaimError::Write)?;
            return Ok(Ok(names));
        }
        if kind.is_file()
            && let Some(first) = self.seen.get(&(found.dev(), found.ino()))
        {
            let mut header = header(&found, EntryType::Link);
            self.archive.append_link(&mut header, name, first).map_err(ClaimError::Write)?;
            return nothing;
        }
        if kind.is_fifo() {
            let mut header = header(&found, EntryType::Fifo);
            self.archive.append_data(&mut header, name, io::empty()).map_err(ClaimError::Write)?;
            return nothing;
        }
        if kind.is_file()
            && let Err(error) = regular::open(path, Access::Read)
        {
            return Ok(Err(error));
        }
        self.archive.append_path_with_name(path, name).map_err(ClaimError::Write)?;
        if kind.is_file() && found.nlink() > 1 {
            self.seen.insert((found.dev(), found.ino()), name.to_owned());
        }
        nothing
    }
}

/// The header of an entry without content.
fn header(found: &fs::Metadata, kind: EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_metadata(found);
    header.set_entry_type(kind);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, SystemTime};

    fn id(text: &str) -> PodId {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_exported_can_be_imported() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::at(dir.path());
        let data = claims.attach(&id("one"), Some(&Terms::default()), &id("a")).unwrap().path;
        fs::create_dir(data.join("dir")).unwrap();
        fs::write(data.join("dir/file"), "text").unwrap();
        fs::set_permissions(data.join("dir/file"), Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o2770)).unwrap();
        fs::hard_link(data.join("dir/file"), data.join("hard")).unwrap();
        symlink("/nowhere", data.join("soft")).unwrap();
        nix::unistd::mkfifo(&data.join("fifo"), Mode::from_bits_truncate(0o620)).unwrap();
        fs::set_permissions(data.join("fifo"), Permissions::from_mode(0o620)).unwrap();
        // Nobody but root could write to it once it is there.
        fs::create_dir(data.join("fixed")).unwrap();
        fs::write(data.join("fixed/file"), "fixed").unwrap();
        fs::set_permissions(data.join("fixed"), Permissions::from_mode(0o555)).unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        File::open(data.join("fixed")).unwrap().set_modified(long_ago).unwrap();
        let mut bytes = Vec::new();
        claims.export(&id("one"), &mut bytes, &mut |error| panic!("{error}")).unwrap();
        claims.import(&id("two"), &Terms::default(), &bytes[..]).unwrap();
        let there = claims.find(&id("two")).unwrap().data();
        assert_eq!(fs::read_to_string(there.join("hard")).unwrap(), "text");
        let (one, two) =
            (fs::metadata(there.join("hard")).unwrap(), fs::metadata(there.join("dir/file")).unwrap());
        assert_eq!((one.ino(), one.permissions().mode() & 0o777), (two.ino(), 0o640));
        assert_eq!(fs::read_link(there.join("soft")).unwrap(), Path::new("/nowhere"));
        let fifo = fs::symlink_metadata(there.join("fifo")).unwrap();
        assert!(fifo.file_type().is_fifo() && fifo.permissions().mode() & 0o777 == 0o620);
        let fixed = fs::metadata(there.join("fixed")).unwrap();
        assert_eq!((fixed.mode() & 0o777, fixed.modified().unwrap()), (0o555, long_ago));
        assert_eq!(fs::read_to_string(there.join("fixed/file")).unwrap(), "fixed");
        assert_eq!(fs::metadata(&there).unwrap().permissions().mode() & 0o7777, 0o2770);
        assert!(matches!(
            claims.import(&id("two"), &Terms::default(), &bytes[..]),
            Err(ClaimError::Exists(_))
        ));
        let cut = &bytes[..700];
        assert!(matches!(claims.import(&id("three"), &Terms::default(), cut), Err(ClaimError::Archive(_))));
        assert!(matches!(claims.find(&id("three")), Err(ClaimError::Missing(_))));
        assert!(
            fs::read_dir(dir.path()).unwrap().all(|entry| !entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with(".new"))
        );
    }

    /// A pod can nest directories deeper than any path reaches.
    #[test]
    fn what_cannot_be_read_keeps_nothing_else_from_being_exported() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::at(dir.path());
        let data = claims.attach(&id("one"), Some(&Terms::default()), &id("a")).unwrap().path;
        fs::write(data.join("z"), "last").unwrap();
        let name = "d".repeat(200);
        let mut here = std::os::fd::OwnedFd::from(File::open(&data).unwrap());
        for _ in 0..30 {
            rustix::fs::mkdirat(&here, name.as_str(), rustix::fs::Mode::RWXU).unwrap();
            here = rustix::fs::openat(&here, name.as_str(), OFlags::DIRECTORY, rustix::fs::Mode::empty())
                .unwrap();
        }
        let (mut bytes, mut left) = (Vec::new(), Vec::new());
        claims.export(&id("one"), &mut bytes, &mut |error| left.push(error.to_string())).unwrap();
        assert!(left.len() == 1 && left[0].starts_with("cannot look at "), "{left:?}");
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
        assert!(names.len() > 3 && names.last().unwrap().ends_with("z"), "{names:?}");
    }

    #[test]
    fn a_device_in_an_archive_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::at(dir.path());
        for (kind, what) in [(EntryType::Char, "character"), (EntryType::Block, "block")] {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_path("dev/one").unwrap();
            header.set_entry_type(kind);
            header.set_mode(0o666);
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, io::empty()).unwrap();
            let bytes = builder.into_inner().unwrap();
            let error = claims.import(&id("bad"), &Terms::default(), &bytes[..]).unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("the archive has dev/one, which is a {what} device"))
            );
            assert!(matches!(claims.find(&id("bad")), Err(ClaimError::Missing(_))));
        }
    }

    #[test]
    fn a_disk_goes_out_and_in_as_it_is_and_stays_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::at(dir.path());
        let terms = Terms { storage_bytes: Some(1 << 20), form: ClaimForm::Disk, ..Terms::default() };
        let path = claims.attach(&id("one"), Some(&terms), &id("a")).unwrap().path;
        let out = dir.path().join("out");
        assert!(matches!(
            claims.export_disk(&id("one"), &File::create(&out).unwrap()),
            Err(ClaimError::NotMade(_))
        ));
        let image = File::create(&path).unwrap();
        image.set_len(64 << 20).unwrap();
        image.write_all_at(b"text", 33 << 20).unwrap();
        assert_eq!(claims.export_disk(&id("one"), &File::create(&out).unwrap()).unwrap(), 64 << 20);
        assert!(fs::metadata(&out).unwrap().blocks() * 512 < 4 << 20);
        assert!(matches!(claims.export(&id("one"), io::sink(), &mut |_| {}), Err(ClaimError::NoFiles(_))));
        claims.import_disk(&id("two"), &terms, &File::open(&out).unwrap()).unwrap();
        let two = claims.find(&id("two")).unwrap();
        let mut text = [0; 4];
        File::open(two.disk()).unwrap().read_exact_at(&mut text, 33 << 20).unwrap();
        assert_eq!((&text, two.record.form), (b"text", ClaimForm::Disk));
        assert_ne!(two.record.guid(), claims.find(&id("one")).unwrap().record.guid());
        drop(claims.attach(&id("three"), Some(&Terms::default()), &id("a")).unwrap());
        let refused = claims.export_disk(&id("three"), &File::create(&out).unwrap());
        assert!(matches!(refused, Err(ClaimError::NoDisk(_))));
    }

    #[test]
    fn nothing_is_unpacked_outside() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = dir.path().join("volumes");
        let claims = Claims::at(&volumes);
        let archive = |entries: &[(&str, Option<&str>)]| {
            let mut builder = tar::Builder::new(Vec::new());
            for (name, link) in entries {
                let mut header = tar::Header::new_ustar();
                header.set_mode(0o644);
                header.set_size(0);
                header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
                if let Some(to) = link {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_link_name(to).unwrap();
                }
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            }
            builder.into_inner().unwrap()
        };
        let out = dir.path().to_str().unwrap();
        let before = fs::metadata(dir.path()).unwrap().mode();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        // Absolute names, as a directory, a FIFO, a file, and behind a harmless name.
        let absolute = |name: &Path, kind: EntryType, pax: bool| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(0o777);
            header.set_size(0);
            let name = name.to_str().unwrap();
            if pax {
                builder.append_pax_extensions([("path", name.as_bytes())]).unwrap();
                header.set_path("innocent").unwrap();
            } else {
                header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            }
            header.set_cksum();
            builder.append(&header, io::empty()).unwrap();
            builder.into_inner().unwrap()
        };
        for kind in [EntryType::Directory, EntryType::Fifo, EntryType::Regular] {
            for (name, pax) in [(dir.path(), false), (&victim, false), (dir.path(), true), (&victim, true)] {
                let bytes = absolute(name, kind, pax);
                let refused = claims.import(&id("bad"), &Terms::default(), &bytes[..]);
                assert!(matches!(refused, Err(ClaimError::Outside(_))), "{kind:?} {refused:?}");
                assert_eq!(fs::metadata(dir.path()).unwrap().mode(), before);
                assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
            }
        }
        for entries in [
            &[("../../escaped", None)][..],
            &[("l", Some(out)), ("l/escaped", None)],
            &[("l", Some(out)), ("l/", None)],
            // The target of the link is another one when the directory gets its mode.
            &[("real/", None), ("l", Some("real")), ("l/victims/", None), ("l", Some(out))],
        ] {
            assert!(claims.import(&id("bad"), &Terms::default(), &archive(entries)[..]).is_err());
            assert!(!dir.path().join("escaped").exists());
            assert_eq!(fs::metadata(dir.path()).unwrap().mode(), before);
        }
        assert!(matches!(claims.find(&id("bad")), Err(ClaimError::Missing(_))));
    }
}
