//! Walks over everything in an image in the order of its directories. Checks what no single inode shows: names are sorted, every directory
//! has one place, link counts are right, and the sums stay within what an image can hold.

use super::super::super::tree::{MAX_DEPTH, MAX_ENTRIES, MAX_METADATA};
use super::super::format::CHUNK_BLOCKS;
use super::dir::Name;
use super::{Inode, InodeKind, ReadAt, ReadError, Reader};
use magikvm_proto::raised;
use std::collections::HashMap;
use std::vec::IntoIter;

/// Visits everything. A file with several names is passed to `file` first and to `link` for each further name.
pub trait Visitor<S> {
    type Error: From<ReadError>;
    /// A directory; everything until its `leave` is in it. The root's name is empty.
    fn enter(&mut self, image: &Reader<S>, name: &[u8], directory: &Inode) -> Result<(), Self::Error>;
    /// The end of the innermost directory.
    fn leave(&mut self, image: &Reader<S>, directory: &Inode) -> Result<(), Self::Error>;
    /// Anything but a directory.
    fn file(&mut self, image: &Reader<S>, name: &[u8], inode: &Inode) -> Result<(), Self::Error>;
    /// Another name of a file that was passed to `file` before.
    fn link(&mut self, image: &Reader<S>, name: &[u8], inode: &Inode) -> Result<(), Self::Error>;
}

/// A directory on the current path.
struct Frame {
    inode: Inode,
    parent: u32,
    /// Names of the current block, and the number of the next block.
    names: IntoIter<Name>,
    next_block: u64,
    /// The previous name, since names are sorted.
    last: Box<[u8]>,
    dots: u32,
    directories: u32,
}

impl Frame {
    fn new(inode: Inode, parent: u32) -> Self {
        let names = Vec::new().into_iter();
        Self { inode, parent, names, next_block: 0, last: Box::default(), dots: 0, directories: 0 }
    }

    /// The next name other than `.` and `..`; `None` at the end.
    fn next<S: ReadAt>(&mut self, image: &Reader<S>) -> Result<Option<Name>, ReadError> {
        loop {
            let Some(name) = self.names.next() else {
                let Some(names) = image.names(&self.inode, self.next_block)? else { return Ok(None) };
                self.next_block += 1;
                self.names = names.into_iter();
                continue;
            };
            if name.name <= self.last {
                return Err(self.inode.damaged("the names of the directory are not sorted"));
            }
            self.last.clone_from(&name.name);
            let expected = match &*name.name {
                b"." => self.inode.nid,
                b".." => self.parent,
                _ => return Ok(Some(name)),
            };
            if name.nid != expected {
                return Err(self.inode.damaged("the directory has a wrong \".\" or \"..\""));
            }
            self.dots += 1;
        }
    }

    fn finished(&self) -> Result<(), ReadError> {
        if self.dots != 2 {
            return Err(self.inode.damaged("the directory lacks \".\" or \"..\""));
        }
        if self.inode.nlink != self.directories.saturating_add(2) {
            return Err(self.inode.damaged("the directory has a wrong number of links"));
        }
        Ok(())
    }
}

/// Totals so far, so that the walk ends.
struct Seen {
    /// Remaining names for each inode.
    names_left: HashMap<u32, u32>,
    entries: usize,
    content_left: u64,
    metadata_left: u64,
}

impl Seen {
    fn new(image_size: u64) -> Self {
        Self {
            names_left: HashMap::new(),
            entries: 0,
            // A block holds at most a compressed piece.
            content_left: image_size.saturating_mul(CHUNK_BLOCKS.into()).min(raised::in_force().rootfs_bytes),
            // The writer counts without headers and padding.
            metadata_left: image_size.min(4 * MAX_METADATA as u64),
        }
    }

    fn name(&mut self, name: &[u8]) -> Result<(), ReadError> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(ReadError::TooMuch { what: "names" });
        }
        self.metadata(name.len() as u64)
    }

    fn metadata(&mut self, bytes: u64) -> Result<(), ReadError> {
        let left = self.metadata_left.checked_sub(bytes);
        self.metadata_left =
            left.ok_or(ReadError::TooMuch { what: "bytes of names and extended attributes" })?;
        Ok(())
    }

    /// True: seen for the first time.
    fn is_new(&mut self, inode: &Inode) -> Result<bool, ReadError> {
        if let Some(left) = self.names_left.get_mut(&inode.nid) {
            if inode.kind == InodeKind::Directory {
                return Err(inode.damaged("the directory is in two places"));
            }
            *left = left.checked_sub(1).ok_or_else(|| inode.damaged("it has more names than it says"))?;
            return Ok(false);
        }
        let names = if inode.kind == InodeKind::Directory { 1 } else { inode.nlink };
        let left = names.checked_sub(1).ok_or_else(|| inode.damaged("it says that it has no name"))?;
        self.names_left.insert(inode.nid, left);
        self.metadata(inode.xattrs_len.into())?;
        match inode.kind {
            InodeKind::Regular => {
                let left = self.content_left.checked_sub(inode.size);
                self.content_left = left.ok_or(ReadError::TooMuch { what: "bytes of data" })?;
            }
            InodeKind::Symlink => self.metadata(inode.size)?,
            _ => {}
        }
        Ok(true)
    }
}

/// Shows everything to a visitor. Returns the number of inodes.
pub fn walk<S: ReadAt, V: Visitor<S>>(image: &Reader<S>, visitor: &mut V) -> Result<u64, V::Error> {
    let mut seen = Seen::new(image.size());
    let root = image.inode(image.root)?;
    if root.kind != InodeKind::Directory {
        return Err(root.damaged("the root is not a directory").into());
    }
    seen.is_new(&root)?;
    visitor.enter(image, b"", &root)?;
    let mut stack = vec![Frame::new(root, root.nid)];
    while let Some(frame) = stack.last_mut() {
        let Some(name) = frame.next(image)? else {
            frame.finished()?;
            visitor.leave(image, &frame.inode)?;
            stack.pop();
            continue;
        };
        seen.name(&name.name)?;
        let inode = image.inode(name.nid)?;
        if !name.agrees(&inode) {
            return Err(inode.damaged("its type is not that of its name").into());
        }
        let new = seen.is_new(&inode)?;
        if inode.kind != InodeKind::Directory {
            if new {
                visitor.file(image, &name.name, &inode)?;
            } else {
                visitor.link(image, &name.name, &inode)?;
            }
            continue;
        }
        frame.directories += 1;
        let parent = frame.inode.nid;
        if stack.len() > MAX_DEPTH {
            return Err(inode.damaged("it is nested too deeply").into());
        }
        visitor.enter(image, &name.name, &inode)?;
        stack.push(Frame::new(inode, parent));
    }
    if let Some((nid, _)) = seen.names_left.iter().find(|(_, left)| **left > 0) {
        return Err(ReadError::Inode { nid: *nid, problem: "it has fewer names than it says" }.into());
    }
    let inodes = seen.names_left.len() as u64;
    if inodes != image.inodes {
        return Err(ReadError::Super { problem: "it counts other inodes than there are" }.into());
    }
    Ok(inodes)
}

/// The content of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Number of files, directories and all other entries.
    pub inodes: u64,
    pub files: u64,
    /// Bytes of all regular files.
    pub bytes: u64,
}

/// Reads everything in an image and checks its structure. Only the digest tells whether the content is unchanged.
pub fn check<S: ReadAt>(image: S) -> Result<Summary, ReadError> {
    let mut summary = Summary::default();
    let inodes = walk(&Reader::open(image)?, &mut summary)?;
    Ok(Summary { inodes, ..summary })
}

impl<S: ReadAt> Visitor<S> for Summary {
    type Error = ReadError;

    fn enter(&mut self, image: &Reader<S>, _: &[u8], directory: &Inode) -> Result<(), ReadError> {
        image.xattrs(directory).map(drop)
    }

    fn leave(&mut self, _: &Reader<S>, _: &Inode) -> Result<(), ReadError> {
        Ok(())
    }

    fn file(&mut self, image: &Reader<S>, _: &[u8], inode: &Inode) -> Result<(), ReadError> {
        image.xattrs(inode)?;
        match inode.kind {
            InodeKind::Symlink => image.target(inode).map(drop),
            InodeKind::Regular => {
                self.files += 1;
                image.data(inode, &mut |_, bytes| {
                    self.bytes += bytes.len() as u64;
                    Ok(())
                })
            }
            _ => Ok(()),
        }
    }

    fn link(&mut self, _: &Reader<S>, _: &[u8], _: &Inode) -> Result<(), ReadError> {
        Ok(())
    }
}
