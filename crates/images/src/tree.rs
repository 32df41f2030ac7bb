//! The tree of names and attributes that layers are merged into. File data is kept elsewhere ([`FileData`]).
//!
//! Owns the rules of a merge: what an entry replaces, what a whiteout hides, how a path through a symlink is followed (inside the tree
//! only, like a chroot: absolute targets start at the root and `..` stops there, as in umoci and containerd), and the limits that keep a
//! hostile layer from taking memory or time. Must not know tar.

mod attributes;
mod error;
mod path;

pub(super) use attributes::xattr_prefix;
pub use attributes::{Attributes, Device, Kept, Timestamp, Xattr};
pub use error::TreeError;
pub(super) use error::text;
pub(super) use path::check_target;
pub use path::{EntryPath, MAX_NAME_LEN, MAX_PATH_LEN, MAX_TARGET_LEN};

use super::erofs::file::FileData;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};

/// Most names in one tree.
pub const MAX_ENTRIES: usize = 1_000_000;
/// Most bytes of all names, symlink targets and extended attributes of one tree, which are held in memory.
pub const MAX_METADATA: usize = 64 << 20;
/// Most directories above a file.
pub const MAX_DEPTH: usize = 1024;
/// Most symlinks followed for one path, as in Linux.
pub const MAX_SYMLINKS: usize = 40;
/// Most components visited for one path, including those of symlink targets.
const MAX_STEPS: usize = 8192;
/// The same for all paths of a layer: 100 000 entries of 300 components.
const MAX_LAYER_STEPS: usize = 30_000_000;

/// Identifies an inode of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(u32);

impl InodeId {
    /// The index for tables beside the tree.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub enum Content {
    Directory(Directory),
    File(FileData),
    /// A symbolic link with its target.
    Symlink(Box<[u8]>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// The names of a directory, sorted by their bytes.
#[derive(Debug, Default)]
pub struct Directory(BTreeMap<Box<[u8]>, Entry>);

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub inode: InodeId,
    /// The layer that wrote this name last.
    layer: u16,
}

/// A file, directory or other entry. Several names may lead to one that is not a directory.
#[derive(Debug)]
pub struct Inode {
    /// Owner, mode, time, extended attributes.
    pub attributes: Attributes,
    /// Type and type-specific part.
    pub content: Content,
    /// Number of its names; 1 for directories.
    pub nlink: u32,
}

/// The place of an entry: the directory exists, the name may or may not.
#[derive(Debug, Clone)]
pub struct TreePlace {
    directory: InodeId,
    /// `None`: the root itself.
    name: Option<Box<[u8]>>,
    depth: usize,
}

#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Option<Inode>>,
    vacant: Vec<InodeId>,
    layer: u16,
    entries: usize,
    metadata: usize,
    freed: Vec<FileData>,
    /// Directories without content of lower layers: whiteouts need not visit them again.
    pruned: HashSet<InodeId>,
    /// Steps of path walks in this layer.
    steps: Cell<usize>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The root's id in every tree.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree with only a root (0755, owned by root, mtime 0).
    pub fn new() -> Self {
        let root = Inode {
            attributes: Attributes::plain(0o755),
            content: Content::Directory(Directory::default()),
            nlink: 1,
        };
        Self {
            inodes: vec![Some(root)],
            vacant: Vec::new(),
            layer: 0,
            entries: 0,
            metadata: 0,
            freed: Vec::new(),
            pruned: HashSet::new(),
            steps: Cell::new(0),
        }
    }

    /// Starts the next layer: from now on whiteouts hide only what exists now.
    pub fn begin_layer(&mut self) {
        self.layer = self.layer.saturating_add(1);
        self.pruned.clear();
        self.steps.set(0);
    }

    /// Number of names in the tree.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is only a root.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Exclusive upper bound of all ids' indexes.
    pub fn id_bound(&self) -> usize {
        self.inodes.len()
    }

    /// The inode of an id taken from this tree.
    pub fn inode(&self, id: InodeId) -> &Inode {
        // Ids come from entries, and an entry's inode is never removed before the entry.
        self.inodes[id.index()].as_ref().unwrap_or_else(|| unreachable!("an id without its inode"))
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes[id.index()].as_mut().unwrap_or_else(|| unreachable!("an id without its inode"))
    }

    /// The names of a directory in order; empty for anything else.
    pub fn entries(&self, directory: InodeId) -> impl Iterator<Item = (&[u8], Entry)> {
        let names = match &self.inode(directory).content {
            Content::Directory(directory) => Some(&directory.0),
            _ => None,
        };
        names.into_iter().flatten().map(|(name, entry)| (&**name, *entry))
    }

    fn child(&self, directory: InodeId, name: &[u8]) -> Option<Entry> {
        match &self.inode(directory).content {
            Content::Directory(directory) => directory.0.get(name).copied(),
            _ => None,
        }
    }

    fn children_mut(&mut self, directory: InodeId) -> Option<&mut BTreeMap<Box<[u8]>, Entry>> {
        match &mut self.inode_mut(directory).content {
            Content::Directory(directory) => Some(&mut directory.0),
            _ => None,
        }
    }

    /// Data of files that left the tree since the last call.
    pub fn take_freed(&mut self) -> Vec<FileData> {
        std::mem::take(&mut self.freed)
    }

    /// The entry at a place.
    pub fn get(&self, place: &TreePlace) -> Option<&Inode> {
        self.at(place).map(|entry| self.inode(entry.inode))
    }

    fn at(&self, place: &TreePlace) -> Option<Entry> {
        match &place.name {
            None => Some(Entry { inode: Self::ROOT, layer: self.layer }),
            Some(name) => self.child(place.directory, name),
        }
    }

    /// Finds the place of a path. Missing directories on the way are created (0755, owned by root, mtime 0).
    pub fn locate(&mut self, path: &EntryPath<'_>) -> Result<TreePlace, TreeError> {
        let Some((name, parents)) = path.components().split_last() else {
            return Ok(TreePlace { directory: Self::ROOT, name: None, depth: 0 });
        };
        let stack = self.walk_making(parents).map_err(|error| error.on(path))?;
        let directory = stack.last().copied().unwrap_or(Self::ROOT);
        Ok(TreePlace { directory, name: Some((*name).into()), depth: stack.len() })
    }

    /// Removes the entry at a place (a directory with its content), so that another one can be put there.
    pub fn evict(&mut self, place: &TreePlace) {
        if let Some(name) = &place.name {
            self.remove(place.directory, name);
        }
    }

    /// Leaves nothing at a place, whichever layer it is of.
    pub fn erase(&mut self, place: &TreePlace) -> Result<(), TreeError> {
        if place.name.is_none() {
            return Err(TreeError::RootReplaced);
        }
        self.evict(place);
        Ok(())
    }

    /// Puts an entry at a place, replacing an existing one.
    pub fn insert(
        &mut self,
        place: &TreePlace,
        attributes: Attributes,
        content: Content,
    ) -> Result<(), TreeError> {
        let Some(name) = place.name.clone() else {
            return Err(TreeError::RootReplaced);
        };
        self.remove(place.directory, &name);
        let inode = self.new_inode(attributes, content)?;
        self.name_inode(place.directory, name, place.depth, inode)
    }

    /// Puts a directory at a place. An existing directory gets the new attributes and keeps its content.
    pub fn put_directory(&mut self, place: &TreePlace, attributes: Attributes) -> Result<(), TreeError> {
        let existing =
            self.at(place).filter(|entry| matches!(self.inode(entry.inode).content, Content::Directory(_)));
        let Some(entry) = existing else {
            return self.insert(place, attributes, Content::Directory(Directory::default()));
        };
        self.charge(attributes.weight())?;
        let old = std::mem::replace(&mut self.inode_mut(entry.inode).attributes, attributes);
        self.metadata -= old.weight();
        self.mark(place);
        Ok(())
    }

    /// Gives the entry at `target` another name.
    pub fn hardlink(&mut self, place: &TreePlace, target: &EntryPath<'_>) -> Result<(), TreeError> {
        let missing = || TreeError::HardlinkTarget { target: target.text() };
        let (name, parents) = target
            .components()
            .split_last()
            .ok_or_else(|| TreeError::HardlinkDirectory { target: target.text() })?;
        let stack = self.walk(parents).map_err(|error| error.on(target))?.ok_or_else(missing)?;
        let directory = stack.last().copied().unwrap_or(Self::ROOT);
        let inode = self.child(directory, name).ok_or_else(missing)?.inode;
        if matches!(self.inode(inode).content, Content::Directory(_)) {
            return Err(TreeError::HardlinkDirectory { target: target.text() });
        }
        let new_name = place.name.clone().ok_or(TreeError::RootReplaced)?;
        if self.at(place).is_some_and(|entry| entry.inode == inode) {
            self.mark(place);
            return Ok(());
        }
        // The count is raised before the removal, because the replaced entry may be the directory of the target.
        self.inode_mut(inode).nlink += 1;
        self.remove(place.directory, &new_name);
        self.name_inode(place.directory, new_name, place.depth, inode)
    }

    /// Hides `name` of lower layers in the directory `parents` (`.wh.name` of OCI's image-spec, layer.md). Entries of this layer stay,
    /// wherever the whiteout is in the layer.
    pub fn whiteout(&mut self, parents: &EntryPath<'_>, name: &[u8]) -> Result<(), TreeError> {
        let Some(directory) = self.existing(parents)? else { return Ok(()) };
        if let Some(entry) = self.child(directory, name)
            && !self.hide_lower(entry)
        {
            self.remove(directory, name);
        }
        Ok(())
    }

    /// Hides everything of lower layers in a directory (`.wh..wh..opq`).
    pub fn opaque(&mut self, directory: &EntryPath<'_>) -> Result<(), TreeError> {
        if let Some(directory) = self.existing(directory)? {
            self.prune(directory);
        }
        Ok(())
    }

    /// The directory at a path; `None` when it does not exist: a layer may replace a directory by a file and also hide the content of the
    /// directory.
    fn existing(&self, path: &EntryPath<'_>) -> Result<Option<InodeId>, TreeError> {
        match self.walk(path.components()) {
            Ok(stack) => Ok(stack.and_then(|stack| stack.last().copied())),
            Err(Fault::NotADirectory(_)) => Ok(None),
            Err(fault) => Err(fault.on(path)),
        }
    }

    /// Removes the content of lower layers from an entry. True: content of this layer is left, so the entry stays.
    fn hide_lower(&mut self, entry: Entry) -> bool {
        let is_directory = matches!(self.inode(entry.inode).content, Content::Directory(_));
        let something_left = is_directory && self.prune(entry.inode);
        if something_left && entry.layer < self.layer {
            // The directory stays only as a parent of this layer's files, as if it had been created for them.
            let old =
                std::mem::replace(&mut self.inode_mut(entry.inode).attributes, Attributes::plain(0o755));
            self.metadata -= old.weight();
        }
        something_left || entry.layer == self.layer
    }

    /// Removes all content of lower layers below a directory. True: something is left. Depth is limited, so this may recurse.
    fn prune(&mut self, directory: InodeId) -> bool {
        if self.pruned.insert(directory) {
            let entries: Vec<_> =
                self.entries(directory).map(|(name, entry)| (Box::from(name), entry)).collect();
            for (name, entry) in entries {
                let name: Box<[u8]> = name;
                if !self.hide_lower(entry) {
                    self.remove(directory, &name);
                }
            }
        }
        self.entries(directory).next().is_some()
    }

    fn mark(&mut self, place: &TreePlace) {
        let layer = self.layer;
        if let Some(name) = &place.name
            && let Some(entry) = self.children_mut(place.directory).and_then(|names| names.get_mut(name))
        {
            entry.layer = layer;
        }
    }

    /// The directories from the root to the end of `components`; `None` when something is missing.
    fn walk(&self, components: &[&[u8]]) -> Result<Option<Vec<InodeId>>, Fault> {
        let mut walk = Walk::new(components);
        walk.spend(self, components.len())?;
        match walk.step(self)? {
            Step::Arrived => Ok(Some(walk.stack)),
            Step::Missing(_) => Ok(None),
        }
    }

    fn walk_making(&mut self, components: &[&[u8]]) -> Result<Vec<InodeId>, Fault> {
        let mut walk = Walk::new(components);
        walk.spend(self, components.len())?;
        loop {
            match walk.step(self)? {
                Step::Arrived => return Ok(walk.stack),
                Step::Missing(name) => {
                    let parent = walk.stack.last().copied().unwrap_or(Self::ROOT);
                    let inode = self
                        .new_inode(Attributes::plain(0o755), Content::Directory(Directory::default()))
                        .map_err(Fault::Tree)?;
                    self.name_inode(parent, name.into(), walk.stack.len(), inode).map_err(Fault::Tree)?;
                    walk.stack.push(inode);
                }
            }
        }
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.metadata += bytes;
        if self.metadata > MAX_METADATA { Err(TreeError::TooMuchMetadata) } else { Ok(()) }
    }

    fn new_inode(&mut self, attributes: Attributes, content: Content) -> Result<InodeId, TreeError> {
        self.charge(attributes.weight() + weight(&content))?;
        let inode = Inode { attributes, content, nlink: 1 };
        if let Some(id) = self.vacant.pop() {
            self.inodes[id.index()] = Some(inode);
            return Ok(id);
        }
        let id = InodeId(u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooManyEntries)?);
        self.inodes.push(Some(inode));
        Ok(id)
    }

    fn name_inode(
        &mut self,
        directory: InodeId,
        name: Box<[u8]>,
        depth: usize,
        inode: InodeId,
    ) -> Result<(), TreeError> {
        if depth > MAX_DEPTH {
            return Err(TreeError::TooDeep);
        }
        self.entries += 1;
        if self.entries > MAX_ENTRIES {
            return Err(TreeError::TooManyEntries);
        }
        path::check_name(&name)?;
        self.charge(name.len())?;
        let entry = Entry { inode, layer: self.layer };
        if let Some(names) = self.children_mut(directory) {
            names.insert(name, entry);
        }
        Ok(())
    }

    /// Removes a name, and with the last name its inode with everything below.
    fn remove(&mut self, directory: InodeId, name: &[u8]) {
        let Some(entry) = self.children_mut(directory).and_then(|names| names.remove(name)) else { return };
        self.forget_name(name);
        let mut doomed = vec![entry.inode];
        while let Some(id) = doomed.pop() {
            let inode = self.inode_mut(id);
            inode.nlink -= 1;
            if inode.nlink > 0 {
                continue;
            }
            let Some(inode) = self.inodes[id.index()].take() else { continue };
            self.vacant.push(id);
            self.metadata -= inode.attributes.weight() + weight(&inode.content);
            match inode.content {
                Content::File(file) => self.freed.push(file),
                Content::Directory(names) => {
                    for (name, entry) in names.0 {
                        self.forget_name(&name);
                        doomed.push(entry.inode);
                    }
                }
                _ => {}
            }
        }
    }

    fn forget_name(&mut self, name: &[u8]) {
        self.entries -= 1;
        self.metadata -= name.len();
    }
}

fn weight(content: &Content) -> usize {
    match content {
        Content::Symlink(target) => target.len(),
        _ => 0,
    }
}

/// An error of a walk, before the path is added.
#[derive(Debug)]
enum Fault {
    NotADirectory(Box<[u8]>),
    Loop,
    Tree(TreeError),
}

impl Fault {
    fn on(self, path: &EntryPath<'_>) -> TreeError {
        match self {
            Self::NotADirectory(name) => TreeError::NotADirectory { path: path.text(), name: text(&name) },
            Self::Loop => TreeError::SymlinkLoop { path: path.text() },
            Self::Tree(error) => error,
        }
    }
}

/// A walk down the tree that follows symlinks inside it.
struct Walk<'a> {
    /// The directories passed, root first, for `..` in a symlink's target.
    stack: Vec<InodeId>,
    /// Remaining components, the next one last.
    pending: Vec<Cow<'a, [u8]>>,
    links: usize,
    steps: usize,
}

enum Step<'a> {
    Arrived,
    Missing(Cow<'a, [u8]>),
}

impl<'a> Walk<'a> {
    fn new(components: &[&'a [u8]]) -> Self {
        let pending = components.iter().rev().map(|component| Cow::Borrowed(*component)).collect();
        Self { stack: vec![Tree::ROOT], pending, links: 0, steps: 0 }
    }

    /// Continues until the end or the first missing name.
    fn step(&mut self, tree: &Tree) -> Result<Step<'a>, Fault> {
        while let Some(name) = self.pending.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    if self.stack.len() > 1 {
                        self.stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let here = self.stack.last().copied().unwrap_or(Tree::ROOT);
            let Some(entry) = tree.child(here, &name) else { return Ok(Step::Missing(name)) };
            match &tree.inode(entry.inode).content {
                Content::Directory(_) => self.stack.push(entry.inode),
                Content::Symlink(target) => self.follow(tree, target)?,
                _ => return Err(Fault::NotADirectory(name.as_ref().into())),
            }
        }
        Ok(Step::Arrived)
    }

    fn follow(&mut self, tree: &Tree, target: &[u8]) -> Result<(), Fault> {
        self.links += 1;
        if self.links > MAX_SYMLINKS {
            return Err(Fault::Loop);
        }
        if target.starts_with(b"/") {
            self.stack.truncate(1);
        }
        let parts = || target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        self.spend(tree, parts().count())?;
        self.pending.extend(parts().rev().map(|part| Cow::Owned(part.to_vec())));
        Ok(())
    }

    /// Checked before steps are made and memory is allocated for them.
    fn spend(&mut self, tree: &Tree, steps: usize) -> Result<(), Fault> {
        self.steps += steps;
        tree.steps.set(tree.steps.get() + steps);
        if self.steps > MAX_STEPS {
            return Err(Fault::Loop);
        }
        if tree.steps.get() > MAX_LAYER_STEPS { Err(Fault::Tree(TreeError::TooManySteps)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
