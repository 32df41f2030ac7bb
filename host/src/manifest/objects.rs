//! ConfigMaps, Secrets and PersistentVolumeClaims beside their Pod. Their data is secret: it is in no message and no `Debug` output.

mod claim;

pub use claim::{AccessMode, Claim, VolumeMode};

use super::names;
use super::node::{Entry, Node, Style, Value};
use super::problem::{FieldPlace, Mark, ProblemCollector, path_key, quote};
use super::scalar::{self, ScalarKind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use magikvm_proto::id::{Namespace, PodName};
use magikvm_proto::limits::{MAX_LABELS_PER_POD, MAX_NAME_LEN, MAX_OBJECT_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Bytes that are shown to nobody. Copies share them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Content(Arc<[u8]>);

impl Content {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Content> for String {
    fn from(content: Content) -> Self {
        STANDARD.encode(content.0)
    }
}

impl TryFrom<String> for Content {
    type Error = NotBase64;

    fn try_from(text: String) -> Result<Self, NotBase64> {
        STANDARD.decode(text).map(Self::from).map_err(|_| NotBase64)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The text is not base64. The error does not show the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not base64")]
pub struct NotBase64;

/// The namespace of what says none.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// Kinds of documents that Pods use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    ConfigMap,
    Secret,
    PersistentVolumeClaim,
}

impl ObjectKind {
    pub const ALL: [Self; 3] = [Self::ConfigMap, Self::Secret, Self::PersistentVolumeClaim];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
        }
    }

    /// The kind of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A ConfigMap, a Secret or a claim.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) kind: ObjectKind,
    pub(super) name: String,
    /// The namespace, if given.
    pub(super) namespace: Option<(Namespace, FieldPlace)>,
    /// Where it begins.
    pub(super) mark: Mark,
    pub(super) data: BTreeMap<String, Content>,
    /// The `type` of a Secret.
    pub(super) secret_type: Option<String>,
    /// What a claim asks for.
    pub(super) claim: Option<Claim>,
}

impl Object {
    /// What makes it another object than others for an API server: kind, namespace and name.
    pub(super) fn key(&self) -> (ObjectKind, &str, &str) {
        let namespace =
            self.namespace.as_ref().map_or(DEFAULT_NAMESPACE, |(namespace, _)| namespace.as_str());
        (self.kind, namespace, &self.name)
    }
}

/// The objects that a Pod can use: those of its namespace, and those that say none.
#[derive(Debug, Default)]
pub(super) struct Objects {
    all: BTreeMap<(ObjectKind, String), Arc<Object>>,
    /// How many files they are of.
    files: usize,
}

impl Objects {
    /// Chooses the objects that a Pod of this namespace can use. Of two with one name, that which says the namespace is meant.
    pub(super) fn of<'a>(
        namespace: &str,
        all: impl Iterator<Item = &'a Arc<Object>> + Clone,
        files: usize,
    ) -> Self {
        let silent = all.clone().filter(|object| object.namespace.is_none());
        let here =
            all.filter(|object| object.namespace.as_ref().is_some_and(|(own, _)| own.as_str() == namespace));
        let keyed = |object: &Arc<Object>| ((object.kind, object.name.clone()), Arc::clone(object));
        Self { all: silent.chain(here).map(keyed).collect(), files }
    }

    /// Where they are, in a message.
    pub(super) fn place(&self) -> &'static str {
        if self.files > 1 { "these files" } else { "this file" }
    }

    /// The object with this name.
    pub(super) fn get(&self, kind: ObjectKind, name: &str) -> Option<&Object> {
        self.all.get(&(kind, name.to_owned())).map(Arc::as_ref)
    }
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
}

/// Reads a document of this kind. `None` only after a problem was reported.
pub(super) fn read(kind: ObjectKind, document: &Node, report: &mut ProblemCollector) -> Option<Object> {
    let Value::Map(entries) = &document.value else { return None };
    let mark = document.mark;
    let mut reader = Reader { kind, report, data: BTreeMap::new(), bytes: 0, labels: BTreeMap::new() };
    let (mut names, mut secret_type, mut claim) = ((None, None), None, None);
    for entry in entries {
        let place = reader.place(&entry.key, entry.key_mark);
        let is_known = matches!(entry.key.as_str(), "apiVersion" | "kind" | "metadata");
        if scalar::is_null(&entry.node) && !is_known {
            continue;
        }
        match (kind, entry.key.as_str()) {
            (_, "kind") => {}
            (_, "apiVersion") if text(&entry.node) == Some("v1") => {}
            (_, "apiVersion") => reader.report.add(&place, "must be v1", ""),
            (_, "metadata") => names = reader.metadata(entry),
            (ObjectKind::PersistentVolumeClaim, "spec") => claim = Some(Claim::read(entry, reader.report)),
            // What an API server keeps with it.
            (ObjectKind::PersistentVolumeClaim, "status") => {}
            (ObjectKind::ConfigMap | ObjectKind::Secret, "immutable") => reader.boolean(entry, &place),
            (ObjectKind::ConfigMap, "data") => reader.values(entry, Encoding::Text, Again::Refused),
            (ObjectKind::ConfigMap, "binaryData") | (ObjectKind::Secret, "data") => {
                reader.values(entry, Encoding::Base64, Again::Refused);
            }
            // Handled below, since its values win.
            (ObjectKind::Secret, "stringData") => {}
            (ObjectKind::Secret, "type") if text(&entry.node).is_some() => {
                secret_type = text(&entry.node).map(str::to_owned);
            }
            _ => reader.report.add(&place, format!("is not a field of a v1 {kind}"), ""),
        }
    }
    if let Some(entry) = entries.iter().find(|entry| kind == ObjectKind::Secret && entry.key == "stringData")
    {
        reader.values(entry, Encoding::Text, Again::Wins);
    }
    if !entries.iter().any(|entry| entry.key == "apiVersion") {
        reader.report.add(&reader.place("apiVersion", mark), "is missing", "write `apiVersion: v1`");
    }
    if kind == ObjectKind::PersistentVolumeClaim && claim.is_none() {
        reader.report.add(&reader.place("spec", mark), "is missing", "");
    }
    if reader.bytes > MAX_OBJECT_BYTES {
        let message = format!("has {} bytes of data, at most {MAX_OBJECT_BYTES} are allowed", reader.bytes);
        reader.report.add(&FieldPlace { path: kind.to_string(), mark }, message, "");
    }
    if !entries.iter().any(|entry| entry.key == "metadata") {
        reader.report.add(&reader.place("metadata", mark), "is missing", "write `metadata: {name: NAME}`");
    }
    let (name, namespace) = names;
    let mut claim = claim.flatten();
    if let Some(claim) = &mut claim {
        claim.labels = std::mem::take(&mut reader.labels);
    }
    Some(Object { kind, name: name?, namespace, mark, data: reader.data, secret_type, claim })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Text,
    Base64,
}

/// Whether a key may already exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    Refused,
    Wins,
}

type Names = (Option<String>, Option<(Namespace, FieldPlace)>);

struct Reader<'a> {
    kind: ObjectKind,
    report: &'a mut ProblemCollector,
    data: BTreeMap<String, Content>,
    bytes: usize,
    /// Those of a claim, which `magikvm volume` shows.
    labels: BTreeMap<String, String>,
}

impl Reader<'_> {
    fn place(&self, path: &str, mark: Mark) -> FieldPlace {
        FieldPlace { path: format!("{}.{}", self.kind, path_key(path)), mark }
    }

    fn boolean(&mut self, entry: &Entry, place: &FieldPlace) {
        let is_boolean = matches!(&entry.node.value, Value::Scalar { text, style: Style::Plain }
            if matches!(scalar::kind(text), ScalarKind::Bool(_) | ScalarKind::Null));
        if !is_boolean {
            self.report.add(place, "must be true or false", "");
        }
    }

    fn metadata(&mut self, entry: &Entry) -> Names {
        let place = self.place("metadata", entry.key_mark);
        let Value::Map(entries) = &entry.node.value else {
            self.report.add(&place, "must be a mapping", "write `metadata: {name: NAME}`");
            return (None, None);
        };
        let mut names = (None, None);
        for field in entries {
            let place = self.place(&format!("metadata.{}", field.key), field.node.mark);
            match field.key.as_str() {
                "name" => names.0 = self.name::<PodName>(field, &place).map(|name| name.to_string()),
                "namespace" => names.1 = self.name(field, &place).map(|namespace| (namespace, place)),
                "labels" if self.kind == ObjectKind::PersistentVolumeClaim => self.labels(field, &place),
                "labels" | "annotations" => {}
                // An API server keeps these, as of a Pod.
                "creationTimestamp"
                | "deletionGracePeriodSeconds"
                | "deletionTimestamp"
                | "finalizers"
                | "generateName"
                | "generation"
                | "managedFields"
                | "ownerReferences"
                | "resourceVersion"
                | "selfLink"
                | "uid" => {}
                _ if scalar::is_null(&field.node) => {}
                _ => self.report.add(&place, format!("is not supported in a {}", self.kind), "leave it out"),
            }
        }
        if !entries.iter().any(|field| field.key == "name") {
            self.report.add(&self.place("metadata.name", place.mark), "is missing", "");
        }
        names
    }

    fn labels(&mut self, field: &Entry, place: &FieldPlace) {
        let entries = match &field.node.value {
            Value::Map(entries) => entries,
            _ if scalar::is_null(&field.node) => return,
            _ => return self.report.add(place, "must be a mapping of strings", ""),
        };
        if entries.len() > MAX_LABELS_PER_POD {
            let message = format!("has {} entries, at most {MAX_LABELS_PER_POD} are allowed", entries.len());
            return self.report.add(place, message, "");
        }
        for label in entries {
            let place = self.place(&format!("metadata.labels.{}", path_key(&label.key)), label.key_mark);
            if let Err(error) = names::qualified_name(&label.key) {
                self.report.add(&place, format!("is not a label key: {error}"), "");
            }
            match text(&label.node).map(|value| (value, names::label_value(value))) {
                Some((value, Ok(()))) => drop(self.labels.insert(label.key.clone(), value.to_owned())),
                Some((_, Err(error))) => self.report.add(&place, error, ""),
                None => self.report.add(&place, "must be a string", ""),
            }
        }
    }

    fn name<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        entry: &Entry,
        place: &FieldPlace,
    ) -> Option<T> {
        let Some(text) = text(&entry.node) else {
            self.report.add(place, "must be a string", "");
            return None;
        };
        text.parse().map_err(|error| self.report.add(place, format!("{} {error}", quote(text)), "")).ok()
    }

    fn values(&mut self, entry: &Entry, encoding: Encoding, again: Again) {
        let entries = match &entry.node.value {
            Value::Map(entries) => entries,
            _ if scalar::is_null(&entry.node) => return,
            _ => {
                let place = self.place(&entry.key, entry.key_mark);
                return self.report.add(&place, "must be a mapping of strings", "");
            }
        };
        for value in entries {
            let path = format!("{}.{}.{}", self.kind, path_key(&entry.key), path_key(&value.key));
            let place = FieldPlace { path, mark: value.key_mark };
            if let Err(message) = file_name(&value.key) {
                self.report.add(&place, message, "");
                continue;
            }
            let Some(content) = self.value(&value.node, encoding, &place) else { continue };
            self.bytes += content.bytes().len();
            if let Some(earlier) = self.data.insert(value.key.clone(), content) {
                self.bytes -= earlier.bytes().len();
                if again == Again::Refused {
                    self.report.add(&place, "is also a key of the object's other data", "keep one of them");
                }
            }
        }
    }

    fn value(&mut self, node: &Node, encoding: Encoding, place: &FieldPlace) -> Option<Content> {
        let text = match &node.value {
            Value::Scalar { text, style: Style::Quoted } => text.as_str(),
            Value::Scalar { text, style: Style::Plain } if scalar::kind(text) == ScalarKind::Text => text,
            Value::Scalar { text, style: Style::Plain } if scalar::kind(text) == ScalarKind::Null => "",
            Value::Scalar { .. } => {
                self.report.add(place, "must be a string", "write it in quotes");
                return None;
            }
            Value::List(_) | Value::Map(_) => {
                self.report.add(place, "must be a string", "");
                return None;
            }
        };
        if encoding == Encoding::Text {
            return Some(text.as_bytes().to_vec().into());
        }
        let lines: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        Content::try_from(lines)
            .map_err(|error| {
                self.report.add(
                    place,
                    error.to_string(),
                    "text goes into `data` of a ConfigMap or `stringData` of a Secret",
                )
            })
            .ok()
    }
}

/// Kubernetes' rule for keys: each can be a file name.
fn file_name(key: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > MAX_NAME_LEN {
        return Err(format!("must have 1 to {MAX_NAME_LEN} characters"));
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(c) = key.chars().find(|&c| !fine(c)) {
        return Err(format!("contains {c:?}; only letters, digits, '-', '_' and '.' are allowed"));
    }
    if key == "." || key.starts_with("..") { Err("is not a file name".to_owned()) } else { Ok(()) }
}
