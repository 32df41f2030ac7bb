//! Turns a finished tree into inodes and directories: assigns a position to every inode, then writes everything once, in order.

use super::super::tree::{Content, Inode, InodeId, Tree};
use super::data::DataArea;
use super::file::Blocks;
use super::format::{self, BLOCK, BLOCK_LEN, DIRENT_LEN, Dirent, FileType, Layout, SLOT, Super};
use super::{ErofsError, RootfsCompression};
use std::collections::{BTreeMap, VecDeque};
use std::io::{Seek, Write};

/// The root is the first inode of the metadata area, behind one empty pair of slots: inode number 0 would look deleted.
const FIRST_INODE: u64 = 64;
/// Number of partly filled blocks that are kept open for small inodes.
const OPEN_BLOCKS: usize = 16;

#[derive(Debug, Clone, Copy)]
struct Placed {
    inode: InodeId,
    parent: InodeId,
    /// From the start of the metadata area, in bytes.
    offset: u64,
    layout: Layout,
    /// First data block of a directory or long symlink.
    block: u32,
    /// Number of names of the inode.
    nlink: u32,
}

/// Writes directories, inodes and the superblock behind the data. Returns the size of the image in bytes. The output may be longer when
/// files at its end were released, and must be truncated to that size.
pub fn finish<W: Write + Seek>(
    data: &mut DataArea<W>,
    tree: &Tree,
    uuid: [u8; 16],
) -> Result<u64, ErofsError> {
    data.clear_gaps()?;
    let plan = Plan::new(tree, data.end_block()).ok_or_else(|| data.too_large())?;
    let meta_start = u64::from(plan.meta_block) * BLOCK;
    let size = meta_start + plan.meta_len.next_multiple_of(BLOCK);
    if size > data.limit() {
        return Err(data.too_large());
    }
    plan.write_outside(tree, data)?;
    plan.write_inodes(tree, data)?;
    let sb = Super {
        blocks: u32::try_from(size / BLOCK).map_err(|_| data.too_large())?,
        meta_block: plan.meta_block,
        root_nid: plan.root_nid().ok_or_else(|| data.too_large())?,
        inodes: plan.placed.len() as u64,
        uuid,
        compression: plan.compression(),
    };
    data.put(0, &format::super_block(&sb))?;
    data.complete()?;
    Ok(size)
}

struct Plan {
    /// In the order of their offsets.
    placed: Vec<Placed>,
    /// The number in the image for each inode id; 0 for ids that are not in the tree.
    nids: Vec<u32>,
    meta_block: u32,
    meta_len: u64,
}

impl Plan {
    /// `None`: the image needs more blocks or inode numbers than the format has.
    fn new(tree: &Tree, first_block: u32) -> Option<Self> {
        let mut placer = Placer::new(first_block);
        let mut nids = vec![0; tree.id_bound()];
        let mut placed = Vec::with_capacity(tree.len() + 1);
        let mut directories = VecDeque::new();
        let mut add = |inode: InodeId, parent: InodeId, directories: &mut VecDeque<InodeId>| -> Option<()> {
            if nids[inode.index()] != 0 {
                return Some(());
            }
            let one = placer.place(tree, inode, parent)?;
            nids[inode.index()] = u32::try_from(one.offset / SLOT).ok()?;
            if matches!(tree.inode(inode).content, Content::Directory(_)) {
                directories.push_back(inode);
            }
            placed.push(one);
            Some(())
        };
        add(Tree::ROOT, Tree::ROOT, &mut directories)?;
        while let Some(directory) = directories.pop_front() {
            for (_, entry) in tree.entries(directory) {
                add(entry.inode, directory, &mut directories)?;
            }
        }
        placed.sort_unstable_by_key(|one| one.offset);
        Some(Self { placed, nids, meta_block: placer.next_block, meta_len: placer.meta_len })
    }

    /// Places the first inode: at the start of the first block, or of the second when its attributes are long.
    fn root_nid(&self) -> Option<u16> {
        self.nids.get(Tree::ROOT.index()).and_then(|nid| u16::try_from(*nid).ok())
    }

    /// A kernel without decompression then suffices.
    fn compression(&self) -> RootfsCompression {
        if self.placed.iter().any(|one| one.layout == Layout::Packed) {
            RootfsCompression::Lz4
        } else {
            RootfsCompression::None
        }
    }

    /// Directory blocks and symlink targets that are not inline.
    fn write_outside<W: Write + Seek>(&self, tree: &Tree, data: &mut DataArea<W>) -> Result<(), ErofsError> {
        let mut outside: Vec<_> = self.placed.iter().filter(|one| one.block != 0).collect();
        outside.sort_unstable_by_key(|one| one.block);
        for one in outside {
            let inode = tree.inode(one.inode);
            let mut bytes = self.payload(tree, one, inode);
            let keep = match one.layout {
                Layout::Plain => bytes.len().next_multiple_of(BLOCK_LEN),
                Layout::Inline | Layout::Packed => bytes.len() / BLOCK_LEN * BLOCK_LEN,
            };
            bytes.resize(keep, 0);
            data.put(u64::from(one.block) * BLOCK, &bytes)?;
        }
        Ok(())
    }

    fn write_inodes<W: Write + Seek>(&self, tree: &Tree, data: &mut DataArea<W>) -> Result<(), ErofsError> {
        let start = u64::from(self.meta_block) * BLOCK;
        let mut bytes = Vec::new();
        let mut at = 0;
        for (number, one) in (1..).zip(&self.placed) {
            // Gaps are smaller than a block.
            bytes.resize(usize::try_from(one.offset - at).unwrap_or(0), 0);
            let inode = tree.inode(one.inode);
            self.put_inode(tree, one, number, data, &mut bytes)?;
            match &inode.content {
                Content::File(file) => match &file.place {
                    Blocks::Row { .. } => data.read_tail(file, &mut bytes)?,
                    Blocks::Pieces(pieces) => {
                        let head = format::inode_len(&inode.attributes.xattrs) as u64;
                        format::put_index(&mut bytes, head, file.size, pieces);
                    }
                },
                _ if one.layout == Layout::Inline => {
                    let payload = self.payload(tree, one, inode);
                    bytes.extend(&payload[payload.len() / BLOCK_LEN * BLOCK_LEN..]);
                }
                _ => {}
            }
            data.put(start + at, &bytes)?;
            at += bytes.len() as u64;
            bytes.clear();
        }
        bytes.resize(usize::try_from(at.next_multiple_of(BLOCK) - at).unwrap_or(0), 0);
        data.put(start + at, &bytes)
    }

    fn put_inode<W: Write + Seek>(
        &self,
        tree: &Tree,
        one: &Placed,
        ino: u32,
        data: &DataArea<W>,
        out: &mut Vec<u8>,
    ) -> Result<(), ErofsError> {
        let inode = tree.inode(one.inode);
        let (size, block_or_device) = match &inode.content {
            Content::Directory(_) => (directory_len(tree, one.inode), one.block),
            Content::File(file) => {
                let blocks = match &file.place {
                    Blocks::Row { block, .. } => *block,
                    Blocks::Pieces(pieces) => pieces.iter().map(|piece| u32::from(piece.blocks)).sum(),
                };
                (file.size, blocks)
            }
            Content::Symlink(target) => (target.len() as u64, one.block),
            Content::CharDevice(device) | Content::BlockDevice(device) => (0, format::encode_device(*device)),
            Content::Fifo => (0, 0),
        };
        if size > data.limit() {
            return Err(data.too_large());
        }
        let fields = format::Inode {
            file_type: file_type(&inode.content),
            layout: one.layout,
            size,
            block_or_device,
            ino,
            nlink: one.nlink,
        };
        format::put_inode(out, &fields, &inode.attributes);
        Ok(())
    }

    /// A directory's blocks (the last one not padded) or a symlink's target.
    fn payload(&self, tree: &Tree, one: &Placed, inode: &Inode) -> Vec<u8> {
        match &inode.content {
            Content::Directory(_) => self.directory(tree, one),
            Content::Symlink(target) => target.to_vec(),
            _ => Vec::new(),
        }
    }

    fn directory(&self, tree: &Tree, one: &Placed) -> Vec<u8> {
        let nid = |id: InodeId| u64::from(self.nids[id.index()]);
        let mut names: BTreeMap<&[u8], Dirent<'_>> = BTreeMap::new();
        for (name, id) in [(b".".as_slice(), one.inode), (b"..", one.parent)] {
            names.insert(name, Dirent { name, nid: nid(id), file_type: FileType::Directory });
        }
        for (name, entry) in tree.entries(one.inode) {
            let file_type = file_type(&tree.inode(entry.inode).content);
            names.insert(name, Dirent { name, nid: nid(entry.inode), file_type });
        }
        let entries: Vec<_> = names.into_values().collect();
        let mut out = Vec::new();
        let mut rest = entries.as_slice();
        while !rest.is_empty() {
            out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
            let (count, _) = format::block_fill(rest.iter().map(|entry| entry.name));
            let (now, later) = rest.split_at(count);
            format::put_dir_block(&mut out, now);
            rest = later;
        }
        out
    }
}

/// Bytes of a directory's data as [`Plan::directory`] will write it.
fn directory_len(tree: &Tree, directory: InodeId) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for name in with_dots(tree.entries(directory).map(|(name, _)| name)) {
        let need = DIRENT_LEN + name.len();
        if used + need > BLOCK_LEN {
            blocks += 1;
            used = 0;
        }
        used += need;
    }
    blocks * BLOCK + used as u64
}

/// Sorted names including `.` and `..`.
fn with_dots<'a>(names: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut dots = [b".".as_slice(), b".."].into_iter().peekable();
    let mut names = names.peekable();
    std::iter::from_fn(move || match (dots.peek(), names.peek()) {
        (Some(dot), Some(name)) if dot > name => names.next(),
        (Some(_), _) => dots.next(),
        (None, _) => names.next(),
    })
}

fn file_type(content: &Content) -> FileType {
    match content {
        Content::Directory(_) => FileType::Directory,
        Content::File(_) => FileType::Regular,
        Content::Symlink(_) => FileType::Symlink,
        Content::CharDevice(_) => FileType::Char,
        Content::BlockDevice(_) => FileType::Block,
        Content::Fifo => FileType::Fifo,
    }
}

/// Allocates the metadata area: no inode with its tail crosses a block, and small ones fill remaining space.
struct Placer {
    next_block: u32,
    meta_len: u64,
    /// (offset of the free space, its length), oldest first.
    open: VecDeque<(u64, u64)>,
}

impl Placer {
    fn new(first_block: u32) -> Self {
        Self {
            next_block: first_block,
            meta_len: FIRST_INODE,
            open: VecDeque::from([(FIRST_INODE, BLOCK - FIRST_INODE)]),
        }
    }

    fn place(&mut self, tree: &Tree, inode: InodeId, parent: InodeId) -> Option<Placed> {
        let node = tree.inode(inode);
        let head = format::inode_len(&node.attributes.xattrs) as u64;
        let mut nlink = node.nlink;
        let (layout, block, tail) = match &node.content {
            Content::Directory(_) => {
                let is_directory = |id: InodeId| matches!(tree.inode(id).content, Content::Directory(_));
                nlink = 2 + u32::try_from(tree.entries(inode).filter(|(_, e)| is_directory(e.inode)).count())
                    .ok()?;
                self.payload(head, directory_len(tree, inode))?
            }
            Content::Symlink(target) => self.payload(head, target.len() as u64)?,
            Content::File(file) => match &file.place {
                Blocks::Row { tail: Some(_), .. } => (Layout::Inline, 0, file.size % BLOCK),
                Blocks::Row { tail: None, .. } => (Layout::Plain, 0, 0),
                Blocks::Pieces(_) => (Layout::Packed, 0, format::index_len(head, file.size)),
            },
            _ => (Layout::Plain, 0, 0),
        };
        let offset = self.room(head + tail);
        Some(Placed { inode, parent, offset, layout, block, nlink })
    }

    /// Chooses between inline and blocks, and allocates the blocks: (layout, first block, bytes of the tail).
    fn payload(&mut self, head: u64, size: u64) -> Option<(Layout, u32, u64)> {
        let tail = size % BLOCK;
        let inline = tail != 0 && head + tail <= BLOCK;
        let blocks = if inline { size / BLOCK } else { size.div_ceil(BLOCK) };
        if blocks == 0 {
            return Some((Layout::Inline, 0, tail));
        }
        let block = self.next_block;
        self.next_block = block.checked_add(u32::try_from(blocks).ok()?)?;
        Some(if inline { (Layout::Inline, block, tail) } else { (Layout::Plain, block, 0) })
    }

    fn room(&mut self, need: u64) -> u64 {
        let need = need.next_multiple_of(SLOT);
        if let Some(found) = self.open.iter().position(|(_, room)| *room >= need) {
            let (offset, room) = self.open[found];
            if room > need {
                self.open[found] = (offset + need, room - need);
            } else {
                self.open.remove(found);
            }
            self.meta_len = self.meta_len.max(offset + need);
            return offset;
        }
        // Attributes and indexes larger than a block begin at a block boundary.
        let offset = self.meta_len.next_multiple_of(BLOCK);
        self.meta_len = offset + need;
        let rest = self.meta_len.next_multiple_of(BLOCK) - self.meta_len;
        if rest > 0 {
            if self.open.len() == OPEN_BLOCKS {
                self.open.pop_front();
            }
            self.open.push_back((self.meta_len, rest));
        }
        offset
    }
}
