//! Builds one EROFS file from layers in one pass.
//!
//! In addition to the layers' files, an image gets the missing mount points of a runtime: `/proc`, `/dev`, `/sys`, `/etc` (0755), `/tmp`
//! (1777), and empty `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` (0644), because a read-only root could not get them later. Existing
//! entries of an image are never changed.

use super::blob::{BlobError, LayerBlob, LayerStream};
use super::blobs::digest_of;
use super::cancel::Cancel;
use super::digest::{Digest, Hasher};
use super::erofs::{self, DataArea, ErofsError, RootfsCompression, format, zero_by_writing};
use super::layer::{self, LayerError};
use super::open::{Layer, LayerContent};
use super::tar::{Skip, TarReader};
use super::tree::{Attributes, Content, Directory, EntryPath, Tree, TreeError};
use magikvm_proto::raised;
use std::fs::File;
use std::io::{self, BufRead, Cursor, Read, Seek, Write};
use tempfile::SpooledTempFile;

/// Changes whenever the same layers give other bytes than before, so that old files are not used for new imports.
const RECIPE: &str = "magikvm-rootfs-1";
/// Bytes of file tails that are held in memory before they are written to a scratch file.
pub(super) const TAILS_IN_MEMORY: usize = 16 << 20;
/// Stored bytes between two reports of progress.
const REPORT_EVERY: u64 = 1 << 20;

const DIRECTORIES: [(&str, u16); 5] =
    [("proc", 0o755), ("dev", 0o755), ("sys", 0o755), ("etc", 0o755), ("tmp", 0o1777)];
const FILES: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];

/// Why a root file system could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// One of the layers.
    #[error("layer {number} of {of} ({diff_id}) cannot be used")]
    Layer {
        /// Counted from 1, bottom first.
        number: usize,
        of: usize,
        diff_id: Digest,
        #[source]
        source: Box<PartError>,
    },
    /// The image as a whole.
    #[error("the root file system cannot be written")]
    Erofs(#[from] ErofsError),
    /// The built file cannot be read again for its digest.
    #[error("the root file system cannot be read back")]
    ReadBack(#[source] io::Error),
    /// Cancelled; the caller knows why.
    #[error("the building of the root file system was cancelled")]
    GivenUp,
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Content(#[from] LayerError),
}

/// A built root file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Built {
    pub(super) size: u64,
    pub(super) sha256: Digest,
}

/// The key of the root file system of these layers, without building it.
pub(super) fn key(diff_ids: &[Digest], compression: RootfsCompression) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(RECIPE.as_bytes());
    if compression != RootfsCompression::None {
        hasher.update(format!("\n{compression}").as_bytes());
    }
    for diff_id in diff_ids {
        hasher.update(b"\n");
        hasher.update(diff_id.to_string().as_bytes());
    }
    hasher.finish()
}

/// The key of the root file system of these layers, whose files may have names of their own.
pub(super) fn key_of(layers: &[Layer], compression: RootfsCompression) -> Digest {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    let key = key(&diff_ids, compression);
    if layers.iter().all(|layer| layer.content == LayerContent::Changes) {
        return key;
    }
    let mut hasher = Hasher::default();
    hasher.update(format!("artifact\n{key}").as_bytes());
    for layer in layers {
        match &layer.content {
            LayerContent::File(title) => hasher.update(format!("\nfile {title}").as_bytes()),
            LayerContent::Changes | LayerContent::Archive => hasher.update(b"\narchive"),
        }
    }
    hasher.finish()
}

/// Merges the layers into `out`. `progress` gets (layer counted from 1, its stored bytes read so far).
pub(super) fn build(
    layers: &[LayerBlob],
    key: &Digest,
    compression: RootfsCompression,
    out: &mut File,
    tails: SpooledTempFile,
    cancel: &Cancel,
    progress: &mut dyn FnMut(usize, u64),
) -> Result<Built, BuildError> {
    let mut tree = Tree::new();
    let mut data = DataArea::new(&mut *out, raised::in_force().rootfs_bytes, compression, tails, punch);
    for (number, blob) in (1..).zip(layers) {
        one_layer(blob, &mut tree, &mut data, &mut |done| progress(number, done)).map_err(|source| {
            BuildError::Layer { number, of: layers.len(), diff_id: blob.diff_id, source: Box::new(source) }
        })?;
    }
    let is_artifact = layers.iter().any(|layer| layer.content != LayerContent::Changes);
    if !is_artifact {
        add_mount_points(&mut tree, &mut data)?;
    }
    let size = erofs::finish(&mut data, &tree, format::uuid(key))?;
    drop(data);
    let written = |action| move |source| BuildError::Erofs(ErofsError::Io { action, source });
    out.set_len(size).map_err(written("set the size of the file system image"))?;
    let sha256 = digest_of(out, &mut || cancel.check().is_ok()).map_err(BuildError::ReadBack)?;
    let sha256 = sha256.ok_or(BuildError::GivenUp)?;
    Ok(Built { size, sha256 })
}

/// Builds an image from layers in memory (unpacked tar streams, bottom first), like an import without a store. The image and the files in
/// it have at most `limit` bytes.
pub fn build_in_memory(
    layers: &[&[u8]],
    compression: RootfsCompression,
    limit: u64,
) -> Result<Vec<u8>, BuildError> {
    build_with_tree(layers, compression, limit).map(|(_, image)| image)
}

/// Like [`build_in_memory`], with the tree of the image.
pub(super) fn build_with_tree(
    layers: &[&[u8]],
    compression: RootfsCompression,
    limit: u64,
) -> Result<(Tree, Vec<u8>), BuildError> {
    let mut out = Cursor::new(Vec::new());
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let (mut tree, mut data) = (Tree::new(), DataArea::in_memory(&mut out, limit, compression));
    for (number, (layer, diff_id)) in (1..).zip(layers.iter().zip(&diff_ids)) {
        layer::apply(&mut TarReader::new(*layer), &mut tree, &mut data).map_err(|error| {
            let source = Box::new(PartError::Content(error));
            BuildError::Layer { number, of: layers.len(), diff_id: *diff_id, source }
        })?;
    }
    let size = complete(&mut tree, &mut data, &key(&diff_ids, compression))?;
    drop(data);
    let mut image = out.into_inner();
    // The data of replaced files lies behind the end.
    image.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    Ok((tree, image))
}

/// Adds missing entries and writes everything but the data, which is already written. Returns the size of the image.
fn complete<W: Write + Seek>(
    tree: &mut Tree,
    data: &mut DataArea<W>,
    key: &Digest,
) -> Result<u64, ErofsError> {
    add_mount_points(tree, data)?;
    erofs::finish(data, tree, format::uuid(key))
}

/// Unpacks a layer and checks its digests without keeping anything.
pub(super) fn check_layer(number: usize, of: usize, blob: LayerBlob) -> Result<(), BuildError> {
    let diff_id = blob.diff_id;
    std::thread::scope(|scope| LayerStream::start(scope, blob)?.finish()).map_err(|error| BuildError::Layer {
        number,
        of,
        diff_id,
        source: Box::new(PartError::Blob(error)),
    })
}

fn one_layer(
    blob: &LayerBlob,
    tree: &mut Tree,
    data: &mut DataArea<&mut File>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), PartError> {
    progress(0);
    std::thread::scope(|scope| {
        let stream = Reported {
            inner: LayerStream::start(scope, blob.clone())?,
            reported: 0,
            progress: &mut *progress,
        };
        if let LayerContent::File(title) = &blob.content {
            let mut stream = stream;
            let added = layer::add_file(&mut stream, title, blob.length, tree, data);
            let mut stream = stream.inner;
            return match added {
                Ok(()) => Ok(stream.finish()?),
                Err(error) => Err(stream.take_error().map_or(PartError::Content(error), PartError::Blob)),
            };
        }
        let mut tar = TarReader::new(stream);
        let applied = layer::apply(&mut tar, tree, data);
        let mut stream = tar.into_inner().inner;
        match applied {
            Ok(()) => Ok(stream.finish()?),
            // The blob's error explains more than the read that failed because of it.
            Err(error) => Err(stream.take_error().map_or(PartError::Content(error), PartError::Blob)),
        }
    })?;
    progress(blob.length);
    Ok(())
}

/// Reports progress while a layer is read.
struct Reported<'a> {
    inner: LayerStream,
    reported: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Read for Reported<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl BufRead for Reported<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let done = self.inner.done();
        if done >= self.reported + REPORT_EVERY {
            self.reported = done;
            (self.progress)(done);
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
    }
}

impl Skip for Reported<'_> {}

fn add_mount_points<W: Write + Seek>(tree: &mut Tree, data: &mut DataArea<W>) -> Result<(), ErofsError> {
    for (path, mode) in DIRECTORIES {
        add(tree, path, mode, |_| Ok(Content::Directory(Directory::default())))?;
    }
    for path in FILES {
        add(tree, path, 0o644, |attributes| {
            let slot = data.begin(0, format::inode_len(&attributes.xattrs))?;
            data.end(slot).map(Content::File)
        })?;
    }
    Ok(())
}

/// Adds an entry where none exists. A place that cannot be reached (`/etc` is a file, or a circular link) is skipped.
fn add(
    tree: &mut Tree,
    path: &str,
    mode: u16,
    content: impl FnOnce(&Attributes) -> Result<Content, ErofsError>,
) -> Result<(), ErofsError> {
    let place = match tree.locate(&EntryPath::parse(path.as_bytes())?) {
        Ok(place) => place,
        Err(TreeError::NotADirectory { .. } | TreeError::SymlinkLoop { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if tree.get(&place).is_none() {
        let attributes = Attributes::plain(mode);
        let content = content(&attributes)?;
        tree.insert(&place, attributes, content)?;
    }
    Ok(())
}

/// Zeros in a file: a hole where the file system supports it.
fn punch(file: &mut &mut File, offset: u64, length: u64) -> io::Result<()> {
    magikvm_platform::os::punch_hole(file, offset, length).or_else(|_| zero_by_writing(file, offset, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_root_file_system_is_its_recipe_and_its_layers() {
        let layers = [Digest::of(b"a"), Digest::of(b"b")];
        let named = |start: &str| Digest::of(format!("{start}\n{}\n{}", layers[0], layers[1]).as_bytes());
        assert_eq!(key(&layers, RootfsCompression::None), named("magikvm-rootfs-1"));
        assert_eq!(key(&layers, RootfsCompression::Lz4), named("magikvm-rootfs-1\nlz4"));
    }
}
