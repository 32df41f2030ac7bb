//! Builds trees from YAML 1.2 events. Anchors, aliases and merge keys work within limits. Of tags those of the core schema work; others are
//! refused. What kubectl's reader takes beyond the specification is taken too: flow collections and quoted scalars whose lines are indented
//! less than their key, and `\'` in double quotes.

use super::merge::{self, Merge};
use super::node::{Cost, Entry, MAX_DEPTH, Node, Style, Value, duplicate, too_deep};
use super::problem::{Mark, SyntaxError, quote};
use super::scalar::{self, ScalarKind};
use granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, Tag};
use std::borrow::Cow;
use std::collections::HashMap;

/// Double-quoted scalars with `\\'` that are repaired; each costs another look at the whole text.
const MAX_REPAIRS: usize = 64;

/// Parses all documents of a stream that are not empty.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut source = Source { text: Cow::Borrowed(text), repairs: Vec::new() };
    for _ in 0..MAX_REPAIRS {
        match attempt(&source) {
            Err(Failed::Escape(at)) if source.repair(at) => {}
            Err(Failed::Escape(at)) => return Err(unknown_escape(source.mark(at))),
            Err(Failed::Syntax(error)) => return Err(error),
            Ok(found) => return Ok(found),
        }
    }
    attempt(&source).map_err(|failed| match failed {
        Failed::Escape(at) => {
            let message =
                format!("is not valid YAML: more than {MAX_REPAIRS} texts in double quotes have `\\'`");
            SyntaxError::new(
                source.mark(at),
                message,
                "write them in single quotes, with '' for an apostrophe",
            )
        }
        Failed::Syntax(error) => error,
    })
}

/// Why a text is not taken.
enum Failed {
    /// The double-quoted scalar that begins here has an escape that YAML does not know.
    Escape(Marker),
    Syntax(SyntaxError),
}

impl From<SyntaxError> for Failed {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax(error)
    }
}

fn unknown_escape(at: Mark) -> SyntaxError {
    let message = "is not valid YAML: this text in double quotes has an escape that YAML does not know";
    SyntaxError::new(at, message, "write \\\\ for a backslash, or use single quotes")
}

/// The text that is parsed, and where it differs from the one that was written.
struct Source<'a> {
    text: Cow<'a, str>,
    /// Line and column, both from 1, of each `\'` that is written as `\x27`, which is two characters longer.
    repairs: Vec<(usize, usize)>,
}

impl Source<'_> {
    /// The place in the text that was written.
    fn mark(&self, marker: Marker) -> Mark {
        let (line, column) = (marker.line().max(1), marker.col() + 1);
        // They are in the order of the text.
        let before = |place: (usize, usize)| self.repairs.partition_point(|repair| *repair < place);
        Mark { line, column: column - 2 * (before((line, column)) - before((line, 0))) }
    }

    /// Rewrites each `\'` of the double-quoted scalar that begins here. False if there is none.
    fn repair(&mut self, begin: Marker) -> bool {
        let Some((start, _)) = self.text.char_indices().nth(begin.index()) else { return false };
        let (mut line, mut column) = (begin.line(), begin.col() + 1);
        let (mut repaired, before) = (String::new(), self.repairs.len());
        let mut chars = self.text[start..].chars();
        // The first quote does not end it.
        repaired.extend(chars.next());
        while let Some(c) = chars.next() {
            column += 1;
            match c {
                '"' => {
                    repaired.push(c);
                    break;
                }
                '\n' => {
                    repaired.push(c);
                    (line, column) = (line + 1, 0);
                }
                '\\' if chars.as_str().starts_with('\'') => {
                    chars.next();
                    self.repairs.push((line, column));
                    repaired.push_str("\\x27");
                    column += 3;
                }
                '\\' if !chars.as_str().starts_with('\n') => {
                    repaired.push(c);
                    repaired.extend(chars.next());
                    column += 1;
                }
                _ => repaired.push(c),
            }
        }
        let rest = chars.as_str().len();
        let end = self.text.len() - rest;
        let whole = [&self.text[..start], &repaired, &self.text[end..]].concat();
        self.text = Cow::Owned(whole);
        self.repairs.len() > before
    }
}

fn attempt(source: &Source<'_>) -> Result<Vec<Node>, Failed> {
    let text = source.text.as_ref();
    let mark = |marker| source.mark(marker);
    let mut parser = Parser::new_from_str(text);
    let mut found = Vec::new();
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| match error.kind() {
            ErrorKind::UnknownQuotedScalarEscape => Failed::Escape(*error.marker()),
            ErrorKind::RecursionLimitExceeded => Failed::Syntax(too_deep(mark(*error.marker()))),
            _ => {
                let message = format!("is not valid YAML: {}", error.info());
                Failed::Syntax(SyntaxError::new(mark(*error.marker()), message, ""))
            }
        })?;
        let at = mark(span.start);
        match event {
            Event::DocumentStart(..) => {
                builder = Builder { cost: builder.cost, kept: builder.kept, ..Builder::default() };
            }
            Event::DocumentEnd => found.extend(builder.root.take().filter(|root| !scalar::is_null(root))),
            Event::StreamStart | Event::StreamEnd => {}
            node => builder.event(node, at)?,
        }
    }
    Ok(found)
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
    Map { entries: Vec<Entry>, seen: Seen, key: Option<Key>, merges: Vec<Merge> },
}

/// The keys of a large mapping. Those of a small one are looked for in its entries, which costs less than to keep them twice.
#[derive(Default)]
struct Seen(HashMap<String, Mark>);

impl Seen {
    /// Entries of a small mapping.
    const FEW: usize = 16;

    /// Where the key was written before, in any of the entries.
    fn before(&mut self, entries: &[Entry], key: &str, at: Mark) -> Option<Mark> {
        if entries.len() < Self::FEW {
            return entries.iter().find(|entry| entry.key == key).map(|entry| entry.key_mark);
        }
        if self.0.is_empty() {
            self.0.extend(entries.iter().map(|entry| (entry.key.clone(), entry.key_mark)));
        }
        self.0.insert(key.to_owned(), at)
    }
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
                let style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
                let style = tagged(tag.as_deref(), style, at)?;
                let before = self.cost;
                self.cost.add(1, text.len(), at)?;
                let node = Node { mark: at, value: Value::Scalar { text: text.into_owned(), style } };
                self.anchor(anchor, &node, before, 0)?;
                self.place(node, 0)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), "seq", at)?;
                self.open(at, anchor, Content::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), "map", at)?;
                self.open(
                    at,
                    anchor,
                    Content::Map {
                        entries: Vec::new(),
                        seen: Seen::default(),
                        key: None,
                        merges: Vec::new(),
                    },
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
                None => *key = Some(new_key(node, entries, seen)?),
            },
        }
        Ok(())
    }
}

fn new_key(node: Node, entries: &[Entry], seen: &mut Seen) -> Result<Key, SyntaxError> {
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
    match seen.before(entries, &text, mark) {
        Some(first) => Err(duplicate(&text, first, mark)),
        None => Ok(Key::Named(text, mark)),
    }
}

/// The style of a scalar with a tag: `!!str` makes a string of it, the others of the core schema what it is without quotes.
fn tagged(tag: Option<&Tag>, style: Style, at: Mark) -> Result<Style, SyntaxError> {
    match tag {
        None => Ok(style),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix() == "str" => Ok(Style::Quoted),
        Some(tag)
            if tag.is_yaml_core_schema() && matches!(tag.suffix(), "int" | "bool" | "float" | "null") =>
        {
            Ok(Style::Plain)
        }
        Some(tag) => Err(refused(tag, at)),
    }
}

/// A list or mapping may have only the tag that it has anyway.
fn check_tag(tag: Option<&Tag>, own: &str, at: Mark) -> Result<(), SyntaxError> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix() == own) => Err(refused(tag, at)),
        _ => Ok(()),
    }
}

fn refused(tag: &Tag, at: Mark) -> SyntaxError {
    let message = format!("the YAML tag {} is not supported", quote(&tag.to_string()));
    SyntaxError::new(at, message, "write the value itself, a string in quotes")
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
    fn what_kubectl_reads_beyond_the_specification_is_read() {
        let text = |node: &Node| match &node.value {
            Value::Scalar { text, .. } => text.clone(),
            _ => panic!("{node:?}"),
        };
        let node = one("a:\n  b: [\n    x,\n  y\n  ]\n  c: {\n  d: 1\n  }\ne: 2\n");
        let Value::List(items) = &get(get(&node, "a"), "b").value else { panic!() };
        assert_eq!(items.iter().map(text).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(text(get(get(get(&node, "a"), "c"), "d")), "1");
        let node = one("a:\n  b: '[\n      {}\n  ]'\n  c: \"x\n  y\"\n");
        assert_eq!(text(get(get(&node, "a"), "b")), "[ {} ]");
        assert_eq!(text(get(get(&node, "a"), "c")), "x y");
        // Places are those of the text that was written.
        let node = one("a: [\"\\'é\\\\\\'\", \"\\'\n \\'\", b]\nc: d\n");
        let Value::List(items) = &get(&node, "a").value else { panic!() };
        assert_eq!(items.iter().map(text).collect::<Vec<_>>(), ["'é\\'", "' '", "b"]);
        let places: Vec<_> = items.iter().map(|item| (item.mark.line, item.mark.column)).collect();
        assert_eq!(places, [(1, 5), (1, 16), (2, 7)]);
        assert!(error("a: \"\\q\"").starts_with("1:is not valid YAML: this text in double quotes"));
        assert!(error("a: [\"\\'\", \"\\q\"]").starts_with("1:is not valid"));
        let many = "- \"\\'\"\n".repeat(MAX_REPAIRS + 1);
        assert!(error(&many).contains("more than 64 texts"), "{}", error(&many));
    }

    #[test]
    fn an_alias_is_the_value_it_names() {
        let node = one("a: &x {k: [v]}\nb: *x\n");
        assert_eq!(get(&node, "a"), get(&node, "b"));
    }

    #[test]
    fn tags_of_the_core_schema_say_what_a_scalar_is() {
        let node = one("a: !!str 8080\nb: !!int \"8080\"\nc: !!map {d: !!seq [x]}\n!!str e: !!null ''\n");
        let style = |key: &str| match &get(&node, key).value {
            Value::Scalar { text, style } => (text.clone(), *style),
            _ => panic!(),
        };
        assert_eq!(style("a"), ("8080".to_owned(), Style::Quoted));
        assert_eq!(style("b"), ("8080".to_owned(), Style::Plain));
        assert_eq!(style("e"), (String::new(), Style::Plain));
        assert!(matches!(get(&node, "c").value, Value::Map(_)));
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_line() {
        assert!(error("a: 1\na: 2").starts_with("2:the key \"a\" is written twice"));
        assert!(error("a: !secret {}").starts_with("1:the YAML tag \"!secret\" is not supported"));
        assert!(error("a: !!binary AA==").contains("binary\" is not supported"));
        assert!(error("a: !!map [x]").contains("map\" is not supported"));
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
        let nested = |levels| format!("{}x{}", "[".repeat(levels), "]".repeat(levels));
        assert!(error(&nested(200)).contains("nested deeper"), "{}", error(&nested(200)));
        assert!(error(&"[".repeat(1000)).contains("nested deeper"));
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
