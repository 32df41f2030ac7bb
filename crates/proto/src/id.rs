//! Names. A value of these types is always a valid name.

use crate::limits::{MAX_LABEL_LEN, MAX_NAME_LEN};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("must not be empty")]
    Empty,
    /// The text is too long for this kind of name.
    #[error("is {len} bytes long, at most {max} are allowed")]
    TooLong {
        /// Length in bytes.
        len: usize,
        /// Most bytes allowed.
        max: usize,
    },
    /// A character that this kind of name does not allow.
    #[error("contains {found:?}; only lowercase letters, digits, '-'{} are allowed (RFC 1123)", if *.dots { " and '.'" } else { "" })]
    Character {
        found: char,
        /// Whether dots are allowed.
        dots: bool,
    },
    /// A label does not begin or end with a letter or digit.
    #[error("must start and end with a lowercase letter or digit (RFC 1123)")]
    Edge,
}

fn check(text: &str, max: usize, dots: bool) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > max {
        return Err(NameError::TooLong { len: text.len(), max });
    }
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(found) = text.chars().find(|&c| !(fine(c) || c == '-' || (dots && c == '.'))) {
        return Err(NameError::Character { found, dots });
    }
    let edges = |label: &str| label.starts_with(fine) && label.ends_with(fine);
    if text.split('.').all(edges) { Ok(()) } else { Err(NameError::Edge) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $max:expr, $dots:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text, $max, $dots)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check(&text, $max, $dots)?;
                Ok(Self(text))
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// Name of a container within its pod: an RFC 1123 label, at most 63 bytes.
    ContainerName, MAX_LABEL_LEN, false
);
name!(
    /// Name of a namespace: an RFC 1123 label, at most 63 bytes.
    Namespace, MAX_LABEL_LEN, false
);
name!(
    /// Name of a pod within its namespace: an RFC 1123 subdomain, at most 253 bytes.
    PodName, MAX_NAME_LEN, true
);

impl Default for Namespace {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// A pod's full name. Written `namespace/name`, or just `name` in the namespace `default`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodId {
    pub namespace: Namespace,
    /// The name within the namespace.
    pub name: PodName,
}

impl FromStr for PodId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => Ok(Self { namespace: namespace.parse()?, name: name.parse()? }),
            None => Ok(Self { namespace: Namespace::default(), name: text.parse()? }),
        }
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn container_names_follow_rfc_1123_labels() {
        for good in ["a", "0", "web-1", &"a".repeat(63)] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        let bad: [(&str, NameError); 6] = [
            ("", NameError::Empty),
            ("-a", NameError::Edge),
            ("a-", NameError::Edge),
            ("A", NameError::Character { found: 'A', dots: false }),
            ("a.b", NameError::Character { found: '.', dots: false }),
            ("a/../b", NameError::Character { found: '/', dots: false }),
        ];
        for (text, error) in bad {
            assert_eq!(text.parse::<ContainerName>(), Err(error), "{text}");
        }
        assert_eq!("a".repeat(64).parse::<ContainerName>(), Err(NameError::TooLong { len: 64, max: 63 }));
    }

    #[test]
    fn pod_names_may_have_dots_but_no_empty_label() {
        assert!("a.b-c.d0".parse::<PodName>().is_ok());
        for bad in ["a..b", ".a", "a.", ".", "..", "a.-b"] {
            assert_eq!(bad.parse::<PodName>(), Err(NameError::Edge), "{bad}");
        }
    }

    #[test]
    fn a_pod_id_without_a_namespace_is_in_default() {
        assert_eq!("web".parse::<PodId>().unwrap().to_string(), "default/web");
        assert_eq!("prod/web".parse::<PodId>().unwrap().to_string(), "prod/web");
        assert!("a/b/c".parse::<PodId>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_as_itself_and_is_one_path_component(text in ".{0,70}") {
            if let Ok(name) = text.parse::<PodName>() {
                prop_assert_eq!(name.as_str(), text.as_str());
                prop_assert!(!text.contains('/') && text != "." && text != "..");
                let json = serde_json::to_string(&name).unwrap();
                prop_assert_eq!(serde_json::from_str::<PodName>(&json).unwrap(), name);
            } else {
                prop_assert!(serde_json::from_value::<PodName>(serde_json::Value::String(text)).is_err());
            }
        }
    }
}
