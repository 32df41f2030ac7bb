//! Volumes that survive their pods (PersistentVolumeClaims): a directory each, with a record of what was asked for. The content is a directory,
//! which a pod shares with its VM like any other one of the host, or a disk, which one VM at a time has.
//!
//! `<data>/volumes/.lock` orders everything that looks at a claim to change it. `<data>/volumes/<namespace>_<name>/` (0700) has:
//! - `volume.json`: the [`ClaimRecord`], written once, and again when a disk grows;
//! - `data`: what the pods see, of a directory;
//! - `disk/image`: the disk, made by the first pod that uses it;
//! - `lock`: locked by whoever makes the claim, while it has no name yet;
//! - `users/<namespace>_<pod>.<uuid>`: one file for each use by a pod, locked until the pod's processes have ended ([`usage`]).
//!
//! A claim appears and disappears by a rename, so nobody ever sees half of one. Must not know: manifests, VMs.

mod archive;
mod error;
mod group;
mod usage;

pub use error::ClaimError;
pub use group::set_group;
pub use usage::ClaimUse;

use super::{AccessMode, ClaimForm};
use crate::store::atomic::{self, FileError};
use crate::store::layout::{TRASH_PREFIX, dir_name};
use crate::store::lock::{self, Lock, LockState};
use crate::store::regular;
use crate::store::remove::remove_deep;
use crate::store::text::ignore;
use magikvm_proto::id::PodId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use usage::{UseEntry, users};

/// Schemas of the record: of directories, and of disks, which the first version did not know.
const SCHEMA: u32 = 1;
const DISK_SCHEMA: u32 = 2;
/// Longest record that is read, and longest name of a user.
const MAX_RECORD: u64 = 1 << 20;
/// Prefix of claims that are being made.
const NEW_PREFIX: &str = ".new-";
/// Everybody may write to a new claim, as to an emptyDir: containers often have a user of their own. Nobody else reaches it on the host.
const DATA_MODE: u32 = 0o777;

/// What is known of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRecord {
    pub schema: u32,
    /// Its namespace and name.
    pub id: PodId,
    pub uid: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Not empty.
    pub access_modes: Vec<AccessMode>,
    /// Bytes that were asked for. A disk holds them; they do not limit a directory.
    pub storage_bytes: Option<u64>,
    #[serde(default)]
    pub form: ClaimForm,
    /// `metadata.labels` of the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl ClaimRecord {
    /// The GUID of its disk, unlike that of any other one.
    pub fn guid(&self) -> [u8; 16] {
        self.uid.parse::<uuid::Uuid>().map(uuid::Uuid::into_bytes).unwrap_or_default()
    }

    /// Whether no pod may change it.
    pub fn is_read_only(&self) -> bool {
        self.access_modes.iter().all(|mode| *mode == AccessMode::ReadOnlyMany)
    }
}

/// What a new claim is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    pub access_modes: Vec<AccessMode>,
    pub storage_bytes: Option<u64>,
    pub form: ClaimForm,
    pub labels: BTreeMap<String, String>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            access_modes: vec![AccessMode::ReadWriteOnce],
            storage_bytes: None,
            form: ClaimForm::Directory,
            labels: BTreeMap::new(),
        }
    }
}

/// A claim on disk.
#[derive(Debug, Clone)]
pub struct FoundClaim {
    pub record: ClaimRecord,
    dir: PathBuf,
    /// Pods that run with it.
    pub users: Vec<PodId>,
}

impl FoundClaim {
    /// The directory that pods see, of a directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The file of a disk.
    pub fn disk(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    /// What holds the content.
    pub fn path(&self) -> PathBuf {
        match self.record.form {
            ClaimForm::Directory => self.data(),
            ClaimForm::Disk => self.disk(),
        }
    }

    /// Bytes that a disk takes of the host's. Nobody counts a directory's: its content can be of any size and depth.
    pub fn used_bytes(&self) -> Option<u64> {
        match self.record.form {
            ClaimForm::Directory => None,
            ClaimForm::Disk => Some(fs::metadata(self.disk()).map_or(0, |found| found.blocks() * 512)),
        }
    }
}

/// Where a pod's claim comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Found,
    /// It was made for the pod.
    Made,
}

/// How long a use may take to end whose pod has ended.
const ENDING_USE: Duration = Duration::from_secs(1);
/// Held while a claim is exported.
const EXPORT_LOCK: &str = "export";

/// The file of a disk, in its own directory, because the VM's user gets both.
const DISK: &str = "disk/image";

/// All claims of a data directory.
#[derive(Debug, Clone, Copy)]
pub struct Claims<'a> {
    dir: &'a Path,
}

impl<'a> Claims<'a> {
    pub fn at(dir: &'a Path) -> Self {
        Self { dir }
    }

    fn place(&self, id: &PodId) -> PathBuf {
        self.dir.join(dir_name(id))
    }

    /// The lock that orders changes. Whoever holds it also clears away what others left half done.
    fn turn(&self) -> Result<Lock, ClaimError> {
        atomic::create_dir_all(self.dir, 0o700)?;
        let turn = lock::wait(&self.dir.join(".lock"))?;
        for entry in fs::read_dir(self.dir).into_iter().flatten().filter_map(Result::ok) {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Whoever makes a claim holds its lock.
            let is_left = name.starts_with(TRASH_PREFIX)
                || (name.starts_with(NEW_PREFIX)
                    && matches!(lock::acquire(&entry.path().join("lock")), Ok(Some(_))));
            if is_left {
                ignore(remove_deep(&entry.path()), "it is in nobody's way");
            }
        }
        Ok(turn)
    }

    /// All claims by name, and what cannot be read of them.
    pub fn list(&self) -> Result<(Vec<FoundClaim>, Vec<ClaimError>), ClaimError> {
        let entries = match fs::read_dir(self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
            Err(error) => return Err(FileError::at("list", self.dir)(error).into()),
        };
        let (mut found, mut damage) = (Vec::new(), Vec::new());
        for entry in entries {
            let entry = entry.map_err(FileError::at("list", self.dir))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            match read(entry.path()) {
                Ok(claim) => found.extend(claim),
                Err(error) => damage.push(error),
            }
        }
        found.sort_by(|a: &FoundClaim, b: &FoundClaim| a.record.id.cmp(&b.record.id));
        Ok((found, damage))
    }

    pub fn find(&self, id: &PodId) -> Result<FoundClaim, ClaimError> {
        read(self.place(id))?.ok_or_else(|| ClaimError::Missing(id.clone()))
    }

    /// Begins a pod's use of a claim. One that does not exist is made if `make` says what it is like; it stays even if the pod never runs.
    pub fn attach(&self, id: &PodId, make: Option<&Terms>, user: &PodId) -> Result<ClaimUse, ClaimError> {
        self.attach_beside(id, make, user, None)
    }

    /// The same for a pod that uses another claim already: both uses then have one lock.
    pub fn attach_beside(
        &self,
        id: &PodId,
        make: Option<&Terms>,
        user: &PodId,
        beside: Option<&ClaimUse>,
    ) -> Result<ClaimUse, ClaimError> {
        let deadline = Instant::now() + ENDING_USE;
        loop {
            match self.attach_now(id, make, user, beside) {
                Err(ClaimError::Busy { .. } | ClaimError::Taken { .. }) if Instant::now() < deadline => {
                    usage::wait_for_end(&self.place(id), deadline);
                }
                result => return result,
            }
        }
    }

    /// Checks whether a pod could begin to use a claim, without changing anything. `leaving` is a pod that will have ended by then.
    pub fn check(&self, id: &PodId, make: Option<&Terms>, leaving: &PodId) -> Result<(), ClaimError> {
        match (read(self.place(id))?, make) {
            (Some(mut found), make) => {
                found.users.retain(|user| user != leaving);
                suits(&found, make)?;
                found.renewed(make).map(|_| ())
            }
            (None, Some(_)) => Ok(()),
            (None, None) => Err(ClaimError::Missing(id.clone())),
        }
    }

    fn attach_now(
        &self,
        id: &PodId,
        make: Option<&Terms>,
        user: &PodId,
        beside: Option<&ClaimUse>,
    ) -> Result<ClaimUse, ClaimError> {
        let _turn = self.turn()?;
        let (mut found, origin) = match (read(self.place(id))?, make) {
            (Some(found), _) => (found, Origin::Found),
            (None, Some(terms)) => {
                self.stage(id, terms)?.publish(&self.place(id))?;
                (self.find(id)?, Origin::Made)
            }
            (None, None) => return Err(ClaimError::Missing(id.clone())),
        };
        suits(&found, make)?;
        found.renew(make)?;
        let entry = UseEntry::begin(&found.dir, user, beside)?;
        Ok(ClaimUse { path: found.path(), record: found.record, origin, entry })
    }

    /// Removes a claim with its content.
    pub fn remove(&self, id: &PodId) -> Result<(), ClaimError> {
        let turn = self.turn()?;
        let place = self.place(id);
        // A claim whose record cannot be read can be removed too.
        match read(place.clone()) {
            Ok(None) => return Err(ClaimError::Missing(id.clone())),
            Ok(Some(found)) => {
                if let Some(user) = found.users.first() {
                    return Err(ClaimError::InUse { id: id.clone(), user: user.clone() });
                }
                check_export(&found)?;
            }
            Err(_) => {
                if let Some(user) = users(&place).first() {
                    return Err(ClaimError::InUse { id: id.clone(), user: user.clone() });
                }
            }
        }
        let trash = self.dir.join(format!("{TRASH_PREFIX}{}", uuid::Uuid::new_v4()));
        fs::rename(&place, &trash).map_err(FileError::at("remove", &place))?;
        atomic::sync_parent(&place)?;
        drop(turn);
        Ok(remove_deep(&trash)?)
    }

    /// Keeps pods and removals away from a claim that no pod uses, until the lock is dropped: what a guest writes meanwhile could lead a
    /// walk through the content out of it.
    fn begin_export(&self, id: &PodId) -> Result<(FoundClaim, Lock), ClaimError> {
        let _turn = self.turn()?;
        let found = self.find(id)?;
        if let Some(user) = found.users.first() {
            return Err(ClaimError::InUse { id: id.clone(), user: user.clone() });
        }
        let lock = lock::acquire(&found.dir.join(EXPORT_LOCK))?;
        lock.map(|lock| (found, lock)).ok_or_else(|| ClaimError::Exported(id.clone()))
    }

    /// Makes a claim that has no name yet.
    fn stage(&self, id: &PodId, terms: &Terms) -> Result<Staging, ClaimError> {
        let dir = self.dir.join(format!("{NEW_PREFIX}{}", uuid::Uuid::new_v4()));
        atomic::create_dir_all(&dir, 0o700)?;
        let lock = lock::wait(&dir.join("lock"))?;
        atomic::create_dir_all(&dir.join("users"), 0o700)?;
        match terms.form {
            ClaimForm::Directory => {
                let data = dir.join("data");
                atomic::create_dir_all(&data, 0o700)?;
                fs::set_permissions(&data, Permissions::from_mode(DATA_MODE))
                    .map_err(FileError::at("set the mode of", &data))?;
            }
            ClaimForm::Disk => {
                let disk = dir.join(DISK);
                atomic::create_dir_all(disk.parent().unwrap_or(&dir), 0o700)?;
            }
        }
        let record = ClaimRecord {
            schema: if terms.form == ClaimForm::Disk { DISK_SCHEMA } else { SCHEMA },
            id: id.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            created_ms: now_ms(),
            access_modes: terms.access_modes.clone(),
            storage_bytes: terms.storage_bytes,
            form: terms.form,
            labels: terms.labels.clone(),
        };
        write_record(&dir, &record)?;
        Ok(Staging { dir, _lock: lock })
    }
}

/// A claim without a name, which vanishes unless it gets one.
struct Staging {
    dir: PathBuf,
    _lock: Lock,
}

impl Staging {
    fn publish(self, place: &Path) -> Result<(), ClaimError> {
        fs::rename(&self.dir, place).map_err(FileError::at("make", place))?;
        Ok(atomic::sync_parent(place)?)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Once it has its name, nothing is here.
        ignore(remove_deep(&self.dir), "the next change of a claim removes it");
    }
}

impl FoundClaim {
    /// Takes over what may change in a claim: its labels, and a larger size of a disk.
    fn renew(&mut self, make: Option<&Terms>) -> Result<(), ClaimError> {
        let renewed = self.renewed(make)?;
        if renewed != self.record {
            self.record = renewed;
            write_record(&self.dir, &self.record)?;
        }
        Ok(())
    }

    /// The record as it is when a pod asks for this.
    fn renewed(&self, make: Option<&Terms>) -> Result<ClaimRecord, ClaimError> {
        let record = &self.record;
        let Some(terms) = make else { return Ok(record.clone()) };
        let id = || record.id.clone();
        // A directory that was made before stays one.
        if record.form == ClaimForm::Disk && terms.form == ClaimForm::Directory {
            return Err(ClaimError::OtherForm { id: id(), found: record.form, wanted: terms.form });
        }
        let mut renewed = record.clone();
        if record.form == ClaimForm::Disk {
            match (record.storage_bytes, terms.storage_bytes) {
                (Some(found), Some(wanted)) if wanted < found => {
                    return Err(ClaimError::Shrinks { id: id(), found, wanted });
                }
                (_, wanted) => renewed.storage_bytes = wanted.or(record.storage_bytes),
            }
        }
        renewed.labels.clone_from(&terms.labels);
        Ok(renewed)
    }
}

fn write_record(dir: &Path, record: &ClaimRecord) -> Result<(), ClaimError> {
    let path = dir.join("volume.json");
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|source| ClaimError::Damaged { path: path.clone(), source })?;
    Ok(atomic::write(&path, &bytes, 0o600)?)
}

/// Refuses a claim that is being exported.
fn check_export(found: &FoundClaim) -> Result<(), ClaimError> {
    match lock::state(&found.dir.join(EXPORT_LOCK))? {
        LockState::Held => Err(ClaimError::Exported(found.record.id.clone())),
        LockState::Free => Ok(()),
    }
}

/// Whether a claim is what a pod asks for, and free for it.
fn suits(found: &FoundClaim, make: Option<&Terms>) -> Result<(), ClaimError> {
    let record = &found.record;
    if let Some(terms) = make
        && record.access_modes != terms.access_modes
    {
        return Err(ClaimError::OtherModes {
            id: record.id.clone(),
            found: listed(&record.access_modes),
            wanted: listed(&terms.access_modes),
        });
    }
    check_export(found)?;
    if let Some(user) = found.users.first() {
        let (id, user) = (record.id.clone(), user.clone());
        if record.access_modes.contains(&AccessMode::ReadWriteOncePod) {
            return Err(ClaimError::Busy { id, user });
        }
        if record.form == ClaimForm::Disk {
            return Err(ClaimError::Taken { id, user });
        }
    }
    Ok(())
}

fn listed(modes: &[AccessMode]) -> String {
    modes.iter().map(|mode| mode.as_str()).collect::<Vec<_>>().join(", ")
}

/// Reads a claim's directory; `None` when there is none.
fn read(dir: PathBuf) -> Result<Option<FoundClaim>, ClaimError> {
    match fs::symlink_metadata(&dir) {
        Ok(there) if there.is_dir() => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FileError::at("open", &dir)(error).into()),
    }
    let path = dir.join("volume.json");
    let bytes = regular::read(&path, MAX_RECORD)?;
    let record: ClaimRecord = serde_json::from_slice(&bytes)
        .map_err(|source| ClaimError::Damaged { path: path.clone(), source })?;
    if ![SCHEMA, DISK_SCHEMA].contains(&record.schema) {
        return Err(ClaimError::Schema { path, found: record.schema });
    }
    let users = users(&dir);
    Ok(Some(FoundClaim { record, dir, users }))
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> PodId {
        text.parse().unwrap()
    }

    fn terms(modes: &[AccessMode]) -> Terms {
        Terms { access_modes: modes.to_vec(), storage_bytes: Some(1 << 30), ..Terms::default() }
    }

    #[test]
    fn a_claim_is_made_once_and_survives_its_users() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volumes");
        let claims = Claims::at(&path);
        assert!(matches!(claims.attach(&id("data"), None, &id("a")), Err(ClaimError::Missing(_))));
        let many = terms(&[AccessMode::ReadWriteMany]);
        let one = claims.attach(&id("data"), Some(&many), &id("a")).unwrap();
        fs::write(one.path.join("file"), "kept").unwrap();
        assert_eq!(fs::metadata(&one.path).unwrap().permissions().mode() & 0o7777, 0o777);
        let two = claims.attach(&id("data"), Some(&many), &id("b")).unwrap();
        assert_eq!(two.record, one.record);
        assert_eq!((one.origin, two.origin), (Origin::Made, Origin::Found));
        assert_eq!(claims.find(&id("data")).unwrap().users, [id("a"), id("b")]);
        assert!(matches!(claims.remove(&id("data")), Err(ClaimError::InUse { user, .. }) if user == id("a")));
        drop((one, two));
        let found = claims.find(&id("data")).unwrap();
        assert_eq!(
            (found.users.len(), fs::read_to_string(found.data().join("file")).unwrap().as_str()),
            (0, "kept")
        );
        let once = terms(&[AccessMode::ReadWriteOnce]);
        assert!(matches!(
            claims.attach(&id("data"), Some(&once), &id("c")),
            Err(ClaimError::OtherModes { .. })
        ));
        claims.remove(&id("data")).unwrap();
        assert!(matches!(claims.remove(&id("data")), Err(ClaimError::Missing(_))));
        let left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [".lock"]);
    }

    #[test]
    fn a_claim_for_one_pod_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::at(dir.path());
        let alone = terms(&[AccessMode::ReadWriteOncePod]);
        let held = claims.attach(&id("data"), Some(&alone), &id("a")).unwrap();
        let error = claims.attach(&id("data"), None, &id("b")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "volume default/data is for one pod at a time (ReadWriteOncePod), and pod default/a uses it"
        );
        drop(held);
        claims.attach(&id("data"), None, &id("b")).unwrap();
        // The same name in another namespace is another claim.
        assert!(matches!(claims.attach(&id("other/data"), None, &id("b")), Err(ClaimError::Missing(_))));
    }

    #[test]
    fn a_disk_has_one_user_and_grows_but_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::at(dir.path());
        let asked = |bytes: u64| Terms {
            storage_bytes: Some(bytes),
            form: ClaimForm::Disk,
            labels: [("app".to_owned(), bytes.to_string())].into(),
            ..Terms::default()
        };
        let one = claims.attach(&id("data"), Some(&asked(8 << 20)), &id("a")).unwrap();
        assert!(one.path.ends_with("default_data/disk/image") && !one.path.exists());
        assert_eq!(one.record.guid().len(), 16);
        let error = claims.attach(&id("data"), None, &id("b")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "volume default/data is a disk, which one pod at a time can have, and pod default/a uses it"
        );
        let guid = one.record.guid();
        drop(one);
        let smaller = claims.attach(&id("data"), Some(&asked(4 << 20)), &id("b")).unwrap_err();
        assert!(matches!(smaller, ClaimError::Shrinks { found: 8_388_608, wanted: 4_194_304, .. }));
        let directory = Terms { storage_bytes: Some(1 << 30), ..Terms::default() };
        let other = claims.attach(&id("data"), Some(&directory), &id("b")).unwrap_err();
        assert!(matches!(other, ClaimError::OtherForm { .. }), "{other}");
        drop(claims.attach(&id("data"), Some(&asked(16 << 20)), &id("b")).unwrap());
        let found = claims.find(&id("data")).unwrap();
        assert_eq!((found.record.storage_bytes, found.record.guid()), (Some(16 << 20), guid));
        assert_eq!((found.record.labels["app"].as_str(), found.used_bytes()), ("16777216", Some(0)));
        // A directory of an earlier version stays one.
        drop(claims.attach(&id("old"), Some(&directory), &id("b")).unwrap());
        let old = claims.attach(&id("old"), Some(&asked(1 << 20)), &id("b")).unwrap();
        assert_eq!(old.record.form, ClaimForm::Directory);
    }

    #[test]
    fn what_a_crash_left_is_cleared_away_and_damage_hides_no_other_claim() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::at(dir.path());
        for name in [".new-x", ".trash-y", "default_bad/data"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("default_bad/volume.json"), "garbage").unwrap();
        // The pod's monitor was killed.
        drop(claims.attach(&id("data"), Some(&Terms::default()), &id("a")).unwrap());
        fs::write(dir.path().join("default_data/users/default_dead"), "default/dead").unwrap();
        let (found, damage) = claims.list().unwrap();
        assert_eq!((found.len(), damage.len(), found[0].users.len()), (1, 1, 0));
        assert!(!dir.path().join(".new-x").exists() && !dir.path().join(".trash-y").exists());
        claims.remove(&id("bad")).unwrap();
        claims.remove(&id("data")).unwrap();
    }
}
