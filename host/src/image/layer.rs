//! One layer's tar stream into the tree: entries and whiteouts (OCI image-spec, layer.md), file data into the image.
//! Must not know where the layer comes from.

use super::erofs::{DataArea, ErofsError, FileSlot, format};
use super::tar::{Entry, Kind, Segment, Skip, TarError, TarReader};
use super::tree::{
    Attributes, Content, Device, EntryPath, Place, Timestamp, Tree, TreeError, check_target, text,
};
use magikvm_proto::limits::MAX_FILES_PER_LAYER;
use std::io::{Seek, Write};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Book-keeping of AUFS that old tools left in layers: left out, as Docker does.
const AUFS: &[u8] = b".wh..wh.";

/// What is wrong with a layer's content.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive itself.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that cannot be in a file system, or leads out of it.
    #[error("the entry {path:?} cannot be unpacked")]
    Entry {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: TreeError,
    },
    /// A whiteout that hides nothing or the directory it is in.
    #[error("the entry {path:?} is a whiteout of no file")]
    Whiteout {
        /// Its path.
        path: String,
    },
    /// Too many entries.
    #[error("the layer has more than {MAX_FILES_PER_LAYER} entries")]
    TooManyEntries,
    /// The image could not be written.
    #[error("the file {path:?} cannot be written into the image")]
    Write {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: ErofsError,
    },
}

/// Puts all entries of a layer on top of what is in the tree.
pub(super) fn apply<R: Skip, W: Write + Seek>(
    tar: &mut TarReader<R>,
    tree: &mut Tree,
    data: &mut DataArea<W>,
) -> Result<(), LayerError> {
    tree.begin_layer();
    let mut entries = 0;
    while let Some(entry) = tar.next()? {
        entries += 1;
        if entries > MAX_FILES_PER_LAYER {
            return Err(LayerError::TooManyEntries);
        }
        let at_entry = |source| LayerError::Entry { path: text(&entry.path), source };
        let path = EntryPath::parse(&entry.path).map_err(at_entry)?;
        if let Some((parents, name)) = path.split()
            && name.starts_with(WHITEOUT)
        {
            whiteout(tree, &parents, name, &entry)?;
        } else if let Kind::File(map) = &entry.kind {
            let place = tree.locate(&path).map_err(at_entry)?;
            file(tar, tree, data, &place, &entry, map.as_deref())?;
        } else {
            put(tree, &path, &entry).map_err(at_entry)?;
        }
        release(tree, data);
    }
    Ok(())
}

fn release<W: Write + Seek>(tree: &mut Tree, data: &mut DataArea<W>) {
    for freed in tree.take_freed() {
        data.release(&freed);
    }
}

fn whiteout(tree: &mut Tree, parents: &EntryPath<'_>, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    let path = || text(&entry.path);
    let result = if name == OPAQUE {
        tree.opaque(parents)
    } else if name.starts_with(AUFS) {
        Ok(())
    } else {
        match &name[WHITEOUT.len()..] {
            b"" | b"." | b".." => return Err(LayerError::Whiteout { path: path() }),
            hidden => tree.whiteout(parents, hidden),
        }
    };
    result.map_err(|source| LayerError::Entry { path: path(), source })
}

/// Everything but regular files.
fn put(tree: &mut Tree, path: &EntryPath<'_>, entry: &Entry) -> Result<(), TreeError> {
    let mut attributes = attributes(entry)?;
    let place = tree.locate(path)?;
    let content = match entry.kind {
        Kind::Directory | Kind::File(_) => return tree.put_directory(&place, attributes),
        Kind::Hardlink => return tree.hardlink(&place, &EntryPath::parse(&entry.link)?),
        Kind::Symlink => {
            check_target(&entry.link)?;
            // Linux has no permissions on symbolic links and shows them so.
            attributes.mode = 0o777;
            Content::Symlink(entry.link.as_slice().into())
        }
        Kind::CharDevice => Content::CharDevice(Device::new(entry.device.0, entry.device.1)?),
        Kind::BlockDevice => Content::BlockDevice(Device::new(entry.device.0, entry.device.1)?),
        Kind::Fifo => Content::Fifo,
    };
    tree.insert(&place, attributes, content)
}

fn file<R: Skip, W: Write + Seek>(
    tar: &mut TarReader<R>,
    tree: &mut Tree,
    data: &mut DataArea<W>,
    place: &Place,
    entry: &Entry,
    map: Option<&[Segment]>,
) -> Result<(), LayerError> {
    let at_entry = |source| LayerError::Entry { path: text(&entry.path), source };
    let at_write = |source| LayerError::Write { path: text(&entry.path), source };
    let attributes = attributes(entry).map_err(at_entry)?;
    // What was there goes first: its blocks can hold the new file.
    tree.evict(place);
    release(tree, data);
    let mut slot = data.begin(entry.size, format::inode_len(&attributes.xattrs)).map_err(at_write)?;
    let whole = [Segment { offset: 0, length: entry.size }];
    let mut at = 0;
    for segment in map.unwrap_or(&whole) {
        data.skip(&mut slot, segment.offset - at).map_err(at_write)?;
        copy(tar, data, &mut slot, segment.length, entry)?;
        at = segment.offset + segment.length;
    }
    data.skip(&mut slot, entry.size - at).map_err(at_write)?;
    let stored = data.end(slot).map_err(at_write)?;
    tree.insert(place, attributes, Content::File(stored)).map_err(at_entry)
}

fn copy<R: Skip, W: Write + Seek>(
    tar: &mut TarReader<R>,
    data: &mut DataArea<W>,
    slot: &mut FileSlot,
    mut length: u64,
    entry: &Entry,
) -> Result<(), LayerError> {
    while length > 0 {
        let chunk = tar.data()?;
        let now = usize::try_from(length).unwrap_or(usize::MAX).min(chunk.len());
        if now == 0 {
            return Err(TarError::Truncated.into());
        }
        data.write(slot, &chunk[..now])
            .map_err(|source| LayerError::Write { path: text(&entry.path), source })?;
        tar.consume(now);
        length -= now as u64;
    }
    Ok(())
}

fn attributes(entry: &Entry) -> Result<Attributes, TreeError> {
    let mtime = Timestamp::new(entry.mtime.seconds, entry.mtime.nanoseconds)?;
    let mut attributes =
        Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime, xattrs: Vec::new() };
    for (name, value) in &entry.xattrs {
        attributes.add_xattr(name, value)?;
    }
    Ok(attributes)
}
