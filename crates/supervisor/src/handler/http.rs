//! `httpGet`: a GET over HTTP/1.1 and its judgement, as by the kubelet.

use super::answer::{Answer, Reader};
use super::tls::{self, Secured};
use super::url::{Redirect, Url, target};
use super::wire::{Broken, Limit, Where, Wire, broken};
use super::{Outcome, Purpose};
use magikvm_proto::lifecycle::Scheme;
use std::io::{self, Read, Write};

/// Most requests of one attempt, as in Go.
const MAX_REQUESTS: usize = 10;
/// Bytes that are read at once.
const PIECE: usize = 4096;

/// What to get.
#[derive(Debug)]
pub(super) struct Get<'a> {
    pub(super) scheme: Scheme,
    pub(super) place: Where,
    pub(super) port: u16,
    pub(super) path: &'a str,
    pub(super) headers: &'a [(String, String)],
    pub(super) purpose: Purpose,
}

enum Connection {
    Plain(Wire),
    Secured(Box<Secured>),
}

impl Connection {
    fn open(get: &Get<'_>, url: &Url, limit: &Limit) -> Result<Self, Broken> {
        let wire = Wire::connect(&get.place, url.port, limit)?;
        match url.scheme {
            Scheme::Http => Ok(Self::Plain(wire)),
            Scheme::Https => tls::secure(wire, &url.host).map(|secured| Self::Secured(Box::new(secured))),
        }
    }

    fn both(&mut self) -> &mut dyn Both {
        match self {
            Self::Plain(wire) => wire,
            Self::Secured(secured) => secured.as_mut(),
        }
    }
}

trait Both: Read + Write {}

impl<T: Read + Write> Both for T {}

/// Asks, follows redirects on the same host, and judges. `None` if it was cancelled.
pub(super) fn get(get: &Get<'_>, limit: &Limit) -> Option<Outcome> {
    let mut url = Url {
        scheme: get.scheme,
        host: get.place.name.clone(),
        port: get.port,
        default_port: false,
        target: target(get.path),
    };
    let mut custom_host = host_header(get.headers);
    for _ in 0..MAX_REQUESTS {
        let failed = |why: &str| Some(Outcome::Failure(format!("Get {:?}: {why}", url.text())));
        let answer = match ask(get, &url, custom_host, limit) {
            Ok(answer) => answer,
            // So does the kubelet.
            Err(Broken::NotTls) if get.purpose == Purpose::Hook => {
                url.scheme = Scheme::Http;
                continue;
            }
            Err(Broken::Cancelled) => return None,
            Err(Broken::TimedOut { during }) => {
                let what = if during.is_empty() { "context deadline exceeded" } else { "i/o timeout" };
                return failed(&format!("{during}{what} (Client.Timeout exceeded while awaiting headers)"));
            }
            Err(broken) => return failed(&broken.to_string()),
        };
        let location = match answer.status {
            301 | 302 | 303 | 307 | 308 => answer.location.as_deref(),
            _ => None,
        };
        url = match location.map(|location| url.redirect(location)) {
            None | Some(Redirect::Elsewhere) => return Some(judge(&answer, get.purpose)),
            Some(Redirect::Invalid(why)) => return failed(&why),
            Some(Redirect::To { url, relative }) => {
                // As in Go, a name of the host that was asked for lasts as long as nothing else is named.
                custom_host = custom_host.filter(|_| relative);
                url
            }
        };
    }
    Some(Outcome::Failure(format!("Get {:?}: stopped after {MAX_REQUESTS} redirects", url.text())))
}

fn judge(answer: &Answer, purpose: Purpose) -> Outcome {
    match answer.status {
        200..400 => Outcome::Success,
        _ if purpose == Purpose::Hook => Outcome::Success,
        status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
    }
}

/// The `Host` that the handler names.
fn host_header(headers: &[(String, String)]) -> Option<&str> {
    let named = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    named.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

fn ask(get: &Get<'_>, url: &Url, host: Option<&str>, limit: &Limit) -> Result<Answer, Broken> {
    let mut connection = Connection::open(get, url, limit)?;
    let stream = connection.both();
    let request = request(get, url, host);
    // A server that answers before it has read everything is heard too.
    let sent = stream.write_all(request.as_bytes()).and_then(|()| stream.flush());
    let mut reader = Reader::default();
    let mut piece = [0; PIECE];
    loop {
        let failed = |error: &dyn std::error::Error| Broken::Failed(error.to_string());
        match stream.read(&mut piece) {
            Ok(0) => return reader.end().map_err(|error| sent.as_ref().err().map_or(failed(&error), broken)),
            // Servers that end a TLS connection without saying so are common.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return reader.end().map_err(|error| failed(&error));
            }
            Err(error) => return Err(sent.as_ref().err().map_or_else(|| broken(&error), broken)),
            Ok(count) => {
                if let Some(answer) = reader.feed(&piece[..count]).map_err(|error| failed(&error))? {
                    return Ok(answer);
                }
            }
        }
    }
}

/// Headers that are not those of the handler: they belong to the connection.
const OURS: [&str; 5] = ["host", "content-length", "transfer-encoding", "trailer", "connection"];

fn request(get: &Get<'_>, url: &Url, host: Option<&str>) -> String {
    let named = |wanted: &str| get.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let mut text =
        format!("GET {} HTTP/1.1\r\nHost: {}\r\n", url.target, one_line(host.unwrap_or(&url.authority())));
    if !named("user-agent") {
        let agent = match get.purpose {
            Purpose::Probe => "kube-probe/magikvm",
            Purpose::Hook => "kube-lifecycle/magikvm",
        };
        text += &format!("User-Agent: {agent}\r\n");
    }
    if !named("accept") {
        text += "Accept: */*\r\n";
    }
    text += "Connection: close\r\n";
    for (name, value) in get.headers {
        // As by the kubelet, an empty `Accept` removes that of the probe.
        let removed = name.eq_ignore_ascii_case("accept") && value.is_empty();
        if !removed && !OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
            text += &format!("{}: {}\r\n", one_line(name), one_line(value));
        }
    }
    text + "\r\n"
}

/// The plan was checked where it was made; a line end here would still be another header.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
