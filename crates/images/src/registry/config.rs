//! registries.toml: mirrors, plain HTTP and certificate authorities, per registry.
//!
//! A table is looked up by the registry's host and port as references write them (`docker.io`, `registry.example:5000`).
//! Nothing in it turns off the verification of certificates.

use reqwest::{Certificate, Url};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Most bytes of registries.toml.
const MAX_CONFIG_FILE: u64 = 1 << 20;
/// Most bytes of one file of certificates.
const MAX_CA_FILE: u64 = 4 << 20;
/// Most mirrors of one registry.
const MAX_MIRRORS: usize = 16;

#[derive(Debug, Clone, Default)]
pub struct RegistryConfig {
    path: PathBuf,
    tables: BTreeMap<String, Table>,
    origin: Origin,
}

/// The protocol of the registry itself when the command line sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Origin {
    #[default]
    AsConfigured,
    PlainHttp,
}

#[derive(Debug, Clone, Default)]
struct Table {
    mirrors: Vec<Mirror>,
    scheme: Scheme,
    ca_file: Option<PathBuf>,
}

/// The protocol that a registry speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Scheme {
    #[default]
    Https,
    PlainHttp,
}

/// A mirror: another place with the same images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    /// Scheme, host and port.
    pub(super) root: Url,
    /// Host and port as credentials and tables name them.
    pub(super) host: String,
    /// The prefix of repository paths; empty, or without slashes at its ends.
    pub(super) prefix: String,
    /// Its position in the file.
    offset: usize,
}

/// Why a registries.toml cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is too large.
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    /// It is not TOML, or has unknown keys.
    #[error("{}:{line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    /// A `ca-file` that cannot be read.
    #[error("{}: ca-file of [registry.\"{host}\"]: cannot read {}", path.display(), ca_file.display())]
    CaFile {
        path: PathBuf,
        host: String,
        ca_file: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A `ca-file` without certificates.
    #[error("{}: ca-file of [registry.\"{host}\"]: {} holds no certificates in PEM form", path.display(), ca_file.display())]
    NoCertificates { path: PathBuf, host: String, ca_file: PathBuf },
}

impl RegistryConfigError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::CaFile { path, .. } => {
                let dir = path.parent().unwrap_or(Path::new("."));
                Some(format!(
                    "A relative ca-file begins at the directory of registries.toml, {}.",
                    dir.display()
                ))
            }
            _ => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    registry: BTreeMap<Spanned<String>, RawTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawTable {
    #[serde(default)]
    mirrors: Vec<Spanned<String>>,
    plain_http: Option<bool>,
    ca_file: Option<Spanned<String>>,
}

impl RegistryConfig {
    /// Reads the file; a missing one counts as empty.
    pub fn load(path: &Path) -> Result<Self, RegistryConfigError> {
        let read = |source| RegistryConfigError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file.take(MAX_CONFIG_FILE + 1).read_to_end(&mut bytes).map_err(read)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(read(error)),
        };
        if bytes.len() as u64 > MAX_CONFIG_FILE {
            return Err(RegistryConfigError::TooLarge { path: path.to_owned(), limit: MAX_CONFIG_FILE });
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| read(io::Error::new(io::ErrorKind::InvalidData, error.utf8_error())))?;
        Self::parse(&text, path)
    }

    /// Parses the text of the file at `path`; relative paths begin at its directory.
    pub fn parse(text: &str, path: &Path) -> Result<Self, RegistryConfigError> {
        let at = |offset: usize, problem: String| RegistryConfigError::Line {
            path: path.to_owned(),
            line: line_of(text, offset),
            problem,
        };
        let raw: RawFile = toml::from_str(text).map_err(|error| {
            at(error.span().map_or(0, |span| span.start), super::foreign::neutral(error.message()))
        })?;
        let mut tables = BTreeMap::new();
        let mut written: Vec<_> = raw.registry.into_iter().collect();
        written.sort_by_key(|(host, _)| host.span().start);
        for (host, table) in written {
            let offset = host.span().start;
            let name = host.into_inner();
            let key = name.to_ascii_lowercase();
            if !is_host(&key) {
                return Err(at(offset, format!("{name:?} in [registry.{name:?}] is not HOST or HOST:PORT")));
            }
            let table = Table {
                mirrors: mirrors(&table.mirrors, &at)?,
                scheme: if table.plain_http == Some(true) { Scheme::PlainHttp } else { Scheme::Https },
                ca_file: match table.ca_file {
                    Some(file) if file.as_ref().is_empty() => {
                        return Err(at(file.span().start, "ca-file is empty".to_owned()));
                    }
                    Some(file) => Some(path.parent().unwrap_or(Path::new("")).join(file.as_ref())),
                    None => None,
                },
            };
            if tables.insert(key, table).is_some() {
                return Err(at(offset, format!("[registry.{name:?}] is there twice, in other letters")));
            }
        }
        let config = Self { path: path.to_owned(), tables, origin: Origin::AsConfigured };
        // What is written as https stays so: another table must not silently downgrade it.
        if let Some(mirror) = config.contradicted() {
            let host = &mirror.host;
            let problem = format!(
                "mirror {host} is written with https://, but [registry.{host:?}] says plain-http = true"
            );
            return Err(at(mirror.offset, problem));
        }
        Ok(config)
    }

    /// A mirror written as https whose table says plain HTTP.
    fn contradicted(&self) -> Option<&Mirror> {
        let plain = |host: &str| self.table(host).is_some_and(|table| table.scheme == Scheme::PlainHttp);
        let mut mirrors = self.tables.values().flat_map(|table| &table.mirrors);
        mirrors.find(|mirror| mirror.root.scheme() == "https" && plain(&mirror.host))
    }

    /// The same configuration, but the registry itself (not its mirrors) is asked over plain HTTP.
    #[must_use]
    pub fn with_plain_http(self) -> Self {
        Self { origin: Origin::PlainHttp, ..self }
    }

    fn table(&self, host: &str) -> Option<&Table> {
        self.tables.get(&host.to_ascii_lowercase())
    }

    /// The mirrors of a registry, in the order they are asked.
    pub(super) fn mirrors(&self, registry: &str) -> &[Mirror] {
        self.table(registry).map_or(&[], |table| &table.mirrors)
    }

    /// How the registry itself is reached.
    pub(super) fn scheme(&self, registry: &str) -> Scheme {
        match self.origin {
            Origin::PlainHttp => Scheme::PlainHttp,
            Origin::AsConfigured => self.table(registry).map_or(Scheme::Https, |table| table.scheme),
        }
    }

    /// The certificates of a host's `ca-file`.
    pub(super) fn certificates(&self, host: &str) -> Result<Vec<Certificate>, RegistryConfigError> {
        let Some(ca_file) = self.table(host).and_then(|table| table.ca_file.as_ref()) else {
            return Ok(Vec::new());
        };
        let (path, host, ca_file) = (self.path.clone(), host.to_owned(), ca_file.clone());
        let mut pem = Vec::new();
        if let Err(source) =
            File::open(&ca_file).and_then(|file| file.take(MAX_CA_FILE).read_to_end(&mut pem))
        {
            return Err(RegistryConfigError::CaFile { path, host, ca_file, source });
        }
        match Certificate::from_pem_bundle(&pem) {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            _ => Err(RegistryConfigError::NoCertificates { path, host, ca_file }),
        }
    }
}

fn mirrors(
    written: &[Spanned<String>],
    at: &dyn Fn(usize, String) -> RegistryConfigError,
) -> Result<Vec<Mirror>, RegistryConfigError> {
    if let Some(extra) = written.get(MAX_MIRRORS) {
        return Err(at(extra.span().start, format!("more than {MAX_MIRRORS} mirrors")));
    }
    let parse = |mirror: &Spanned<String>| {
        let wrong = |problem| at(mirror.span().start, format!("mirror {:?} {problem}", mirror.as_ref()));
        Mirror::parse(mirror.as_ref(), mirror.span().start).map_err(wrong)
    };
    written.iter().map(parse).collect()
}

impl Mirror {
    fn parse(text: &str, offset: usize) -> Result<Self, &'static str> {
        let form = "is not of the form https://HOST[:PORT][/PREFIX]";
        let mut root = Url::parse(text).map_err(|_| form)?;
        let plain = matches!(root.scheme(), "http" | "https")
            && root.query().is_none()
            && root.fragment().is_none()
            && root.username().is_empty()
            && root.password().is_none();
        if !plain {
            return Err(form);
        }
        let prefix = root.path().trim_matches('/').to_owned();
        let component = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if !prefix.is_empty() && !prefix.split('/').all(component) {
            return Err("has a prefix that is not a repository path");
        }
        root.set_path("/");
        let host = host_and_port(&root).ok_or(form)?;
        Ok(Self { root, host, prefix, offset })
    }
}

/// `HOST[:PORT]`, without the scheme's default port.
pub(super) fn host_and_port(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

/// HOST or HOST:PORT, and nothing else that an address may contain.
fn is_host(text: &str) -> bool {
    let Ok(url) = Url::parse(&format!("https://{text}/")) else { return false };
    let Some(host) = url.host_str() else { return false };
    text == host
        || text
            .strip_prefix(host)
            .and_then(|rest| rest.strip_prefix(':'))
            .is_some_and(|port| port.parse::<u16>().is_ok() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<RegistryConfig, RegistryConfigError> {
        RegistryConfig::parse(text, Path::new("/etc/magikvm/registries.toml"))
    }

    #[test]
    fn a_full_file_is_understood() {
        let config = parse(
            r#"
            [registry."docker.io"]
            mirrors = ["https://mirror.registry.example/hub", "http://10.0.0.1:5000"]
            [registry."Registry.example:5000"]
            plain-http = true
            ca-file = "ca.pem"
            "#,
        )
        .unwrap();
        let [first, second] = config.mirrors("docker.io") else { panic!("two mirrors") };
        assert_eq!((first.host.as_str(), first.prefix.as_str()), ("mirror.registry.example", "hub"));
        assert_eq!((second.host.as_str(), second.prefix.as_str()), ("10.0.0.1:5000", ""));
        assert_eq!(second.root.as_str(), "http://10.0.0.1:5000/");
        assert_eq!(config.scheme("registry.example:5000"), Scheme::PlainHttp);
        assert_eq!(config.scheme("docker.io"), Scheme::Https);
        assert_eq!(config.with_plain_http().scheme("docker.io"), Scheme::PlainHttp);
    }

    #[test]
    fn errors_name_file_line_and_key() {
        for (text, line, wants) in [
            (
                "[registry.\"a.b\"]\ninsecure = true\n",
                2,
                "`insecure`, expected one of `mirrors`, `plain-http`, `ca-file`",
            ),
            ("\n[registries]\n", 2, "unknown field `registries`, expected `registry`"),
            ("[registry.\"a.b/c\"]\n", 1, "HOST:PORT"),
            ("[registry.\"127.1:5000\"]\n", 1, "HOST:PORT"),
            ("[registry.\"0x7f000001\"]\n", 1, "HOST:PORT"),
            ("[registry.\"a.b\"]\nmirrors = [\n  \"https://ok.example\",\n  \"ftp://x\"]\n", 4, "ftp://x"),
            ("[registry.\"a.b\"]\nmirrors = [\"https://u:p@x.example\"]\n", 2, "form"),
            ("[registry.\"a.b\"]\nmirrors = [\"https://x.example/a%2fb\"]\n", 2, "prefix"),
            ("[registry.\"a.b\"]\nplain-http = \"yes\"\n", 2, "boolean"),
            ("[registry.\"a.b\"]\nca-file = \"\"\n", 2, "empty"),
            ("[registry.\"a.b\"]\n[registry.\"A.b\"]\n", 2, "twice"),
            (
                "[registry.\"a.b\"]\nmirrors = [\"https://c.d\"]\n[registry.\"c.d\"]\nplain-http = true\n",
                2,
                "c.d is written",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("/etc/magikvm/registries.toml:{line}: ")), "{error}");
            assert!(error.contains(wants), "{error}");
        }
    }

    #[test]
    fn a_missing_file_is_the_default_and_a_missing_ca_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.toml");
        assert!(RegistryConfig::load(&path).unwrap().mirrors("docker.io").is_empty());
        std::fs::write(&path, "[registry.\"r.example\"]\nca-file = \"ca.pem\"\n").unwrap();
        let config = RegistryConfig::load(&path).unwrap();
        assert!(config.certificates("other.example").unwrap().is_empty());
        let error = config.certificates("r.example").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("ca-file of [registry.\"r.example\"]"), "{text}");
        assert!(text.contains(&dir.path().join("ca.pem").display().to_string()), "{text}");
        assert!(error.hint().unwrap().contains(&dir.path().display().to_string()));
        std::fs::write(dir.path().join("ca.pem"), "no certificate").unwrap();
        let error = config.certificates("r.example").unwrap_err();
        assert!(matches!(error, RegistryConfigError::NoCertificates { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(\\[registry\\.\"[a-z\\[\\]:.0-9]{0,12}\"\\]\n)?[a-z=\" \\[\\],:/-]{0,60}") {
            drop(parse(&text));
        }
    }
}
