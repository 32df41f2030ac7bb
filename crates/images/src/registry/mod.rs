//! A registry: the pull side of OCI's distribution-spec 1.1, bounded in everything it reads and in how long it waits.
//!
//! [`Repository`] is one repository at its mirrors and its registry; its calls block. Beneath it, `endpoint` is one of these places and
//! checks answers, `download` carries a blob over broken connections, `auth`, `challenge` and `credentials` provide the login, `transport`
//! speaks HTTP, `inward` keeps it away from addresses inside, and `referrers` lists what refers to a manifest. Must not know what manifests
//! mean and where bytes are kept; the receiver checks the digest of a downloaded blob, and disowns wrong bytes.

mod auth;
mod challenge;
mod config;
mod connect;
mod credentials;
mod download;
mod endpoint;
mod error;
mod foreign;
mod helper;
mod inward;
mod login;
mod referrers;
mod retry;
mod transport;

#[cfg(test)]
mod tests;

pub use config::{RegistryConfig, RegistryConfigError};
pub use connect::{Cause, ConnectProblem};
pub use credentials::{CredentialError, Credentials, LoginFile, LoginFormat};
pub use error::{Presented, RegistryError};
pub use helper::HelperError;
pub use inward::Inside;

use super::cancel::Cancel;
use super::digest::Digest;
use super::document::Descriptor;
use super::reference::Reference;
use auth::Authorizer;
use config::Scheme;
use download::Transfer;
use endpoint::Endpoint;
use reqwest::Url;
use retry::Timing;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use transport::{Driver, Transport};

/// The registry behind the default name.
const DOCKER: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// One repository of images with all its endpoints: the mirrors in their order, then the registry itself. Calls block, may be made from
/// several threads at once, and end with [`RegistryError::Stopped`] as soon as the pull is cancelled. They must not be made from
/// asynchronous code.
#[derive(Debug)]
pub(super) struct Repository {
    endpoints: Vec<Endpoint>,
    timing: Timing,
    cancel: Cancel,
    driver: Driver,
    /// A mirror was passed over for wrong bytes of a blob, which another endpoint may have.
    passed_over: AtomicBool,
}

/// Names a manifest in its repository.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which<'a> {
    /// The current manifest of the tag.
    Tag(&'a str),
    Digest(Digest),
}

/// A manifest or an index as sent. Only its type was checked.
#[derive(Debug)]
pub(super) struct FetchedManifest {
    pub(super) bytes: Vec<u8>,
    /// One of the four types of manifests and indexes.
    pub(super) media_type: String,
    pub(super) digest: Digest,
    /// The endpoint that sent it, for messages.
    pub(super) endpoint: String,
}

/// Events of a blob's download, for progress displays.
#[derive(Debug)]
pub(super) enum DownloadEvent<'a> {
    /// Another attempt at the same endpoint follows.
    Retrying {
        problem: &'a RegistryError,
        /// Bytes received so far.
        have: u64,
        wait: Duration,
    },
    /// A mirror is abandoned, and the next endpoint is asked.
    NextEndpoint { problem: &'a RegistryError, endpoint: &'a str },
}

impl Repository {
    /// The repository of a reference. Sends nothing yet.
    pub(super) fn open(
        config: &RegistryConfig,
        credentials: &Credentials,
        reference: &Reference,
        cancel: &Cancel,
    ) -> Result<Self, RegistryError> {
        Self::open_with(config, credentials, reference, cancel, Timing::default())
    }

    fn open_with(
        config: &RegistryConfig,
        credentials: &Credentials,
        reference: &Reference,
        cancel: &Cancel,
        timing: Timing,
    ) -> Result<Self, RegistryError> {
        let registry = reference.domain();
        let mut endpoints = Vec::new();
        let mut add = |root: &Url, name: &str, path: &str| {
            let certificates = config.certificates(name).map_err(Box::new)?;
            let mut base = root.clone();
            base.set_path(&format!("/v2/{path}"));
            let transport = Transport::new(name, root, certificates, timing);
            let authorizer = Authorizer::new(credentials.clone(), root.clone(), name, path);
            endpoints.push(Endpoint::new(base, transport, authorizer, timing));
            Ok::<(), RegistryError>(())
        };
        for mirror in config.mirrors(registry) {
            let path = match mirror.prefix.as_str() {
                "" => reference.path().to_owned(),
                prefix => format!("{prefix}/{}", reference.path()),
            };
            add(&mirror.root, &mirror.host, &path)?;
        }
        add(&home(registry, config.scheme(registry))?, registry, reference.path())?;
        let driver = Driver::start().map_err(|source| RegistryError::Thread { source })?;
        Ok(Self { endpoints, timing, cancel: cancel.clone(), driver, passed_over: AtomicBool::new(false) })
    }

    /// A manifest or an index. The answer to a request by digest has that digest.
    pub(super) fn manifest(&self, which: Which<'_>) -> Result<FetchedManifest, RegistryError> {
        self.everywhere(&endpoint::silent, async |endpoint, attempts| {
            endpoint.manifest(which, attempts).await
        })
    }

    /// A small blob of at most `limit` bytes with the expected digest.
    pub(super) fn blob(&self, digest: &Digest, size: u64, limit: u64) -> Result<Vec<u8>, RegistryError> {
        self.everywhere(&endpoint::silent, async |endpoint, attempts| {
            let url = || foreign::shown(&endpoint.url("blobs", &digest.to_string()));
            if size > limit {
                return Err(RegistryError::TooLarge { url: url(), limit });
            }
            let mut bytes = Vec::new();
            let mut sink = |chunk: &[u8]| {
                bytes.extend_from_slice(chunk);
                Ok(())
            };
            let transfer = Transfer::nothing_yet();
            transfer.from(endpoint, attempts, digest, size, &mut sink, &endpoint::silent).await?;
            match Digest::of(&bytes) {
                found if found == *digest => Ok(bytes),
                found => Err(RegistryError::WrongDigest { url: url(), wanted: *digest, found }),
            }
        })
    }

    /// Passes the bytes of a blob to `sink`, in order and each once: exactly `size` bytes or an error. The caller checks the digest.
    /// `sink` and `event` are called on this thread.
    pub(super) fn download(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
        event: &(dyn Fn(DownloadEvent<'_>) + Sync),
    ) -> Result<(), RegistryError> {
        let transfer = Transfer::nothing_yet();
        self.everywhere(event, async |endpoint, attempts| {
            let before = transfer.have();
            let done = transfer.from(endpoint, attempts, digest, size, sink, event).await;
            if transfer.have() > before {
                endpoint.delivered(digest);
            }
            done
        })
    }

    /// Tells that the downloaded bytes of a blob have another digest. The mirrors that sent them are asked no more, and the error names
    /// them.
    pub(super) fn disown(&self, wanted: &Digest, found: &Digest) -> Option<RegistryError> {
        let (registry, mirrors) = self.endpoints.split_last()?;
        let wrong = |endpoint: &Endpoint| RegistryError::WrongDigest {
            url: foreign::shown(&endpoint.url("blobs", &wanted.to_string())),
            wanted: *wanted,
            found: *found,
        };
        let senders: Vec<&Endpoint> = mirrors.iter().filter(|mirror| mirror.take_delivered(wanted)).collect();
        for sender in &senders {
            sender.condemn(&wrong(sender));
            self.passed_over.store(true, Ordering::SeqCst);
        }
        let failed = failures(mirrors);
        Some(match (senders.last(), registry.take_delivered(wanted)) {
            (Some(sender), false) => wrong(sender),
            _ if failed.is_empty() => wrong(registry),
            _ => RegistryError::Everywhere { mirrors: failed, source: Box::new(wrong(registry)) },
        })
    }

    /// Whether a mirror was passed over for wrong bytes since the last call, so that the blob may be right elsewhere.
    pub(super) fn take_passed_over(&self) -> bool {
        self.passed_over.swap(false, Ordering::SeqCst)
    }

    /// Whether there are mirrors, which may send other bytes than the registry.
    pub(super) fn has_mirrors(&self) -> bool {
        self.endpoints.len() > 1
    }

    /// Everything that refers to a manifest; empty if nothing does.
    pub(super) fn referrers(
        &self,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let listed = self.everywhere(&endpoint::silent, async |endpoint, attempts| {
            let found = referrers::list(endpoint, digest, artifact_type, attempts).await?;
            // A mirror may have only the images.
            match found.is_empty() {
                true => {
                    let url = foreign::shown(&endpoint.url("referrers", &digest.to_string()));
                    Err(RegistryError::NotFound { url, message: "no referrers".to_owned() })
                }
                false => Ok(found),
            }
        });
        match listed {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// Asks one endpoint after the other. When all fail, the registry's answer counts.
    fn everywhere<T>(
        &self,
        event: &(dyn Fn(DownloadEvent<'_>) + Sync),
        mut ask: impl AsyncFnMut(&Endpoint, u32) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let Some((registry, mirrors)) = self.endpoints.split_last() else {
            return Err(RegistryError::Address { registry: String::new() });
        };
        self.driver.run(&self.cancel, async {
            let mut failed = Vec::new();
            for (at, mirror) in mirrors.iter().enumerate() {
                if let Some(reason) = mirror.condemned() {
                    failed.push(format!("{}: {reason}", mirror.name()));
                    continue;
                }
                let problem = match ask(mirror, self.timing.mirror_attempts).await {
                    Err(problem) if !problem.is_final() => problem,
                    done => return done,
                };
                if problem.condemns_endpoint() {
                    mirror.condemn(&problem);
                }
                let next = self.endpoints.get(at + 1).unwrap_or(registry).name();
                event(DownloadEvent::NextEndpoint { problem: &problem, endpoint: &next });
                failed.push(format!("{}: {problem}", mirror.name()));
            }
            match ask(registry, self.timing.attempts).await {
                Err(source) if !failed.is_empty() && !source.is_final() => {
                    Err(RegistryError::Everywhere { mirrors: failed, source: Box::new(source) })
                }
                done => done,
            }
        })
    }
}

/// Why mirrors are asked no more, a line for each.
fn failures(mirrors: &[Endpoint]) -> Vec<String> {
    let reason = |mirror: &Endpoint| Some(format!("{}: {}", mirror.name(), mirror.condemned()?));
    mirrors.iter().filter_map(reason).collect()
}

/// The address of the registry that a reference names.
fn home(registry: &str, scheme: Scheme) -> Result<Url, RegistryError> {
    let host = if registry == DOCKER.0 { DOCKER.1 } else { registry };
    let scheme = match scheme {
        Scheme::Https => "https",
        Scheme::PlainHttp => "http",
    };
    let wrong = |_| RegistryError::Address { registry: registry.to_owned() };
    Url::parse(&format!("{scheme}://{host}/")).map_err(wrong)
}
