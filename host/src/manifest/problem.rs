//! Problems of a manifest with their position and a hint. Collects and shows all of them.

use super::ignored::{self, Ignored};
use std::fmt;

/// Most problems kept. A manifest with more usually has the same mistake many times.
const MAX_PROBLEMS: usize = 100;
/// Longest part of the manifest that a message repeats, in characters.
const MAX_QUOTE: usize = 60;

/// A position in the manifest. Both numbers start at 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    pub line: usize,
    pub column: usize,
}

/// A single problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The field, like `spec.containers[0].image`. Empty: the manifest as a whole.
    pub path: String,
    /// The position. `None`: the manifest as a whole.
    pub at: Option<Mark>,
    pub message: String,
    /// The hint, which may be empty.
    pub hint: String,
}

/// All problems of a manifest in the order of their positions. `Display` shows one problem a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The manifest's name as the user wrote it.
    pub origin: String,
    pub list: Vec<Problem>,
    /// Number of problems beyond those kept.
    pub dropped: usize,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.origin)?;
            if let Some(Mark { line, column }) = problem.at {
                write!(f, ":{line}:{column}")?;
            }
            if problem.path.is_empty() {
                write!(f, ": {}", problem.message)?;
            } else {
                write!(f, ": {}: {}", problem.path, problem.message)?;
            }
            if !problem.hint.is_empty() {
                write!(f, " ({})", problem.hint)?;
            }
        }
        match self.dropped {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more problems", self.origin),
        }
    }
}

/// Why a text is not a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) at: Option<Mark>,
    pub(super) message: String,
    pub(super) hint: &'static str,
}

impl SyntaxError {
    pub(super) fn new(at: Mark, message: impl Into<String>, hint: &'static str) -> Self {
        Self { at: Some(at), message: message.into(), hint }
    }
}

/// A field and its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldPlace {
    pub(super) path: String,
    pub(super) mark: Mark,
}

#[derive(Debug, Default)]
pub(super) struct ProblemCollector {
    list: Vec<Problem>,
    dropped: usize,
    ignored: Vec<Ignored>,
}

impl ProblemCollector {
    /// Notes something that changes nothing, a field by its path in the table.
    pub(super) fn ignore(&mut self, why: &'static str, path: &str) {
        ignored::add(&mut self.ignored, why, path);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a problem of this field, or within it, was reported.
    pub(super) fn is_about(&self, path: &str) -> bool {
        let within = |problem: &Problem| {
            problem
                .path
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.list.iter().any(within)
    }

    pub(super) fn add(&mut self, place: &FieldPlace, message: impl Into<String>, hint: impl Into<String>) {
        self.push(Problem {
            path: place.path.clone(),
            at: Some(place.mark),
            message: message.into(),
            hint: hint.into(),
        });
    }

    pub(super) fn whole(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.push(Problem { path: String::new(), at: None, message: message.into(), hint: hint.into() });
    }

    pub(super) fn syntax(&mut self, error: SyntaxError) {
        let SyntaxError { at, message, hint } = error;
        self.push(Problem { path: String::new(), at, message, hint: hint.to_owned() });
    }

    fn push(&mut self, problem: Problem) {
        if self.list.len() < MAX_PROBLEMS {
            self.list.push(problem);
        } else {
            self.dropped += 1;
        }
    }

    /// Adds the problems of a part of the same file, and returns what the part ignores.
    pub(super) fn take_over(&mut self, part: Self) -> Vec<Ignored> {
        self.dropped += part.dropped;
        part.list.into_iter().for_each(|problem| self.push(problem));
        part.ignored
    }

    /// Adds what another report of the file says of the file as a whole, such as that it cannot be read.
    pub(super) fn take_over_syntax(&mut self, other: &Self) {
        other
            .list
            .iter()
            .filter(|problem| problem.path.is_empty())
            .for_each(|problem| self.push(problem.clone()));
    }

    pub(super) fn into_problems(self, origin: &str) -> Problems {
        let mut list = self.list;
        list.sort_by_key(|problem| problem.at);
        Problems { origin: origin.to_owned(), list, dropped: self.dropped }
    }
}

/// A part of the manifest in a message: quoted, control characters escaped, and short.
pub(super) fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_QUOTE).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

/// A key in a path: unchanged if it is harmless, otherwise quoted.
pub(super) fn path_key(key: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    if !key.is_empty() && key.len() <= MAX_QUOTE && key.chars().all(plain) {
        key.to_owned()
    } else {
        quote(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_shown_with_their_place_in_the_order_they_are_written() {
        let mut report = ProblemCollector::default();
        let place = |path: &str, line| FieldPlace { path: path.to_owned(), mark: Mark { line, column: 3 } };
        report.add(&place("spec.b", 9), "is wrong", "");
        report.add(&place("spec.a", 4), "is missing", "write it");
        report.whole("is odd", "");
        assert_eq!(
            report.into_problems("pod.yaml").to_string(),
            "pod.yaml: is odd\npod.yaml:4:3: spec.a: is missing (write it)\npod.yaml:9:3: spec.b: is wrong"
        );
    }

    #[test]
    fn more_problems_than_a_person_reads_are_counted() {
        let mut report = ProblemCollector::default();
        for _ in 0..103 {
            report.whole("x", "");
        }
        let problems = report.into_problems("-");
        assert_eq!(problems.list.len(), 100);
        assert!(problems.to_string().ends_with("-: and 3 more problems"));
    }

    #[test]
    fn what_a_message_repeats_is_short_and_cannot_talk_to_the_terminal() {
        assert_eq!(quote("a\u{1b}[2J"), "\"a\\u{1b}[2J\"");
        assert!(quote(&"x".repeat(1000)).chars().count() <= MAX_QUOTE + 3);
        assert_eq!(path_key("app.kubernetes.io/name"), "app.kubernetes.io/name");
        assert_eq!(path_key("a b"), "\"a b\"");
    }
}
