//! Compares a tree with the table of fields: the path, the position and the type of each value.

use super::fields::{self, Empty, Field, Shape, Status, WINDOWS};
use super::injected;
use super::node::{Entry, Node, Style, Value};
use super::problem::{FieldPlace, Mark, ProblemCollector, path_key, quote};
use super::quantity::Quantity;
use super::scalar::{self, ScalarKind};
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Compares a tree with the table and keeps the position of each value.
pub(super) struct Check<'a> {
    pub(super) report: &'a mut ProblemCollector,
    pub(super) marks: HashMap<String, Mark>,
    /// The scalars among the ignored fields, by their path.
    pub(super) ignored: BTreeMap<&'static str, String>,
    /// Names of the volumes that an admission controller has added.
    pub(super) injected: &'a HashSet<String>,
}

impl Check<'_> {
    pub(super) fn object(&mut self, entries: &[Entry], schema: &str, path: &str) -> Json {
        let mut object = serde_json::Map::new();
        for entry in entries {
            let join = |parent: &str, key: &str| {
                if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
            };
            let path = join(path, &path_key(&entry.key));
            let place = FieldPlace { path, mark: entry.key_mark };
            let Some(field) = fields::find(&join(schema, &entry.key)) else {
                if let Some(why) = fields::unlisted(schema, &entry.key) {
                    if !asks_nothing(&entry.node, &place.path) {
                        self.report.add(&place, format!("is not supported: {why}"), "");
                    }
                    continue;
                }
                let hint = fields::suggest(schema, &entry.key).unwrap_or_default();
                self.report.add(&place, "is not a field of a v1 Pod", hint);
                continue;
            };
            if let Some(value) = self.field(&entry.node, field, place) {
                object.insert(entry.key.clone(), value);
            }
        }
        Json::Object(object)
    }

    fn field(&mut self, node: &Node, field: &'static Field, place: FieldPlace) -> Option<Json> {
        // As in Kubernetes, null means absent.
        if scalar::is_null(node) {
            return None;
        }
        match field.status {
            Status::Ignored { why, defaults } => {
                self.marks.insert(place.path.clone(), place.mark);
                self.ignore(node, field, &place, why, defaults);
                return None;
            }
            Status::Refused { why, empty } => {
                if empty == Empty::Asks || !asks_nothing(node, &place.path) {
                    self.report.add(&place, format!("is not supported: {why}"), "");
                }
                return None;
            }
            // The zero value of a string is how programs write that it is not set.
            Status::Only { .. } if field.shape == Shape::Text && text(node) == Some("") => return None,
            Status::Supported | Status::Only { .. } => {}
        }
        let mark = if matches!(node.value, Value::Scalar { .. }) { node.mark } else { place.mark };
        let place = FieldPlace { mark, ..place };
        self.marks.insert(place.path.clone(), mark);
        let value = self.shape(node, field, &place)?;
        if let Status::Only { values, why } = field.status {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !values.contains(&text.as_str()) {
                let message = format!("{} is not supported: {why}", quote(&text));
                self.report.add(&place, message, format!("leave it out or write {}", values.join(" or ")));
                return None;
            }
        }
        Some(value)
    }

    fn ignore(
        &mut self,
        node: &Node,
        field: &'static Field,
        place: &FieldPlace,
        why: &'static str,
        defaults: &[&str],
    ) {
        self.check_system(node, field, place);
        let text = text(node);
        if !is_empty(node) && !text.is_some_and(|text| defaults.contains(&text)) {
            self.report.ignore(why, &without_indexes(&place.path));
        }
        if let Some(text) = text {
            self.ignored.insert(field.path, text.to_owned());
        }
    }

    /// A node selector chooses among the nodes of a cluster, but no host of ours runs programs of Windows.
    fn check_system(&mut self, node: &Node, field: &Field, place: &FieldPlace) {
        let Value::Map(labels) = &node.value else { return };
        if field.path != "spec.nodeSelector" {
            return;
        }
        let selects = |label: &&Entry| {
            ["kubernetes.io/os", "beta.kubernetes.io/os"].contains(&label.key.as_str())
                && text(&label.node) == Some("windows")
        };
        if let Some(label) = labels.iter().find(selects) {
            let path = format!("{}.{}", place.path, path_key(&label.key));
            let place = FieldPlace { path, mark: label.node.mark };
            self.report.add(&place, format!("\"windows\" is not supported: {WINDOWS}"), "");
        }
    }

    fn shape(&mut self, node: &Node, field: &Field, place: &FieldPlace) -> Option<Json> {
        match (field.shape, &node.value) {
            (Shape::Any, _) => None,
            (Shape::Object, Value::Map(entries)) => Some(self.object(entries, field.path, &place.path)),
            (Shape::Objects, Value::List(items)) => Some(self.objects(items, field, place)),
            (Shape::Texts, Value::List(items)) => Some(self.scalars(Shape::Text, items, place)),
            (Shape::Ints, Value::List(items)) => Some(self.scalars(Shape::Int, items, place)),
            (Shape::TextMap, Value::Map(entries)) => Some(self.text_map(entries, place)),
            (shape, Value::Scalar { text, style }) => self.scalar(shape, text, *style, place),
            (shape, _) => {
                self.report.add(place, format!("must be {}", wanted(shape)), "");
                None
            }
        }
    }

    fn objects(&mut self, items: &[Node], field: &Field, place: &FieldPlace) -> Json {
        let schema = format!("{}[]", field.path);
        let objects = items.iter().enumerate().map(|(index, item)| {
            let place = FieldPlace { path: format!("{}[{index}]", place.path), mark: item.mark };
            self.marks.insert(place.path.clone(), place.mark);
            match &item.value {
                Value::Map(entries) if injected::takes_names(&schema) && self.is_injected(entries) => {
                    // Its place in the list is kept, so that the others have their indexes.
                    let name = name(entries).unwrap_or_default();
                    self.report.ignore(injected::WHY, &format!("the volume {}", path_key(name)));
                    serde_json::json!({ "name": name })
                }
                Value::Map(entries) => self.object(entries, &schema, &place.path),
                _ if scalar::is_null(item) => Json::Object(serde_json::Map::new()),
                _ => {
                    self.report.add(&place, "must be a mapping", "");
                    // Keeps the indexes of the other elements right.
                    Json::Object(serde_json::Map::new())
                }
            }
        });
        Json::Array(objects.collect())
    }

    fn is_injected(&self, entries: &[Entry]) -> bool {
        name(entries).is_some_and(|name| self.injected.contains(name))
    }

    fn scalars(&mut self, shape: Shape, items: &[Node], place: &FieldPlace) -> Json {
        let scalars = items.iter().enumerate().filter_map(|(index, item)| {
            let place = FieldPlace { path: format!("{}[{index}]", place.path), mark: item.mark };
            self.marks.insert(place.path.clone(), place.mark);
            self.simple(shape, item, &place)
        });
        Json::Array(scalars.collect())
    }

    fn text_map(&mut self, entries: &[Entry], place: &FieldPlace) -> Json {
        let map = entries.iter().filter_map(|entry| {
            let path = format!("{}.{}", place.path, path_key(&entry.key));
            let place = FieldPlace { path, mark: entry.node.mark };
            self.marks.insert(place.path.clone(), place.mark);
            // As an API server reads it: the key is there, and its value is empty.
            let value = match scalar::is_null(&entry.node) {
                true => Json::from(""),
                false => self.simple(Shape::Text, &entry.node, &place)?,
            };
            Some((entry.key.clone(), value))
        });
        Json::Object(map.collect())
    }

    fn simple(&mut self, shape: Shape, node: &Node, place: &FieldPlace) -> Option<Json> {
        match &node.value {
            Value::Scalar { text, style } => self.scalar(shape, text, *style, place),
            Value::List(_) | Value::Map(_) => {
                self.report.add(place, format!("must be {}", wanted(shape)), "");
                None
            }
        }
    }

    fn scalar(&mut self, shape: Shape, text: &str, style: Style, place: &FieldPlace) -> Option<Json> {
        let kind = if style == Style::Quoted { ScalarKind::Text } else { scalar::kind(text) };
        let (message, hint) = match (shape, kind) {
            (Shape::Text, ScalarKind::Text) => return Some(Json::from(text)),
            (Shape::Text, _) => {
                ("must be a string".to_owned(), format!("write it in quotes: {}", quote(text)))
            }
            (Shape::Bool, ScalarKind::Bool(value)) => return Some(Json::from(value)),
            (Shape::Bool, ScalarKind::MaybeBool(value)) => {
                (format!("must be true or false, not {}", quote(text)), format!("write {value}"))
            }
            (Shape::Int | Shape::Port, ScalarKind::Int(value)) => return Some(Json::from(value)),
            (Shape::Port, ScalarKind::Text) => return Some(Json::from(text)),
            (Shape::Mode, ScalarKind::Int(value)) => return Some(Json::from(value)),
            (Shape::Mode, ScalarKind::Number) if octal(text).is_some() => return octal(text).map(Json::from),
            (Shape::Int, ScalarKind::Number) => (
                format!("must be a whole number, not {}", quote(text)),
                "write it in decimal digits only".to_owned(),
            ),
            (Shape::Quantity, _) => match quantity(text, kind) {
                Ok(()) => return Some(Json::from(text)),
                Err((message, hint)) => (message, hint.to_owned()),
            },
            (shape, _) => {
                let unquoted = matches!(scalar::kind(text), ScalarKind::Int(_) | ScalarKind::Bool(_))
                    || (shape == Shape::Mode && octal(text).is_some());
                let hint = if unquoted && style == Style::Quoted { "write it without quotes" } else { "" };
                (format!("must be {}, not {}", wanted(shape), quote(text)), hint.to_owned())
            }
        };
        self.report.add(place, message, hint);
        None
    }
}

/// A field of every element of the lists around it.
fn without_indexes(path: &str) -> String {
    let mut parts = path.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| match part.split_once(']') {
        Some((_, rest)) => format!("{path}[]{rest}"),
        None => format!("{path}[{part}"),
    })
}

/// The scalar's text.
pub(super) fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
}

/// The value of a key.
pub(super) fn get<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Node> {
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
}

fn name(entries: &[Entry]) -> Option<&str> {
    text(get(entries, "name")?)
}

/// Whether a value is null, an empty text, list or mapping, or a mapping of nulls.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Scalar { text, .. } => text.is_empty() || scalar::is_null(node),
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.iter().all(|entry| scalar::is_null(&entry.node)),
    }
}

/// Whether a value that is not supported asks for nothing anyway: it is empty, or none of a resource.
fn asks_nothing(node: &Node, path: &str) -> bool {
    let none = |text: &str| Quantity::parse(text).is_ok_and(Quantity::is_zero);
    is_empty(node) || (path.contains(".resources.") && text(node).is_some_and(none))
}

/// The number that Kubernetes' YAML reader makes of `0644` and `0o644`.
fn octal(text: &str) -> Option<i64> {
    let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'))?;
    let is_octal = !digits.is_empty() && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    i64::from_str_radix(digits, 8).ok().filter(|_| is_octal)
}

/// The shape, to complete "must be".
fn wanted(shape: Shape) -> String {
    match shape {
        Shape::Bool => shape.describe().to_owned(),
        _ => format!("a {}", shape.describe()),
    }
}

fn quantity(text: &str, kind: ScalarKind) -> Result<(), (String, &'static str)> {
    let example = "for example 500m, 2, 128Mi or 1.5Gi";
    let digits = text.trim_start_matches(['+', '-']).as_bytes();
    if kind == ScalarKind::Number
        && digits.first() == Some(&b'0')
        && digits.get(1).is_some_and(u8::is_ascii_digit)
    {
        return Err((
            format!("{} is octal to some YAML readers", quote(text)),
            "write it without the leading zero",
        ));
    }
    match Quantity::parse(text) {
        Ok(_) => Ok(()),
        Err(error) => Err((format!("{} {error}", quote(text)), example)),
    }
}
