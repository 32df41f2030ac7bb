//! One check and its result.

use crate::vmm::Unavailable;
use serde::Serialize;

/// Result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Ok,
    /// Something is missing, but pods can run without it.
    Warn,
    /// No pod can run until this is fixed.
    Fail,
}

/// Something that pods may need from the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) state: State,
    pub(super) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) needed_for: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Ok, found: found.into(), needed_for: None, remedy: None }
    }

    /// It is not there, and only some things need it.
    pub(super) fn missing(
        name: &'static str,
        needed_for: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Self { name, state: State::Warn, found, needed_for: Some(needed_for), remedy }
    }

    /// Like [`Self::missing`], from a driver.
    pub(super) fn unavailable(name: &'static str, needed_for: &'static str, why: Unavailable) -> Self {
        // A hint is a sentence, and a remedy follows "fix: ".
        let mut remedy = why.remedy;
        if let Some(first) = remedy.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        Self::missing(name, needed_for, why.reason, remedy)
    }

    /// The same, for what every pod needs.
    #[must_use]
    pub(super) fn required(self) -> Self {
        match self.state {
            State::Warn => Self { state: State::Fail, ..self },
            State::Ok | State::Fail => self,
        }
    }

    /// The same, where other pods can run without it.
    #[must_use]
    pub(super) fn optional(self) -> Self {
        match self.state {
            State::Fail => Self { state: State::Warn, ..self },
            State::Ok | State::Warn => self,
        }
    }

    pub(super) fn is_ok(&self) -> bool {
        self.state == State::Ok
    }

    pub(super) fn lines(&self) -> String {
        let label = match self.state {
            State::Ok => "[ OK ]",
            State::Warn => "[WARN]",
            State::Fail => "[FAIL]",
        };
        let mut text = format!("{label} {}: {}", self.name, self.found);
        if let Some(needed_for) = self.needed_for {
            text.push_str(&format!("\n       needed for: {needed_for}"));
        }
        if let Some(remedy) = &self.remedy {
            text.push_str(&format!("\n       fix: {remedy}"));
        }
        text
    }
}
