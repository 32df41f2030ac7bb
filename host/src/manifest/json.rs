//! JSON with positions, for text that `serde_json` has found valid. It never panics on other text either.

use super::node::{Cost, Entry, MAX_DEPTH, Node, Style, Value, duplicate, too_deep};
use super::problem::{Mark, SyntaxError};
use std::collections::HashMap;

/// Parses all JSON values of a text, one after the other.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let mut reader = Reader { text, mark: Mark { line: 1, column: 1 }, cost: Cost::default() };
    let mut found = Vec::new();
    while reader.peek().is_some() {
        found.push(reader.value(0)?);
    }
    Ok(found)
}

struct Reader<'a> {
    /// The rest of the text.
    text: &'a str,
    mark: Mark,
    cost: Cost,
}

impl<'a> Reader<'a> {
    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.text.split_at(bytes);
        for c in taken.chars() {
            if c == '\n' {
                self.mark = Mark { line: self.mark.line + 1, column: 1 };
            } else {
                self.mark.column += 1;
            }
        }
        self.text = rest;
        taken
    }

    /// Skips white space and returns the next character.
    fn peek(&mut self) -> Option<char> {
        let rest = self.text.trim_start_matches([' ', '\t', '\r', '\n']);
        self.advance(self.text.len() - rest.len());
        self.text.chars().next()
    }

    /// Consumes the next character if it is this one.
    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.advance(wanted.len_utf8());
        }
        found
    }

    fn broken(&self) -> SyntaxError {
        SyntaxError::new(self.mark, "is not valid JSON", "")
    }

    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        let first = self.peek();
        let mark = self.mark;
        if depth > MAX_DEPTH {
            return Err(too_deep(mark));
        }
        let value = match first {
            Some('{') => self.map(depth)?,
            Some('[') => self.list(depth)?,
            Some('"') => Value::Scalar { text: self.string()?, style: Style::Quoted },
            _ => {
                let end = self.text.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
                let text = self.advance(end.unwrap_or(self.text.len())).to_owned();
                if text.is_empty() {
                    return Err(self.broken());
                }
                Value::Scalar { text, style: Style::Plain }
            }
        };
        let bytes = if let Value::Scalar { text, .. } = &value { text.len() } else { 0 };
        self.cost.add(1, bytes, mark)?;
        Ok(Node { mark, value })
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        self.take('[');
        if self.take(']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.take(']') {
                return Ok(Value::List(items));
            }
            if !self.take(',') {
                return Err(self.broken());
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries = Vec::new();
        let mut seen = HashMap::new();
        self.take('{');
        if self.take('}') {
            return Ok(Value::Map(entries));
        }
        loop {
            if self.peek() != Some('"') {
                return Err(self.broken());
            }
            let key_mark = self.mark;
            let key = self.string()?;
            self.cost.add(0, key.len(), key_mark)?;
            if let Some(first) = seen.insert(key.clone(), key_mark) {
                return Err(duplicate(&key, first, key_mark));
            }
            if !self.take(':') {
                return Err(self.broken());
            }
            let node = self.value(depth + 1)?;
            entries.push(Entry { key, key_mark, node });
            if self.take('}') {
                return Ok(Value::Map(entries));
            }
            if !self.take(',') {
                return Err(self.broken());
            }
        }
    }

    /// A string with its quotes; `serde_json` resolves the escapes.
    fn string(&mut self) -> Result<String, SyntaxError> {
        let mut escaped = false;
        let end = self.text.bytes().enumerate().skip(1).find_map(|(index, byte)| {
            let closes = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            closes.then_some(index)
        });
        let Some(end) = end else { return Err(self.broken()) };
        let raw = self.advance(end + 1);
        serde_json::from_str(raw).map_err(|_| self.broken())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_have_positions_and_escapes_are_resolved() {
        let [node] = &parse("{\n\t\"a\": [1, \"\\ud83d\\ude00\\\"\"],\n\t\"b\": null}").unwrap()[..] else {
            panic!()
        };
        let Value::Map(entries) = &node.value else { panic!("{node:?}") };
        assert_eq!((entries[1].key_mark.line, entries[1].key_mark.column), (3, 2));
        let Value::List(items) = &entries[0].node.value else { panic!("{node:?}") };
        assert_eq!(items[1].value, Value::Scalar { text: "😀\"".to_owned(), style: Style::Quoted });
        assert_eq!((items[1].mark.line, items[1].mark.column), (2, 11));
    }

    #[test]
    fn a_key_written_twice_is_an_error() {
        assert!(parse(r#"{"a":1,"a":2}"#).unwrap_err().message.contains("twice"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"[\[\]{}:,"\\a1 \n]{0,80}"#) {
            let parsed = parse(&text);
            if serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok() && !text.contains('{') {
                prop_assert!(parsed.is_ok(), "{text:?}");
            }
        }
    }
}
