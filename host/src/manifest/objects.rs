//! ConfigMaps and Secrets in the same file as their Pod. Their data is secret: it is in no message and no `Debug` output.

use super::k8s;
use super::node::{Entry, Node, Style, Value};
use super::problem::{FieldPlace, Mark, ProblemCollector, path_key, quote};
use super::scalar::{self, ScalarKind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use magikvm_proto::id::{Namespace, PodName};
use magikvm_proto::limits::{MAX_NAME_LEN, MAX_OBJECT_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Bytes that are shown to nobody.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Content(Vec<u8>);

impl Content {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
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
        STANDARD.decode(text).map(Self).map_err(|_| NotBase64)
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ObjectKind {
    ConfigMap,
    Secret,
}

impl ObjectKind {
    fn of(node: &Node) -> Option<Self> {
        match k8s::kind(node) {
            Some("ConfigMap") => Some(Self::ConfigMap),
            Some("Secret") => Some(Self::Secret),
            _ => None,
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

#[derive(Debug)]
pub(super) struct Object {
    /// The namespace, if given.
    namespace: Option<(Namespace, FieldPlace)>,
    pub(super) data: BTreeMap<String, Content>,
}

/// All objects of a file.
#[derive(Debug, Default)]
pub(super) struct Objects(BTreeMap<(ObjectKind, String), Object>);

impl Objects {
    /// The object with this name.
    pub(super) fn get(&self, kind: ObjectKind, name: &str) -> Option<&Object> {
        self.0.get(&(kind, name.to_owned()))
    }

    /// Reports objects in another namespace than the Pod's, which the Pod could not use.
    pub(super) fn check_namespace(&self, pod: &Namespace, report: &mut ProblemCollector) {
        for object in self.0.values() {
            if let Some((namespace, place)) = &object.namespace
                && namespace != pod
            {
                let message =
                    format!("is {}, and the Pod is in {}", quote(namespace.as_str()), quote(pod.as_str()));
                report.add(place, message, "leave it out: it is the Pod's");
            }
        }
    }
}

/// Sorts the documents of a file into its objects and the document that should be its Pod.
pub(super) fn sort<'a>(documents: &'a [Node], report: &mut ProblemCollector) -> (Objects, Option<&'a Node>) {
    let mut objects = Objects::default();
    let mut pods: Vec<&Node> = Vec::new();
    for document in documents {
        match (ObjectKind::of(document), &document.value) {
            (Some(kind), Value::Map(entries)) => read(kind, entries, document.mark, &mut objects, report),
            _ => pods.push(document),
        }
    }
    let is_pod = |node: &&&Node| k8s::kind(node) == Some("Pod");
    let pod = pods.iter().find(is_pod).or(pods.first()).copied();
    for other in pods.iter().filter(|other| pod.is_none_or(|pod| !std::ptr::eq(pod, **other))) {
        let place = FieldPlace { path: String::new(), mark: other.mark };
        match k8s::kind(other) {
            Some("Pod") => report.add(&place, "a second Pod begins here", "put it into a separate file"),
            Some(kind) => {
                let hint = k8s::kind_hint(kind);
                report.add(&place, format!("a document of kind {} begins here", quote(kind)), hint);
            }
            None => report.add(
                &place,
                "a document without a kind begins here",
                "write `kind: ConfigMap` or `kind: Secret`",
            ),
        }
    }
    if pod.is_none() {
        report.whole("holds no Pod: it is empty", "a Pod begins with `apiVersion: v1` and `kind: Pod`");
    }
    (objects, pod)
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
}

fn read(
    kind: ObjectKind,
    entries: &[Entry],
    mark: Mark,
    objects: &mut Objects,
    report: &mut ProblemCollector,
) {
    let mut reader = Reader { kind, report, data: BTreeMap::new(), bytes: 0 };
    let mut names = (None, None);
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
            (_, "immutable") => reader.boolean(entry, &place),
            (ObjectKind::ConfigMap, "data") => reader.values(entry, Encoding::Text, Again::Refused),
            (ObjectKind::ConfigMap, "binaryData") | (ObjectKind::Secret, "data") => {
                reader.values(entry, Encoding::Base64, Again::Refused);
            }
            // Handled below, since its values win.
            (ObjectKind::Secret, "stringData") => {}
            (ObjectKind::Secret, "type") if text(&entry.node).is_some() => {}
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
    if reader.bytes > MAX_OBJECT_BYTES {
        let message = format!("has {} bytes of data, at most {MAX_OBJECT_BYTES} are allowed", reader.bytes);
        reader.report.add(&FieldPlace { path: kind.to_string(), mark }, message, "");
    }
    let (Some(name), namespace) = names else {
        if !entries.iter().any(|entry| entry.key == "metadata") {
            reader.report.add(
                &reader.place("metadata", mark),
                "is missing",
                "write `metadata: {name: NAME}`",
            );
        }
        return;
    };
    let object = Object { namespace, data: reader.data };
    let place = FieldPlace { path: kind.to_string(), mark };
    if objects.0.insert((kind, name.clone()), object).is_some() {
        report.add(&place, format!("there is another {kind} {} in this file", quote(&name)), "");
    }
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
