//! Fields of a manifest that change nothing here, for one warning for each reason.

use std::fmt;

/// Most fields that a warning names.
const MAX_NAMED: usize = 8;

/// Fields that were ignored for one reason. `Display` is half a sentence: what is ignored, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    pub why: &'static str,
    /// Paths of the table, or names of volumes, each once, in the order of the manifest.
    pub paths: Vec<String>,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = &self.paths[..self.paths.len().min(MAX_NAMED)];
        write!(f, "ignored {}", named.join(", "))?;
        match self.paths.len() - named.len() {
            0 => {}
            more => write!(f, " and {more} more")?,
        }
        write!(f, ": {}", self.why)
    }
}

/// Adds a field to those of its reason.
pub(super) fn add(list: &mut Vec<Ignored>, why: &'static str, path: &str) {
    match list.iter_mut().find(|ignored| ignored.why == why) {
        Some(ignored) if ignored.paths.iter().any(|known| known == path) => {}
        Some(ignored) => ignored.paths.push(path.to_owned()),
        None => list.push(Ignored { why, paths: vec![path.to_owned()] }),
    }
}
