//! The store: images by name, each built once into a read-only EROFS file that all pods share.
//!
//! On disk: `index.json` (see `index`), `configs/<id>.json` (unmodified configurations, checked when read), `blobs/<hex>` (unmodified
//! layers and manifests, see `blobs`), `rootfs/<key>.erofs`, `dirs/` (see `unpacked`), `locks/`. A file is either complete under its name
//! or absent: the leftovers of a killed process are swept by the next process that changes the store. Must not know pods; a root file
//! system is in use while its [`RootfsFile`] lives. `obtain` imports images, `upkeep` maintains them, `export` writes them out.

use super::blobs::{self, Blobs};
use super::cancel::Cancel;
use super::digest::{Digest, shorten};
use super::document::{Config, ImageDefaults, MAX_CONFIG};
use super::erofs::RootfsCompression;
use super::error::ImageError;
use super::index::{ImageBlob, ImageRecord, Index, Named, RootfsEntry, SCHEMA};
use super::lock::{self, BuildLock, Hold};
use super::reference::Reference;
use magikvm_platform::atomic::{self, FileError};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Most bytes of `index.json`: far more than thousands of images need.
const MAX_INDEX: u64 = 64 << 20;
/// Directories of the store.
const DIRS: [&str; 5] = ["rootfs", "configs", "blobs", "dirs", "locks"];
/// Least digits of an id.
const MIN_ID_PREFIX: usize = 4;
/// How long complete layers of a failed pull are kept.
const KEEP_UNUSED: Duration = Duration::from_secs(24 * 3600);

/// What is wrong with anything else in the place of a file.
pub(super) const NOT_REGULAR: &str = "it is not a regular file";

/// The result of [`ImageStore::remove`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The image has other names and stays.
    Name,
    /// It was the last name: the image was removed.
    Image {
        id: Digest,
        /// Bytes freed on disk; data that another image shares stays.
        freed_bytes: u64,
    },
}

/// An image ready for use, which is not removed while this value lives.
#[derive(Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    /// Its record in the store.
    pub record: ImageRecord,
    /// Its defaults for running it.
    pub config: ImageDefaults,
    pub rootfs: RootfsFile,
    /// The open configuration file with a shared lock on its first byte. It distinguishes images with the same layers.
    _lock: File,
}

/// A root file system's EROFS file, which is not removed while this value lives.
#[derive(Debug)]
pub struct RootfsFile {
    pub path: PathBuf,
    /// Its size, a multiple of 4096.
    pub size_bytes: u64,
    /// Digest of its layers: images with the same layers share the file.
    pub key: Digest,
    /// The open file with a shared lock on its first byte.
    _lock: File,
}

/// The unmodified parts of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageParts {
    /// The manifest; `None` for images of an older version.
    pub manifest: Option<ImageBlob>,
    /// The layers, bottom first; none for images of an older version.
    pub layers: Vec<ImageBlob>,
    /// The compression of its root file system.
    pub compression: RootfsCompression,
    /// Keys whose signatures were verified when it was pulled.
    pub signed_by: Vec<Digest>,
}

impl Image {
    /// Records that the image is used: `prune` takes the longest unused first.
    pub fn mark_used(&self) -> Result<(), ImageError> {
        let path = &self.rootfs.path;
        self.rootfs._lock.set_modified(SystemTime::now()).map_err(FileError::at("touch", path))?;
        Ok(())
    }
}

/// The images of one state root.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// Opens the store in a directory, creating it with mode 0700 if it is missing.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let store = Self { root: root.to_owned() };
        for dir in [root.to_owned()].into_iter().chain(DIRS.map(|name| store.dir(name))) {
            atomic::create_dir_all(&dir, 0o700)?;
        }
        Ok(store)
    }

    /// All images, sorted by name.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        Ok(self.read_index()?.records())
    }

    /// Gives an image another name, which may belong to another image so far.
    pub fn tag(&self, image: &str, name: &Reference) -> Result<ImageRecord, ImageError> {
        let _lock = self.lock(Hold::Alone)?;
        let mut index = self.read_index()?;
        let (id, _) = self.find(&index, image)?;
        let digests = index.images.get(&id).map(|image| &image.digests);
        if let Some(pinned) = name.digest()
            && digests.is_none_or(|digests| !digests.contains(&pinned))
        {
            return Err(ImageError::Pinned {
                name: Box::new(name.clone()),
                source_name: image.to_owned(),
                found: digests.into_iter().flatten().copied().collect(),
            });
        }
        // The verified signature belongs to the name that was pulled, not to this one.
        index.names.insert(name.clone(), Named { id, key: None });
        self.write_index(&index)?;
        self.drop_nameless(&mut index)?;
        index.record(&id).ok_or_else(|| ImageError::UnknownId { id: id.to_string() })
    }

    /// Removes a name. An image without names is removed too, unless a pod uses it. An id stands for all names of an image.
    pub fn remove(&self, image: &str) -> Result<Removed, ImageError> {
        self.tidy()?;
        let _lock = self.lock(Hold::Alone)?;
        let mut index = self.read_index()?;
        let (id, name) = self.find(&index, image)?;
        if let Some(name) = &name {
            index.names.remove(name);
            if index.names.values().any(|other| other.id == id) {
                self.write_index(&index)?;
                return Ok(Removed::Name);
            }
        }
        match self.drop_image(&mut index, &id)? {
            Some(freed_bytes) => Ok(Removed::Image { id, freed_bytes }),
            None => {
                Err(ImageError::InUse { name: name.map_or_else(|| id.to_string(), |name| name.familiar()) })
            }
        }
    }

    /// The image of a reference, kept from removal while the result lives.
    pub fn resolve(&self, name: &Reference) -> Result<Image, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        let index = self.read_index()?;
        match index.find(name) {
            Some(named) => self.image(&index, named.id),
            None => Err(ImageError::NotFound { name: Box::new(name.clone()), near: index.near(name) }),
        }
    }

    /// The image with this id, kept from removal while the result lives.
    pub fn resolve_id(&self, id: &Digest) -> Result<Image, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        self.image(&self.read_index()?, *id)
    }

    /// The image of a name, an id or the beginning of an id, kept from removal while the result lives.
    pub fn resolve_text(&self, image: &str) -> Result<Image, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        let index = self.read_index()?;
        let (id, _) = self.find(&index, image)?;
        self.image(&index, id)
    }

    /// The id of the image with this name, id or beginning of an id. The image may be incomplete.
    pub fn id_of(&self, image: &str) -> Result<Digest, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        Ok(self.find(&self.read_index()?, image)?.0)
    }

    /// The unmodified parts of an image.
    pub fn parts_of(&self, image: &Image) -> Result<ImageParts, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        let mut index = self.read_index()?;
        let signed_by =
            index.names.values().filter(|named| named.id == image.id).filter_map(|named| named.key);
        let signed_by: BTreeSet<Digest> = signed_by.collect();
        let entry = index.images.remove(&image.id);
        let entry = entry.ok_or_else(|| ImageError::UnknownId { id: image.id.to_string() })?;
        Ok(ImageParts {
            manifest: entry.manifest,
            layers: entry.blobs,
            compression: entry.rootfs.compression,
            signed_by: signed_by.into_iter().collect(),
        })
    }

    /// An image by name, id or the beginning of an id; with its name in the index, if it was a name.
    pub(super) fn find(&self, index: &Index, image: &str) -> Result<(Digest, Option<Reference>), ImageError> {
        let name = image.parse::<Reference>();
        if let Ok(name) = &name
            && let Some(named) = index.find(name)
        {
            return Ok((named.id, index.names.contains_key(name).then(|| name.clone())));
        }
        let prefix = image.strip_prefix("sha256:").unwrap_or(image);
        let is_id = (MIN_ID_PREFIX..=64).contains(&prefix.len())
            && prefix.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let found: Vec<Digest> = match is_id {
            true => index.images.keys().filter(|id| id.hex().starts_with(prefix)).copied().collect(),
            false => Vec::new(),
        };
        match (found.as_slice(), name) {
            ([id], _) => Ok((*id, None)),
            ([_, _, ..], _) => Err(ImageError::AmbiguousId {
                prefix: prefix.to_owned(),
                found: found.iter().map(Digest::to_string).collect(),
            }),
            // `sha256:…` could be parsed as a name with a tag.
            ([], Ok(_)) if is_id && prefix.len() < image.len() => {
                Err(ImageError::UnknownId { id: prefix.to_owned() })
            }
            ([], Ok(name)) => {
                let near = index.near(&name);
                Err(ImageError::NotFound { name: Box::new(name), near })
            }
            ([], Err(_)) if is_id => Err(ImageError::UnknownId { id: prefix.to_owned() }),
            ([], Err(source)) => Err(ImageError::NotAName { text: shorten(image), source }),
        }
    }

    fn image(&self, index: &Index, id: Digest) -> Result<Image, ImageError> {
        let (Some(entry), Some(record)) = (index.images.get(&id), index.record(&id)) else {
            return Err(ImageError::UnknownId { id: id.to_string() });
        };
        let path = self.rootfs_path(&entry.rootfs.key);
        let Some(file) = atomic::open_if_there(&path)? else {
            return Err(ImageError::Damaged { path, problem: "it is missing" });
        };
        check_regular(&file, &path)?;
        // An exclusive lock is taken only under the index lock, which is held here.
        if !lock::lock_in_use(&file, &path, Hold::Shared)? {
            return Err(ImageError::Damaged { path, problem: "it is locked by another program" });
        }
        let size_bytes = file.metadata().map_err(FileError::at("inspect", &path))?.len();
        if size_bytes != entry.rootfs.size_bytes {
            return Err(ImageError::Damaged { path, problem: "its size has changed since it was built" });
        }
        let rootfs = RootfsFile { path, size_bytes, key: entry.rootfs.key, _lock: file };
        let (config, config_file) = self.config(&id)?;
        Ok(Image { id, record, config, rootfs, _lock: config_file })
    }

    /// The configuration of an image, checked against its digest, with its locked file.
    fn config(&self, id: &Digest) -> Result<(ImageDefaults, File), ImageError> {
        let path = self.config_path(id);
        let damaged = |problem| ImageError::Damaged { path: path.clone(), problem };
        let file = atomic::open_if_there(&path)?.ok_or_else(|| damaged("it is missing"))?;
        if !lock::lock_in_use(&file, &path, Hold::Shared)? {
            return Err(damaged("it is locked by another program"));
        }
        let bytes = read_file(&file, &path, MAX_CONFIG)?;
        if Digest::of(&bytes) != *id {
            return Err(damaged("its content does not match its name"));
        }
        let config: Config =
            serde_json::from_slice(&bytes).map_err(|source| ImageError::Index { path, source })?;
        Ok((config.config, file))
    }

    /// The root file system of an image, if it exists.
    pub(super) fn built_for(&self, index: &Index, id: &Digest) -> Option<RootfsEntry> {
        let rootfs = index.images.get(id)?.rootfs;
        let there = fs::metadata(self.rootfs_path(&rootfs.key)).map(|metadata| metadata.len()).ok();
        (there == Some(rootfs.size_bytes)).then_some(rootfs)
    }

    /// A root file system that is in the index and exists.
    pub(super) fn built(&self, key: &Digest) -> Result<Option<RootfsEntry>, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        let known = self.read_index()?.rootfs(key);
        let there = fs::metadata(self.rootfs_path(key)).map(|metadata| metadata.len()).ok();
        Ok(known.filter(|rootfs| there == Some(rootfs.size_bytes)))
    }

    /// Removes images without a name. Those in use stay until the next sweep.
    pub(super) fn drop_nameless(&self, index: &mut Index) -> Result<(), ImageError> {
        for nameless in index.nameless() {
            self.drop_image(index, &nameless)?;
        }
        Ok(())
    }

    /// Removes an image from the index and then from disk; the caller holds the index lock. Returns the bytes freed, or `None` without any
    /// change when it is in use.
    pub(super) fn drop_image(&self, index: &mut Index, id: &Digest) -> Result<Option<u64>, ImageError> {
        let Some(entry) = index.images.get(id) else { return Ok(Some(0)) };
        let key = entry.rootfs.key;
        let path = self.rootfs_path(&key);
        if self.image_in_use(index, id, &key)? {
            return Ok(None);
        }
        // A process that imports the same layers right now needs the file, so it stays.
        let doomed =
            if index.shares_rootfs(&key, id) { None } else { BuildLock::attempt(self.build_lock(&key))? };
        let blobs: Vec<Digest> = entry.blobs().map(|part| part.digest).collect();
        index.images.remove(id);
        index.names.retain(|_, named| named.id != *id);
        let remove_files = || -> Result<u64, ImageError> {
            atomic::remove(&self.config_path(id))?;
            let mut freed = 0;
            if doomed.is_some() {
                freed += fs::metadata(&path).map(|metadata| metadata.blocks() * 512).unwrap_or(0);
                atomic::remove(&path)?;
                freed += self.remove_directories(&key)?;
            }
            let needed = index.blobs();
            for blob in blobs.iter().filter(|blob| !needed.contains(blob)) {
                // A held blob belongs to an image that is being imported.
                freed += self.blobs().remove_unheld(blob)?.unwrap_or(0);
            }
            Ok(freed)
        };
        match self.write_index(index) {
            Ok(()) => Ok(Some(remove_files()?)),
            // A full disk has no room even for the shorter index. The image is to be removed anyway: if this ends in between, the image is
            // reported as damaged and can be removed or pulled again.
            Err(error) if error.is_full_disk() => {
                let freed = remove_files()?;
                self.write_index(index)?;
                Ok(Some(freed))
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a process holds the resolved image; the caller holds the index lock.
    pub(super) fn image_in_use(&self, index: &Index, id: &Digest, key: &Digest) -> Result<bool, ImageError> {
        if is_in_use(&self.config_path(id))? {
            return Ok(true);
        }
        // Holders of the file without its configuration.
        let alone = !index.shares_rootfs(key, id);
        Ok(alone && (is_in_use(&self.rootfs_path(key))? || self.directory_in_use(key)?))
    }

    /// Removes a root file system that no image of the index has, unless it is in use; then a later sweep removes it. The caller holds the
    /// index lock.
    pub(super) fn drop_rootfs(&self, index: &Index, key: &Digest) -> Result<u64, ImageError> {
        if index.rootfs(key).is_some() {
            return Ok(0);
        }
        let Some(_build) = BuildLock::attempt(self.build_lock(key))? else { return Ok(0) };
        let freed = blobs::remove_unheld(&self.rootfs_path(key))?.unwrap_or(0);
        Ok(freed + self.remove_directories(key)?)
    }

    /// Removes the leftovers of killed processes and failed pulls, unless another process changes the store right now: incomplete files;
    /// root file systems, blobs and configurations unknown to the index; lock files. Returns the bytes freed.
    pub fn sweep(&self) -> Result<u64, ImageError> {
        self.sweep_unused(Duration::ZERO)
    }

    /// Like `sweep`, but keeps complete layers of a recently failed pull, so that the next attempt need not fetch them again.
    pub(super) fn tidy(&self) -> Result<u64, ImageError> {
        self.sweep_unused(KEEP_UNUSED)
    }

    fn sweep_unused(&self, keep: Duration) -> Result<u64, ImageError> {
        match lock::attempt(&self.root.join("lock"))? {
            Some(_lock) => self.sweep_locked(keep),
            None => Ok(0),
        }
    }

    /// The same for a caller that holds the index lock.
    pub(super) fn sweep_locked(&self, keep: Duration) -> Result<u64, ImageError> {
        for dir in [self.root.clone(), self.dir("rootfs"), self.dir("configs"), self.dir("blobs")] {
            atomic::sweep(&dir)?;
        }
        let index = self.read_index()?;
        let mut freed = self.sweep_directories(&index)?;
        for (digest, path) in digests_in(&self.dir("configs"), ".json")? {
            if !index.images.contains_key(&digest) {
                atomic::remove(&path)?;
            }
        }
        for (_build, path) in self.unknown_rootfs(&index)? {
            freed += blobs::remove_unheld(&path)?.unwrap_or(0);
        }
        let needed = index.blobs();
        for blob in self.blobs().list()? {
            let digest = blob.digest;
            if !needed.contains(&digest) && blob.age() >= keep {
                freed += self.blobs().remove_unheld(&digest)?.unwrap_or(0);
            }
        }
        self.blobs().sweep_locks()?;
        Ok(freed)
    }

    /// All root file systems on disk.
    pub(super) fn rootfs_files(&self) -> Result<Vec<(Digest, PathBuf)>, FileError> {
        digests_in(&self.dir("rootfs"), ".erofs")
    }

    /// Root file systems that are unknown to the index and not being built, locked so that nobody builds them meanwhile.
    pub(super) fn unknown_rootfs(&self, index: &Index) -> Result<Vec<(BuildLock, PathBuf)>, ImageError> {
        let mut unknown = Vec::new();
        for (key, path) in self.rootfs_files()? {
            if index.rootfs(&key).is_none()
                && let Some(build) = BuildLock::attempt(self.build_lock(&key))?
            {
                unknown.push((build, path));
            }
        }
        Ok(unknown)
    }

    pub(super) fn read_index(&self) -> Result<Index, ImageError> {
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

    pub(super) fn write_index(&self, index: &Index) -> Result<(), ImageError> {
        let path = self.index_path();
        let bytes =
            serde_json::to_vec(index).map_err(|source| ImageError::Index { path: path.clone(), source })?;
        Ok(atomic::write(&path, &bytes, 0o600)?)
    }

    pub(super) fn lock(&self, hold: Hold) -> Result<File, ImageError> {
        Ok(lock::wait(&self.root.join("lock"), hold)?)
    }

    /// Like `locked`, for callers that may cancel the work on `source_name`.
    pub(super) fn lock_for(
        &self,
        hold: Hold,
        cancel: &Cancel,
        source_name: &str,
    ) -> Result<File, ImageError> {
        lock::wait_unless_stopped(&self.root.join("lock"), hold, cancel)?
            .map_err(|source| ImageError::Stopped { source_name: source_name.to_owned(), source })
    }

    pub(super) fn dir(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(super) fn config_path(&self, id: &Digest) -> PathBuf {
        self.dir("configs").join(format!("{}.json", id.hex()))
    }

    pub(super) fn rootfs_path(&self, key: &Digest) -> PathBuf {
        self.dir("rootfs").join(format!("{}.erofs", key.hex()))
    }

    pub(super) fn blobs(&self) -> Blobs {
        Blobs::new(self.dir("blobs"), self.dir("locks"))
    }

    pub(super) fn build_lock(&self, key: &Digest) -> PathBuf {
        self.dir("locks").join(format!("{}.lock", key.hex()))
    }
}

/// Whether a process holds the first byte of a file of the store.
pub(super) fn is_in_use(path: &Path) -> Result<bool, ImageError> {
    match atomic::open_if_there(path)? {
        Some(file) => Ok(lock::is_held(&file, path)?),
        None => Ok(false),
    }
}

/// A whole file of the store; `None` when it does not exist.
pub(super) fn read_capped(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
    atomic::open_if_there(path)?.map(|file| read_file(&file, path, limit)).transpose()
}

/// A FIFO or a device in the place of a file has no end.
fn check_regular(file: &File, path: &Path) -> Result<(), ImageError> {
    match file.metadata().map_err(FileError::at("inspect", path))?.is_file() {
        true => Ok(()),
        false => Err(ImageError::Damaged { path: path.to_owned(), problem: NOT_REGULAR }),
    }
}

fn read_file(file: &File, path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    check_regular(file, path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(FileError::at("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(ImageError::Damaged { path: path.to_owned(), problem: "it is too large" });
    }
    Ok(bytes)
}

/// The files of a directory that are named after a digest.
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
