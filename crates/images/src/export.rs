//! Exports an image from the store: as an OCI image layout (directory or archive), as an archive for `docker load`, or as its bare root
//! file system. The target appears complete or not at all.

use super::Owners;
use super::arrival::Arrival;
use super::blob::{BlobError, LayerBlob, LayerStream};
use super::blobs::{Blobs, HeldBlob};
use super::cancel::Cancel;
use super::digest::{Digest, Hasher, shorten};
use super::document::{MAX_CONFIG, Role, role};
use super::error::{ExportError, ImageError};
use super::index::{ImageBlob, ImageEntry};
use super::lock::Hold;
use super::open::LayerContent;
use super::platform::Platform;
use super::reference::Reference;
use super::store::{Image, ImageStore, read_capped};
use magikvm_platform::atomic::{self, FileError, Staged};
use serde_json::json;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The target of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A new directory in OCI's image layout.
    OciLayout {
        dir: PathBuf,
        /// The image's `org.opencontainers.image.ref.name`; defaults to its tag.
        tag: Option<String>,
    },
    /// A tar file of such a directory.
    OciArchive { file: PathBuf, tag: Option<String> },
    /// A file for `docker load`.
    DockerArchive { file: PathBuf },
    /// The root file system as an EROFS image.
    Erofs { file: PathBuf },
    /// The root file system as a new directory.
    Directory { dir: PathBuf },
}

/// The text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a target for an image; the forms are oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE, erofs:FILE and dir:DIR"
)]
pub struct TargetError {
    text: String,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let wrong = || TargetError { text: shorten(text) };
        let (transport, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (path, tag) = match transport {
            "oci" | "oci-archive" => {
                rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)))
            }
            _ => (rest, None),
        };
        if path.is_empty() || tag == Some("") {
            return Err(wrong());
        }
        let (path, tag) = (PathBuf::from(path), tag.map(str::to_owned));
        Ok(match transport {
            "oci" => Self::OciLayout { dir: path, tag },
            "oci-archive" => Self::OciArchive { file: path, tag },
            "docker-archive" => Self::DockerArchive { file: path },
            "erofs" => Self::Erofs { file: path },
            "dir" => Self::Directory { dir: path },
            _ => return Err(wrong()),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, tag) = match self {
            Self::OciLayout { dir, tag } => ("oci", dir, tag.as_deref()),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag.as_deref()),
            Self::DockerArchive { file } => ("docker-archive", file, None),
            Self::Erofs { file } => ("erofs", file, None),
            Self::Directory { dir } => ("dir", dir, None),
        };
        write!(f, "{transport}:{}", path.display())?;
        tag.map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

/// An image's blobs and configuration, kept from removal.
struct Parts {
    name: Option<Reference>,
    blobs: Blobs,
    config: Vec<u8>,
    id: Digest,
    platform: Platform,
    manifest: (ImageBlob, HeldBlob),
    layers: Vec<(ImageBlob, HeldBlob)>,
}

impl ImageStore {
    /// Exports an image. `name` is its name in the target, where that has names.
    pub fn export(
        &self,
        image: &Image,
        name: Option<&Reference>,
        target: &Target,
        cancel: &Cancel,
    ) -> Result<(), ImageError> {
        let failed = |source| {
            // A cancellation is reported instead of its consequences.
            let source = cancel.check().map_or_else(ExportError::Stopped, |()| source);
            ImageError::Export { target: target.to_string(), source: Box::new(source) }
        };
        match target {
            Target::Erofs { file } => copy_rootfs(image, file, cancel).map_err(failed),
            Target::Directory { dir } => unpack_rootfs(image, dir, cancel).map_err(failed),
            Target::OciLayout { dir, tag } => {
                let parts = self.parts(image, name)?;
                layout(&parts, dir, tag.as_deref(), cancel).map_err(failed)
            }
            Target::OciArchive { file, tag } => {
                let parts = self.parts(image, name)?;
                archive(file, |tar| oci_archive(&parts, tag.as_deref(), tar, cancel)).map_err(failed)
            }
            Target::DockerArchive { file } => {
                let parts = self.parts(image, name)?;
                let scratch = self.dir("blobs");
                archive(file, |tar| docker_archive(&parts, &scratch, tar, cancel)).map_err(failed)
            }
        }
    }

    fn parts(&self, image: &Image, name: Option<&Reference>) -> Result<Parts, ImageError> {
        let missing = |what: &str| ImageError::Export {
            target: image.id.to_string(),
            source: Box::new(ExportError::NoLayers { what: what.to_owned() }),
        };
        let _lock = self.lock(Hold::Shared)?;
        let index = self.read_index()?;
        let unknown = || ImageError::UnknownId { id: image.id.to_string() };
        let entry: &ImageEntry = index.images.get(&image.id).ok_or_else(unknown)?;
        if entry.is_artifact {
            return Err(ImageError::Export {
                target: image.id.to_string(),
                source: Box::new(ExportError::Artifact),
            });
        }
        let hold = |part: &ImageBlob| match self.blobs().hold(&part.digest)? {
            Some(held) if held.size == part.size_bytes => Ok((part.clone(), held)),
            _ => Err(missing(&part.digest.to_string())),
        };
        let manifest =
            entry.manifest.as_ref().ok_or_else(|| missing("it was imported by an older magikvm"))?;
        Ok(Parts {
            name: name.or(image.record.names.first()).cloned(),
            blobs: self.blobs(),
            config: read_capped(&self.config_path(&image.id), MAX_CONFIG)?.unwrap_or_default(),
            id: image.id,
            platform: entry.platform(),
            manifest: hold(manifest)?,
            layers: entry.blobs.iter().map(hold).collect::<Result<_, _>>()?,
        })
    }
}

/// Creates a file that must not exist yet.
fn new_file(path: &Path) -> Result<Staged, ExportError> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(ExportError::Exists { path: path.to_owned() });
    }
    Ok(Staged::new(path)?)
}

/// Fills a new directory beside its place, and moves it there.
fn new_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<(), ExportError>) -> Result<(), ExportError> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(ExportError::Exists { path: path.to_owned() });
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = tempfile::Builder::new()
        .prefix(".tmp-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(parent)
        .map_err(FileError::at("create a temporary directory in", parent))?;
    let content = staged.path().join("content");
    atomic::create_dir_all(&content, 0o755)?;
    fill(&content)?;
    fs::rename(&content, path).map_err(FileError::at("rename", path))?;
    Ok(atomic::sync_parent(path)?)
}

/// Reads a file of the store from its start, whatever its position, and fails when the export is cancelled.
struct Reading<'a> {
    file: &'a File,
    at: u64,
    hasher: Hasher,
    cancel: &'a Cancel,
}

impl<'a> Reading<'a> {
    fn new(file: &'a File, cancel: &'a Cancel) -> Self {
        Self { file, at: 0, hasher: Hasher::default(), cancel }
    }

    /// After the end: checks that the read bytes match the recorded digest.
    fn check(self, path: &Path, expected: Digest) -> Result<(), ExportError> {
        match self.hasher.finish() {
            found if found == expected => Ok(()),
            found => Err(ExportError::Damaged { path: path.to_owned(), expected, found }),
        }
    }
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        self.cancel.check().map_err(io::Error::other)?;
        let got = self.file.read_at(buffer, self.at)?;
        self.hasher.update(&buffer[..got]);
        self.at += got as u64;
        Ok(got)
    }
}

/// Copies a file of the store, with its target path and its digest.
fn copy(
    (file, path, digest): (&File, &Path, Digest),
    to: &mut impl Write,
    to_path: &Path,
    cancel: &Cancel,
) -> Result<(), ExportError> {
    let mut reading = Reading::new(file, cancel);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reading.read(&mut buffer).map_err(FileError::at("read", path))? {
            0 => return reading.check(path, digest),
            got => to.write_all(&buffer[..got]).map_err(FileError::at("write", to_path))?,
        }
    }
}

fn copy_rootfs(image: &Image, file: &Path, cancel: &Cancel) -> Result<(), ExportError> {
    let path = &image.rootfs.path;
    let from = File::open(path).map_err(FileError::at("open", path))?;
    let mut staged = new_file(file)?;
    copy((&from, path, image.record.rootfs_sha256), staged.file(), file, cancel)?;
    Ok(staged.commit(0o644)?)
}

fn unpack_rootfs(image: &Image, dir: &Path, cancel: &Cancel) -> Result<(), ExportError> {
    let from = File::open(&image.rootfs.path).map_err(FileError::at("open", &image.rootfs.path))?;
    let owners = if nix::unistd::geteuid().is_root() { Owners::AsInImage } else { Owners::Mine };
    new_dir(dir, |content| {
        let unpacked = super::directory::unpack(&from, content, owners, cancel);
        if unpacked.is_err() {
            // The content of directories without write permission cannot be removed.
            super::directory::clear_unpacked(content).map_err(FileError::at("remove", content))?;
        }
        unpacked.map(drop).map_err(ExportError::Directory)
    })
}

/// The `index.json` of a layout with this image.
fn layout_index(parts: &Parts, tag: Option<&str>) -> Vec<u8> {
    let own = parts.name.as_ref().and_then(Reference::tag);
    let manifest = &parts.manifest.0;
    let mut descriptor = json!({
        "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size_bytes,
    });
    if !parts.platform.architecture().is_empty() {
        descriptor["platform"] = json!(parts.platform);
    }
    if let Some(tag) = tag.or(own) {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor],
    });
    index.to_string().into_bytes()
}

const LAYOUT_MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

fn layout(parts: &Parts, dir: &Path, tag: Option<&str>, cancel: &Cancel) -> Result<(), ExportError> {
    new_dir(dir, |content| {
        let blobs = content.join("blobs/sha256");
        atomic::create_dir_all(&blobs, 0o755)?;
        for (part, held) in parts.layers.iter().chain([&parts.manifest]) {
            let path = blobs.join(part.digest.hex());
            let mut staged = Staged::new(&path)?;
            let from = (&*held.file, &*parts.blobs.path(&part.digest), part.digest);
            copy(from, staged.file(), &path, cancel)?;
            staged.commit(0o644)?;
        }
        atomic::write(&blobs.join(parts.id.hex()), &parts.config, 0o644)?;
        atomic::write(&content.join("index.json"), &layout_index(parts, tag), 0o644)?;
        Ok(atomic::write(&content.join("oci-layout"), LAYOUT_MARKER, 0o644)?)
    })
}

/// A tar file being written.
struct Tar<'a> {
    builder: ::tar::Builder<&'a mut File>,
    path: &'a Path,
}

impl Tar<'_> {
    fn add(&mut self, name: &str, size: u64, data: impl Read) -> Result<(), ExportError> {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.builder.append_data(&mut header, name, data).map_err(FileError::at("write", self.path))?;
        Ok(())
    }

    fn add_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        self.add(name, bytes.len() as u64, bytes)
    }
}

fn archive(
    file: &Path,
    fill: impl FnOnce(&mut Tar<'_>) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    let mut staged = new_file(file)?;
    let mut tar = Tar { builder: ::tar::Builder::new(staged.file()), path: file };
    fill(&mut tar)?;
    tar.builder.finish().map_err(FileError::at("write", file))?;
    drop(tar);
    Ok(staged.commit(0o644)?)
}

fn oci_archive(
    parts: &Parts,
    tag: Option<&str>,
    tar: &mut Tar<'_>,
    cancel: &Cancel,
) -> Result<(), ExportError> {
    let name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    tar.add_bytes("oci-layout", LAYOUT_MARKER)?;
    tar.add_bytes("index.json", &layout_index(parts, tag))?;
    tar.add_bytes(&name(&parts.id), &parts.config)?;
    let mut seen = std::collections::BTreeSet::new();
    for (part, held) in parts.layers.iter().chain([&parts.manifest]) {
        // An image may contain a layer twice, but an archive may not.
        if seen.insert(part.digest) {
            let mut reading = Reading::new(&held.file, cancel);
            tar.add(&name(&part.digest), part.size_bytes, &mut reading)?;
            reading.check(&parts.blobs.path(&part.digest), part.digest)?;
        }
        cancel.check()?;
    }
    Ok(())
}

/// `docker load` needs uncompressed layers and their names.
fn docker_archive(
    parts: &Parts,
    scratch: &Path,
    tar: &mut Tar<'_>,
    cancel: &Cancel,
) -> Result<(), ExportError> {
    let config = format!("{}.json", parts.id.hex());
    tar.add_bytes(&config, &parts.config)?;
    let (mut names, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    for (part, held) in &parts.layers {
        let diff_id = part.diff_id.unwrap_or(part.digest);
        let name = format!("{}.tar", diff_id.hex());
        if seen.insert(diff_id) {
            let mut unpacked = unpack_layer(part, held, diff_id, scratch, cancel)?;
            let size = unpacked.metadata().map_err(FileError::at("inspect", scratch))?.len();
            unpacked.rewind().map_err(FileError::at("read", scratch))?;
            tar.add(&name, size, &unpacked)?;
        }
        names.push(name);
    }
    let tags: Vec<String> = parts.name.iter().map(|name| name.without_digest().familiar()).collect();
    let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": names }]);
    tar.add_bytes("manifest.json", manifest.to_string().as_bytes())
}

/// A layer, unpacked into a file without a name and checked.
fn unpack_layer(
    part: &ImageBlob,
    held: &HeldBlob,
    diff_id: Digest,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<File, ExportError> {
    let failed = |source| ExportError::Layer { digest: part.digest, source };
    let mut out = tempfile::tempfile_in(scratch).map_err(FileError::at("create a file in", scratch))?;
    let arrival = Arc::new(Arrival::new(cancel.clone()));
    arrival.writer().complete(Arc::clone(&held.file), held.size);
    let compression = match role(&part.media_type) {
        Some(Role::Layer(compression)) => compression,
        _ => {
            return Err(ExportError::NoLayers {
                what: format!("{} has the media type {}", part.digest, shorten(&part.media_type)),
            });
        }
    };
    let blob = LayerBlob { arrival, length: held.size, compression, diff_id, content: LayerContent::Changes };
    std::thread::scope(|scope| {
        let mut stream = LayerStream::start(scope, blob).map_err(failed)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => out.write_all(&buffer[..got]).map_err(FileError::at("write", scratch))?,
                Err(error) => {
                    cancel.check()?;
                    return Err(failed(stream.take_error().unwrap_or(BlobError::Read(error))));
                }
            }
        }
        stream.finish().map_err(failed)
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_back_and_others_are_told_the_forms() {
        for text in ["oci:d", "oci:d:1", "oci-archive:f:x:y", "docker-archive:f", "erofs:f", "dir:/a/b"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in ["", "f", "oci:", "oci:d:", "docker:f", "dir:"] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("oci-archive:FILE[:TAG]"), "{error}");
        }
    }
}
