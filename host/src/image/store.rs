//! The store: images by name, each baked once into a read-only EROFS file that all pods share.
//!
//! On disk: `index.json` (see `index`), `configs/<id>.json` (configurations as imported, checked when read),
//! `rootfs/<key>.erofs`, `locks/`. A file is either complete under its name or not there: what a killed process leaves
//! is swept when the store is opened. Must not know pods; a root file system is in use while its [`RootfsFile`] lives.

use super::bake::{self, BakeError};
use super::digest::Digest;
use super::document::{Config, ImageDefaults, MAX_CONFIG};
use super::erofs::RootfsCompression;
use super::index::{ImageEntry, ImageRecord, Index, RootfsEntry, SCHEMA};
use super::lock::{self, BakeLock, Hold};
use super::open::{self, OpenError, Opened};
use super::reference::Reference;
use super::source::Source;
use crate::store::atomic::{self, FileError, Staged};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes of `index.json`: far more than thousands of images need.
const MAX_INDEX: u64 = 64 << 20;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The source is no usable image.
    #[error("cannot import {source_name}")]
    Open {
        /// The source.
        source_name: String,
        /// Why.
        #[source]
        source: Box<OpenError>,
    },
    /// The layers are no usable root file system.
    #[error("cannot import {source_name}")]
    Bake {
        /// The source.
        source_name: String,
        /// Why.
        #[source]
        source: Box<BakeError>,
    },
    /// The name pins a digest that the source does not have.
    #[error("the name {name} pins a digest, but {source_name} holds {}", digests(found))]
    Pinned {
        /// The name.
        name: Box<Reference>,
        /// The source.
        source_name: String,
        /// Digests of the source.
        found: Vec<Digest>,
    },
    /// There is no such image.
    #[error("there is no image {}", name.familiar())]
    NotFound {
        /// The name.
        name: Box<Reference>,
        /// Names that look like it.
        near: Vec<String>,
    },
    /// There is no image with this id.
    #[error("there is no image with the id {id}")]
    UnknownId {
        /// The id.
        id: Digest,
    },
    /// A pod uses it.
    #[error("the image {} is used by a pod", name.familiar())]
    InUse {
        /// The name.
        name: Box<Reference>,
    },
    /// A file of the store is damaged.
    #[error("the image store is damaged: {}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// The index cannot be read.
    #[error("the image store is damaged: {} cannot be read", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The index is of a newer version.
    #[error("{} was written by a newer magikvm (form {found}; this one knows {SCHEMA})", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its form.
        found: u32,
    },
    /// A file operation.
    #[error(transparent)]
    File(#[from] FileError),
}

fn digests(found: &[Digest]) -> String {
    match found {
        [] => "an image without a manifest digest (a docker archive)".to_owned(),
        found => found.iter().map(Digest::to_string).collect::<Vec<_>>().join(" and "),
    }
}

impl ImageError {
    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { name, near } => {
                let import = format!("magikvm image import oci:DIR[:TAG] --name {}", name.familiar());
                Some(if near.is_empty() {
                    import
                } else {
                    format!("did you mean {}? Otherwise: {import}", near.join(" or "))
                })
            }
            Self::UnknownId { .. } => Some("magikvm image ls".to_owned()),
            Self::InUse { .. } => Some("magikvm ps, then magikvm rm POD, then once more".to_owned()),
            Self::Pinned { name, .. } => Some(format!("use --name {}", name.without_digest().familiar())),
            Self::Damaged { .. } => Some("import the image again".to_owned()),
            Self::Index { path, .. } => {
                Some(format!("move {} away and import the images again", path.display()))
            }
            _ => None,
        }
    }
}

/// What an import is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportProgress {
    /// The image is known: so many layers with so many stored bytes.
    Opened {
        /// Layers.
        layers: usize,
        /// Stored bytes of all layers.
        bytes: u64,
    },
    /// Another process is baking the same layers; waiting for it.
    Waiting,
    /// The layers are baked already.
    Reused,
    /// A layer is being merged.
    Layer {
        /// Counted from 1.
        number: usize,
        /// How many there are.
        of: usize,
        /// Stored bytes read so far.
        done_bytes: u64,
        /// Stored bytes of this layer.
        total_bytes: u64,
    },
    /// Everything is written; making it durable.
    Finishing,
}

impl std::fmt::Display for ImportProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Opened { layers, bytes } => write!(f, "Importing {layers} layers: {bytes} bytes"),
            Self::Waiting => f.write_str("Waiting for another import of the same layers"),
            Self::Reused => f.write_str("The layers are here already"),
            Self::Layer { number, of, done_bytes, total_bytes } => {
                let percent = done_bytes.saturating_mul(100).checked_div(*total_bytes).unwrap_or(100);
                write!(f, "Layer {number} of {of}: {percent} %")
            }
            Self::Finishing => f.write_str("Writing to disk"),
        }
    }
}

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The image has other names and stays.
    Name,
    /// It was the last name: the image is gone.
    Image {
        /// Its id.
        id: Digest,
        /// Bytes freed on disk; 0 when another image shares the root file system.
        freed_bytes: u64,
    },
}

/// An image that is ready for use, and stays while this lives.
#[derive(Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    /// What the store knows about it.
    pub record: ImageRecord,
    /// What it says about how it is run.
    pub config: ImageDefaults,
    /// Its root file system.
    pub rootfs: RootfsFile,
}

/// A root file system's EROFS file; it is not removed while this lives.
#[derive(Debug)]
pub struct RootfsFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size, a multiple of 4096.
    pub size_bytes: u64,
    /// Digest of its layers: images with the same layers have the same file.
    pub key: Digest,
    /// Open, with a shared lock on its first byte.
    _lock: File,
}

/// The images of one state root.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// Opens the store in a directory (made with mode 0700 when it is missing) and sweeps what killed processes left.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let store = Self { root: root.to_owned() };
        for dir in [root.to_owned(), store.dir("rootfs"), store.dir("configs"), store.dir("locks")] {
            atomic::create_dir_all(&dir, 0o700)?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// Imports an image under a name, which another image may have had. Layers that are baked already are not read.
    pub fn import(
        &self,
        source: &Source,
        name: &Reference,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<ImageRecord, ImageError> {
        let source_name = source.to_string();
        let opened = open::open(source).map_err(|error| ImageError::Open {
            source_name: source_name.clone(),
            source: Box::new(error),
        })?;
        if name.digest().is_some_and(|pinned| !opened.digests.contains(&pinned)) {
            return Err(ImageError::Pinned {
                name: Box::new(name.clone()),
                source_name,
                found: opened.digests,
            });
        }
        let bytes = opened.layers.iter().map(|layer| layer.length).sum();
        progress(ImportProgress::Opened { layers: opened.layers.len(), bytes });
        let key = bake::key(&opened.config.rootfs.diff_ids, RootfsCompression::None);
        // Held until the index knows the file: nobody else bakes it, and no sweep takes it for a leftover.
        let _bake = BakeLock::wait(self.bake_lock(&key), &mut || progress(ImportProgress::Waiting))?;
        let rootfs = match self.baked(&key)? {
            Some(rootfs) => {
                progress(ImportProgress::Reused);
                rootfs
            }
            None => self.bake(&opened, key, &source_name, progress)?,
        };
        self.record(&opened, name, rootfs)
    }

    /// All images, sorted by name.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        Ok(self.read_index()?.records())
    }

    /// Takes a name away; with its last name the image goes, unless a pod uses it.
    pub fn remove(&self, name: &Reference) -> Result<Removed, ImageError> {
        let _lock = self.lock(Hold::Alone)?;
        let mut index = self.read_index()?;
        let Some(id) = index.names.remove(name) else {
            return Err(ImageError::NotFound { name: Box::new(name.clone()), near: index.near(name) });
        };
        if index.names.values().any(|other| *other == id) {
            self.write_index(&index)?;
            return Ok(Removed::Name);
        }
        match self.drop_image(&mut index, &id)? {
            Some(freed_bytes) => Ok(Removed::Image { id, freed_bytes }),
            None => Err(ImageError::InUse { name: Box::new(name.clone()) }),
        }
    }

    /// The image that a reference means, kept from removal while the result lives.
    pub fn resolve(&self, name: &Reference) -> Result<Image, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        let index = self.read_index()?;
        match index.find(name) {
            Some(id) => self.image(&index, id),
            None => Err(ImageError::NotFound { name: Box::new(name.clone()), near: index.near(name) }),
        }
    }

    /// The image with this id, kept from removal while the result lives.
    pub fn resolve_id(&self, id: &Digest) -> Result<Image, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        self.image(&self.read_index()?, *id)
    }

    fn image(&self, index: &Index, id: Digest) -> Result<Image, ImageError> {
        let (Some(entry), Some(record)) = (index.images.get(&id), index.record(&id)) else {
            return Err(ImageError::UnknownId { id });
        };
        let path = self.rootfs_path(&entry.rootfs.key);
        let file = File::open(&path).map_err(FileError::at("open", &path))?;
        // Nobody holds it alone but under the index lock, which is held here.
        if !lock::lock_in_use(&file, &path, Hold::Shared)? {
            return Err(ImageError::Damaged { path, problem: "it is locked by another program" });
        }
        let size_bytes = file.metadata().map_err(FileError::at("inspect", &path))?.len();
        if size_bytes != entry.rootfs.size_bytes {
            return Err(ImageError::Damaged { path, problem: "it has another size than when it was baked" });
        }
        let rootfs = RootfsFile { path, size_bytes, key: entry.rootfs.key, _lock: file };
        Ok(Image { id, record, config: self.config(&id)?, rootfs })
    }

    /// The configuration of an image, checked against its digest.
    fn config(&self, id: &Digest) -> Result<ImageDefaults, ImageError> {
        let path = self.config_path(id);
        let bytes = read_capped(&path, MAX_CONFIG)?.unwrap_or_default();
        if Digest::of(&bytes) != *id {
            return Err(ImageError::Damaged {
                path,
                problem: "it is not the configuration it is named after",
            });
        }
        let config: Config =
            serde_json::from_slice(&bytes).map_err(|source| ImageError::Index { path, source })?;
        Ok(config.config)
    }

    /// A root file system that the index knows and that is there.
    fn baked(&self, key: &Digest) -> Result<Option<RootfsEntry>, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        let known = self.read_index()?.rootfs(key);
        let there = fs::metadata(self.rootfs_path(key)).map(|metadata| metadata.len()).ok();
        Ok(known.filter(|rootfs| there == Some(rootfs.size_bytes)))
    }

    fn bake(
        &self,
        opened: &Opened,
        key: Digest,
        source_name: &str,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<RootfsEntry, ImageError> {
        let of = opened.layers.len();
        let mut staged = Staged::new(&self.rootfs_path(&key))?;
        let tails = atomic::scratch(&self.dir("rootfs"), bake::TAILS_IN_MEMORY);
        let mut report = |number: usize, done_bytes: u64| {
            let total_bytes = opened.layers[number - 1].length;
            progress(ImportProgress::Layer { number, of, done_bytes, total_bytes });
        };
        let baked =
            bake::bake(&opened.layers, &key, RootfsCompression::None, staged.file(), tails, &mut report)
                .map_err(|error| ImageError::Bake {
                    source_name: source_name.to_owned(),
                    source: Box::new(error),
                })?;
        progress(ImportProgress::Finishing);
        staged.commit(0o600)?;
        Ok(RootfsEntry { key, size_bytes: baked.size, sha256: baked.sha256 })
    }

    /// Gives the image its name in the index. An image that loses its last name by that goes, or stays nameless while used.
    fn record(
        &self,
        opened: &Opened,
        name: &Reference,
        rootfs: RootfsEntry,
    ) -> Result<ImageRecord, ImageError> {
        let _lock = self.lock(Hold::Alone)?;
        let mut index = self.read_index()?;
        let id = opened.id;
        atomic::write(&self.config_path(&id), &opened.config_bytes, 0o600)?;
        let known = index.images.get(&id).map(|image| image.digests.clone()).unwrap_or_default();
        let entry = ImageEntry {
            digests: known.into_iter().chain(opened.digests.iter().copied()).collect(),
            created: opened.config.created.as_deref().map(super::digest::shorten),
            architecture: super::digest::shorten(&opened.config.architecture),
            imported_unix_secs: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            layers: opened.layers.len(),
            rootfs,
        };
        index.images.insert(id, entry);
        index.names.insert(name.clone(), id);
        self.write_index(&index)?;
        for nameless in index.nameless() {
            // One that is in use stays; it is tried again at the next import.
            self.drop_image(&mut index, &nameless)?;
        }
        index.record(&id).ok_or(ImageError::UnknownId { id })
    }

    /// Removes an image from the index and then from disk; the index lock is held. Returns the bytes freed, or None when
    /// it is in use, and then changes nothing.
    fn drop_image(&self, index: &mut Index, id: &Digest) -> Result<Option<u64>, ImageError> {
        let Some(key) = index.images.get(id).map(|image| image.rootfs.key) else { return Ok(Some(0)) };
        let path = self.rootfs_path(&key);
        // Someone who imports the same layers right now needs the file: it stays for them.
        let doomed =
            if index.shares_rootfs(&key, id) { None } else { BakeLock::attempt(self.bake_lock(&key))? };
        if doomed.is_some() && is_in_use(&path)? {
            return Ok(None);
        }
        index.images.remove(id);
        self.write_index(index)?;
        atomic::remove(&self.config_path(id))?;
        let mut freed = 0;
        if doomed.is_some() {
            freed = fs::metadata(&path).map(|metadata| metadata.len()).unwrap_or(0);
            atomic::remove(&path)?;
        }
        Ok(Some(freed))
    }

    /// Removes what killed processes left, when nobody changes the store right now: incomplete files, root file systems
    /// and configurations that the index does not know, lock files.
    fn sweep(&self) -> Result<(), ImageError> {
        let Some(_lock) = lock::attempt(&self.root.join("lock"))? else { return Ok(()) };
        for dir in [self.root.clone(), self.dir("rootfs"), self.dir("configs")] {
            atomic::sweep(&dir)?;
        }
        let index = self.read_index()?;
        for (digest, path) in digests_in(&self.dir("configs"), ".json")? {
            if !index.images.contains_key(&digest) {
                atomic::remove(&path)?;
            }
        }
        for (key, path) in digests_in(&self.dir("rootfs"), ".erofs")? {
            if index.rootfs(&key).is_none()
                && let Some(_bake) = BakeLock::attempt(self.bake_lock(&key))?
            {
                atomic::remove(&path)?;
            }
        }
        for (_, path) in digests_in(&self.dir("locks"), ".lock")? {
            // Taken and dropped: that removes the file.
            drop(BakeLock::attempt(path)?);
        }
        Ok(())
    }

    fn read_index(&self) -> Result<Index, ImageError> {
        let path = self.index_path();
        let Some(bytes) = read_capped(&path, MAX_INDEX)? else { return Ok(Index::default()) };
        #[derive(serde::Deserialize)]
        struct Form {
            schema: u32,
        }
        let damaged = |source| ImageError::Index { path: path.clone(), source };
        let form: Form = serde_json::from_slice(&bytes).map_err(damaged)?;
        if form.schema > SCHEMA {
            return Err(ImageError::Newer { path, found: form.schema });
        }
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    fn write_index(&self, index: &Index) -> Result<(), ImageError> {
        let path = self.index_path();
        let bytes =
            serde_json::to_vec(index).map_err(|source| ImageError::Index { path: path.clone(), source })?;
        Ok(atomic::write(&path, &bytes, 0o600)?)
    }

    fn lock(&self, hold: Hold) -> Result<File, ImageError> {
        Ok(lock::wait(&self.root.join("lock"), hold)?)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    fn config_path(&self, id: &Digest) -> PathBuf {
        self.dir("configs").join(format!("{}.json", id.hex()))
    }

    fn rootfs_path(&self, key: &Digest) -> PathBuf {
        self.dir("rootfs").join(format!("{}.erofs", key.hex()))
    }

    fn bake_lock(&self, key: &Digest) -> PathBuf {
        self.dir("locks").join(format!("{}.lock", key.hex()))
    }
}

/// Somebody holds the first byte of a root file system.
fn is_in_use(path: &Path) -> Result<bool, ImageError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        // Closing it gives the lock back; the index lock keeps others from taking one in between.
        Ok(file) => Ok(!lock::lock_in_use(&file, path, Hold::Alone)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::at("open", path)(error).into()),
    }
}

/// A whole file of the store; None when it is not there.
fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(FileError::at("open", path))?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FileError::at("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(ImageError::Damaged { path: path.to_owned(), problem: "it is too large" });
    }
    Ok(Some(bytes))
}

/// Files of a directory that are named after a digest.
fn digests_in(dir: &Path, suffix: &str) -> Result<Vec<(Digest, PathBuf)>, FileError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(FileError::at("list", dir))? {
        let entry = entry.map_err(FileError::at("list", dir))?;
        let name = entry.file_name();
        if let Some(Ok(digest)) =
            name.to_str().and_then(|name| name.strip_suffix(suffix)).map(Digest::from_hex)
        {
            found.push((digest, entry.path()));
        }
    }
    Ok(found)
}
