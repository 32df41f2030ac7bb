//! Lists of objects: `kind: List` of any objects, and the typed lists that an API server answers with.

use super::kinds;
use super::node::{Entry, Node, Style, Value};
use super::problem::{FieldPlace, ProblemCollector, path_key};
use super::scalar;
use super::walk::{get, text};

/// Deepest nesting of lists in lists.
const MAX_LISTS: usize = 4;

/// What a list says of its items, which do not say it themselves in a typed list.
struct Items {
    kind: Option<String>,
    version: Option<String>,
}

/// Whether a document is a list: of any objects, or of objects of one kind.
fn items_of(document: &Node) -> Option<Items> {
    let Value::Map(entries) = &document.value else { return None };
    let kind = get(entries, "kind").and_then(text)?.strip_suffix("List")?;
    if kind.is_empty() {
        return Some(Items { kind: None, version: None });
    }
    // Other resources may have names that end so, but they have no items.
    get(entries, "items")?;
    let version = get(entries, "apiVersion").and_then(text).map(str::to_owned);
    Some(Items { kind: Some(kind.to_owned()), version })
}

/// The documents, with the items of each list instead of the list.
pub(super) fn opened(documents: Vec<Node>, report: &mut ProblemCollector) -> Vec<Node> {
    let mut found = Vec::new();
    for document in documents {
        open(document, 0, &mut found, report);
    }
    found
}

fn open(document: Node, depth: usize, found: &mut Vec<Node>, report: &mut ProblemCollector) {
    let Some(list) = items_of(&document) else { return found.push(document) };
    if depth == MAX_LISTS {
        let message = format!("is a list within more than {MAX_LISTS} lists");
        return report.add(&kinds::place(&document), message, "put its items into the outermost list");
    }
    let Value::Map(entries) = document.value else { return };
    let place = |path: &str, mark| FieldPlace { path: path.to_owned(), mark };
    let is_v1 = list.kind.as_ref().is_none_or(|kind| kinds::is_core(kind));
    for Entry { key, key_mark, node } in entries {
        match (key.as_str(), node.value) {
            ("kind" | "metadata", _) => {}
            ("apiVersion", Value::Scalar { text, .. }) if text == "v1" || !is_v1 => {}
            ("apiVersion", _) => report.add(&place("apiVersion", node.mark), "must be v1", ""),
            ("items", Value::List(items)) => {
                for item in items.into_iter().filter(|item| !scalar::is_null(item)) {
                    open(said(item, &list), depth + 1, found, report);
                }
            }
            ("items", Value::Scalar { text, style: Style::Plain })
                if scalar::kind(&text) == scalar::ScalarKind::Null => {}
            ("items", _) => report.add(&place("items", node.mark), "must be a list of objects", ""),
            _ => report.add(
                &place(&path_key(&key), key_mark),
                "is not a field of a v1 List",
                "objects stand in `items`",
            ),
        }
    }
}

/// The item, with its kind and version.
fn said(mut item: Node, list: &Items) -> Node {
    if let (Some(kind), Value::Map(entries)) = (&list.kind, &mut item.value) {
        let version = list.version.as_deref().unwrap_or("v1");
        for (key, text) in [("kind", kind.as_str()), ("apiVersion", version)] {
            if !entries.iter().any(|entry| entry.key == key) {
                let value = Value::Scalar { text: text.to_owned(), style: Style::Quoted };
                let node = Node { mark: item.mark, value };
                entries.push(Entry { key: key.to_owned(), key_mark: item.mark, node });
            }
        }
    }
    item
}
