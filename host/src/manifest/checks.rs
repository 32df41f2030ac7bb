//! Shared by every part of the build: the Pod as written, and how problems of it are reported.

use super::fields::did_you_mean;
use super::k8s::Written;
use super::objects::Objects;
use super::plan::RuntimeClass;
use super::problem::{ProblemCollector, quote};
use std::str::FromStr;

/// A manifest on its way to a plan. Other files of this module implement its parts.
pub(super) struct Build<'a> {
    pub(super) written: &'a Written,
    pub(super) objects: &'a Objects,
    pub(super) report: &'a mut ProblemCollector,
    /// The class in effect.
    pub(super) class: RuntimeClass,
    /// Bytes of files that the plan has copies of so far.
    pub(super) copied: usize,
}

/// Most bytes of files of ConfigMaps, Secrets and the downward API in the plan of one Pod. Their base64 has room in what a monitor reads.
const MAX_FILE_BYTES: usize = 10 << 20;

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
        self.one_of_or(path, text, default, table, "")
    }

    /// The same, with a hint for words that are not like any of the table's.
    pub(super) fn one_of_or<T: Copy>(
        &mut self,
        path: &str,
        text: Option<&str>,
        default: T,
        table: &[(&str, T)],
        otherwise: &str,
    ) -> T {
        // The zero value of a string is how programs write that it is not set.
        let Some(text) = text.filter(|text| !text.is_empty()) else { return default };
        if let Some(&(_, value)) = table.iter().find(|(name, _)| *name == text) {
            return value;
        }
        let known: Vec<&str> = table.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        let meant = did_you_mean(text, known.iter().copied());
        let hint = if meant.is_empty() { otherwise.to_owned() } else { meant };
        self.problem(path, format!("{} is not one of {}", quote(text), known.join(", ")), hint);
        default
    }

    /// Counts a file that the plan gets a copy of. `None`, after a report, if there are too many bytes.
    pub(super) fn copy<T>(&mut self, path: &str, bytes: usize, file: T) -> Option<T> {
        let before = self.copied;
        self.copied = before.saturating_add(bytes);
        if self.copied <= MAX_FILE_BYTES {
            return Some(file);
        }
        // Said once, of the first that is too much.
        if before <= MAX_FILE_BYTES {
            let message = format!(
                "brings the files of the Pod's ConfigMaps, Secrets and downward API to {} bytes, at most {MAX_FILE_BYTES} are possible",
                self.copied
            );
            self.problem(path, message, "put large files into an image volume or a hostPath");
        }
        None
    }

    pub(super) fn count(&mut self, path: &str, found: usize, max: usize) {
        if found > max {
            self.problem(path, format!("has {found} entries, at most {max} are allowed"), "");
        }
    }
}
