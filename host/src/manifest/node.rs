//! The manifest as a tree with positions, the same for YAML and JSON. Must not know Kubernetes.

use super::problem::Mark;
use super::{json, yaml};

/// Deepest nesting of lists and mappings.
pub(super) const MAX_DEPTH: usize = 64;
/// Most values of one manifest after aliases are followed.
pub(super) const MAX_NODES: usize = 100_000;
/// Most bytes of all scalars and keys after aliases are followed.
pub(super) const MAX_EXPANDED_BYTES: usize = 4 << 20;

/// How a scalar is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Without quotes: may be a number, a boolean, null or a string.
    Plain,
    /// In quotes or as a block: always a string.
    Quoted,
}

/// A value and its position.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) mark: Mark,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Scalar { text: String, style: Style },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value. Keys are unique within a mapping.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_mark: Mark,
    pub(super) node: Node,
}

/// Why a text is not a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) at: Option<Mark>,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

impl SyntaxError {
    pub(super) fn new(at: Mark, message: impl Into<String>, hint: &'static str) -> Self {
        Self { at: Some(at), message: message.into(), hint }
    }
}

/// Counts the cost of a tree, so that no manifest exceeds the limits.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Cost {
    pub(super) nodes: usize,
    pub(super) bytes: usize,
}

impl Cost {
    /// Adds to the cost; fails when it exceeds the limits.
    pub(super) fn add(&mut self, nodes: usize, bytes: usize, at: Mark) -> Result<(), SyntaxError> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.nodes > MAX_NODES {
            return Err(SyntaxError::new(
                at,
                format!("holds more than {MAX_NODES} values (aliases count each time)"),
                "",
            ));
        }
        if self.bytes > MAX_EXPANDED_BYTES {
            return Err(SyntaxError::new(
                at,
                format!("grows beyond {MAX_EXPANDED_BYTES} bytes through its aliases"),
                "",
            ));
        }
        Ok(())
    }
}

pub(super) fn too_deep(at: Mark) -> SyntaxError {
    SyntaxError::new(at, format!("is nested deeper than {MAX_DEPTH} levels"), "")
}

pub(super) fn duplicate(key: &str, first: Mark, again: Mark) -> SyntaxError {
    let key = super::problem::quote(key);
    SyntaxError::new(
        again,
        format!("the key {key} is written twice, first on line {}", first.line),
        "keep one of them",
    )
}

/// Parses all documents that are not empty. Valid JSON is parsed as one JSON document, everything else as YAML.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // YAML is not quite a superset of JSON: tabs and surrogate pairs differ.
    let looks_like_json = text.trim_start().starts_with('{');
    if looks_like_json && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        json::parse(text).map(|node| vec![node])
    } else {
        yaml::parse(text)
    }
}
