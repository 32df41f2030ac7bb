//! `policy.toml`: which images may be used. It decides by an image's name alone, before anything is fetched or built. Must not know
//! registries, and of signatures only the keys.

mod prefix;

use super::digest::shorten;
use super::reference::Reference;
use super::signature::{KeyError, Keys};
use prefix::Prefix;
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Most bytes of the file.
const MAX_FILE: u64 = 1 << 20;
/// Most keys of one rule.
const MAX_KEYS: usize = 64;

/// Why a policy cannot be used, or does not allow an image.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the image policy {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is too large.
    #[error("the image policy {} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// It is not TOML, or has unknown keys.
    #[error("the image policy {}, line {line}: {problem}", path.display())]
    Form {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The problem, with the possible values.
        problem: String,
    },
    #[error("the image policy {}, line {line}: the rule for {prefix:?}: {problem}", path.display())]
    Rule {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        prefix: String,
        problem: &'static str,
    },
    /// A rule's name is ambiguous.
    #[error(
        "the image policy {}, line {line}: the rule for {prefix:?}: write \"docker.io/library/{name}\" for the official image or \"docker.io/{name}/\" for all images of {name}", path.display()
    )]
    Ambiguous {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        prefix: String,
        /// The part after `docker.io/`.
        name: String,
    },
    /// Two rules for the same images.
    #[error("the image policy {}, line {line}: there is a rule for {prefix:?} already, in line {first_line}", path.display())]
    Duplicate {
        path: PathBuf,
        /// The line of the second rule, counted from 1.
        line: usize,
        first_line: usize,
        prefix: String,
    },
    /// A key of a rule cannot be used.
    #[error("the image policy {}, line {line}: a key of the rule for {prefix:?} cannot be used", path.display())]
    Key {
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        prefix: String,
        #[source]
        source: KeyError,
    },
    /// The policy rejects the image.
    #[error("the image policy {} rejects {reference}: {because}", path.display())]
    Rejected { path: PathBuf, reference: Box<Reference>, because: Because },
    /// The policy requires a proof that is not supported.
    #[error("the image policy {} requires {what} for {reference}, which this magikvm does not support yet: {because}", path.display())]
    Unsupported { path: PathBuf, reference: Box<Reference>, what: &'static str, because: Because },
}

impl PolicyError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Rejected { path, reference, .. } => Some(format!(
                "If it may be used, add this to {}: `[[rule]] prefix = \"{}\"`, `require = \"accept\"` or `\"cosign-key\"`.",
                path.display(),
                reference.repository()
            )),
            Self::Unsupported { .. } => Some(
                "Sign the image with a key, and write `require = \"cosign-key\"` and `keys = [\"….pub\"]`."
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// The part of a policy that decides about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    Rule {
        prefix: String,
        /// Its line, counted from 1.
        line: usize,
    },
    Default,
}

impl std::fmt::Display for Because {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rule { prefix, line } => write!(f, "the rule for {prefix:?} in line {line}"),
            Self::Default => f.write_str("no rule fits, and the default is \"reject\""),
        }
    }
}

/// The policy's requirement for an image.
#[derive(Debug)]
pub enum Requirement<'a> {
    Accept,
    /// It may not be used.
    Reject {
        path: &'a Path,
        because: Because,
    },
    /// A signature by one of these keys.
    CosignKey(&'a Keys),
    /// A proof that cannot be checked yet, so the image must not be used.
    Unsupported {
        path: &'a Path,
        what: &'static str,
        because: Because,
    },
}

impl<'a> Requirement<'a> {
    /// The keys of which one must have signed the image; `None`: any image may be used. An error rejects the image.
    pub fn keys(self, reference: &Reference) -> Result<Option<&'a Keys>, PolicyError> {
        let reference = || Box::new(reference.clone());
        match self {
            Self::Accept => Ok(None),
            Self::CosignKey(keys) => Ok(Some(keys)),
            Self::Reject { path, because } => {
                Err(PolicyError::Rejected { path: path.to_owned(), reference: reference(), because })
            }
            Self::Unsupported { path, what, because } => {
                Err(PolicyError::Unsupported { path: path.to_owned(), reference: reference(), what, because })
            }
        }
    }
}

/// Which images may be used.
#[derive(Debug)]
pub struct Policy {
    path: PathBuf,
    default: Fallback,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    prefix: Prefix,
    line: usize,
    demand: Demand,
}

#[derive(Debug)]
enum Demand {
    Accept,
    Reject,
    CosignKey(Keys),
    CosignKeyless,
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    default: Fallback,
    #[serde(default, rename = "rule")]
    rules: Vec<WrittenRule>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fallback {
    #[default]
    Accept,
    Reject,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    prefix: Spanned<String>,
    require: Require,
    #[serde(default)]
    keys: Option<Vec<PathBuf>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Require {
    Accept,
    Reject,
    CosignKey,
    CosignKeyless,
}

impl Policy {
    /// Accepts every image.
    pub fn accept_all() -> Self {
        Self { path: PathBuf::new(), default: Fallback::Accept, rules: Vec::new() }
    }

    /// Reads a policy and its keys. A missing file accepts every image; any other problem is an error.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let failed = |source| PolicyError::Read { path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            // A dangling link was meant to be a policy.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
                return Ok(Self::accept_all());
            }
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(PolicyError::TooLarge { path: path.to_owned() });
        }
        Self::parse(path, &bytes)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, PolicyError> {
        let form = |at: usize, problem: &str| PolicyError::Form {
            path: path.to_owned(),
            line: line_of(bytes, at),
            problem: problem.trim_end().replace('\n', "; "),
        };
        let text =
            std::str::from_utf8(bytes).map_err(|error| form(error.valid_up_to(), "it is not UTF-8"))?;
        let written: Written = toml::from_str(text)
            .map_err(|error| form(error.span().map_or(0, |span| span.start), error.message()))?;
        let mut rules: Vec<Rule> = Vec::new();
        for written in written.rules {
            let line = line_of(bytes, written.prefix.span().start);
            let rule = read_rule(path, line, written)?;
            if let Some(first) = rules.iter().find(|first| first.prefix == rule.prefix) {
                return Err(PolicyError::Duplicate {
                    path: path.to_owned(),
                    line,
                    first_line: first.line,
                    prefix: rule.prefix.to_string(),
                });
            }
            rules.push(rule);
        }
        Ok(Self { path: path.to_owned(), default: written.default, rules })
    }

    /// The requirement for an image with this name: the rule with the longest prefix decides.
    pub fn requirement(&self, reference: &Reference) -> Requirement<'_> {
        let path = self.path.as_path();
        let fitting = self.rules.iter().filter_map(|rule| Some((rule.prefix.covers(reference)?, rule)));
        let Some((_, rule)) = fitting.max_by_key(|(components, _)| *components) else {
            return match self.default {
                Fallback::Accept => Requirement::Accept,
                Fallback::Reject => Requirement::Reject { path, because: Because::Default },
            };
        };
        let because = || Because::Rule { prefix: rule.prefix.to_string(), line: rule.line };
        match &rule.demand {
            Demand::Accept => Requirement::Accept,
            Demand::Reject => Requirement::Reject { path, because: because() },
            Demand::CosignKey(keys) => Requirement::CosignKey(keys),
            Demand::CosignKeyless => {
                Requirement::Unsupported { path, what: "a keyless cosign signature", because: because() }
            }
        }
    }
}

fn read_rule(path: &Path, line: usize, written: WrittenRule) -> Result<Rule, PolicyError> {
    let text = written.prefix.into_inner();
    let wrong = |problem| PolicyError::Rule { path: path.to_owned(), line, prefix: shorten(&text), problem };
    let prefix = text.parse::<Prefix>().map_err(|error| match error {
        prefix::Wrong::Form(problem) => wrong(problem),
        prefix::Wrong::Ambiguous(name) => PolicyError::Ambiguous {
            path: path.to_owned(),
            line,
            prefix: shorten(&text),
            name: shorten(&name),
        },
    })?;
    if written.keys.is_some() && written.require != Require::CosignKey {
        return Err(wrong("only a rule with require = \"cosign-key\" has keys"));
    }
    let demand = match written.require {
        Require::Accept => Demand::Accept,
        Require::Reject => Demand::Reject,
        Require::CosignKeyless => Demand::CosignKeyless,
        Require::CosignKey => {
            let files = written.keys.unwrap_or_default();
            if files.len() > MAX_KEYS {
                return Err(wrong("it has more than 64 keys"));
            }
            let dir = path.parent().unwrap_or(Path::new("."));
            let files: Vec<PathBuf> = files.iter().map(|file| dir.join(file)).collect();
            let prefix = || shorten(&text);
            let keys = Keys::load(&files).map_err(|source| PolicyError::Key {
                path: path.to_owned(),
                line,
                prefix: prefix(),
                source,
            })?;
            Demand::CosignKey(keys.ok_or_else(|| wrong("require = \"cosign-key\" wants keys = [\"….pub\"]"))?)
        }
    };
    Ok(Rule { prefix, line, demand })
}

/// The line of a byte, counted from 1.
fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests;
