//! Reads templates and paths. Every error says at which character.

use super::{Comparison, Filter, From, MAX_DEPTH, MAX_TEMPLATE, Node, Operand, Path, PathError, Pick, Step};
use serde_json::Value;

/// Reads a whole template.
pub(super) fn template(text: &str) -> Result<Vec<Node>, PathError> {
    let mut parser = Parser::new(text)?;
    if !text.contains('{') {
        let path = parser.path(0)?;
        parser.expect_end()?;
        return Ok(vec![Node::Path(path)]);
    }
    let mut nodes = Vec::new();
    parser.nodes(&mut nodes, 0, None)?;
    Ok(nodes)
}

/// Reads a path at the beginning of a text.
pub(super) fn path_prefix(text: &str) -> Result<(Path, &str), PathError> {
    let mut parser = Parser::new(text)?;
    let in_braces = parser.take('{');
    parser.spaces();
    let path = parser.path(0)?;
    if in_braces {
        parser.spaces();
        parser.expect('}')?;
    }
    let rest: usize = parser.chars[..parser.at].iter().map(|c| c.len_utf8()).sum();
    Ok((path, &text[rest..]))
}

struct Parser {
    chars: Vec<char>,
    at: usize,
}

/// Whether a character ends a name.
fn ends_name(c: char) -> bool {
    c.is_whitespace() || ".,[]{}()=!<>\"'$@|&".contains(c)
}

impl Parser {
    fn new(text: &str) -> Result<Self, PathError> {
        if text.len() > MAX_TEMPLATE {
            let what = format!("it is longer than {MAX_TEMPLATE} bytes");
            return Err(PathError { at: MAX_TEMPLATE, what });
        }
        Ok(Self { chars: text.chars().collect(), at: 0 })
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, PathError> {
        Err(PathError { at: self.at + 1, what: what.into() })
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_there = self.peek() == Some(wanted);
        self.at += usize::from(is_there);
        is_there
    }

    fn take_word(&mut self, wanted: &str) -> bool {
        let is_there = self.chars[self.at..].iter().copied().take(wanted.chars().count()).eq(wanted.chars());
        self.at += if is_there { wanted.chars().count() } else { 0 };
        is_there
    }

    /// What was found in the place of something else.
    fn found(&self) -> String {
        self.peek().map_or("its end".to_owned(), |c| format!("{c:?}"))
    }

    fn expect(&mut self, wanted: char) -> Result<(), PathError> {
        if self.take(wanted) {
            Ok(())
        } else {
            self.error(format!("expected {wanted:?}, found {}", self.found()))
        }
    }

    fn expect_end(&self) -> Result<(), PathError> {
        if self.peek().is_none() { Ok(()) } else { self.error(format!("unexpected {}", self.found())) }
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    /// Reads nodes up to the end of the text, or of the range that begins at `range`.
    fn nodes(&mut self, nodes: &mut Vec<Node>, depth: usize, range: Option<usize>) -> Result<(), PathError> {
        loop {
            let literal: String = self.chars[self.at..].iter().take_while(|c| **c != '{').collect();
            self.at += literal.chars().count();
            if !literal.is_empty() {
                nodes.push(Node::Text(literal));
            }
            if !self.take('{') {
                return match range {
                    Some(at) => Err(PathError { at: at + 1, what: "this range has no {end}".to_owned() }),
                    None => Ok(()),
                };
            }
            let begin = self.at;
            if self.action(nodes, depth, range.is_some(), begin)? == Action::End {
                return Ok(());
            }
        }
    }

    /// Reads what is within braces.
    fn action(
        &mut self,
        nodes: &mut Vec<Node>,
        depth: usize,
        in_range: bool,
        begin: usize,
    ) -> Result<Action, PathError> {
        self.spaces();
        let word: String = self.chars[self.at..].iter().take_while(|c| c.is_alphanumeric()).collect();
        let follows = self.chars.get(self.at + word.chars().count()).copied();
        match (word.as_str(), follows) {
            ("end", Some('}' | ' ')) => {
                if !in_range {
                    return self.error("{end} without {range}");
                }
                self.at += 3;
                self.spaces();
                self.expect('}')?;
                return Ok(Action::End);
            }
            ("range", Some(' ' | '.' | '$' | '@' | '[')) => {
                if depth == MAX_DEPTH {
                    return self.error(format!("more than {MAX_DEPTH} ranges within each other"));
                }
                self.at += 5;
                self.spaces();
                let path = self.path(0)?;
                self.spaces();
                self.expect('}')?;
                let mut inner = Vec::new();
                self.nodes(&mut inner, depth + 1, Some(begin))?;
                nodes.push(Node::Range(path, inner));
                return Ok(Action::Done);
            }
            _ => {}
        }
        if self.take('}') {
            // As in kubectl, this is the whole value.
            nodes.push(Node::Path(Path { from: From::Current, steps: Vec::new() }));
            return Ok(Action::Done);
        }
        while !self.take('}') {
            match self.peek() {
                Some('"' | '\'') => nodes.push(Node::Text(self.quoted()?)),
                Some(_) => nodes.push(Node::Path(self.path(0)?)),
                None => return self.error("expected '}', found its end"),
            }
            self.spaces();
        }
        Ok(Action::Done)
    }

    fn path(&mut self, depth: usize) -> Result<Path, PathError> {
        let begin = self.at;
        let from = if self.take('$') {
            From::Root
        } else {
            self.take('@');
            From::Current
        };
        let mut steps = Vec::new();
        // The first dot may be left out before a name.
        if self.at == begin && self.peek().is_some_and(|c| !ends_name(c)) {
            steps.push(self.name()?);
        }
        loop {
            if self.take('.') {
                if self.take('.') {
                    steps.push(Step::Descend);
                    if self.peek() == Some('[') {
                        continue;
                    }
                }
                match self.peek() {
                    Some('[') => {}
                    Some(c) if !ends_name(c) => steps.push(self.name()?),
                    // `{.}` is the whole value.
                    _ if steps.is_empty() => break,
                    _ => return self.error(format!("expected a name, found {}", self.found())),
                }
            } else if self.take('[') {
                steps.push(self.bracket(depth)?);
            } else {
                break;
            }
        }
        if self.at == begin {
            return self.error(format!("expected a path, found {}", self.found()));
        }
        Ok(Path { from, steps })
    }

    /// A name after a dot, or `*`.
    fn name(&mut self) -> Result<Step, PathError> {
        let mut name = String::new();
        let begin = self.at;
        while let Some(c) = self.peek().filter(|c| !ends_name(*c)) {
            self.at += 1;
            if c == '\\' {
                let Some(escaped) = self.peek() else { return self.error("nothing follows the backslash") };
                self.at += 1;
                name.push(escaped);
            } else {
                name.push(c);
            }
        }
        Ok(if name == "*" && self.at == begin + 1 { Step::All } else { Step::Field(name) })
    }

    fn bracket(&mut self, depth: usize) -> Result<Step, PathError> {
        self.spaces();
        if self.take('?') {
            if depth == MAX_DEPTH {
                return self.error(format!("more than {MAX_DEPTH} filters within each other"));
            }
            self.spaces();
            self.expect('(')?;
            let filter = self.filter(depth + 1)?;
            self.expect(')')?;
            self.spaces();
            self.expect(']')?;
            return Ok(Step::Filter(Box::new(filter)));
        }
        if self.take('*') {
            self.spaces();
            self.expect(']')?;
            return Ok(Step::All);
        }
        let mut picks = Vec::new();
        loop {
            self.spaces();
            picks.push(match self.peek() {
                Some('"' | '\'') => Pick::Name(self.quoted()?),
                _ => self.items()?,
            });
            self.spaces();
            if !self.take(',') {
                break;
            }
        }
        self.expect(']')?;
        Ok(Step::Pick(picks))
    }

    /// A number, or a slice `from:to:step`.
    fn items(&mut self) -> Result<Pick, PathError> {
        let from = self.number()?;
        if !self.take(':') {
            return match from {
                Some(number) => Ok(Pick::Item(number)),
                None => self
                    .error(format!("expected a number, a quoted name, `*` or `?(`, found {}", self.found())),
            };
        }
        let to = self.number()?;
        let at = self.at;
        let step = if self.take(':') { self.number()? } else { None };
        match usize::try_from(step.unwrap_or(1)) {
            Ok(step @ 1..) => Ok(Pick::Slice { from, to, step }),
            _ => Err(PathError { at: at + 1, what: "the step of a slice must be at least 1".to_owned() }),
        }
    }

    fn number(&mut self) -> Result<Option<i64>, PathError> {
        let begin = self.at;
        self.take('-');
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        let digits: String = self.chars[begin..self.at].iter().collect();
        if digits.is_empty() {
            return Ok(None);
        }
        let wrong = || PathError { at: begin + 1, what: format!("{digits:?} is not a number of an item") };
        digits.parse().map(Some).map_err(|_| wrong())
    }

    fn filter(&mut self, depth: usize) -> Result<Filter, PathError> {
        let left = self.operand(depth)?;
        self.spaces();
        let comparisons = [
            ("==", Comparison::Equal),
            ("!=", Comparison::Unequal),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        for (text, comparison) in comparisons {
            if self.take_word(text) {
                let right = self.operand(depth)?;
                self.spaces();
                return Ok(Filter { left, compared: Some((comparison, right)) });
            }
        }
        match self.peek() {
            Some('=') => self.error("a comparison is written `==`"),
            Some('&' | '|') => self.error("a filter has one comparison; kubectl knows no `&&` and `||`"),
            _ => Ok(Filter { left, compared: None }),
        }
    }

    fn operand(&mut self, depth: usize) -> Result<Operand, PathError> {
        self.spaces();
        match self.peek() {
            Some('@' | '$' | '.') => Ok(Operand::Path(self.path(depth)?)),
            Some('"' | '\'') => Ok(Operand::Value(Value::String(self.quoted()?))),
            _ => {
                let begin = self.at;
                let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.');
                while self.peek().is_some_and(is_part) {
                    self.at += 1;
                }
                let word: String = self.chars[begin..self.at].iter().collect();
                let value = match serde_json::from_str(&word) {
                    Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::Null)) => Some(value),
                    _ => None,
                };
                let what = "expected a path that begins with `@`, a quoted text, a number, true or false";
                value.map(Operand::Value).ok_or_else(|| PathError { at: begin + 1, what: what.to_owned() })
            }
        }
    }

    /// A text in quotes, with `\n`, `\t`, `\r`, `\\` and quotes escaped.
    fn quoted(&mut self) -> Result<String, PathError> {
        let begin = self.at;
        let Some(quote) = self.peek() else { return self.error("expected a quoted text") };
        self.at += 1;
        let mut text = String::new();
        while let Some(c) = self.peek() {
            self.at += 1;
            if c == quote {
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            match self.peek() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                Some(other) => text.push(other),
                None => break,
            }
            self.at += 1;
        }
        Err(PathError { at: begin + 1, what: "this quotation has no end".to_owned() })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Done,
    /// `{end}`
    End,
}
