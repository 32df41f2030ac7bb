//! Files of `docker save`, old and new, and of `skopeo copy … docker-archive:`. The file is looked through once for its
//! members; layers are read where they are.

use super::super::blob::{LayerBlob, sniff};
use super::super::digest::Digest;
use super::super::document::{ArchiveImage, Compression, MAX_CONFIG, MAX_TOP};
use super::super::reference::Reference;
use super::super::tar::{Kind, Skip, TarReader};
use super::super::tree::EntryPath;
use super::{OpenError, Opened, check_layer_size, read_config, shorten};
use magikvm_proto::limits::{MAX_FILES_PER_LAYER, MAX_LAYERS};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a member's name that are worth keeping; those that are looked for have about 80.
const MAX_MEMBER_NAME: usize = 512;
/// Symbolic links from one member to the next: `docker save` makes one for a layer that two images share.
const MAX_LINKS: usize = 4;

/// Opens one image of an archive.
pub(super) fn open(path: &Path, wanted: Option<&str>) -> Result<Opened, OpenError> {
    let archive = Archive::open(path)?;
    let manifest = archive.bytes("manifest.json", MAX_TOP)?;
    let images: Vec<ArchiveImage> = serde_json::from_slice(&manifest)
        .map_err(|source| OpenError::Json { what: "the archive's manifest.json".to_owned(), source })?;
    let image = choose(images, wanted)?;
    if image.layers.len() > MAX_LAYERS {
        return Err(OpenError::TooManyLayers { layers: image.layers.len() });
    }
    let config_bytes = archive.bytes(&image.config, MAX_CONFIG)?;
    let id = Digest::of(&config_bytes);
    if let Some(expected) = digest_in_name(&image.config)
        && expected != id
    {
        return Err(OpenError::Digest { expected, found: id });
    }
    let config = read_config(&config_bytes, image.layers.len())?;
    let layers = image
        .layers
        .iter()
        .zip(&config.rootfs.diff_ids)
        .map(|(name, diff_id)| archive.layer(name, *diff_id))
        .collect::<Result<_, _>>()?;
    Ok(Opened { id, config_bytes, config, digests: Vec::new(), layers })
}

#[derive(Debug)]
enum Member {
    File { offset: u64, size: u64 },
    Link(Vec<u8>),
}

struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: HashMap<Vec<u8>, Member>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Read { path: path.to_owned(), source };
        let file =
            OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(OpenError::NotAFile { path: path.to_owned() });
        }
        let mut start = [0; 6];
        let got = file.read_at(&mut start, 0).map_err(failed)?;
        let compressed =
            sniff(&start[..got]) != Compression::None || start.starts_with(b"BZh") || start == *b"\xfd7zXZ\0";
        if compressed {
            return Err(OpenError::Compressed { path: path.to_owned() });
        }
        let scan = file.try_clone().map_err(failed)?;
        let members = members(scan, metadata.len())
            .map_err(|source| OpenError::Archive { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// Where a member's bytes are, links followed inside the archive.
    fn find(&self, name: &str) -> Result<(u64, u64), OpenError> {
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

    fn bytes(&self, name: &str, limit: u64) -> Result<Vec<u8>, OpenError> {
        let (offset, size) = self.find(name)?;
        if size > limit {
            return Err(OpenError::TooLarge {
                what: format!("the archive's {}", shorten(name)),
                size,
                limit,
            });
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(|source| OpenError::Read { path: self.path.clone(), source })?;
        Ok(bytes)
    }

    fn layer(&self, name: &str, diff_id: Digest) -> Result<LayerBlob, OpenError> {
        let (offset, length) = self.find(name)?;
        check_layer_size(&shorten(name), length)?;
        let mut start = [0; 4];
        // A layer shorter than this has no compression that would be seen.
        let compression = match self.file.read_exact_at(&mut start, offset) {
            Ok(()) if length >= 4 => sniff(&start),
            _ => Compression::None,
        };
        let digest = digest_in_name(name).filter(|_| name.starts_with("blobs/"));
        Ok(LayerBlob { file: Arc::clone(&self.file), offset, length, digest, compression, diff_id })
    }
}

/// A path as it is kept: normal components joined by slashes.
fn key(path: &[u8]) -> Option<Vec<u8>> {
    if path.len() > MAX_MEMBER_NAME {
        return None;
    }
    EntryPath::parse(path).ok().map(|path| path.components().join(&b'/'))
}

/// A link's target beside the link, `..` resolved; None when it leads out of the archive.
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

/// The digest that a blob's file is named after: `blobs/sha256/<hex>`, `<hex>.json`.
fn digest_in_name(name: &str) -> Option<Digest> {
    let base = name.rsplit('/').next()?;
    Digest::from_hex(base.strip_suffix(".json").unwrap_or(base)).ok()
}

fn members(file: File, length: u64) -> Result<HashMap<Vec<u8>, Member>, super::TarError> {
    let mut tar = TarReader::new(Seekable { inner: BufReader::with_capacity(64 << 10, file), at: 0, length });
    let mut members = HashMap::new();
    let mut count = 0;
    while let Some(entry) = tar.next()? {
        count += 1;
        if count > MAX_FILES_PER_LAYER {
            return Err(super::TarError::Field { field: "number of members: there are too many" });
        }
        let Some(name) = key(&entry.path) else { continue };
        let member = match entry.kind {
            Kind::File(None) => Member::File { offset: tar.position(), size: entry.size },
            Kind::Symlink => match target(&name, &entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            Kind::Hardlink => match key(&entry.link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// Picks the image: by one of its tags, by `@number`, or the only one.
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

/// A file in which members are left out by seeking.
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
    fn digests_in_names() {
        let hex = Digest::of(b"").hex();
        assert_eq!(digest_in_name(&format!("{hex}.json")), Some(Digest::of(b"")));
        assert_eq!(digest_in_name(&format!("blobs/sha256/{hex}")), Some(Digest::of(b"")));
        assert_eq!(digest_in_name("layer.tar"), None);
    }
}
