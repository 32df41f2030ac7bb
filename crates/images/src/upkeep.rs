//! Maintenance of stored images: their disk usage, the removal of unused ones, and checks for damage.

use super::blobs::digest_of;
use super::cancel::Cancel;
use super::digest::Digest;
use super::erofs;
use super::error::ImageError;
use super::index::{ImageBlob, Index};
use super::lock::Hold;
use super::reference::Reference;
use super::store::{ImageStore, NOT_REGULAR, is_in_use};
use magikvm_platform::atomic::{FileError, open_if_there};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Which images [`ImageStore::prune`] may remove; never those that a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PruneScope {
    /// Those without a name.
    #[default]
    Nameless,
    All,
}

/// The parameters of [`ImageStore::prune`].
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneOptions {
    /// Which images it may remove.
    pub scope: PruneScope,
    /// Only those that were unused for this long.
    pub unused_for: Option<Duration>,
    /// The longest unused first, and only until the store takes at most this many bytes.
    pub keep_storage_bytes: Option<u64>,
    pub really: Really,
}

/// Whether to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Really {
    #[default]
    Do,
    /// Only report what would be done.
    Say,
}

/// An image that [`ImageStore::prune`] removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PrunedImage {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// What [`ImageStore::prune`] did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pruned {
    /// The images in the order of their removal.
    pub images: Vec<PrunedImage>,
    /// Bytes freed on disk.
    pub freed_bytes: u64,
}

/// One kind of files in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageRow {
    pub count: usize,
    /// How many of them pods use now.
    pub in_use: usize,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Bytes that `prune --all` would free.
    pub reclaimable_bytes: u64,
}

/// The disk usage of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Root file systems, as pods use them.
    pub rootfs: UsageRow,
    /// Unmodified layers and manifests.
    pub blobs: UsageRow,
    /// Root file systems unpacked into directories, for hosts that cannot mount images.
    pub directories: UsageRow,
}

impl Usage {
    /// Total bytes.
    pub fn size_bytes(&self) -> u64 {
        self.rootfs.size_bytes + self.blobs.size_bytes + self.directories.size_bytes
    }
}

/// A damaged file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Damage {
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl ImageStore {
    /// Removes unneeded images and the leftovers of failed pulls.
    pub fn prune(&self, options: &PruneOptions) -> Result<Pruned, ImageError> {
        let mut pruned = Pruned { images: Vec::new(), freed_bytes: 0 };
        let _lock = self.lock(Hold::Alone)?;
        let mut index = self.read_index()?;
        let directories: u64 = self.directories(&index)?.iter().map(|directory| directory.bytes).sum();
        let mut size = disk_usage(&self.dir("rootfs"))? + disk_usage(&self.dir("blobs"))? + directories;
        let leftovers = match options.really {
            Really::Do => self.sweep_locked(Duration::ZERO)?,
            Really::Say => self.leftovers(&index)?,
        };
        size = size.saturating_sub(leftovers);
        pruned.freed_bytes += leftovers;
        for (id, last_use) in self.candidates(&index, options.scope)? {
            let young = options.unused_for.is_some_and(|unused_for| {
                SystemTime::now().duration_since(last_use).unwrap_or_default() < unused_for
            });
            let enough = options.keep_storage_bytes.is_some_and(|keep| size <= keep);
            if young || enough {
                break;
            }
            let Some(record) = index.record(&id) else { continue };
            let freed = match options.really {
                Really::Do => match self.drop_image(&mut index, &id)? {
                    Some(freed) => freed,
                    // A pod started to use it a moment ago.
                    None => continue,
                },
                Really::Say => self.forget(&mut index, &id)?,
            };
            size = size.saturating_sub(freed);
            pruned.freed_bytes += freed;
            pruned.images.push(PrunedImage { id, names: record.names });
        }
        Ok(pruned)
    }

    /// Removable images, the longest unused first.
    fn candidates(&self, index: &Index, scope: PruneScope) -> Result<Vec<(Digest, SystemTime)>, ImageError> {
        let ids: Vec<Digest> = match scope {
            PruneScope::Nameless => index.nameless(),
            PruneScope::All => index.images.keys().copied().collect(),
        };
        let mut found = Vec::new();
        for id in ids {
            let Some(entry) = index.images.get(&id) else { continue };
            let path = self.rootfs_path(&entry.rootfs.key);
            if !self.image_in_use(index, &id, &entry.rootfs.key)? {
                let imported = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.imported_unix_secs);
                found.push((id, last_use(&path).unwrap_or(imported)));
            }
        }
        found.sort_by_key(|(_, last_use)| *last_use);
        Ok(found)
    }

    /// Removes an image from an index that is never written. Returns the bytes that only it needed.
    fn forget(&self, index: &mut Index, id: &Digest) -> Result<u64, ImageError> {
        let Some(entry) = index.images.remove(id) else { return Ok(0) };
        index.names.retain(|_, named| named.id != *id);
        let needed = index.blobs();
        let mut files: Vec<PathBuf> = entry
            .blobs()
            .filter(|part| !needed.contains(&part.digest))
            .map(|part| self.blobs().path(&part.digest))
            .collect();
        let mut directories = 0;
        if !index.shares_rootfs(&entry.rootfs.key, id) {
            files.push(self.rootfs_path(&entry.rootfs.key));
            directories = self.directories_size(&entry.rootfs.key)?;
        }
        Ok(files.iter().map(|path| on_disk(path)).sum::<u64>() + directories)
    }

    /// Bytes that a sweep would remove. The caller holds the index lock.
    fn leftovers(&self, index: &Index) -> Result<u64, ImageError> {
        let mut bytes = 0;
        let needed = index.blobs();
        for blob in self.blobs().list()?.into_iter().filter(|blob| !needed.contains(&blob.digest)) {
            let path = self.blobs().path(&blob.digest);
            bytes += if is_in_use(&path)? { 0 } else { on_disk(&path) };
        }
        for (_, path) in self.unknown_rootfs(index)? {
            bytes += if is_in_use(&path)? { 0 } else { on_disk(&path) };
        }
        let directories = self.directories(index)?;
        bytes += directories
            .iter()
            .filter(|directory| !directory.is_known && !directory.is_used)
            .map(|directory| directory.bytes)
            .sum::<u64>();
        Ok(bytes)
    }

    /// The disk usage of the store.
    pub fn usage(&self) -> Result<Usage, ImageError> {
        let _lock = self.lock(Hold::Shared)?;
        let index = self.read_index()?;
        let mut usage = Usage::default();
        let mut used_blobs = BTreeSet::new();
        for (id, entry) in &index.images {
            if self.image_in_use(&index, id, &entry.rootfs.key)? {
                used_blobs.extend(entry.blobs().map(|part| part.digest));
            }
        }
        for (_, path) in self.rootfs_files()? {
            usage.rootfs.add(on_disk(&path), is_in_use(&path)?);
        }
        for blob in self.blobs().list()? {
            usage.blobs.add(on_disk(&self.blobs().path(&blob.digest)), used_blobs.contains(&blob.digest));
        }
        for directory in self.directories(&index)? {
            usage.directories.add(directory.bytes, directory.is_used);
        }
        Ok(usage)
    }

    /// Checks all files of an image against the digests recorded at its import, and the structure of the root file system. Returns the
    /// problems.
    pub fn verify(
        &self,
        id: &Digest,
        cancel: &Cancel,
        progress: &mut dyn FnMut(&Path),
    ) -> Result<Vec<Damage>, ImageError> {
        let (entry, config, blobs, rootfs) = {
            // Files removed from now on are open and so do not count as missing.
            let _lock = self.lock_for(Hold::Shared, cancel, &id.to_string())?;
            let mut index = self.read_index()?;
            let entry = index.images.remove(id);
            let entry = entry.ok_or_else(|| ImageError::UnknownId { id: id.to_string() })?;
            let blob = |part: &ImageBlob| StoredFile::open(self.blobs().path(&part.digest));
            let blobs = entry.blobs().map(blob).collect::<Result<Vec<_>, _>>()?;
            let rootfs = StoredFile::open(self.rootfs_path(&entry.rootfs.key))?;
            (entry, StoredFile::open(self.config_path(id))?, blobs, rootfs)
        };
        let mut files = vec![(&config, *id, None)];
        let parts = entry.blobs().map(|part| (part.digest, Some(part.size_bytes)));
        files.extend(blobs.iter().zip(parts).map(|(found, (digest, size))| (found, digest, size)));
        files.push((&rootfs, entry.rootfs.sha256, Some(entry.rootfs.size_bytes)));
        let mut damages = Vec::new();
        for (found, digest, size) in files {
            progress(&found.path);
            if let Some(problem) = found.problem(&digest, size, cancel)? {
                damages.push(Damage { path: found.path.clone(), problem });
            }
        }
        // A file that was built wrongly matches its recorded digest and is still wrong.
        if let Some(file) = &rootfs.file
            && damages.iter().all(|damage| damage.path != rootfs.path)
        {
            progress(&rootfs.path);
            if let Err(error) = erofs::read::check(file) {
                let problem = format!("its structure is damaged: {error}");
                damages.push(Damage { path: rootfs.path.clone(), problem });
            }
        }
        if entry.manifest.is_none() {
            let problem =
                "it was imported by an older magikvm, which kept no layers: import it again".to_owned();
            damages.push(Damage { path: self.blobs().dir().to_owned(), problem });
        }
        cancel.check().map_err(|source| ImageError::Stopped { source_name: id.to_string(), source })?;
        Ok(damages)
    }
}

impl UsageRow {
    fn add(&mut self, bytes: u64, used: bool) {
        self.count += 1;
        self.in_use += usize::from(used);
        self.size_bytes += bytes;
        self.reclaimable_bytes += if used { 0 } else { bytes };
    }
}

/// A file of an image, if it is there.
struct StoredFile {
    path: PathBuf,
    file: Option<File>,
    /// What is wrong if there is none.
    problem: &'static str,
}

impl StoredFile {
    fn open(path: PathBuf) -> Result<Self, FileError> {
        if fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
            return Ok(Self { path, file: None, problem: NOT_REGULAR });
        }
        let file = open_if_there(&path)?;
        Ok(Self { path, file, problem: "it is missing" })
    }

    /// What is wrong with it.
    fn problem(
        &self,
        digest: &Digest,
        size: Option<u64>,
        cancel: &Cancel,
    ) -> Result<Option<String>, FileError> {
        let Some(file) = &self.file else { return Ok(Some(self.problem.to_owned())) };
        let found = file.metadata().map_err(FileError::at("inspect", &self.path))?.len();
        if let Some(size) = size.filter(|size| *size != found) {
            return Ok(Some(format!("it has {found} bytes, not {size}")));
        }
        Ok(match digest_of(file, &mut || cancel.check().is_ok()) {
            Ok(Some(found)) if found != *digest => Some(format!("it has the digest {found}, not {digest}")),
            // Cancelled; the caller notices that itself.
            Ok(_) => None,
            Err(error) => Some(format!("it cannot be read: {error}")),
        })
    }
}

/// When a root file system was last used by a pod, or built.
fn last_use(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn on_disk(path: &Path) -> u64 {
    // A file that vanishes meanwhile takes no space.
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn disk_usage(dir: &Path) -> Result<u64, ImageError> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(FileError::at("list", dir))? {
        bytes += on_disk(&entry.map_err(FileError::at("list", dir))?.path());
    }
    Ok(bytes)
}
