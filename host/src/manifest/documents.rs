//! From the bytes of a file to its documents.

use super::json;
use super::lists;
use super::node::{Node, Value};
use super::problem::{ProblemCollector, SyntaxError};
use super::yaml;
use magikvm_proto::limits::MAX_MANIFEST_SIZE;

/// Reads all documents of a file that are not empty, with the items of each list instead of the list.
pub(super) fn read(bytes: &[u8], report: &mut ProblemCollector) -> Vec<Node> {
    if bytes.len() > MAX_MANIFEST_SIZE {
        report.whole(
            format!("is {} bytes long, at most {MAX_MANIFEST_SIZE} are allowed", bytes.len()),
            "keep large data out of the manifest",
        );
        return Vec::new();
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            report.whole(
                format!("is not UTF-8 text (byte {} is not)", error.valid_up_to()),
                "save the manifest in UTF-8",
            );
            return Vec::new();
        }
    };
    match parse(text) {
        Ok(documents) => lists::opened(documents, report),
        Err(mut error) => {
            if text.contains("{{") {
                error.hint = "this looks like a template: render it first, for example with `helm template`";
            }
            report.syntax(error);
            Vec::new()
        }
    }
}

/// What is valid JSON is read as JSON, one value after the other, everything else as YAML.
fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // YAML is not quite a superset of JSON: tabs and surrogate pairs differ.
    let looks_like_json = text.trim_start().starts_with('{');
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    if looks_like_json && values.all(|value| value.is_ok()) { json::parse(text) } else { yaml::parse(text) }
}

/// The number of values in a document, and of bytes in them.
pub(super) fn cost(document: &Node) -> (usize, usize) {
    match &document.value {
        Value::Scalar { text, .. } => (1, text.len()),
        Value::List(items) => items.iter().map(cost).fold((1, 0), add),
        Value::Map(entries) => {
            entries.iter().map(|entry| add(cost(&entry.node), (0, entry.key.len()))).fold((1, 0), add)
        }
    }
}

fn add(one: (usize, usize), two: (usize, usize)) -> (usize, usize) {
    (one.0 + two.0, one.1 + two.1)
}
