//! The content of a tree and of an image in the same form, for tests.

use super::super::tree::{Attributes, Content, Device, InodeId, Tree};
use super::read::{Inode, InodeKind, ReadAt, ReadError, Reader, Visitor, walk};
use super::sum::Sum;
use std::collections::{BTreeMap, HashMap};

/// All properties of a name.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct Seen {
    what: What,
    attributes: (u16, u32, u32, i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first path of the same inode.
    first: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Directory,
    File(u64, Sum),
    Symlink(Vec<u8>),
    Device(u8, Device),
    Fifo,
}

pub(in super::super) type Listing = BTreeMap<Vec<u8>, Seen>;

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    [directory, b"/", name].concat()
}

/// Everything in a tree.
pub(in super::super) fn tree(tree: &Tree) -> Listing {
    let mut found = Listing::new();
    let mut firsts: HashMap<InodeId, Vec<u8>> = HashMap::new();
    let mut todo = vec![(Vec::new(), Tree::ROOT)];
    while let Some((path, id)) = todo.pop() {
        // Consumed from the end, so pushed in reverse.
        let entries: Vec<_> =
            tree.entries(id).map(|(name, entry)| (join(&path, name), entry.inode)).collect();
        todo.extend(entries.into_iter().rev());
        let inode = tree.inode(id);
        let first = firsts.entry(id).or_insert_with(|| path.clone()).clone();
        let what = match &inode.content {
            Content::Directory(_) => What::Directory,
            Content::File(file) => What::File(file.size, file.sum),
            Content::Symlink(target) => What::Symlink(target.to_vec()),
            Content::CharDevice(device) => What::Device(b'c', *device),
            Content::BlockDevice(device) => What::Device(b'b', *device),
            Content::Fifo => What::Fifo,
        };
        let Attributes { mode, uid, gid, mtime, xattrs } = &inode.attributes;
        let prefix = |number| super::super::tree::xattr_prefix(number).unwrap_or_default();
        let xattrs = xattrs
            .iter()
            .map(|xattr| ([prefix(xattr.prefix_index()), xattr.suffix()].concat(), xattr.value().to_vec()));
        let attributes = (*mode, *uid, *gid, mtime.seconds, mtime.nanoseconds);
        found.insert(path, Seen { what, attributes, xattrs: xattrs.collect(), first });
    }
    found
}

/// Everything in an image.
pub(in super::super) fn image<S: ReadAt>(source: S) -> Result<Listing, ReadError> {
    let mut lister = Lister::default();
    walk(&Reader::open(source)?, &mut lister)?;
    Ok(lister.found)
}

#[derive(Default)]
struct Lister {
    found: Listing,
    path: Vec<Vec<u8>>,
    firsts: HashMap<u32, Vec<u8>>,
}

impl Lister {
    fn add<S: ReadAt>(&mut self, image: &Reader<S>, path: Vec<u8>, inode: &Inode) -> Result<(), ReadError> {
        let what = match inode.kind {
            InodeKind::Directory => What::Directory,
            InodeKind::Regular => {
                let (mut sum, mut size) = (Sum::default(), 0);
                image.data(inode, &mut |offset, bytes| {
                    assert_eq!(offset, size);
                    sum.add(offset, bytes);
                    size += bytes.len() as u64;
                    Ok::<_, ReadError>(())
                })?;
                What::File(size, sum)
            }
            InodeKind::Symlink => What::Symlink(image.target(inode)?),
            InodeKind::CharDevice(device) => What::Device(b'c', device),
            InodeKind::BlockDevice(device) => What::Device(b'b', device),
            InodeKind::Fifo => What::Fifo,
        };
        let first = self.firsts.entry(inode.nid).or_insert_with(|| path.clone()).clone();
        let Inode { mode, uid, gid, mtime, .. } = inode;
        let attributes = (*mode, *uid, *gid, mtime.seconds, mtime.nanoseconds);
        self.found.insert(path, Seen { what, attributes, xattrs: image.xattrs(inode)?, first });
        Ok(())
    }

    fn below(&self, name: &[u8]) -> Vec<u8> {
        self.path.last().map_or_else(Vec::new, |directory| join(directory, name))
    }
}

impl<S: ReadAt> Visitor<S> for Lister {
    type Error = ReadError;

    fn enter(&mut self, image: &Reader<S>, name: &[u8], directory: &Inode) -> Result<(), ReadError> {
        let path = self.below(name);
        self.path.push(path.clone());
        self.add(image, path, directory)
    }

    fn leave(&mut self, _: &Reader<S>, _: &Inode) -> Result<(), ReadError> {
        self.path.pop();
        Ok(())
    }

    fn file(&mut self, image: &Reader<S>, name: &[u8], inode: &Inode) -> Result<(), ReadError> {
        self.add(image, self.below(name), inode)
    }

    fn link(&mut self, image: &Reader<S>, name: &[u8], inode: &Inode) -> Result<(), ReadError> {
        self.add(image, self.below(name), inode)
    }
}
