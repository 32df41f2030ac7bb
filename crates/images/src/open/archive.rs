//! Images in a tar file: of `docker save`, old and new, and of `skopeo copy … docker-archive:` or `oci-archive:`. The file is searched
//! once for its members; layers are read in place.

use super::super::blob::{ZSTD_WINDOW_LOG, sniff};
use super::super::cancel::Cancel;
use super::super::digest::Digest;
use super::super::document::{ArchiveImage, CONFIG_TYPE, Compression, MAX_CONFIG, MAX_TOP};
use super::super::platform::Wanted;
use super::super::reference::Reference;
use super::super::tar::{EntryKind, Skip, TarReader};
use super::super::tree::EntryPath;
use super::layout::Files;
use super::walk::read_config;
use super::{Layer, LayerContent, LayerPlace, Local, OpenError, Opened, OwnNames, check_layer_size, shorten};
use magikvm_proto::raised;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a member's name that are kept; the names that matter have about 80.
const MAX_MEMBER_NAME: usize = 512;
/// Most symbolic links from one member to the next: `docker save` writes one for a layer that two images share.
const MAX_LINKS: usize = 4;
/// Most bytes of a whole archive, unpacked: two root file systems of the largest size.
fn max_archive() -> u64 {
    2 * raised::in_force().rootfs_bytes
}

const COPY_LEN: usize = 256 << 10;

/// Opens one image of an archive of `docker save`.
pub(super) fn open(archive: &Archive, wanted: Option<&str>, platform: &Wanted) -> Result<Local, OpenError> {
    let manifest = archive.bytes(&["manifest.json"], MAX_TOP, "the archive's manifest.json")?;
    let images: Vec<ArchiveImage> = serde_json::from_slice(&manifest)
        .map_err(|source| OpenError::Json { what: "the archive's manifest.json".to_owned(), source })?;
    let image = choose(images, wanted)?;
    super::check_layers(image.layers.len())?;
    let config_bytes = archive.bytes(&[&image.config], MAX_CONFIG, "the archive's configuration")?;
    let id = Digest::of(&config_bytes);
    if let Some(expected) = digest_in_name(&image.config)
        && expected != id
    {
        return Err(OpenError::Digest { expected, found: id });
    }
    let config = read_config(&config_bytes, image.layers.len(), platform)?;
    let both: Vec<(Layer, LayerPlace)> = image
        .layers
        .iter()
        .zip(&config.rootfs.diff_ids)
        .map(|(name, diff_id)| archive.layer(name, *diff_id))
        .collect::<Result<_, _>>()?;
    let (layers, parts) = both.into_iter().unzip();
    let config_type = CONFIG_TYPE.to_owned();
    let platform = config.platform();
    let opened = Opened {
        id,
        platform,
        config_bytes,
        config_type,
        config,
        digests: Vec::new(),
        manifest: None,
        layers,
        is_artifact: false,
    };
    let names = OwnNames::of(image.repo_tags, |_| true);
    Ok(Local { opened, parts, names })
}

#[derive(Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

/// A tar file whose members can be read in place.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
}

impl Archive {
    /// Indexes a tar file, which is unpacked first if it is compressed as a whole.
    pub(super) fn open(path: &Path, scratch: &Path, cancel: &Cancel) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Read { path: path.to_owned(), source };
        let file =
            OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(OpenError::NotAFile { path: path.to_owned() });
        }
        let mut start = [0; 6];
        let got = file.read_at(&mut start, 0).map_err(failed)?;
        let other = match &start {
            start if start.starts_with(b"BZh") => Some(("bzip2", "bunzip2 FILE")),
            b"\xfd7zXZ\0" => Some(("xz", "unxz FILE")),
            _ => None,
        };
        if let Some((format, command)) = other {
            return Err(OpenError::Compressed { path: path.to_owned(), format, command });
        }
        let file = match sniff(&start[..got]) {
            Compression::None => file,
            compression => {
                let unpacked = unpacked(file, compression, scratch, cancel);
                // A cancellation is reported instead of its consequences.
                cancel.check()?;
                unpacked.map_err(|source| OpenError::Decompress { path: path.to_owned(), source })?
            }
        };
        let length = file.metadata().map_err(failed)?.len();
        let scan = file.try_clone().map_err(failed)?;
        let members = members(scan, length, cancel)
            .map_err(|source| OpenError::Archive { path: path.to_owned(), source })?;
        cancel.check()?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// The position of a member's bytes, with links followed inside the archive.
    fn locate(&self, name: &str) -> Result<(u64, u64), OpenError> {
        let missing = || OpenError::Missing { name: shorten(name) };
        let mut key = key(name.as_bytes()).ok_or_else(missing)?;
        for _ in 0..=MAX_LINKS {
            match self.members.get(&key).ok_or_else(missing)? {
                Member::File { offset, size } => return Ok((*offset, *size)),
                Member::Link(target) => key.clone_from(target),
            }
        }
        Err(missing())
    }

    fn layer(&self, name: &str, diff_id: Digest) -> Result<(Layer, LayerPlace), OpenError> {
        let (offset, size) = self.locate(name)?;
        check_layer_size(&shorten(name), size)?;
        let mut start = [0; 4];
        // A shorter layer has no recognisable compression.
        let compression = match self.file.read_exact_at(&mut start, offset) {
            Ok(()) if size >= 4 => sniff(&start),
            _ => Compression::None,
        };
        let digest = digest_in_name(name).filter(|_| name.starts_with("blobs/"));
        let media_type = compression.layer_type().to_owned();
        Ok((
            Layer { digest, size, compression, media_type, diff_id, content: LayerContent::Changes },
            LayerPlace { file: Arc::clone(&self.file), offset },
        ))
    }
}

impl Files for Archive {
    fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, components: &[&str]) -> Result<(LayerPlace, u64), OpenError> {
        let (offset, size) = self.locate(&components.join("/"))?;
        Ok((LayerPlace { file: Arc::clone(&self.file), offset }, size))
    }
}

/// An archive's content in a scratch file without a name.
fn unpacked(file: File, compression: Compression, scratch: &Path, cancel: &Cancel) -> io::Result<File> {
    let mut out = tempfile::tempfile_in(scratch)?;
    let file = BufReader::with_capacity(COPY_LEN, file);
    let decoder: Box<dyn Read> = match compression {
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
    };
    let copied = io::copy(&mut Stoppable { inner: decoder, cancel }.take(max_archive() + 1), &mut out)?;
    if copied > max_archive() {
        return Err(io::Error::other(format!(
            "unpacked it has more than {} bytes ({})",
            max_archive(),
            raised::remedy("rootfs-mib")
        )));
    }
    out.rewind()?;
    Ok(out)
}

/// Fails when the work is cancelled.
struct Stoppable<'a> {
    inner: Box<dyn Read>,
    cancel: &'a Cancel,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.inner.read(buffer)
    }
}

/// A path in normal form: components joined by slashes.
fn key(path: &[u8]) -> Option<Vec<u8>> {
    if path.len() > MAX_MEMBER_NAME {
        return None;
    }
    EntryPath::parse(path).ok().map(|path| path.components().join(&b'/'))
}

/// A link's target relative to the link, with `..` resolved; `None` when it leads out of the archive.
fn target(link: &[u8], to: &[u8]) -> Option<Vec<u8>> {
    let mut components: Vec<&[u8]> = link.split(|byte| *byte == b'/').collect();
    components.pop();
    if to.starts_with(b"/") || to.len() > MAX_MEMBER_NAME {
        return None;
    }
    for component in to.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop()?),
            name => components.push(name),
        }
    }
    Some(components.join(&b'/'))
}

/// The digest in the name of a blob's file: `blobs/sha256/<hex>`, `<hex>.json`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let base = name.rsplit('/').next()?;
    Digest::from_hex(base.strip_suffix(".json").unwrap_or(base)).ok()
}

/// All members, or fewer after a cancellation, which the caller checks.
fn members(file: File, length: u64, cancel: &Cancel) -> Result<HashMap<Vec<u8>, Member>, super::TarError> {
    let mut tar = TarReader::new(Seekable { inner: BufReader::with_capacity(64 << 10, file), at: 0, length });
    let mut members = HashMap::new();
    let mut count = 0;
    while let Some(entry) = tar.next()? {
        count += 1;
        if cancel.check().is_err() {
            break;
        }
        if count > raised::in_force().files_per_layer {
            return Err(super::TarError::Field { field: "number of members: there are too many" });
        }
        let Some(name) = key(&entry.path) else { continue };
        let member = match entry.kind {
            EntryKind::File(None) => Member::File { offset: tar.position(), size: entry.size },
            EntryKind::Symlink => match target(&name, &entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            EntryKind::Hardlink => match key(&entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// Selects the image: by one of its tags, by `@number`, or the only one.
fn choose(mut images: Vec<ArchiveImage>, wanted: Option<&str>) -> Result<ArchiveImage, OpenError> {
    let names = |images: &[ArchiveImage]| -> Vec<String> {
        images
            .iter()
            .enumerate()
            .map(|(number, image)| image.repo_tags.first().cloned().unwrap_or_else(|| format!("@{number}")))
            .collect()
    };
    let found = match wanted {
        None if images.len() > 1 => return Err(OpenError::Ambiguous { available: names(&images) }),
        None => (!images.is_empty()).then_some(0),
        Some(wanted) => match wanted.strip_prefix('@').map(str::parse::<usize>) {
            Some(Ok(number)) => (number < images.len()).then_some(number),
            _ => images.iter().position(|image| image.repo_tags.iter().any(|tag| same_name(tag, wanted))),
        },
    };
    match found {
        Some(found) => Ok(images.swap_remove(found)),
        None => {
            Err(OpenError::NoSuchImage { wanted: wanted.unwrap_or("").to_owned(), available: names(&images) })
        }
    }
}

fn same_name(tag: &str, wanted: &str) -> bool {
    tag == wanted
        || matches!((tag.parse::<Reference>(), wanted.parse::<Reference>()), (Ok(tag), Ok(wanted)) if tag == wanted)
}

/// A file in which members are skipped by seeking.
struct Seekable {
    inner: BufReader<File>,
    at: u64,
    length: u64,
}

impl Read for Seekable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.at += got as u64;
        Ok(got)
    }
}

impl BufRead for Seekable {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.at += amount as u64;
    }
}

impl Skip for Seekable {
    fn skip(&mut self, length: u64) -> io::Result<()> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.length);
        let (Some(end), Ok(offset)) = (end, i64::try_from(length)) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        self.inner.seek_relative(offset)?;
        self.at = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_in_the_archive() {
        let to = |link: &str, to: &str| {
            target(link.as_bytes(), to.as_bytes()).map(|key| String::from_utf8(key).unwrap())
        };
        assert_eq!(to("abc/layer.tar", "../def/layer.tar").as_deref(), Some("def/layer.tar"));
        assert_eq!(to("layer.tar", "./x").as_deref(), Some("x"));
        assert_eq!(to("a/layer.tar", "../../x"), None);
        assert_eq!(to("a/layer.tar", "/etc/passwd"), None);
    }

    #[test]
    fn it_can_be_given_up_while_it_is_unpacked_and_while_it_is_scanned() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, compressed) = (dir.path().join("a.tar"), dir.path().join("a.tar.gz"));
        std::fs::write(&plain, [0; 1024]).unwrap();
        let out = File::create(&compressed).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
        io::Write::write_all(&mut gzip, &[0; 1024]).unwrap();
        gzip.finish().unwrap();
        let given_up = Cancel::new();
        given_up.cancel();
        for path in [plain, compressed] {
            assert!(Archive::open(&path, dir.path(), &Cancel::new()).unwrap().members.is_empty());
            let error = Archive::open(&path, dir.path(), &given_up).unwrap_err();
            assert!(matches!(error, OpenError::Stopped(super::super::Stopped::Cancelled)), "{error}");
        }
    }

    #[test]
    fn digests_in_names() {
        let hex = Digest::of(b"").hex();
        assert_eq!(digest_in_name(&format!("{hex}.json")), Some(Digest::of(b"")));
        assert_eq!(digest_in_name(&format!("blobs/sha256/{hex}")), Some(Digest::of(b"")));
        assert_eq!(digest_in_name("layer.tar"), None);
    }
}
