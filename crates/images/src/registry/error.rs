//! Failures of a registry, which of them are worth another attempt, and what the user can do about them.

use super::config::RegistryConfigError;
use super::connect::{Cause, ConnectProblem};
use super::credentials::CredentialError;
use super::inward::Inside;
use crate::cancel::Stopped;
use crate::digest::Digest;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Why a registry did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The work was cancelled or its deadline passed.
    #[error("gave up on the registry")]
    Stopped(#[from] Stopped),
    /// The thread of the connections did not start.
    #[error("cannot start the thread for connections to registries")]
    Thread {
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Config(#[from] Box<RegistryConfigError>),
    /// The registry's name does not give an address.
    #[error("{registry:?} is not a valid host name of a registry")]
    Address { registry: String },
    #[error("cannot set up TLS for {registry}")]
    Tls {
        registry: String,
        #[source]
        source: Cause,
    },
    /// Files or programs with logins.
    #[error("cannot look up the login for {registry}")]
    Credentials {
        registry: String,
        #[source]
        source: Box<CredentialError>,
    },
    #[error("cannot connect to {url}")]
    Connect {
        url: String,
        server: String,
        /// The registry that the connection was for.
        registry: String,
        problem: ConnectProblem,
        #[source]
        source: Cause,
    },
    /// No byte arrived for a while.
    #[error("{url}: received no data for {} s", waited.as_secs_f32())]
    Stalled { url: String, waited: Duration },
    /// The connection ended in the middle.
    #[error("{url}: the connection broke")]
    Broken {
        url: String,
        #[source]
        source: Cause,
    },
    /// There is no such image, blob or repository.
    #[error("{url}: not found{}", says(message))]
    NotFound { url: String, message: String },
    /// Access needs another login.
    #[error("{url}: access denied (HTTP {status}){}", says(message))]
    Denied {
        url: String,
        /// 401 or 403.
        status: u16,
        message: String,
        /// The registry whose login is needed.
        registry: String,
        /// The login that the registry saw.
        login: Presented,
    },
    /// Any other unsuccessful answer.
    #[error("{url}: HTTP {status}{}", says(message))]
    Status { url: String, status: u16, message: String, retry_after: Option<Duration> },
    /// A request over plain HTTP was refused by a server that does not answer like a registry, usually one of HTTPS.
    #[error("{url}: HTTP 400{}", says(message))]
    PlainRefused { url: String, message: String },
    /// The registry requires a login and does not say how it wants it, or in a way that magikvm does not know.
    #[error("{url}: HTTP 401 {}{}", challenge(offered), says(message))]
    Challenge {
        url: String,
        /// The challenges as sent; empty when there are none.
        offered: String,
        message: String,
    },
    /// The login must not be sent to this token server.
    #[error("{registry} names the token server {realm}, {problem}")]
    Realm { registry: String, realm: String, problem: &'static str },
    /// The token server's answer is not a token.
    #[error("{url}: the answer is not a token: {problem}")]
    Token { url: String, problem: &'static str },
    /// A redirect that must not be followed.
    #[error("{url}: redirected to {target:?}: {problem}")]
    Redirect { url: String, target: String, problem: &'static str },
    /// A redirect or a token server at an address that only this host should reach.
    #[error("{registry} leads to {target}, but {address} is an address of {inside}")]
    Inward { registry: String, target: String, address: IpAddr, inside: Inside },
    /// A document over its limit.
    #[error("{url}: larger than {limit} bytes")]
    TooLarge { url: String, limit: u64 },
    /// The length of the answer differs from the blob's.
    #[error("{url}: {promised} bytes where the manifest says {size}")]
    WrongLength { url: String, promised: u64, size: u64 },
    /// The answer has more bytes than the blob.
    #[error("{url}: more bytes than the {size} that the manifest says")]
    TooLong { url: String, size: u64 },
    /// The answer ended early.
    #[error("{url}: ended after {got} of {size} bytes")]
    Short { url: String, got: u64, size: u64 },
    /// The content differs from the requested digest.
    #[error("{url}: the bytes have the digest {found}, not {wanted}")]
    WrongDigest { url: String, wanted: Digest, found: Digest },
    /// The registry states another digest than its bytes have.
    #[error("{url}: Docker-Content-Digest says {header:?}, but the bytes have the digest {found}")]
    DigestHeader { url: String, header: String, found: Digest },
    /// The answer is not a manifest.
    #[error("{url}: neither an image manifest nor an index, but {content_type:?}")]
    NotManifest { url: String, content_type: String },
    /// The answer is compressed without a request, and not what was asked for.
    #[error("{url}: the answer is changed by Content-Encoding {encoding:?}, which was not asked for")]
    Encoded { url: String, encoding: String },
    /// The answer is another part of the blob than requested.
    #[error("{url}: asked for the bytes from {start}, got Content-Range {range:?}")]
    Range { url: String, start: u64, range: String },
    /// The list of referrers cannot be used.
    #[error("{url}: the list of referrers is not usable: {problem}")]
    Referrers { url: String, problem: String },
    /// The receiver of the bytes failed; the registry is not at fault.
    #[error("cannot store the bytes of {digest}")]
    Sink {
        digest: Digest,
        #[source]
        source: io::Error,
    },
    /// The mirrors failed, and the registry as well.
    #[error("all mirrors failed ({})", mirrors.join("; "))]
    Everywhere {
        /// A line for each mirror.
        mirrors: Vec<String>,
        #[source]
        source: Box<RegistryError>,
    },
}

/// The login that a registry saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presented {
    /// None, since none is known.
    Nothing { looked: Vec<PathBuf> },
    /// The login of this file or program.
    From(String),
}

impl RegistryError {
    /// Whether the same request may get another answer soon.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Connect { problem, .. } => !matches!(
                problem,
                ConnectProblem::UnknownAuthority
                    | ConnectProblem::AuthorityAsServer
                    | ConnectProblem::Certificate
                    | ConnectProblem::NotTls
            ),
            Self::Stalled { .. } | Self::Broken { .. } | Self::Short { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }

    /// Whether the host does not exist, or nothing listens there.
    pub(super) fn is_nobody(&self) -> bool {
        matches!(self, Self::Connect { problem: ConnectProblem::Name | ConnectProblem::Refused, .. })
    }

    /// Whether the next pull may succeed, so that the data received so far is worth keeping.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Stopped(_) => true,
            Self::Everywhere { source, .. } => source.may_pass(),
            error => error.is_transient(),
        }
    }

    /// Whether the registry cannot be reached, or cannot answer now.
    pub(crate) fn is_unreachable(&self) -> bool {
        match self {
            Self::Everywhere { source, .. } => source.is_unreachable(),
            error => error.is_transient() || matches!(error, Self::Connect { .. } | Self::Tls { .. }),
        }
    }

    /// Whether this endpoint will fail the next request as well.
    pub(super) fn condemns_endpoint(&self) -> bool {
        use RegistryError as E;
        let login = matches!(self, E::Denied { .. } | E::Credentials { .. } | E::Challenge { .. });
        let token = matches!(self, E::Realm { .. } | E::Token { .. } | E::Inward { .. });
        let wrong = matches!(self, E::WrongDigest { .. } | E::DigestHeader { .. });
        self.is_transient() || login || token || wrong || matches!(self, E::Connect { .. } | E::Tls { .. })
    }

    /// Whether another endpoint could help.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Stopped(_) | Self::Sink { .. } | Self::Thread { .. })
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the registry answered that the requested object does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Everywhere { source, .. } => source.is_not_found(),
            _ => false,
        }
    }

    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Everywhere { source, .. } => source.hint(),
            Self::Config(error) => error.hint(),
            Self::Credentials { source, .. } => source.hint(),
            Self::Denied { registry, login, .. } => Some(denied_hint(registry, login)),
            Self::NotFound { .. } => Some(
                "Check the name and the tag; some registries also answer this when a login is missing."
                    .to_owned(),
            ),
            Self::Status { status: 429, .. } => Some(
                "The registry limits pulls: wait a while, or log in with `podman login`, which often raises the limit."
                    .to_owned(),
            ),
            Self::PlainRefused { .. } => Some(
                "If it speaks https, remove `plain-http = true` from registries.toml, or `--plain-http`."
                    .to_owned(),
            ),
            Self::Connect { problem, server, registry, .. } => connect_hint(*problem, server, registry),
            Self::Tls { .. } => Some(
                "Install the system's certificate authorities, on Debian with `apt install ca-certificates`.".to_owned(),
            ),
            Self::WrongDigest { .. } | Self::DigestHeader { .. } => Some(
                "Do not trust the registry: it, or something on the way to it, changes the data."
                    .to_owned(),
            ),
            Self::Challenge { url, .. } => Some(format!(
                "See the whole answer with `curl -i {url}`; who runs the registry (or the proxy in front of it) can mend it."
            )),
            Self::Inward { registry, .. } => Some(format!(
                "Do not trust {registry}: such addresses give out secrets. Only a registry that is there itself may lead there."
            )),
            Self::NotManifest { .. } => {
                Some("Check that the address is that of a registry, and not of its web pages.".to_owned())
            }
            _ => None,
        }
    }
}

fn denied_hint(registry: &str, login: &Presented) -> String {
    match login {
        Presented::Nothing { looked } if looked.is_empty() => {
            format!(
                "Log in with `podman login {registry}` or `docker login {registry}`, and check the name: the image may not exist."
            )
        }
        Presented::Nothing { looked } => {
            let files: Vec<_> = looked.iter().map(|file| file.display().to_string()).collect();
            format!(
                "Log in with `podman login {registry}` or `docker login {registry}`, since {} has no login for it; the image may also not exist.",
                files.join(", ")
            )
        }
        Presented::From(place) => format!(
            "The login from {place} does not suffice: log in again with `podman login {registry}`, or check the name of the image."
        ),
    }
}

fn connect_hint(problem: ConnectProblem, server: &str, registry: &str) -> Option<String> {
    let plain =
        format!("`plain-http = true` under [registry.\"{registry}\"] in registries.toml, or `--plain-http`");
    // A server that the registry redirects to cannot be configured here.
    let is_own = server == registry;
    Some(match problem {
        ConnectProblem::Name => {
            format!("Check the name {server} and the network with `getent hosts {server}`.")
        }
        ConnectProblem::Refused => {
            format!(
                "Nothing listens there: check the port of {server} (or of the proxy), and whether it runs."
            )
        }
        ConnectProblem::TimedOut => {
            "Check the network, the firewall, and HTTPS_PROXY if there is a proxy.".to_owned()
        }
        ConnectProblem::UnknownAuthority => format!(
            "If it has a private CA, write `ca-file = \"ca.pem\"` under [registry.\"{registry}\"] in registries.toml."
        ),
        ConnectProblem::AuthorityAsServer => format!(
            "{server} presents the certificate of an authority: give it one with basicConstraints=CA:FALSE, and name its authority (or itself) as ca-file under [registry.\"{registry}\"] in registries.toml."
        ),
        ConnectProblem::NotTls if is_own => {
            format!("It does not speak https; if that is intended, write {plain}.")
        }
        ConnectProblem::HungUp if is_own => format!("If it does not speak https, write {plain}."),
        _ => return None,
    })
}

fn challenge(offered: &str) -> String {
    match offered {
        "" => "without WWW-Authenticate, so the registry does not say how to log in, which is a fault of the registry"
            .to_owned(),
        offered => format!("with the challenge {offered:?}, but magikvm knows only Bearer and Basic"),
    }
}

fn says(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_what_to_type() {
        let denied = RegistryError::Denied {
            url: "https://registry.example/v2/a/manifests/1".to_owned(),
            status: 401,
            message: String::new(),
            registry: "registry.example".to_owned(),
            login: Presented::Nothing { looked: vec!["/home/me/auth.json".into()] },
        };
        let everywhere = RegistryError::Everywhere { mirrors: vec![], source: Box::new(denied) };
        let hint = everywhere.hint().unwrap();
        assert!(
            hint.contains("podman login registry.example") && hint.contains("/home/me/auth.json"),
            "{hint}"
        );
        assert!(
            connect_hint(ConnectProblem::NotTls, "r:5000", "r:5000").unwrap().contains("plain-http = true")
        );
        assert_eq!(connect_hint(ConnectProblem::NotTls, "cdn", "r:5000"), None);
        assert!(connect_hint(ConnectProblem::UnknownAuthority, "cdn", "r:5000").unwrap().contains("ca-file"));
    }
}
