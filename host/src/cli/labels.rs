//! Label selectors as kubectl has them: `app=web,tier!=db,env in (a,b),stage notin (x),canary,!beta`.

use serde_json::Value;
use std::collections::BTreeSet;
use std::str::FromStr;

/// Bytes of a selector.
pub(super) const MAX_SELECTOR: usize = 4096;
/// Bytes of a label's value and of a key's name, and of a key's prefix.
const MAX_PART: usize = 63;
const MAX_PREFIX: usize = 253;

/// What labels have to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    wanted: Wanted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// One of these values.
    In(BTreeSet<String>),
    /// Another value, or none.
    NotIn(BTreeSet<String>),
    Present,
    Absent,
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("character {at} of the selector: {what}")]
pub(super) struct SelectorError {
    /// Counted from 1.
    at: usize,
    what: String,
}

impl Selector {
    /// Whether the labels of an object fit.
    pub(super) fn fits(&self, labels: Option<&Value>) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.and_then(|labels| labels.get(&requirement.key)).and_then(Value::as_str);
            match &requirement.wanted {
                Wanted::In(values) => value.is_some_and(|value| values.contains(value)),
                Wanted::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Wanted::Present => value.is_some(),
                Wanted::Absent => value.is_none(),
            }
        })
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut parser = Parser { chars: text.chars().collect(), at: 0 };
        if text.len() > MAX_SELECTOR {
            return parser.error(format!("it is longer than {MAX_SELECTOR} bytes"));
        }
        let mut requirements = Vec::new();
        loop {
            requirements.push(parser.requirement()?);
            parser.spaces();
            if !parser.take(',') {
                break;
            }
        }
        match parser.peek() {
            None => Ok(Self(requirements)),
            Some(c) => parser.error(format!("unexpected {c:?}; requirements are separated by commas")),
        }
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
}

impl Parser {
    fn error<T>(&self, what: impl Into<String>) -> Result<T, SelectorError> {
        Err(SelectorError { at: self.at + 1, what: what.into() })
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self, wanted: char) -> bool {
        let is_there = self.peek() == Some(wanted);
        self.at += usize::from(is_there);
        is_there
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn word(&mut self) -> String {
        let is_part = |c: &&char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let word: String = self.chars[self.at..].iter().take_while(is_part).collect();
        self.at += word.len();
        word
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        self.spaces();
        let is_absent = self.take('!');
        self.spaces();
        let key = self.key()?;
        self.spaces();
        if is_absent {
            return Ok(Requirement { key, wanted: Wanted::Absent });
        }
        let wanted = match self.peek() {
            None | Some(',') => Wanted::Present,
            Some('=') => {
                self.at += 1;
                self.take('=');
                Wanted::In(BTreeSet::from([self.value()?]))
            }
            Some('!') => {
                self.at += 1;
                if !self.take('=') {
                    return self.error("expected `!=`");
                }
                Wanted::NotIn(BTreeSet::from([self.value()?]))
            }
            Some('<' | '>') => return self.error("`<` and `>` are not supported here"),
            Some(_) => {
                let at = self.at;
                match self.word().as_str() {
                    "in" => Wanted::In(self.values()?),
                    "notin" => Wanted::NotIn(self.values()?),
                    _ => {
                        self.at = at;
                        return self.error("expected `=`, `==`, `!=`, `in`, `notin` or a comma");
                    }
                }
            }
        };
        Ok(Requirement { key, wanted })
    }

    fn key(&mut self) -> Result<String, SelectorError> {
        let at = self.at;
        let key = self.word();
        let (prefix, name) = key.split_once('/').map_or((None, key.as_str()), |(a, b)| (Some(a), b));
        let prefix_is_good = prefix.is_none_or(|prefix| is_part(prefix, MAX_PREFIX));
        if !prefix_is_good || !is_part(name, MAX_PART) {
            self.at = at;
            return self.error(if key.is_empty() {
                "expected the key of a label".to_owned()
            } else {
                format!("{key:?} is not the key of a label")
            });
        }
        Ok(key)
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        self.spaces();
        let at = self.at;
        let value = self.word();
        if !value.is_empty() && !is_part(&value, MAX_PART) {
            self.at = at;
            return self.error(format!("{value:?} is not the value of a label"));
        }
        Ok(value)
    }

    /// `(a, b)`
    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        self.spaces();
        if !self.take('(') {
            return self.error("expected `(`");
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            self.spaces();
            if self.take(')') {
                return Ok(values);
            }
            if !self.take(',') {
                return self.error("expected `,` or `)`");
            }
        }
    }
}

/// Whether a text is a label's value, or one of the two parts of its key.
fn is_part(text: &str, max: usize) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text.len() <= max
        && text.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_fit_as_in_kubernetes() {
        let labels = json!({ "app": "web", "tier": "front", "example.com/stage": "2", "empty": "" });
        for (selector, fits) in [
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier = front", true),
            ("app=db", false),
            ("app!=db", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("other in (db)", false),
            ("app notin (db)", true),
            ("app notin (web)", false),
            ("other notin (web)", true),
            ("app", true),
            ("other", false),
            ("!other", true),
            ("!app", false),
            ("example.com/stage=2,app", true),
            ("empty=", true),
            ("app=", false),
            ("in in (in)", false),
        ] {
            assert_eq!(selector.parse::<Selector>().unwrap().fits(Some(&labels)), fits, "{selector}");
        }
        assert!("!app".parse::<Selector>().unwrap().fits(None));
        assert!(!"app".parse::<Selector>().unwrap().fits(None));
    }

    #[test]
    fn errors_say_where() {
        for (selector, at, what) in [
            ("", 1, "expected the key"),
            ("app=web,", 9, "expected the key"),
            ("app web", 5, "expected `=`"),
            ("app in web", 8, "expected `(`"),
            ("app in (web", 12, "expected `,` or `)`"),
            ("app>3", 4, "not supported"),
            ("app!", 5, "expected `!=`"),
            ("app=-web", 5, "not the value"),
            ("a/b/c=1", 1, "not the key"),
            ("app=web;tier", 8, "separated by commas"),
        ] {
            let error = selector.parse::<Selector>().unwrap_err();
            assert!(error.at == at && error.what.contains(what), "{selector}: {error}");
        }
        assert!("x".repeat(5000).parse::<Selector>().is_err());
    }
}
