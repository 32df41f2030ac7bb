//! Shared by every part of the build: the Pod as written, and how problems of it are reported.

use super::fields::did_you_mean;
use super::k8s::Written;
use super::objects::Objects;
use super::problem::{ProblemCollector, quote};
use std::str::FromStr;

/// A manifest on its way to a plan. Other files of this module implement its parts.
pub(super) struct Build<'a> {
    pub(super) written: &'a Written,
    pub(super) objects: &'a Objects,
    pub(super) report: &'a mut ProblemCollector,
}

impl Build<'_> {
    pub(super) fn problem(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.report.add(&self.written.place(path), message, hint);
    }

    pub(super) fn check(&mut self, path: &str, result: Result<(), String>) {
        if let Err(message) = result {
            self.problem(path, message, "");
        }
    }

    /// A required field. A field that was already refused does not count as missing.
    pub(super) fn required<'v>(&mut self, path: &str, value: Option<&'v str>) -> Option<&'v str> {
        if value.is_none() && !self.written.has(path) {
            self.problem(path, "is missing", "");
        }
        value
    }

    pub(super) fn parsed<T: FromStr<Err: ToString>>(&mut self, path: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(path, format!("{} {}", quote(text), error.to_string()), "");
                None
            }
        }
    }

    pub(super) fn one_of<T: Copy>(
        &mut self,
        path: &str,
        text: Option<&str>,
        default: T,
        table: &[(&str, T)],
    ) -> T {
        // The zero value of a string is how programs write that it is not set.
        let Some(text) = text.filter(|text| !text.is_empty()) else { return default };
        if let Some(&(_, value)) = table.iter().find(|(name, _)| *name == text) {
            return value;
        }
        let known: Vec<&str> = table.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        let hint = did_you_mean(text, known.iter().copied());
        self.problem(path, format!("{} is not one of {}", quote(text), known.join(", ")), hint);
        default
    }

    pub(super) fn count(&mut self, path: &str, found: usize, max: usize) {
        if found > max {
            self.problem(path, format!("has {found} entries, at most {max} are allowed"), "");
        }
    }
}
