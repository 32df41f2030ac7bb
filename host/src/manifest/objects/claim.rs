//! What a PersistentVolumeClaim asks for.

use super::super::fields::did_you_mean;
use super::super::node::{Entry, Node, Value};
use super::super::problem::{FieldPlace, Mark, ProblemCollector, path_key, quote};
use super::super::quantity::Quantity;
use super::super::scalar;
use super::super::walk::{get, text};
use super::ObjectKind;
pub use crate::volume::AccessMode;
use crate::volume::ClaimForm;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Least storage of a claim, in bytes. A smaller amount is a missing suffix.
const MIN_STORAGE_BYTES: u64 = 1 << 20;
/// Most storage of a claim, in bytes, and of one that is a disk.
const MAX_STORAGE_BYTES: u64 = 16 << 40;
const MAX_DISK_BYTES: u64 = 4 << 40;
/// Classes of storage that choose what holds the content. Any other name means nothing here.
pub(crate) const CLASS_DIRECTORY: &str = "directory";
pub(crate) const CLASS_DISK: &str = "disk";
/// Most modes that a claim can list.
const MAX_MODES: usize = 4;

/// How a volume appears in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum VolumeMode {
    #[default]
    Filesystem,
    Block,
}

/// The `spec` of a PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Not empty, without repetitions.
    pub access_modes: Vec<AccessMode>,
    /// `resources.requests.storage`, in bytes.
    pub storage_bytes: u64,
    pub volume_mode: VolumeMode,
    /// `Some("")` asks for a volume of no class.
    pub storage_class_name: Option<String>,
    /// `metadata.labels`, valid.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Claim {
    /// What a new claim becomes: a disk unless several pods may have it at a time, or what its class says.
    pub fn form(&self) -> ClaimForm {
        match self.storage_class_name.as_deref() {
            Some(CLASS_DIRECTORY) => ClaimForm::Directory,
            Some(CLASS_DISK) => ClaimForm::Disk,
            _ if self.shared_mode().is_some() => ClaimForm::Directory,
            _ => ClaimForm::Disk,
        }
    }

    /// A mode that lets several pods have it at a time, wherever they run.
    fn shared_mode(&self) -> Option<AccessMode> {
        let shared = [AccessMode::ReadOnlyMany, AccessMode::ReadWriteMany];
        self.access_modes.iter().copied().find(|mode| shared.contains(mode))
    }

    /// Reads the `spec` of a claim. `None` only after a problem was reported.
    pub(super) fn read(spec: &Entry, report: &mut ProblemCollector) -> Option<Self> {
        let mut reader = Reader { report };
        let Value::Map(entries) = &spec.node.value else {
            reader.add("spec", spec.key_mark, "must be a mapping", "");
            return None;
        };
        let (mut modes, mut storage, mut volume_mode, mut class) =
            (None, None, Some(VolumeMode::default()), None);
        for Entry { key, key_mark, node } in entries {
            let path = format!("spec.{}", path_key(key));
            match key.as_str() {
                _ if scalar::is_null(node) => {}
                "accessModes" => modes = Some(reader.modes(node, *key_mark)),
                "resources" => storage = Some(reader.storage(node, *key_mark)),
                "volumeMode" => {
                    let table = [("Filesystem", VolumeMode::Filesystem), ("Block", VolumeMode::Block)];
                    volume_mode = reader.one_of(&path, node, &table);
                }
                "storageClassName" => match text(node) {
                    Some(name) => class = Some(name.to_owned()),
                    None => reader.add(&path, *key_mark, "must be a string", ""),
                },
                "volumeAttributesClassName" | "volumeName" if text(node) == Some("") => {}
                "volumeName" | "selector" | "dataSource" | "dataSourceRef" => {
                    let message = "is not supported: a claim gets an empty volume, and no other one to choose or to copy exists here";
                    reader.add(&path, *key_mark, message, "leave it out");
                }
                "volumeAttributesClassName" => {
                    reader.add(
                        &path,
                        *key_mark,
                        "is not supported: there are no classes of volumes",
                        "leave it out",
                    );
                }
                _ => {
                    let known = ["accessModes", "resources", "volumeMode", "storageClassName"];
                    let hint = did_you_mean(key, known.into_iter());
                    reader.add(&path, *key_mark, "is not a field of a v1 PersistentVolumeClaim", &hint);
                }
            }
        }
        if modes.is_none() {
            reader.add(
                "spec.accessModes",
                spec.key_mark,
                "is missing",
                "write `accessModes: [ReadWriteOnce]`",
            );
        }
        if storage.is_none() {
            let hint = "write how much it may hold, like `requests: {storage: 1Gi}`";
            reader.add("spec.resources.requests.storage", spec.key_mark, "is missing", hint);
        }
        let claim = Self {
            access_modes: modes??,
            storage_bytes: storage??,
            volume_mode: volume_mode?,
            storage_class_name: class,
            labels: BTreeMap::new(),
        };
        match (claim.form(), claim.shared_mode()) {
            (ClaimForm::Disk, Some(mode)) => {
                let message = format!("a disk is for one pod at a time, which {} is not", mode.as_str());
                let hint = "write `storageClassName: directory`, or leave it out";
                reader.add("spec.storageClassName", spec.key_mark, message, hint);
            }
            (ClaimForm::Disk, None) if claim.storage_bytes > MAX_DISK_BYTES => {
                let message =
                    format!("{} bytes are more than a disk can hold, at most 4Ti", claim.storage_bytes);
                let hint =
                    "request less, or write `storageClassName: directory` for a directory without a limit";
                reader.add("spec.resources.requests.storage", spec.key_mark, message, hint);
            }
            _ => {}
        }
        Some(claim)
    }
}

struct Reader<'a> {
    report: &'a mut ProblemCollector,
}

impl Reader<'_> {
    fn add(&mut self, path: &str, mark: Mark, message: impl Into<String>, hint: &str) {
        let place = FieldPlace { path: format!("{}.{path}", ObjectKind::PersistentVolumeClaim), mark };
        self.report.add(&place, message, hint);
    }

    fn one_of<T: Copy>(&mut self, path: &str, node: &Node, table: &[(&str, T)]) -> Option<T> {
        let Some(written) = text(node) else {
            self.add(path, node.mark, "must be a string", "");
            return None;
        };
        if let Some(&(_, value)) = table.iter().find(|(name, _)| *name == written) {
            return Some(value);
        }
        let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        let hint = did_you_mean(written, names.iter().copied());
        self.add(path, node.mark, format!("{} is not one of {}", quote(written), names.join(", ")), &hint);
        None
    }

    fn modes(&mut self, node: &Node, mark: Mark) -> Option<Vec<AccessMode>> {
        let Value::List(items) = &node.value else {
            self.add("spec.accessModes", mark, "must be a list of strings", "");
            return None;
        };
        if items.is_empty() || items.len() > MAX_MODES {
            let message = format!("has {} entries, 1 to {MAX_MODES} are allowed", items.len());
            self.add("spec.accessModes", mark, message, "");
            return None;
        }
        let read: Vec<Option<AccessMode>> = items
            .iter()
            .enumerate()
            .map(|(index, item)| self.one_of(&format!("spec.accessModes[{index}]"), item, &AccessMode::ALL))
            .collect();
        let mut modes: Vec<AccessMode> = read.into_iter().collect::<Option<_>>()?;
        modes.sort_unstable();
        modes.dedup();
        if modes.len() > 1 && modes.contains(&AccessMode::ReadWriteOncePod) {
            self.add("spec.accessModes", mark, "ReadWriteOncePod can't be beside another mode", "");
            return None;
        }
        Some(modes)
    }

    /// `resources`, of which only the requested storage counts.
    fn storage(&mut self, node: &Node, mark: Mark) -> Option<u64> {
        let path = "spec.resources";
        let Value::Map(entries) = &node.value else {
            self.add(path, mark, "must be a mapping", "");
            return None;
        };
        let mut storage = None;
        for Entry { key, key_mark, node } in entries {
            let at = format!("{path}.{}", path_key(key));
            match (key.as_str(), &node.value) {
                ("requests" | "limits", Value::Map(amounts)) => {
                    for amount in amounts.iter().filter(|amount| amount.key != "storage") {
                        let path = format!("{at}.{}", path_key(&amount.key));
                        self.add(
                            &path,
                            amount.key_mark,
                            "is not supported: a claim asks for `storage` only",
                            "",
                        );
                    }
                    let amount =
                        get(amounts, "storage").and_then(|node| self.bytes(&format!("{at}.storage"), node));
                    if key == "requests" {
                        storage = get(amounts, "storage").map(|_| amount);
                    }
                }
                ("requests" | "limits", _) if scalar::is_null(node) => {}
                ("requests" | "limits", _) => self.add(&at, *key_mark, "must be a mapping", ""),
                _ => self.add(&at, *key_mark, "is not a field of a v1 PersistentVolumeClaim", ""),
            }
        }
        let Some(storage) = storage else {
            self.add(
                "spec.resources.requests.storage",
                mark,
                "is missing",
                "write how much it may hold, like `1Gi`",
            );
            return None;
        };
        storage
    }

    fn bytes(&mut self, path: &str, node: &Node) -> Option<u64> {
        let Some(written) = text(node) else {
            self.add(path, node.mark, "must be a quantity", "for example 1Gi");
            return None;
        };
        let bytes = match Quantity::parse(written).and_then(Quantity::units) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.add(path, node.mark, format!("{} {error}", quote(written)), "for example 1Gi");
                return None;
            }
        };
        if !(MIN_STORAGE_BYTES..=MAX_STORAGE_BYTES).contains(&bytes) {
            self.add(
                path,
                node.mark,
                format!("{} is {bytes} bytes, 1Mi to 16Ti are possible", quote(written)),
                "",
            );
            return None;
        }
        Some(bytes)
    }
}
