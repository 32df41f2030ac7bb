//! JSONPath as kubectl has it: templates of `-o jsonpath=` and the paths of `wait --for=jsonpath=` and of custom columns.
//!
//! `{.a.b}`, `['a']`, `[0]`, `[-1]`, `[0:3:2]`, `[0,2]`, `[*]`, `.*`, `..a`, `[?(@.x=="y")]`, `{range .items[*]}…{end}`, `{"\n"}`; a dot in a
//! name is written `\.`. What is not there gives no value, as in `kubectl get`.
//!
//! Owns: the language. Must not know: pods.

mod find;
mod parse;

use serde_json::Value;
use std::fmt::Write;

/// Bytes of a template.
const MAX_TEMPLATE: usize = 16 << 10;
/// Ranges within ranges, and filters within filters.
const MAX_DEPTH: usize = 16;
/// Values that one evaluation looks at: `..` within `..` would look at the same ones again and again.
const MAX_VISITS: usize = 1 << 20;
/// Bytes that a template may make.
const MAX_OUTPUT: usize = 64 << 20;

/// Why a text is not a JSONPath.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {at} of the JSONPath: {what}")]
pub(super) struct PathError {
    /// Counted from 1.
    at: usize,
    what: String,
}

/// Why a JSONPath gives nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum EvalError {
    #[error("the JSONPath looks at more than {MAX_VISITS} values")]
    Visits,
    #[error("the JSONPath gives more than {} MiB", MAX_OUTPUT >> 20)]
    Output,
}

/// A text with expressions in braces.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template(Vec<Node>);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Path(Path),
    /// The nodes are repeated for each value of the path.
    Range(Path, Vec<Node>),
}

/// One path, such as `.status.containerStatuses[0].ready`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path {
    from: From,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// `$`
    Root,
    /// `@`, or nothing.
    Current,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    /// Every item, or every value of an object.
    All,
    /// The value and everything in it.
    Descend,
    Pick(Vec<Pick>),
    Filter(Box<Filter>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pick {
    Name(String),
    /// Negative numbers count from the end.
    Item(i64),
    Slice {
        from: Option<i64>,
        to: Option<i64>,
        /// At least 1.
        step: usize,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Filter {
    left: Operand,
    /// Without it, the left side has to be there.
    compared: Option<(Comparison, Operand)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Path),
    Value(Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Template {
    /// A text without braces is taken for a path.
    pub(super) fn parse(text: &str) -> Result<Self, PathError> {
        parse::template(text).map(Self)
    }

    pub(super) fn render(&self, value: &Value) -> Result<String, EvalError> {
        let mut out = String::new();
        let mut search = find::Search::new(value);
        render(&self.0, value, &mut search, &mut out)?;
        Ok(out)
    }
}

fn render<'v>(
    nodes: &[Node],
    current: &'v Value,
    search: &mut find::Search<'v>,
    out: &mut String,
) -> Result<(), EvalError> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(path) => {
                for (index, value) in search.find(path, current)?.into_iter().enumerate() {
                    let space = if index > 0 { " " } else { "" };
                    if write!(out, "{space}{}", text(value)).is_err() || out.len() > MAX_OUTPUT {
                        return Err(EvalError::Output);
                    }
                }
            }
            Node::Range(path, inner) => {
                for value in search.find(path, current)? {
                    render(inner, value, search, out)?;
                }
            }
        }
        if out.len() > MAX_OUTPUT {
            return Err(EvalError::Output);
        }
    }
    Ok(())
}

impl Path {
    /// A path with or without braces and with or without its first dot, and what follows it in the text.
    pub(super) fn parse_prefix(text: &str) -> Result<(Self, &str), PathError> {
        parse::path_prefix(text)
    }

    pub(super) fn find<'v>(&self, value: &'v Value) -> Result<Vec<&'v Value>, EvalError> {
        find::Search::new(value).find(self, value)
    }
}

/// A value as kubectl prints it: texts as they are, nothing for null, and JSON for the rest.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
