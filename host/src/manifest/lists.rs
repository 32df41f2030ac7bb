//! Lists of objects: `kind: List` of any objects, and the typed lists that an API server answers with.

use super::k8s;
use super::node::{Entry, Node, Style, Value};
use super::problem::{FieldPlace, ProblemCollector};
use super::scalar;

/// The kind of a typed list's items, which do not say it themselves. `Some(None)`: each says it.
fn items_of(kind: &str) -> Option<Option<&'static str>> {
    match kind {
        "List" => Some(None),
        "PodList" => Some(Some("Pod")),
        "ConfigMapList" => Some(Some("ConfigMap")),
        "SecretList" => Some(Some("Secret")),
        _ => None,
    }
}

/// The documents, with the items of each list instead of the list.
pub(super) fn opened(documents: Vec<Node>, report: &mut ProblemCollector) -> Vec<Node> {
    let mut found = Vec::new();
    for document in documents {
        match k8s::kind(&document).and_then(items_of) {
            Some(kind) => open(document, kind, &mut found, report),
            None => found.push(document),
        }
    }
    found
}

fn open(list: Node, kind: Option<&'static str>, found: &mut Vec<Node>, report: &mut ProblemCollector) {
    let Value::Map(entries) = list.value else { return };
    let place = |path: &str, mark| FieldPlace { path: path.to_owned(), mark };
    for Entry { key, key_mark, node } in entries {
        match (key.as_str(), node.value) {
            ("kind" | "metadata", _) => {}
            ("apiVersion", Value::Scalar { text, .. }) if text == "v1" => {}
            ("apiVersion", _) => report.add(&place("apiVersion", node.mark), "must be v1", ""),
            ("items", Value::List(items)) => {
                let items = items.into_iter().filter(|item| !scalar::is_null(item));
                found.extend(items.map(|item| said(item, kind)));
            }
            ("items", Value::Scalar { text, style: Style::Plain })
                if scalar::kind(&text) == scalar::ScalarKind::Null => {}
            ("items", _) => report.add(&place("items", node.mark), "must be a list of objects", ""),
            _ => report.add(
                &place(&super::problem::path_key(&key), key_mark),
                "is not a field of a v1 List",
                "objects stand in `items`",
            ),
        }
    }
}

/// The item, with its kind and version.
fn said(mut item: Node, kind: Option<&'static str>) -> Node {
    if let (Some(kind), Value::Map(entries)) = (kind, &mut item.value) {
        for (key, text) in [("kind", kind), ("apiVersion", "v1")] {
            if !entries.iter().any(|entry| entry.key == key) {
                let value = Value::Scalar { text: text.to_owned(), style: Style::Quoted };
                let node = Node { mark: item.mark, value };
                entries.push(Entry { key: key.to_owned(), key_mark: item.mark, node });
            }
        }
    }
    item
}
