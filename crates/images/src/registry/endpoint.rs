//! One endpoint of the repository: the registry itself or a mirror. Sends single requests and checks their answers.

use super::auth::{Authorizer, Refusal};
use super::download::Transfer;
use super::error::RegistryError;
use super::foreign::{neutral, shown};
use super::retry::{self, Timing};
use super::transport::{Answer, Origin, Said, Transport};
use super::{DownloadEvent, FetchedManifest, Which};
use crate::blob::sniff;
use crate::digest::Digest;
use crate::document::{Compression, MAX_MANIFEST, Role, is_schema_1, role};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{Response, Url};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock, PoisonError};

const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One endpoint of the repository.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Scheme, host and port, `/v2/`, and the repository.
    base: Url,
    pub(super) transport: Transport,
    authorizer: Authorizer,
    pub(super) timing: Timing,
    /// Why it is asked no more: it failed in a way that the next request would repeat.
    condemned: OnceLock<String>,
    /// Blobs of which it sent bytes.
    delivered: Mutex<BTreeSet<Digest>>,
}

impl Endpoint {
    pub(super) fn new(base: Url, transport: Transport, authorizer: Authorizer, timing: Timing) -> Self {
        let (condemned, delivered) = (OnceLock::new(), Mutex::default());
        Self { base, transport, authorizer, timing, condemned, delivered }
    }

    pub(super) fn name(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    pub(super) fn condemn(&self, problem: &RegistryError) {
        // The first reason stays.
        self.condemned.get_or_init(|| problem.to_string());
    }

    pub(super) fn condemned(&self) -> Option<&str> {
        self.condemned.get().map(String::as_str)
    }

    /// Remembers that it sent bytes of a blob.
    pub(super) fn delivered(&self, digest: &Digest) {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest);
    }

    /// Whether it sent bytes of a blob since the last call.
    pub(super) fn take_delivered(&self, digest: &Digest) -> bool {
        self.delivered.lock().unwrap_or_else(PoisonError::into_inner).remove(digest)
    }

    /// The address of `kind/name` in the repository.
    pub(super) fn url(&self, kind: &str, name: &str) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push(kind).push(name);
        }
        url
    }

    /// One attempt that requires a successful answer.
    pub(super) async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Response, RegistryError> {
        let mut grant = self.authorizer.current(&self.transport).await?;
        let mut answer = self.transport.get(url, headers, grant.as_ref().map(|grant| &grant.header)).await?;
        // Only the registry may ask for a login; a challenge after a redirect is a refusal.
        if answer.response.status().as_u16() == 401 && answer.from == Origin::Asked {
            let challenge = answer.response.headers().clone();
            let message = self.transport.message(answer.response).await.into();
            let refusal = Refusal { url, headers: &challenge, message };
            let renewed = self.authorizer.renew(grant.as_ref(), &refusal, &self.transport).await?;
            answer = self.transport.get(url, headers, Some(&renewed.header)).await?;
            grant = Some(renewed);
        }
        drop(grant);
        if answer.response.status().is_success() {
            return Ok(answer.response);
        }
        Err(self.refused(answer).await)
    }

    async fn refused(&self, answer: Answer) -> RegistryError {
        let Answer { response, from } = answer;
        let status = response.status().as_u16();
        let url = shown(response.url());
        let retry_after = retry::retry_after(response.headers());
        let is_plain = response.url().scheme() == "http";
        let message = match (status, self.transport.message(response).await) {
            (400, Said::Text(message)) if is_plain && from == Origin::Asked => {
                return RegistryError::PlainRefused { url, message };
            }
            (_, said) => said.into(),
        };
        match status {
            404 => RegistryError::NotFound { url, message },
            // Another login for the registry would not satisfy a server that it redirects to.
            401 | 403 if from == Origin::Asked => RegistryError::Denied {
                url,
                status,
                message,
                registry: self.transport.registry().to_owned(),
                login: self.authorizer.presented().await,
            },
            _ => RegistryError::Status { url, status, message, retry_after },
        }
    }

    /// A manifest or an index, in several attempts.
    pub(super) async fn manifest(
        &self,
        which: Which<'_>,
        attempts: u32,
    ) -> Result<FetchedManifest, RegistryError> {
        let name = match which {
            Which::Tag(tag) => tag.to_owned(),
            Which::Digest(digest) => digest.to_string(),
        };
        let url = self.url("manifests", &name);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
        let ask = async || {
            let response = self.get(&url, &headers).await?;
            self.read_manifest(response, which).await
        };
        Transfer::nothing_yet().retrying(&self.timing, attempts, &silent, ask).await
    }

    async fn read_manifest(
        &self,
        response: Response,
        which: Which<'_>,
    ) -> Result<FetchedManifest, RegistryError> {
        let encoded = encoding(&response);
        let url = shown(response.url());
        let content_type = content_type(&response);
        let header = response.headers().get(DOCKER_CONTENT_DIGEST).cloned();
        if content_type == "text/html" {
            return Err(RegistryError::NotManifest { url, content_type });
        }
        let bytes = self.transport.document(response, MAX_MANIFEST).await?;
        let digest = Digest::of(&bytes);
        let is_it = match which {
            Which::Digest(wanted) => wanted == digest,
            Which::Tag(_) => sniff(&bytes) == Compression::None,
        };
        if let Some(encoding) = encoded.filter(|_| !is_it) {
            return Err(RegistryError::Encoded { url, encoding });
        }
        if let Which::Digest(wanted) = which
            && wanted != digest
        {
            return Err(RegistryError::WrongDigest { url, wanted, found: digest });
        }
        let header = header.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        if let Some(header) = header.filter(|header| header.starts_with("sha256:"))
            && header != digest.to_string()
        {
            return Err(RegistryError::DigestHeader { url, header: neutral(&header), found: digest });
        }
        let media_type =
            manifest_type(&content_type, &bytes).ok_or(RegistryError::NotManifest { url, content_type })?;
        Ok(FetchedManifest { bytes, media_type, digest, endpoint: self.name() })
    }

    /// A blob from the byte `start` on: the answer, and the range of the blob that it contains.
    pub(super) async fn blob(
        &self,
        digest: &Digest,
        start: u64,
        size: u64,
    ) -> Result<(Response, Span), RegistryError> {
        let url = self.url("blobs", &digest.to_string());
        let mut headers = HeaderMap::new();
        if start > 0 {
            let range = HeaderValue::try_from(format!("bytes={start}-"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let response = match self.get(&url, &headers).await {
            // There is nothing behind the received bytes.
            Err(RegistryError::Status { url, status: 416, .. }) => {
                return Err(RegistryError::WrongLength { url, promised: start, size });
            }
            answer => answer?,
        };
        let span = span(&response, start, size)?;
        let length = span.end - span.start;
        let url = || shown(response.url());
        match (response.content_length(), encoding(&response)) {
            (Some(promised), Some(encoding)) if promised != length => {
                Err(RegistryError::Encoded { url: url(), encoding })
            }
            (Some(promised), None) if promised != length => {
                let whole = promised.saturating_add(span.start);
                Err(RegistryError::WrongLength { url: url(), promised: whole, size })
            }
            _ => Ok((response, span)),
        }
    }
}

pub(super) fn silent(_: DownloadEvent<'_>) {}

/// The part of a blob in an answer: `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// The whole blob from a server without ranges, or the requested part, which may be shorter than the rest.
fn span(response: &Response, start: u64, size: u64) -> Result<Span, RegistryError> {
    let url = || shown(response.url());
    match response.status().as_u16() {
        200 => Ok(Span { start: 0, end: size }),
        206 => {
            let header = response.headers().get(reqwest::header::CONTENT_RANGE);
            let text = header.map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
            match content_range(&text) {
                Some(part) if part.start == start && part.end <= size => Ok(part),
                _ => Err(RegistryError::Range { url: url(), start, range: neutral(&text) }),
            }
        }
        status => {
            let message = "no answer for a blob".to_owned();
            Err(RegistryError::Status { url: url(), status, message, retry_after: None })
        }
    }
}

/// `bytes FIRST-LAST/TOTAL`; the total is not used.
fn content_range(text: &str) -> Option<Span> {
    let (part, _) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let (start, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let end = last.checked_add(1)?;
    (start < end).then_some(Span { start, end })
}

/// The encoding that an answer claims. Servers of files also put it to blobs that are compressed themselves. The bytes are never decoded:
/// they are the object if they have its digest.
fn encoding(response: &Response) -> Option<String> {
    let header = response.headers().get(reqwest::header::CONTENT_ENCODING)?;
    let encoding = String::from_utf8_lossy(header.as_bytes());
    let is_one = !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity");
    is_one.then(|| neutral(&encoding))
}

/// The media type without its parameters.
pub(super) fn content_type(response: &Response) -> String {
    let header = response.headers().get(CONTENT_TYPE);
    let text = header.map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default();
    neutral(text.split(';').next().unwrap_or_default()).to_ascii_lowercase()
}

/// The media type of a manifest or an index: the header's, or the document's where the header does not tell.
fn manifest_type(header: &str, bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Peek {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
    }
    // Schema 1 is refused by its name later.
    let is_one = |text: &str| matches!(role(text), Some(Role::Index | Role::Manifest)) || is_schema_1(text);
    let fits = |text: &str| is_one(text).then(|| text.to_owned());
    if let Some(media_type) = fits(header) {
        return Some(media_type);
    }
    if !matches!(header, "" | "application/json" | "text/plain" | "application/octet-stream") {
        return None;
    }
    let peek: Peek = serde_json::from_slice(bytes).ok()?;
    match (peek.media_type, peek.manifests, peek.layers) {
        (Some(media_type), _, _) => fits(&media_type),
        (None, Some(_), None) => fits("application/vnd.oci.image.index.v1+json"),
        (None, None, Some(_)) => fits("application/vnd.oci.image.manifest.v1+json"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 5-9/10"), Some(Span { start: 5, end: 10 }));
        assert_eq!(content_range("bytes 0-0/*"), Some(Span { start: 0, end: 1 }));
        for odd in
            ["", "bytes */10", "bytes 9-5/10", "bytes 5-18446744073709551615/*", "items 5-9/10", "bytes 5-9"]
        {
            assert_eq!(content_range(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_manifest_without_a_type_is_known_by_what_it_has() {
        let of = |header: &str, json: &str| manifest_type(header, json.as_bytes());
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        assert_eq!(of(manifest, "").as_deref(), Some(manifest));
        assert_eq!(of("application/json", r#"{"layers":[]}"#).as_deref(), Some(manifest));
        assert_eq!(of("", r#"{"manifests":[]}"#).as_deref(), Some("application/vnd.oci.image.index.v1+json"));
        assert_eq!(of("", r#"{"manifests":[],"layers":[]}"#), None);
        assert_eq!(of("text/plain", r#"{"mediaType":"text/html","layers":[]}"#), None);
        let schema_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert_eq!(of(schema_1, r#"{"layers":[]}"#).as_deref(), Some(schema_1));
        assert_eq!(of("application/vnd.oci.image.layer.v1.tar", r#"{"layers":[]}"#), None);
    }

    proptest! {
        #[test]
        fn no_range_makes_it_panic(text in "(bytes )?[0-9*-]{0,24}/?.{0,5}") {
            std::hint::black_box(content_range(&text));
        }
    }
}
