//! Keeps compiled kernels by a digest of their ingredients. Several builders may use it at once.
//!
//! `<cache>/kernel/<key>/` holds `vmlinux`, `vmlinux.sha256`, `config` and `build.log`; `<key>.lock` beside it is held by
//! the builder that works on it. Everything may be deleted at any time.

use crate::child::{Interrupted, Stop};
use crate::files::{self, FileError};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Why the cache can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// Everything that determines a compiled kernel, as one short text. Equal keys mean equal kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// The key of these named ingredients in this order.
    pub fn of(ingredients: &[(&str, &str)]) -> Self {
        let mut hasher = Sha256::new();
        for (name, value) in ingredients {
            // The lengths keep different lists of ingredients from hashing the same bytes.
            hasher.update(format!("{} {name} {} {value}\n", name.len(), value.len()));
        }
        let digest = magikvm_proto::guest_image::Sha256Hex::from_bytes(hasher.finalize().into());
        Self(digest.as_str().chars().take(32).collect())
    }
}

/// One entry of the cache, locked by this process.
#[derive(Debug)]
pub struct Entry {
    dir: PathBuf,
    lock: File,
}

impl Entry {
    /// Locks an entry. While another builder holds it, `wait` is called now and then.
    pub fn lock(cache: &Path, key: &Key, stop: &Stop, wait: &mut dyn FnMut()) -> Result<Self, CacheError> {
        let kernels = cache.join("kernel");
        let dir = kernels.join(&key.0);
        fs::create_dir_all(&dir).map_err(FileError::at("create directory", &dir))?;
        let path = kernels.join(format!("{}.lock", key.0));
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(FileError::at("create", &path))?;
        loop {
            stop.check()?;
            match lock.try_lock() {
                Ok(()) => return Ok(Self { dir, lock }),
                // Polled rather than waited for, so that Ctrl-C takes effect.
                Err(TryLockError::WouldBlock) => {
                    wait();
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(TryLockError::Error(error)) => return Err(FileError::at("lock", &path)(error).into()),
            }
        }
    }

    /// Standard input for a program that works on this entry: empty, and a share of the lock. A program that outlives a killed
    /// builder for a moment thus keeps the next builder out until it has ended.
    pub fn stdin(&self) -> Result<Stdio, CacheError> {
        Ok(self.lock.try_clone().map_err(FileError::at("share the lock of", &self.dir))?.into())
    }

    /// A path inside the entry.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The kernel, if it exists and is undamaged.
    pub fn kernel(&self) -> Option<PathBuf> {
        let stated = fs::read_to_string(self.path("vmlinux.sha256")).ok()?;
        let found = files::sha256_file(&self.path("vmlinux")).ok()?;
        (stated.trim_end() == found.as_str()).then(|| self.path("vmlinux"))
    }

    /// Stores a compiled kernel and its configuration. The digest is written last: without it the entry has no kernel.
    pub fn store(&self, kernel: &Path, config: &Path) -> Result<PathBuf, CacheError> {
        let (file, digest) = (self.path("vmlinux"), self.path("vmlinux.sha256"));
        if digest.exists() {
            fs::remove_file(&digest).map_err(FileError::at("remove", &digest))?;
        }
        let staged = self.path("vmlinux.new");
        for (from, to) in [(kernel, &staged), (config, &self.path("config"))] {
            fs::copy(from, to).map_err(FileError::at("copy", from))?;
        }
        fs::rename(&staged, &file).map_err(FileError::at("rename", &staged))?;
        files::sync_dir(&self.dir)?;
        files::write(&digest, format!("{}\n", files::sha256_file(&file)?).as_bytes(), 0o644)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(cache: &Path, key: &Key) -> Entry {
        // A child that another test is just starting holds a copy of every open file until its exec.
        let mut waits = 0;
        let mut wait = || {
            waits += 1;
            assert!(waits < 50, "nobody has it");
        };
        Entry::lock(cache, key, &Stop::default(), &mut wait).unwrap()
    }

    #[test]
    fn a_kernel_comes_back_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::of(&[("source", "a")]);
        let built = dir.path().join("built");
        files::write(&built, b"kernel", 0o644).unwrap();
        let held = entry(dir.path(), &key);
        assert_eq!(held.kernel(), None);
        let stored = held.store(&built, &built).unwrap();
        assert_eq!(held.kernel(), Some(stored.clone()));
        drop(held);
        files::write(&stored, b"kernex", 0o644).unwrap();
        assert_eq!(entry(dir.path(), &key).kernel(), None, "damaged");
    }

    #[test]
    fn a_second_builder_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let key = Key::of(&[]);
        let mut first = Some(entry(dir.path(), &key));
        let mut waited = 0;
        Entry::lock(dir.path(), &key, &Stop::default(), &mut || {
            waited += 1;
            first = None;
        })
        .unwrap();
        assert_eq!(waited, 1);
    }

    #[test]
    fn a_program_of_a_builder_that_is_gone_still_holds_the_entry() {
        let dir = tempfile::tempdir().unwrap();
        let first = entry(dir.path(), &Key::of(&[]));
        let with_the_lock = |program: &str, arguments: &[&str]| {
            std::process::Command::new(program).args(arguments).stdin(first.stdin().unwrap()).spawn().unwrap()
        };
        assert!(with_the_lock("cat", &[]).wait().unwrap().success(), "its standard input is empty");
        let mut sleeper = with_the_lock("sleep", &["1000"]);
        drop(first);
        let mut waited = 0;
        Entry::lock(dir.path(), &Key::of(&[]), &Stop::default(), &mut || {
            waited += 1;
            sleeper.kill().unwrap();
            sleeper.wait().unwrap();
        })
        .unwrap();
        assert_eq!(waited, 1);
    }

    #[test]
    fn keys_differ_when_any_ingredient_does() {
        let key = Key::of(&[("a", "b"), ("c", "d")]);
        assert_eq!(key, Key::of(&[("a", "b"), ("c", "d")]));
        for other in [
            vec![("a", "b")],
            vec![("a", "b"), ("c", "e")],
            vec![("a", "b 1 c 1 d")],
            vec![("c", "d"), ("a", "b")],
        ] {
            assert_ne!(key, Key::of(&other), "{other:?}");
        }
    }
}
