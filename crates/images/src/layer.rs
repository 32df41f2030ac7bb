//! Merges one layer's tar stream into the tree: entries and whiteouts (OCI image-spec, layer.md), with file data going into the image.
//! Must not know where the layer comes from.

use super::erofs::{DataArea, ErofsError, FileSlot, format};
use super::tar::{Entry, EntryKind, Segment, Skip, TarError, TarReader};
use super::tree::{
    Attributes, Content, Device, EntryPath, Timestamp, Tree, TreeError, TreePlace, check_target, text,
};
use magikvm_proto::raised;
use std::io::{self, BufRead, Seek, Write};

/// Permissions of an artifact's files.
const FILE_MODE: u16 = 0o644;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Metadata of AUFS that old tools left in layers; it is skipped, as in Docker.
const AUFS: &[u8] = b".wh..wh.";

/// What is wrong with a layer's content.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error(transparent)]
    Tar(#[from] TarError),
    /// An entry that a file system cannot hold, or that leads out of it.
    #[error("the entry {path:?} cannot be unpacked")]
    Entry {
        path: String,
        #[source]
        source: TreeError,
    },
    /// A whiteout that hides nothing, or the directory it is in.
    #[error("the entry {path:?} is a whiteout that names no file")]
    Whiteout { path: String },
    #[error("the file {path:?} cannot be read")]
    Read {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("the layer has more than {limit} entries ({remedy})")]
    TooManyEntries { limit: usize, remedy: String },
    /// The image could not be written.
    #[error("the file {path:?} cannot be written into the image")]
    Write {
        path: String,
        #[source]
        source: ErofsError,
    },
}

/// Puts all entries of a layer on top of the tree.
pub(super) fn apply<R: Skip, W: Write + Seek>(
    tar: &mut TarReader<R>,
    tree: &mut Tree,
    data: &mut DataArea<W>,
) -> Result<(), LayerError> {
    tree.begin_layer();
    let mut entries = 0;
    while let Some(entry) = tar.next()? {
        entries += 1;
        let limit = raised::in_force().files_per_layer;
        if entries > limit {
            return Err(LayerError::TooManyEntries { limit, remedy: raised::remedy("files-per-layer") });
        }
        let at_entry = |source| LayerError::Entry { path: text(&entry.path), source };
        let path = EntryPath::parse(&entry.path).map_err(at_entry)?;
        if let Some((parents, name)) = path.split()
            && name.starts_with(WHITEOUT)
        {
            whiteout(tree, &parents, name, &entry)?;
        } else if let EntryKind::File(map) = &entry.kind {
            let place = tree.locate(&path).map_err(at_entry)?;
            file(tar, tree, data, &place, &entry, map.as_deref())?;
        } else {
            put(tree, &path, &entry).map_err(at_entry)?;
        }
        release(tree, data);
    }
    Ok(())
}

/// Puts a file of an artifact into the tree: the next `size` bytes.
pub(super) fn add_file<W: Write + Seek>(
    from: &mut impl BufRead,
    title: &str,
    size: u64,
    tree: &mut Tree,
    data: &mut DataArea<W>,
) -> Result<(), LayerError> {
    let path = || title.to_owned();
    let at_entry = |source| LayerError::Entry { path: path(), source };
    let at_write = |source| LayerError::Write { path: path(), source };
    tree.begin_layer();
    let place = EntryPath::parse(title.as_bytes()).and_then(|path| tree.locate(&path)).map_err(at_entry)?;
    tree.evict(&place);
    release(tree, data);
    let attributes = Attributes::plain(FILE_MODE);
    let mut slot = data.begin_sparse(size, 0, format::inode_len(&attributes.xattrs)).map_err(at_write)?;
    let mut left = size;
    while left > 0 {
        let chunk = from.fill_buf().map_err(|source| LayerError::Read { path: path(), source })?;
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        if now == 0 {
            return Err(TarError::Truncated.into());
        }
        data.write(&mut slot, &chunk[..now]).map_err(at_write)?;
        from.consume(now);
        left -= now as u64;
    }
    let stored = data.end(slot).map_err(at_write)?;
    tree.insert(&place, attributes, Content::File(stored)).map_err(at_entry)
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
        EntryKind::Directory | EntryKind::File(_) => return tree.put_directory(&place, attributes),
        EntryKind::Hardlink => return tree.hardlink(&place, &EntryPath::parse(&entry.link)?),
        EntryKind::Symlink => {
            check_target(&entry.link)?;
            // Linux has no permissions on symbolic links and shows these.
            attributes.mode = 0o777;
            Content::Symlink(entry.link.as_slice().into())
        }
        // To the overlay of a container this device is a whiteout, as to those of containerd and podman, which unpack it as it is: it hides
        // what lower layers have here and is no file.
        EntryKind::CharDevice if entry.device == (0, 0) => return tree.erase(&place),
        EntryKind::CharDevice => Content::CharDevice(Device::new(entry.device.0, entry.device.1)?),
        EntryKind::BlockDevice => Content::BlockDevice(Device::new(entry.device.0, entry.device.1)?),
        EntryKind::Fifo => Content::Fifo,
    };
    tree.insert(&place, attributes, content)
}

fn file<R: Skip, W: Write + Seek>(
    tar: &mut TarReader<R>,
    tree: &mut Tree,
    data: &mut DataArea<W>,
    place: &TreePlace,
    entry: &Entry,
    map: Option<&[Segment]>,
) -> Result<(), LayerError> {
    let at_entry = |source| LayerError::Entry { path: text(&entry.path), source };
    let at_write = |source| LayerError::Write { path: text(&entry.path), source };
    let attributes = attributes(entry).map_err(at_entry)?;
    // The previous entry goes first, so that its blocks can hold the new file.
    tree.evict(place);
    release(tree, data);
    let whole = [Segment { offset: 0, length: entry.size }];
    let map = map.unwrap_or(&whole);
    let stored: u64 = map.iter().map(|segment| segment.length).sum();
    let inode_len = format::inode_len(&attributes.xattrs);
    // The segments of a map are in the file and do not overlap.
    let holes = entry.size.saturating_sub(stored);
    let mut slot = data.begin_sparse(entry.size, holes, inode_len).map_err(at_write)?;
    let mut at = 0;
    for segment in map {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::erofs::RootfsCompression;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn entry(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000755");
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        block[148..156].fill(b' ');
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        if kind == b'0' {
            block.extend(data);
        }
        block.resize(block.len().next_multiple_of(512), 0);
        block
    }

    /// The image of some layers, or the first error.
    fn image(layers: &[Vec<u8>]) -> Result<Vec<u8>, String> {
        let (mut tree, mut out) = (Tree::new(), Cursor::new(Vec::new()));
        let mut data = DataArea::in_memory(&mut out, 1 << 20, RootfsCompression::None);
        for layer in layers {
            apply(&mut TarReader::new(layer.as_slice()), &mut tree, &mut data)
                .map_err(|error| error.to_string())?;
        }
        let size = super::super::erofs::finish(&mut data, &tree, format::uuid(&Digest::of(b"")));
        let size = size.map_err(|error| error.to_string())?;
        drop(data);
        let mut bytes = out.into_inner();
        assert!(size % 4096 == 0 && bytes.len() as u64 >= size);
        bytes.truncate(usize::try_from(size).unwrap());
        Ok(bytes)
    }

    #[test]
    fn the_device_0_0_is_a_whiteout() {
        let tree = |layers: &[Vec<u8>]| {
            let (mut tree, mut out) = (Tree::new(), Cursor::new(Vec::new()));
            let mut data = DataArea::in_memory(&mut out, 1 << 20, RootfsCompression::None);
            for layer in layers {
                apply(&mut TarReader::new(layer.as_slice()), &mut tree, &mut data).unwrap();
            }
            let Some((_, directory)) = tree.entries(Tree::ROOT).find(|(name, _)| *name == b"d") else {
                return Vec::new();
            };
            tree.entries(directory.inode).map(|(name, _)| String::from_utf8(name.to_vec()).unwrap()).collect()
        };
        let file = |name: &str| entry(b'0', name, "", b"x");
        let device = entry(b'3', "d/a", "", b"");
        let below = [entry(b'5', "d", "", b""), file("d/a"), file("d/b")].concat();
        assert_eq!(tree(&[below.clone(), device.clone()]), ["b"]);
        assert_eq!(tree(&[[below.clone(), device.clone()].concat()]), ["b"]);
        assert_eq!(tree(&[below, [device.clone(), file("d/a")].concat()]), ["a", "b"]);
        assert_eq!(tree(&[[entry(b'5', "d/a", "", b""), file("d/a/in")].concat(), device]), [""; 0]);
        assert!(image(&[entry(b'3', "./", "", b"")]).is_err());
    }

    #[test]
    fn the_limit_of_the_image_holds_for_names_too() {
        let many: Vec<u8> = (0..20_000).flat_map(|n| entry(b'6', &format!("pipe-{n}"), "", b"")).collect();
        assert!(image(&[many]).unwrap_err().contains("larger than 1048576 bytes"));
    }

    fn names() -> impl Strategy<Value = String> {
        let part =
            prop_oneof![Just("a"), Just("b"), Just(".wh.a"), Just(".wh..wh..opq"), Just("."), Just(".wh.b")];
        proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"))
    }

    fn layers() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let kind = prop_oneof![Just(b'0'), Just(b'0'), Just(b'1'), Just(b'2'), Just(b'5'), Just(b'6')];
        let one = (
            kind,
            names(),
            names(),
            proptest::collection::vec(any::<u8>(), 0..3).prop_map(|seed| seed.repeat(3000)),
        )
            .prop_map(|(kind, name, link, data)| entry(kind, &name, &link, &data));
        proptest::collection::vec(
            proptest::collection::vec(one, 0..12).prop_map(|entries| entries.concat()),
            1..4,
        )
    }

    proptest! {
        #[test]
        fn layers_are_an_image_or_an_error_and_always_the_same(layers in layers()) {
            prop_assert_eq!(image(&layers), image(&layers));
        }

        #[test]
        fn damage_anywhere_is_no_panic(layers in layers(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut layers = layers;
            if let Some(last) = layers.last_mut().filter(|last| !last.is_empty()) {
                let at = at.index(last.len());
                last[at] = byte;
            }
            drop(image(&layers));
        }
    }
}
