//! Builds trees from YAML 1.2 events. Anchors, aliases and merge keys work within limits; tags are refused.

use super::merge::{self, Merge};
use super::node::{Cost, Entry, MAX_DEPTH, Node, Style, Value, duplicate, too_deep};
use super::problem::{Mark, SyntaxError, quote};
use super::scalar::{self, ScalarKind};
use saphyr_parser::{Event, Marker, Parser, ScalarStyle};
use std::collections::HashMap;

/// Parses all documents of a stream that are not empty.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut parser = Parser::new_from_str(text);
    let mut found = Vec::new();
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| {
            SyntaxError::new(mark(*error.marker()), format!("is not valid YAML: {}", error.info()), "")
        })?;
        let at = mark(span.start);
        match event {
            Event::DocumentStart(_) => {
                builder = Builder { cost: builder.cost, kept: builder.kept, ..Builder::default() };
            }
            Event::DocumentEnd => found.extend(builder.root.take().filter(|root| !scalar::is_null(root))),
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            node => builder.event(node, at)?,
        }
    }
    Ok(found)
}

fn mark(marker: Marker) -> Mark {
    Mark { line: marker.line().max(1), column: marker.col() + 1 }
}

/// An unfinished list or mapping.
struct Open {
    mark: Mark,
    anchor: usize,
    /// The cost of everything before it.
    before: Cost,
    /// Deepest level beneath it so far, as an absolute level.
    deepest: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashMap<String, Mark>, key: Option<Key>, merges: Vec<Merge> },
}

enum Key {
    Named(String, Mark),
    /// `<<`.
    Merge(Mark),
}

/// The value of an anchor, with the cost of each use.
struct Anchored {
    node: Node,
    cost: Cost,
    /// Its number of levels.
    height: usize,
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    cost: Cost,
    /// The cost of the copies in `anchors`.
    kept: Cost,
    root: Option<Node>,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: Mark) -> Result<(), SyntaxError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                let style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
                let before = self.cost;
                self.cost.add(1, text.len(), at)?;
                let node = Node { mark: at, value: Value::Scalar { text: text.into_owned(), style } };
                self.anchor(anchor, &node, before, 0)?;
                self.place(node, 0)
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                self.open(at, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                refuse_tag(tag.is_some(), at)?;
                self.open(
                    at,
                    anchor,
                    Content::Map { entries: Vec::new(), seen: HashMap::new(), key: None, merges: Vec::new() },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
            Event::Alias(id) => {
                let Some(anchored) = self.anchors.get(&id) else {
                    return Err(SyntaxError::new(at, "this alias stands for a value that contains it", ""));
                };
                self.cost.add(anchored.cost.nodes, anchored.cost.bytes, at)?;
                let (node, height) = (anchored.node.clone(), anchored.height);
                if self.stack.len() + height > MAX_DEPTH {
                    return Err(too_deep(at));
                }
                self.place(node, height)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, at: Mark, anchor: usize, content: Content) -> Result<(), SyntaxError> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(too_deep(at));
        }
        let before = self.cost;
        self.cost.add(1, 0, at)?;
        let deepest = self.stack.len() + 1;
        self.stack.push(Open { mark: at, anchor, before, deepest, content });
        Ok(())
    }

    fn close(&mut self, at: Mark) -> Result<(), SyntaxError> {
        let Some(open) = self.stack.pop() else {
            return Err(SyntaxError::new(at, "ends a value that did not begin", ""));
        };
        let value = match open.content {
            Content::List(items) => Value::List(items),
            Content::Map { entries, merges, .. } => Value::Map(merge::merged(entries, merges)?),
        };
        let node = Node { mark: open.mark, value };
        let height = open.deepest - self.stack.len();
        self.anchor(open.anchor, &node, open.before, height)?;
        self.place(node, height)
    }

    fn anchor(&mut self, id: usize, node: &Node, before: Cost, height: usize) -> Result<(), SyntaxError> {
        if id != 0 {
            let cost = Cost { nodes: self.cost.nodes - before.nodes, bytes: self.cost.bytes - before.bytes };
            self.kept.add(cost.nodes, cost.bytes, node.mark)?;
            self.anchors.insert(id, Anchored { node: node.clone(), cost, height });
        }
        Ok(())
    }

    /// Attaches a finished value: to the list, as a key, as the value of the key, or as the root.
    fn place(&mut self, node: Node, height: usize) -> Result<(), SyntaxError> {
        let level = self.stack.len();
        let Some(parent) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.deepest = parent.deepest.max(level + height);
        match &mut parent.content {
            Content::List(items) => items.push(node),
            Content::Map { entries, seen, key, merges } => match key.take() {
                Some(Key::Named(key, key_mark)) => entries.push(Entry { key, key_mark, node }),
                Some(Key::Merge(mark)) => merges.push(Merge::new(mark, entries.len(), node)?),
                None => *key = Some(new_key(node, seen)?),
            },
        }
        Ok(())
    }
}

fn new_key(node: Node, seen: &mut HashMap<String, Mark>) -> Result<Key, SyntaxError> {
    let mark = node.mark;
    let Value::Scalar { text, style } = node.value else {
        return Err(SyntaxError::new(mark, "a list or mapping can't be a key", "keys are strings"));
    };
    if style == Style::Plain {
        if text == "<<" {
            return Ok(Key::Merge(mark));
        }
        if scalar::kind(&text) != ScalarKind::Text {
            return Err(SyntaxError::new(
                mark,
                format!("the key {} is not a string to every YAML reader", quote(&text)),
                "write it in quotes",
            ));
        }
    }
    match seen.insert(text.clone(), mark) {
        Some(first) => Err(duplicate(&text, first, mark)),
        None => Ok(Key::Named(text, mark)),
    }
}

fn refuse_tag(tagged: bool, at: Mark) -> Result<(), SyntaxError> {
    if tagged {
        return Err(SyntaxError::new(
            at,
            "YAML tags (`!…`) are not supported",
            "write a string in quotes instead of `!!str`",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Node {
        let mut documents = parse(text).unwrap();
        assert_eq!(documents.len(), 1, "{text}");
        documents.remove(0)
    }

    fn error(text: &str) -> String {
        let error = parse(text).unwrap_err();
        format!("{}:{}", error.at.map_or(0, |at| at.line), error.message)
    }

    fn get<'a>(node: &'a Node, key: &str) -> &'a Node {
        let Value::Map(entries) = &node.value else { panic!("{node:?}") };
        &entries.iter().find(|entry| entry.key == key).unwrap().node
    }

    #[test]
    fn values_have_positions_and_styles() {
        let node = one("a:\n  - x\n  - 'y'\n  - |\n    z\n");
        let Value::List(items) = &get(&node, "a").value else { panic!() };
        let found: Vec<_> = items
            .iter()
            .map(|item| match &item.value {
                Value::Scalar { text, style } => (text.as_str(), *style, item.mark.line, item.mark.column),
                _ => panic!(),
            })
            .collect();
        assert_eq!(found[0], ("x", Style::Plain, 2, 5));
        assert_eq!(found[1], ("y", Style::Quoted, 3, 5));
        assert_eq!(found[2].0, "z\n");
        assert_eq!(found[2].1, Style::Quoted);
    }

    #[test]
    fn an_alias_is_the_value_it_names() {
        let node = one("a: &x {k: [v]}\nb: *x\n");
        assert_eq!(get(&node, "a"), get(&node, "b"));
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_line() {
        assert!(error("a: 1\na: 2").starts_with("2:the key \"a\" is written twice"));
        assert!(error("a: !!str 8080").starts_with("1:YAML tags"));
        assert!(error("a: !secret {}").starts_with("1:YAML tags"));
        assert!(error("yes: 1").starts_with("1:the key \"yes\" is not a string"));
        assert!(error("[a]: 1").starts_with("1:a list or mapping can't be a key"));
        // Anchors are local to a document.
        assert!(error("a: &x b\n---\nc: *x").starts_with("3:"));
        assert!(error("a: &x [*x]").contains("contains it"));
        assert!(error("a: *y").starts_with("1:is not valid YAML"));
        assert!(error("a: [").contains("is not valid YAML"));
    }

    #[test]
    fn documents_come_in_their_order_and_empty_ones_are_nothing() {
        let documents = parse("---\n---\na: b\n---\n# nothing\n---\nc: d\n...\n").unwrap();
        let lines: Vec<usize> = documents.iter().map(|node| node.mark.line).collect();
        assert_eq!(lines, [3, 7]);
        for empty in ["", "---\n", "# only a comment\n", "null", "~"] {
            assert_eq!(parse(empty).unwrap(), [], "{empty:?}");
        }
    }

    #[test]
    fn bombs_are_refused_before_they_are_built() {
        let mut nodes = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..20 {
            let alias = format!("*a{}", level - 1);
            nodes += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(","));
        }
        assert!(error(&nodes).contains("more than 100000 values"), "{}", error(&nodes));

        let mut bytes = format!("a: &a {}\nb:\n", "x".repeat(100_000));
        bytes += &"- *a\n".repeat(1000);
        assert!(error(&bytes).contains("grows beyond"), "{}", error(&bytes));

        let mut depth = "a0: &a0 [x]\n".to_owned();
        for level in 1..100 {
            depth += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(error(&depth).contains("nested deeper"), "{}", error(&depth));
        assert!(error(&"[".repeat(200)).contains("nested deeper"));
        assert!(error(&"[".repeat(1000)).contains("recursion limit"));
        assert!(error(&"- ".repeat(1000)).contains("nested deeper"));
        assert!(parse(&format!("{}x{}", "[".repeat(60), "]".repeat(60))).is_ok());

        let mut merges = "a0: &a0 {p: 1, q: 2, r: 3}\n".to_owned();
        for level in 1..40 {
            let alias = format!("*a{}", level - 1);
            merges += &format!("a{level}: &a{level} {{<<: [{}]}}\n", vec![alias; 10].join(","));
        }
        assert!(error(&merges).contains("more than 100000 values"), "{}", error(&merges));

        let copies = format!("{}{}{}", "&a [".repeat(63), "x,".repeat(90_000), "]".repeat(63));
        assert!(error(&copies).contains("more than 100000 values"), "{}", error(&copies));
    }

    #[test]
    fn a_megabyte_of_anything_is_read_or_refused_quickly() {
        let started = std::time::Instant::now();
        for piece in [
            "[", "{", "- ", "? ", "a: ", "a\n", "\n", " ", "\"", "'", "|\n", "&a ", "*a ", "#", "{a: ", "x,",
            "--- \n", "%", "\t", ": ", "!t ", "<<: ", "<<: {}\n", "? <<\n",
        ] {
            let text = piece.repeat((1 << 20) / piece.len());
            drop(parse(&text));
            drop(parse(&format!("a: {text}")));
        }
        assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    }
}
