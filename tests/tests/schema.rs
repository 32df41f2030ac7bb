//! The table of fields and the schema of core/v1 Pod, as k8s-openapi's newest version has it, know the same fields.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::schemars::SchemaGenerator;
use magikvm::manifest::fields::{self, Shape, Status};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Fields of the table that the schema does not have, and why the table does.
const OLDER: [(&str, &str); 2] = [
    ("metadata.clusterName", "servers before 1.24 answer with it"),
    ("spec.workloadRef", "the alpha version of 1.35 has it, before `schedulingGroup`"),
];

fn schema() -> Value {
    serde_json::to_value(SchemaGenerator::default().into_root_schema_for::<Pod>()).unwrap()
}

/// The schema that a reference leads to.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(reference) = schema["$ref"].as_str() else { return schema };
    let name = reference.strip_prefix("#/$defs/").unwrap();
    &root["$defs"][name]
}

/// A field of the schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Fields of its own.
    Object,
    /// A list of objects with fields of their own.
    Objects,
    /// Any keys.
    Map,
    /// A number, a text, a list of them, or a type that the schema says nothing more of.
    Leaf(&'static str),
}

fn kind(root: &Value, schema: &Value) -> Kind {
    let has_fields = |schema: &Value| resolved(root, schema)["properties"].is_object();
    let found = resolved(root, schema);
    if has_fields(schema) {
        return Kind::Object;
    }
    match found["type"].as_str() {
        Some("array") if has_fields(&found["items"]) => Kind::Objects,
        Some("array") => match resolved(root, &found["items"])["type"].as_str() {
            Some("integer") => Kind::Leaf("integers"),
            _ => Kind::Leaf("strings"),
        },
        Some("object") if found["additionalProperties"].is_object() => Kind::Map,
        Some("string") => Kind::Leaf("string"),
        Some("boolean") => Kind::Leaf("boolean"),
        Some("integer") => Kind::Leaf("integer"),
        _ => Kind::Leaf(""),
    }
}

/// Every field of the schema below one of its objects, except those below fields that the table has no rows for.
fn walk(root: &Value, schema: &Value, path: &str, found: &mut BTreeMap<String, Kind>) {
    for (name, schema) in resolved(root, schema)["properties"].as_object().unwrap() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let kind = kind(root, schema);
        found.insert(path.clone(), kind);
        // A row of any shape holds for everything below it.
        if fields::find(&path).is_some_and(|field| field.shape == Shape::Any) {
            continue;
        }
        match kind {
            Kind::Object => walk(root, schema, &path, found),
            Kind::Objects => {
                let items = &resolved(root, schema)["items"];
                walk(root, items, &format!("{path}[]"), found);
            }
            Kind::Map | Kind::Leaf(_) => {}
        }
    }
}

fn all() -> BTreeMap<String, Kind> {
    let schema = schema();
    let mut found = BTreeMap::new();
    walk(&schema, &schema, "", &mut found);
    found
}

#[test]
fn the_table_has_every_field_of_the_schema() {
    let all = all();
    // The walk has been everywhere, whatever the schema is made of.
    for known in ["spec.containers[].livenessProbe.httpGet.httpHeaders[].name", "spec.volumes[].csi"] {
        assert!(all.contains_key(known), "{known}");
    }
    assert!(all.len() > 400, "{}", all.len());
    let missing: Vec<&String> = all.keys().filter(|path| fields::find(path).is_none()).collect();
    assert!(missing.is_empty(), "the table (host/src/manifest/fields) lacks {missing:#?}");
}

#[test]
fn the_schema_has_every_field_of_the_table() {
    let all = all();
    let known: BTreeSet<&str> =
        all.keys().filter_map(|path| fields::find(path)).map(|field| field.path).collect();
    // A mapping has any keys, some of which the table knows.
    let in_a_map = |path: &str| {
        all.iter().any(|(map, kind)| {
            *kind == Kind::Map && path.strip_prefix(map.as_str()).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    let older = |path: &str| OLDER.iter().any(|(known, _)| *known == path);
    let unknown: Vec<&str> = fields::all()
        .map(|field| field.path)
        .filter(|path| !known.contains(path) && !in_a_map(path) && !older(path))
        .collect();
    assert!(unknown.is_empty(), "core/v1 Pod does not have {unknown:#?}");
    for (path, why) in OLDER {
        assert!(!all.contains_key(path), "the schema has {path} again ({why})");
        assert!(fields::find(path).is_some(), "the table does not have {path} any more");
    }
}

#[test]
fn shapes_are_those_of_the_schema() {
    let mut wrong = Vec::new();
    for (path, kind) in all() {
        let Some(field) = fields::find(&path) else { continue };
        let fits = match (field.shape, kind) {
            (Shape::Any, _) => !matches!(field.status, Status::Supported),
            (Shape::Object, Kind::Object | Kind::Map) | (Shape::Objects, Kind::Objects) => true,
            (Shape::TextMap, Kind::Map) => true,
            (Shape::Text, Kind::Leaf("string")) | (Shape::Bool, Kind::Leaf("boolean")) => true,
            (Shape::Int | Shape::Mode, Kind::Leaf("integer")) => true,
            (Shape::Texts, Kind::Leaf("strings")) | (Shape::Ints, Kind::Leaf("integers")) => true,
            // A quantity and a port are numbers or texts.
            (Shape::Quantity | Shape::Port, Kind::Leaf(_)) => true,
            _ => false,
        };
        if !fits {
            wrong.push(format!("{path}: {:?} in the table, {kind:?} in the schema", field.shape));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
