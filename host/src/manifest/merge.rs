//! Merge keys of YAML 1.1 (`<<`), by the rules of kubectl's reader: of several mappings in one list the first that has a key wins, and a key
//! that is written behind `<<` replaces a merged one. Readers disagree about a key that stands before `<<` (kubectl takes the merged value,
//! others the written one) and about two `<<` with the same key, so that these are refused.

use super::node::{Entry, Node, Value};
use super::problem::{Mark, SyntaxError, quote};
use std::collections::HashMap;

/// The mappings of one `<<`, as one.
pub(super) struct Merge {
    mark: Mark,
    /// How many keys of the mapping stand before it.
    before: usize,
    entries: Vec<Entry>,
}

impl Merge {
    /// From the value behind `<<`: a mapping, or a list of mappings.
    pub(super) fn new(mark: Mark, before: usize, node: Node) -> Result<Self, SyntaxError> {
        let mappings = match node.value {
            Value::Map(entries) => vec![entries],
            Value::List(items) => {
                items.into_iter().map(|item| mapping(item, mark)).collect::<Result<_, _>>()?
            }
            Value::Scalar { .. } => return Err(not_a_mapping(mark)),
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for entry in mappings.into_iter().flatten() {
            if !places.contains_key(&entry.key) {
                places.insert(entry.key.clone(), entries.len());
                entries.push(entry);
            }
        }
        Ok(Self { mark, before, entries })
    }
}

fn mapping(node: Node, at: Mark) -> Result<Vec<Entry>, SyntaxError> {
    match node.value {
        Value::Map(entries) => Ok(entries),
        Value::List(_) | Value::Scalar { .. } => Err(not_a_mapping(at)),
    }
}

fn not_a_mapping(at: Mark) -> SyntaxError {
    SyntaxError::new(
        at,
        "the merge key `<<` takes a mapping or a list of mappings",
        "alias one, as `<<: *name`",
    )
}

/// The keys of a mapping with those that it merges.
pub(super) fn merged(mut entries: Vec<Entry>, merges: Vec<Merge>) -> Result<Vec<Entry>, SyntaxError> {
    if merges.is_empty() {
        return Ok(entries);
    }
    let written: HashMap<String, usize> =
        entries.iter().enumerate().map(|(index, entry)| (entry.key.clone(), index)).collect();
    let mut taken: HashMap<String, Node> = HashMap::new();
    let mut more = Vec::new();
    for Merge { mark, before, entries: new } in merges {
        for entry in new {
            let index = written.get(&entry.key).copied();
            let earlier = index.filter(|&index| index < before).map(|index| &entries[index].node);
            if let Some(other) = earlier.or_else(|| taken.get(&entry.key))
                && !same(other, &entry.node)
            {
                let message = format!("readers of YAML disagree which value of {} counts", quote(&entry.key));
                return Err(SyntaxError::new(
                    mark,
                    message,
                    "write `<<` once, in front of the keys that replace merged ones",
                ));
            }
            if index.is_none() && !taken.contains_key(&entry.key) {
                taken.insert(entry.key.clone(), entry.node.clone());
                more.push(entry);
            }
        }
    }
    entries.append(&mut more);
    Ok(entries)
}

/// Whether two values are the same, wherever they are written.
fn same(one: &Node, other: &Node) -> bool {
    match (&one.value, &other.value) {
        (Value::List(one), Value::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Map(one), Value::Map(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|(one, other)| one.key == other.key && same(&one.node, &other.node))
        }
        (one, other) => one == other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::yaml::parse;
    use super::*;

    /// The keys of `d` with their scalars, and the lines of these.
    fn found(text: &str) -> Result<String, String> {
        let documents =
            parse(text).map_err(|error| format!("{}: {}", error.at.unwrap().line, error.message))?;
        let Value::Map(entries) = &documents[0].value else { panic!() };
        let Value::Map(entries) = &entries.iter().find(|entry| entry.key == "d").unwrap().node.value else {
            panic!()
        };
        let mut words: Vec<String> = entries
            .iter()
            .map(|entry| match &entry.node.value {
                Value::Scalar { text, .. } => format!("{}={text}@{}", entry.key, entry.node.mark.line),
                _ => format!("{}@{}", entry.key, entry.node.mark.line),
            })
            .collect();
        words.sort();
        Ok(words.join(" "))
    }

    const TWO: &str = "a: &x {b: 1, c: 1}\na2: &y {b: 3, e: 3}\n";

    #[test]
    fn merges_are_those_of_kubectl() {
        for (text, expected) in [
            ("d: {<<: *x}", "b=1@1 c=1@1"),
            ("d: {<<: *x, b: 2}", "b=2@3 c=1@1"),
            ("d: {<<: [*x, *y]}", "b=1@1 c=1@1 e=3@2"),
            ("d: {<<: [*y, *x], b: 2}", "b=2@3 c=1@1 e=3@2"),
            ("d: {<<: [{q: 1}], b: 1}", "b=1@3 q=1@3"),
            ("d: {f: 1, <<: *x}", "b=1@1 c=1@1 f=1@3"),
            ("d: {b: 1, <<: *x}", "b=1@3 c=1@1"),
            ("t: &t {<<: *x, g: 2}\nd: {<<: *t}", "b=1@1 c=1@1 g=2@3"),
            ("m: &n {b: {p: 1, q: 1}}\nd:\n  <<: *n\n  b: {p: 2}", "b@6"),
            ("d: {'<<': {q: 1}}", "<<@3"),
        ] {
            assert_eq!(found(&format!("{TWO}{text}")).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_readers_disagree_about_is_refused_with_its_line() {
        for (text, expected) in [
            ("d: {b: 2, <<: *x}", "3: readers of YAML disagree which value of \"b\" counts"),
            ("d:\n  <<: *x\n  <<: *y", "5: readers of YAML disagree which value of \"b\" counts"),
            ("d: {<<: }", "3: the merge key `<<` takes a mapping"),
            ("d: {<<: x}", "3: the merge key `<<` takes a mapping"),
            ("d: {<<: [[*x]]}", "3: the merge key `<<` takes a mapping"),
        ] {
            let said = found(&format!("{TWO}{text}")).unwrap_err();
            assert!(said.starts_with(expected), "{text}: {said}");
        }
    }
}
