//! The manifest as a tree with positions, the same for YAML and JSON. Must not know Kubernetes.

use super::problem::{Mark, SyntaxError, quote};

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
    let begins_a_document = ["apiVersion", "kind"].contains(&key);
    let key = quote(key);
    let hint = if begins_a_document {
        "keep one of them, or write `---` on a line of its own before the next document"
    } else {
        "keep one of them"
    };
    SyntaxError::new(again, format!("the key {key} is written twice, first on line {}", first.line), hint)
}
