//! HTTP: the thread of the connections, the clients with their certificates, and redirects.
//!
//! Redirects are followed explicitly, because three rules must hold whatever the other side answers: `Authorization` is sent only to the
//! scheme, host and port it was made for, nothing that began as https continues as http, and nothing leads to addresses inside (`inward`).

use super::connect::{Cause, connect_problem, inward_address};
use super::error::RegistryError;
use super::foreign::{neutral, shown};
use super::inward::{Guard, Inward};
use super::retry::Timing;
use crate::cancel::Cancel;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

const USER_AGENT: &str = concat!("magikvm/", env!("CARGO_PKG_VERSION"));
const MAX_REDIRECTS: usize = 10;
/// Most bytes of an answer that only explains a failure.
const MAX_MESSAGE: usize = 8 << 10;

/// The thread of all connections. Callers wait on their own threads, so a caller that consumes its bytes slowly blocks nobody else.
#[derive(Debug)]
pub(super) struct Driver {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    pub(super) fn start() -> io::Result<Self> {
        // The other threads resolve names, which has no asynchronous form.
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("registry".to_owned()).spawn(move || {
            // Ends when the sender is dropped.
            drop(runtime.block_on(stopped));
            // Does not wait for a pending name lookup.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Does the work on this thread until it is done or cancelled. Not for threads that run a runtime themselves.
    pub(super) fn run<T>(
        &self,
        cancel: &Cancel,
        work: impl Future<Output = Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        self.handle.block_on(async {
            tokio::select! {
                biased;
                stopped = cancel.stopped() => Err(stopped.into()),
                done = work => done,
            }
        })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported.
            drop(thread.join());
        }
    }
}

/// How one registry or mirror, and the targets of its redirects, are reached.
#[derive(Debug)]
pub(super) struct Transport {
    registry: String,
    certificates: Vec<Certificate>,
    timing: Timing,
    guard: Guard,
    clients: Mutex<HashMap<ClientKind, Client>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ClientKind {
    /// Through a proxy if the environment says so.
    Environment,
    /// Never through a proxy: the host itself.
    Loopback,
    /// Never through a proxy, and without certificates.
    PlainLoopback,
}

/// An answer, whatever its status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) from: Origin,
}

/// The sender of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The server that was asked.
    Asked,
    /// A server that it redirected to, which must not learn the login.
    Elsewhere,
}

impl Transport {
    /// For the registry or mirror at `home`.
    pub(super) fn new(registry: &str, home: &Url, certificates: Vec<Certificate>, timing: Timing) -> Self {
        let (registry, guard) = (registry.to_owned(), Guard::new(home));
        Self { registry, certificates, timing, guard, clients: Mutex::default() }
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    fn client(&self, url: &Url) -> Result<Client, RegistryError> {
        let kind = match (is_loopback(url), url.scheme()) {
            (true, "http") => ClientKind::PlainLoopback,
            (true, _) => ClientKind::Loopback,
            (false, _) => ClientKind::Environment,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.build(kind).map_err(|error| RegistryError::Tls {
            registry: self.registry.clone(),
            source: Cause::of(&error),
        })?;
        clients.insert(kind, client.clone());
        Ok(client)
    }

    fn build(&self, kind: ClientKind) -> reqwest::Result<Client> {
        // reqwest uses the provider of the process. An existing one is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .dns_resolver(Arc::new(self.guard.clone()))
            .connect_timeout(self.timing.connect);
        if kind != ClientKind::Environment {
            builder = builder.no_proxy();
        }
        builder = match kind {
            ClientKind::PlainLoopback => builder.tls_certs_only([]),
            _ => builder.tls_certs_merge(self.certificates.iter().cloned()),
        };
        builder.build()
    }

    /// Sends a request and follows redirects.
    pub(super) async fn get(
        &self,
        start: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut url = start.clone();
        let mut from = Origin::Asked;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.client(&url)?.get(url.clone()).headers(headers.clone());
            // Only the bytes themselves can be checked.
            request = request.header(ACCEPT_ENCODING, "identity");
            if let (Some(authorization), Origin::Asked) = (authorization, from) {
                request = request.header(AUTHORIZATION, authorization);
            }
            let response = self.send(request, &url).await?;
            if !leads_elsewhere(response.status()) {
                return Ok(Answer { response, from });
            }
            let next = target(&url, response.headers())?;
            let keeps_login = next.origin() == start.origin() && (is_api(&next) || !is_api(start));
            // A short answer is read to its end, which keeps the connection usable.
            drop(self.message(response).await);
            if !keeps_login {
                from = Origin::Elsewhere;
            }
            url = next;
        }
        let target = shown(&url);
        Err(RegistryError::Redirect { url: shown(start), target, problem: "more than 10 redirects" })
    }

    /// Sends a form without following redirects.
    pub(super) async fn post(&self, url: &Url, form: String) -> Result<Response, RegistryError> {
        let request = self.client(url)?.post(url.clone()).body(form);
        let request = request.header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.send(request, url).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &Url) -> Result<Response, RegistryError> {
        let inward = |inward: Inward| RegistryError::Inward {
            registry: self.registry.clone(),
            target: shown(url),
            address: inward.address,
            inside: inward.inside,
        };
        self.guard.admit(url).map_err(inward)?;
        match self.timed(url, request.send()).await? {
            Ok(response) => Ok(response),
            Err(error) if let Some(refused) = inward_address(&error) => Err(inward(refused)),
            Err(error) if error.is_connect() => Err(RegistryError::Connect {
                url: shown(url),
                server: super::config::host_and_port(url).unwrap_or_default(),
                registry: self.registry.clone(),
                problem: connect_problem(&error),
                source: Cause::of(&error),
            }),
            Err(error) => Err(RegistryError::Broken { url: shown(url), source: Cause::of(&error) }),
        }
    }

    async fn timed<T>(&self, url: &Url, work: impl Future<Output = T>) -> Result<T, RegistryError> {
        let stalled = |_| RegistryError::Stalled { url: shown(url), waited: self.timing.stall };
        tokio::time::timeout(self.timing.stall, work).await.map_err(stalled)
    }

    /// The next bytes of an answer; None at its end.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
    ) -> Result<Option<impl AsRef<[u8]>>, RegistryError> {
        let url = response.url().clone();
        let broken = |error| RegistryError::Broken { url: shown(&url), source: Cause::of(&error) };
        self.timed(&url, response.chunk()).await?.map_err(broken)
    }

    /// A whole answer of at most `limit` bytes.
    pub(super) async fn document(
        &self,
        mut response: Response,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let url = shown(response.url());
        let too_large = || RegistryError::TooLarge { url: url.clone(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            let chunk = chunk.as_ref();
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(chunk);
        }
        Ok(bytes)
    }

    /// The explanation in an unsuccessful answer, made harmless. Empty if none arrives in time.
    pub(super) async fn message(&self, mut response: Response) -> Said {
        let mut bytes = Vec::new();
        let limit = self.timing.stall.min(Duration::from_secs(5));
        let read = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                let room = MAX_MESSAGE - bytes.len();
                let part = chunk.get(..room).unwrap_or(&chunk);
                bytes.extend_from_slice(part);
                if part.len() == room {
                    break;
                }
            }
        };
        // The bytes received until then suffice.
        drop(tokio::time::timeout(limit, read).await);
        message_of(&bytes)
    }
}

/// Whether an address is one of the registry's interface, which wants its login. A file server behind the same name, which is given
/// another proof in the address, refuses requests with both.
fn is_api(url: &Url) -> bool {
    url.path().starts_with("/v2/")
}

fn leads_elsewhere(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The target of a redirect.
fn target(url: &Url, headers: &HeaderMap) -> Result<Url, RegistryError> {
    let location = headers.get(LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let refused = |target: &str, problem| RegistryError::Redirect {
        url: shown(url),
        target: neutral(target.split(['?', '#']).next().unwrap_or_default()),
        problem,
    };
    let Some(location) = location else { return Err(refused("", "there is no Location")) };
    let mut next = url.join(&location).map_err(|_| refused(&location, "that is not an address"))?;
    // Logins in an address belong to the sender.
    if next.set_username("").is_err() || next.set_password(None).is_err() {
        return Err(refused(&location, "that is not an address of a host"));
    }
    next.set_fragment(None);
    match (url.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(next),
        (_, "http") => Err(refused(next.as_str(), "from https to http is not followed")),
        _ => Err(refused(next.as_str(), "neither https nor http")),
    }
}

/// What an answer that is no success says, made harmless.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// The errors of a registry: `{"errors":[{"code":…,"message":…}]}`.
    Errors(String),
    /// The text of something that does not answer as a registry does.
    Text(String),
}

impl From<Said> for String {
    fn from(said: Said) -> Self {
        match said {
            Said::Errors(text) | Said::Text(text) => text,
        }
    }
}

fn message_of(bytes: &[u8]) -> Said {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct One {
        code: String,
        message: String,
    }
    if let Ok(Errors { errors }) = serde_json::from_slice(bytes) {
        let lines = errors.iter().map(|error| match error.message.as_str() {
            "" => error.code.clone(),
            message => format!("{}: {message}", error.code),
        });
        return Said::Errors(neutral(&lines.collect::<Vec<_>>().join("; ")));
    }
    let text = String::from_utf8_lossy(bytes);
    let is_page = text.trim_start().starts_with('<');
    Said::Text(if is_page { "(a web page)".to_owned() } else { neutral(&text) })
}

/// Whether an address or name certainly means this host.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(from: &str, location: &str) -> Result<String, RegistryError> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, location.parse().unwrap());
        target(&Url::parse(from).unwrap(), &headers).map(String::from)
    }

    #[test]
    fn targets_are_resolved_and_never_go_down_to_http() {
        let from = "https://r.example/v2/a/blobs/x";
        assert_eq!(leads(from, "/b").unwrap(), "https://r.example/b");
        assert_eq!(leads(from, "https://u:p@cdn.example/b#x").unwrap(), "https://cdn.example/b");
        assert_eq!(leads("http://r.example/", "https://cdn.example/b").unwrap(), "https://cdn.example/b");
        for (location, problem) in [
            ("http://r.example/b", "to http"),
            ("file:///etc/passwd", "not an address"),
            ("https://", "not an address"),
        ] {
            let error = leads(from, location).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
        let error = leads(from, "http://r.example/b?signature=secret").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn messages_of_registries_are_shown_short_and_harmless() {
        let json =
            br#"{"errors":[{"code":"DENIED","message":"no \u001b[2J access","detail":{}},{"code":"X"}]}"#;
        assert_eq!(message_of(json), Said::Errors("DENIED: no  [2J access; X".to_owned()));
        let text = |bytes: &[u8], text: &str| assert_eq!(message_of(bytes), Said::Text(text.to_owned()));
        text(b"<html><body>404</body></html>", "(a web page)");
        text(b"gone\r\nfor good\xff", "gone  for good\u{fffd}");
        text(b"", "");
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        let is = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(is("http://127.0.0.1:5000/") && is("http://[::1]/") && is("https://localhost/"));
        assert!(!is("https://r.example/") && !is("http://localhost.r.example/") && !is("http://10.0.0.1/"));
    }
}
