//! Image references: `name[:tag][@digest]`, as Docker, containerd and Kubernetes read them.
//! Must not know registries and the store.

use super::digest::{Digest, DigestError, shorten};
use magikvm_proto::limits::MAX_IMAGE_REF_LEN;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_TAG_LEN: usize = 128;

/// A complete reference: `busybox` is `docker.io/library/busybox:latest`. Grammar: distribution/reference.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("an image reference is empty")]
    Empty,
    /// Too many bytes.
    #[error("the image reference {text:?} is longer than {MAX_IMAGE_REF_LEN} bytes")]
    TooLong { text: String },
    /// The part before the first slash.
    #[error("{domain:?} in the image reference {text:?} is not a registry's host name with an optional port")]
    Domain { text: String, domain: String },
    #[error(
        "the image reference {text:?} has a wrong name {path:?}: lower-case letters and digits, separated by \".\", \"_\", \"__\", \"-\" or \"/\""
    )]
    Path { text: String, path: String },
    #[error(
        "the image reference {text:?} has a wrong tag {tag:?}: 1 to {MAX_TAG_LEN} letters, digits, \"_\", \".\" or \"-\", not starting with \".\" or \"-\""
    )]
    Tag { text: String, tag: String },
    #[error("the image reference {text:?} has a wrong digest")]
    Digest {
        text: String,
        #[source]
        source: DigestError,
    },
}

impl Reference {
    /// Host and port of the registry.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository in the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `registry/repository`, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag; `None` only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Whether it means the newest version: its tag is `latest`, written or by default.
    pub fn is_latest(&self) -> bool {
        self.tag.as_deref() == Some(DEFAULT_TAG)
    }

    /// The digest of the manifest or index if it is pinned.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The reference without its digest, with the default tag if it had none.
    pub fn without_digest(&self) -> Self {
        Self {
            tag: Some(self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned())),
            digest: None,
            ..self.clone()
        }
    }

    /// The short form that people type: `busybox:latest` for `docker.io/library/busybox:latest`.
    pub fn familiar(&self) -> String {
        let name = if self.domain == DEFAULT_DOMAIN {
            self.path
                .strip_prefix(OFFICIAL)
                .filter(|rest| !rest.contains('/'))
                .unwrap_or(&self.path)
                .to_owned()
        } else {
            self.repository()
        };
        name + &self.suffix()
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let whole = || shorten(text);
        if text.len() > MAX_IMAGE_REF_LEN {
            return Err(ReferenceError::TooLong { text: whole() });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let parsed =
                    digest.parse().map_err(|source| ReferenceError::Digest { text: whole(), source })?;
                (rest, Some(parsed))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag { text: whole(), tag: shorten(tag) });
        }
        let (domain, path) = split_domain(name);
        if !is_domain(domain) {
            return Err(ReferenceError::Domain { text: whole(), domain: shorten(domain) });
        }
        // 64 hexadecimal digits are always an image's id and never a name.
        let is_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id || !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Path { text: whole(), path: shorten(path) });
        }
        let (domain, path) = match domain {
            "" | "index.docker.io" | DEFAULT_DOMAIN if !path.contains('/') => {
                (DEFAULT_DOMAIN, format!("{OFFICIAL}{path}"))
            }
            "" | "index.docker.io" => (DEFAULT_DOMAIN, path.to_owned()),
            domain => (domain, path.to_owned()),
        };
        let tag = tag.or(if digest.is_none() { Some(DEFAULT_TAG) } else { None }).map(str::to_owned);
        let reference = Self { domain: domain.to_owned(), path, tag, digest };
        // The defaults made it longer. The stored form must be parseable again.
        if reference.to_string().len() > MAX_IMAGE_REF_LEN {
            return Err(ReferenceError::TooLong { text: whole() });
        }
        Ok(reference)
    }
}

/// The first component is a registry when it looks like a host: it has a dot, a port or upper case, or is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("", name),
    }
}

fn is_domain(domain: &str) -> bool {
    if domain.is_empty() {
        return true;
    }
    if let Some(address) = domain.strip_prefix('[') {
        let Some((address, port)) = address.split_once(']') else { return false };
        return address.parse::<Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = domain.split_once(':').map_or((domain, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    // A host that ends in a number is an address to clients (WHATWG URL, 3.5). Only one spelling is accepted, so that `127.1` and
    // `0x7f000001` are not other registries than `127.0.0.1`.
    let last = host.rsplit('.').next().unwrap_or(host);
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || last.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("0x"));
    host.split('.').all(label) && port.is_none_or(is_port) && (!is_number || host.parse::<Ipv4Addr>().is_ok())
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= MAX_TAG_LEN
        && tag.bytes().enumerate().all(|(at, byte)| {
            byte.is_ascii_alphanumeric() || byte == b'_' || at > 0 && matches!(byte, b'.' | b'-')
        })
        && !tag.is_empty()
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let separator =
        |separator: &str| matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-');
    let bytes = component.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| alphanumeric(*byte));
    ends(bytes.first())
        && ends(bytes.last())
        && component.split(|c: char| c.is_ascii() && alphanumeric(c as u8)).all(separator)
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;
    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

/// The canonical form with all defaults.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn defaults_are_dockers() {
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("me/app", "docker.io/me/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("ghcr.io/a/b/c", "ghcr.io/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest"),
        ] {
            assert_eq!(canonical(text), full);
        }
        let digest = Digest::of(b"");
        assert_eq!(canonical(&format!("busybox@{digest}")), format!("docker.io/library/busybox@{digest}"));
        assert_eq!(
            canonical(&format!("busybox:1@{digest}")),
            format!("docker.io/library/busybox:1@{digest}")
        );
    }

    #[test]
    fn familiar_is_what_people_type() {
        for text in ["busybox:latest", "me/app:v1", "localhost:5000/app:v1", "ghcr.io/library/a:b"] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), text);
        }
    }

    #[test]
    fn latest_is_the_tag_or_no_tag() {
        let is_latest = |text: &str| text.parse::<Reference>().unwrap().is_latest();
        let digest = Digest::of(b"");
        for latest in ["busybox", "a/b", "host:5000/b", "a:latest", "host:5000/a/b:latest"] {
            assert!(is_latest(latest), "{latest}");
        }
        assert!(is_latest(&format!("a:latest@{digest}")));
        for pinned in ["a:1", "host:5000/b:1", &format!("a@{digest}"), &format!("a:1@{digest}")] {
            assert!(!is_latest(pinned), "{pinned}");
        }
    }

    #[test]
    fn wrong_ones_are_refused_by_part() {
        use ReferenceError as E;
        let error = |text: &str| text.parse::<Reference>().unwrap_err();
        assert_eq!(error(""), E::Empty);
        assert!(matches!(error(&"a".repeat(513)), E::TooLong { .. }));
        assert!(
            matches!(error(&"a".repeat(500)), E::TooLong { .. }),
            "with its defaults it is over the limit"
        );
        for text in
            ["Busybox", "a//b", "/a", "a/", "a_", "a___b", "a..b", "-a", "..", "a b", "ü", &"0a".repeat(32)]
        {
            assert!(matches!(error(text), E::Path { .. }), "{text}");
        }
        for text in ["a:", "a:-x", "a:.x", &format!("a:{}", "x".repeat(129)), "a:b c", "a:ü"] {
            assert!(matches!(error(text), E::Tag { .. }), "{text}");
        }
        for text in ["-a.b/c", "a.b:x/c", "a.b:99999/c", "[::1/c", "a..b/c", "[x]:1/c", "[::1]5/c", "../etc"]
        {
            assert!(matches!(error(text), E::Domain { .. }), "{text}");
        }
        for host in [
            "127.1",
            "0x7f000001",
            "0X7f.1",
            "127.0.0.0x1",
            "2130706433",
            "127.0.0.01",
            "a.1",
            "a.0xg",
            "1.2.3.4.5",
            "256.1.1.1",
        ] {
            assert!(matches!(error(&format!("{host}:5000/a")), E::Domain { .. }), "{host}");
        }
        for host in ["127.0.0.1", "1.example", "0x7f.example", "a.b1", "a.x0"] {
            assert_eq!(canonical(&format!("{host}:5000/a")), format!("{host}:5000/a:latest"));
        }
        assert!(matches!(error("a@sha512:00"), E::Digest { .. }));
    }

    proptest! {
        #[test]
        fn the_canonical_form_reads_back(text in "([a-z0-9.-]{1,8}(:[0-9]{1,4})?/)?[a-z0-9._-]{1,8}(/[a-z0-9_]{1,6})?(:[A-Za-z0-9._-]{1,10})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,600}") {
            drop(text.parse::<Reference>());
        }
    }
}
