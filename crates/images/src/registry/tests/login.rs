//! Logins and tokens, and where they must not go.

use super::server::{Seen, Server, blob, reply};
use super::{MANIFEST_TYPE, fetch, logged_in, plain};
use crate::digest::Digest;
use crate::registry::{Presented, RegistryError, Which};
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};

const JSON: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;
/// `me:hunter2`
const BASIC: &str = "bWU6aHVudGVyMg==";

fn login_for(server: &Server) -> String {
    format!(r#"{{"auths":{{"{}":{{"auth":"{BASIC}"}}}}}}"#, server.host())
}

fn manifest(stream: &mut TcpStream) -> io::Result<()> {
    reply(stream, 200, &[("Content-Type", MANIFEST_TYPE)], JSON)
}

fn bearer(stream: &mut TcpStream, realm: &str) -> io::Result<()> {
    let challenge = format!("Bearer realm=\"{realm}\",service=\"the registry\",scope=\"repository:all:*\"");
    reply(stream, 401, &[("WWW-Authenticate", &challenge)], b"")
}

/// A registry that wants the token `t`, with the token server at `realm`.
fn registry(realm: String) -> Server {
    Server::start(move |seen, stream| match seen.header("authorization") {
        Some("Bearer t") => manifest(stream),
        _ => bearer(stream, &realm),
    })
}

fn realm(server: &Server) -> String {
    format!("http://{}/token?a=b", server.host())
}

#[test]
fn a_token_is_asked_for_once_with_the_login_and_then_used() {
    let tokens = Server::start(|_, stream| reply(stream, 200, &[], br#"{"token":"t","expires_in":300}"#));
    let server = registry(realm(&tokens));
    let repository = logged_in(&server, &login_for(&server));
    for _ in 0..3 {
        assert_eq!(repository.manifest(Which::Tag("latest")).unwrap().bytes, JSON);
    }
    let [asked] = &tokens.seen()[..] else { panic!("one request for a token") };
    assert_eq!(asked.header("authorization"), Some(format!("Basic {BASIC}").as_str()));
    assert_eq!(
        asked.target,
        "/token?a=b&scope=repository%3Ateam%2Fapp%3Apull&service=the+registry&account=me"
    );
    let authorizations: Vec<_> =
        server.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    let token = Some("Bearer t".to_owned());
    assert_eq!(authorizations, [None, token.clone(), token.clone(), token]);
    let debug = format!("{repository:?}");
    assert!(!debug.contains(BASIC) && !debug.contains("hunter2") && !debug.contains("Bearer t"), "{debug}");
}

#[test]
fn without_a_login_a_token_is_asked_for_anonymously() {
    let tokens = Server::start(|_, stream| reply(stream, 200, &[], br#"{"access_token":"t"}"#));
    let server = registry(realm(&tokens));
    assert!(plain(&server).manifest(Which::Tag("latest")).is_ok());
    assert_eq!(tokens.seen()[0].header("authorization"), None);
}

#[test]
fn a_token_that_is_no_longer_good_is_renewed_once() {
    let given = AtomicUsize::new(0);
    let tokens = Server::start(move |_, stream| {
        let token = format!("{{\"token\":\"{}\"}}", given.fetch_add(1, Ordering::SeqCst));
        reply(stream, 200, &[], token.as_bytes())
    });
    let address = realm(&tokens);
    // The first token is good for one request, the second for none.
    let used = AtomicUsize::new(0);
    let server = Server::start(move |seen, stream| match seen.header("authorization") {
        Some("Bearer 0") if used.fetch_add(1, Ordering::SeqCst) == 0 => manifest(stream),
        _ => bearer(stream, &address),
    });
    let repository = plain(&server);
    assert!(repository.manifest(Which::Tag("latest")).is_ok());
    let error = repository.manifest(Which::Tag("latest")).unwrap_err();
    assert!(matches!(error, RegistryError::Denied { status: 401, .. }), "{error}");
    assert_eq!((tokens.count(), server.count()), (2, 4));
}

#[test]
fn many_requests_at_once_ask_for_one_token() {
    let tokens = Server::start(|_, stream| reply(stream, 200, &[], br#"{"token":"t"}"#));
    let server = registry(realm(&tokens));
    let repository = plain(&server);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| repository.manifest(Which::Tag("latest")).unwrap());
        }
    });
    assert_eq!(tokens.count(), 1);
}

#[test]
fn basic_is_answered_with_the_login() {
    let server = Server::start(|seen, stream| match seen.header("authorization") {
        Some(header) if header == format!("Basic {BASIC}") => manifest(stream),
        _ => reply(stream, 401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    });
    let repository = logged_in(&server, &login_for(&server));
    assert!(repository.manifest(Which::Tag("latest")).is_ok());
    assert!(repository.manifest(Which::Tag("latest")).is_ok());
    assert_eq!(server.count(), 3);
    let error = plain(&server).manifest(Which::Tag("latest")).unwrap_err();
    let nothing = Presented::Nothing { looked: vec![] };
    assert!(
        matches!(&error, RegistryError::Denied { status: 401, login, .. } if *login == nothing),
        "{error:?}"
    );
    assert!(error.hint().unwrap().contains(&format!("podman login {}", server.host())));
    let wrong = login_for(&server).replace(BASIC, "bWU6b3RoZXI=");
    let error = logged_in(&server, &wrong).manifest(Which::Tag("latest")).unwrap_err();
    assert!(error.hint().unwrap().contains("The login from auth.json does not suffice"), "{error:?}");
}

#[test]
fn an_identity_token_is_exchanged_by_a_form() {
    let tokens = Server::start(|_, stream| reply(stream, 200, &[], br#"{"access_token":"t"}"#));
    let server = registry(realm(&tokens));
    let login = format!(r#"{{"auths":{{"{}":{{"identitytoken":"refresh me"}}}}}}"#, server.host());
    assert!(logged_in(&server, &login).manifest(Which::Tag("latest")).is_ok());
    let asked = &tokens.seen()[0];
    assert_eq!((asked.method.as_str(), asked.header("authorization")), ("POST", None));
    assert_eq!(asked.header("content-type"), Some("application/x-www-form-urlencoded"));
    for part in
        ["grant_type=refresh_token", "refresh_token=refresh+me", "scope=repository%3Ateam%2Fapp%3Apull"]
    {
        assert!(asked.body.contains(part), "{}", asked.body);
    }
}

#[test]
fn answers_that_are_no_tokens_are_refused() {
    let huge = format!("{{\"token\":\"{}\"}}", "t".repeat(70_000));
    for (answer, wants) in
        [(huge.as_str(), "larger than 65536"), ("<html>", "not a token"), ("{}", "neither")]
    {
        let answer = answer.to_owned();
        let tokens = Server::start(move |_, stream| reply(stream, 200, &[], answer.as_bytes()));
        let server = registry(realm(&tokens));
        let error = plain(&server).manifest(Which::Tag("latest")).unwrap_err().to_string();
        assert!(error.contains(wants), "{error}");
    }
}

#[test]
fn a_refusal_of_the_token_server_names_the_login() {
    let tokens = Server::start(|_, stream| reply(stream, 401, &[], b"who are you"));
    let server = registry(realm(&tokens));
    let error = logged_in(&server, &login_for(&server)).manifest(Which::Tag("latest")).unwrap_err();
    assert!(error.to_string().contains("who are you"), "{error}");
    assert!(error.hint().unwrap().contains("auth.json"));
}

#[test]
fn a_login_goes_to_no_token_server_in_the_open_elsewhere() {
    let tokens = Server::start(|_, stream| reply(stream, 200, &[], br#"{"token":"t"}"#));
    let server = registry(format!("http://localhost:{}/token", tokens.port()));
    let error = logged_in(&server, &login_for(&server)).manifest(Which::Tag("latest")).unwrap_err();
    assert!(matches!(error, RegistryError::Realm { .. }), "{error}");
    assert_eq!(tokens.count(), 0);
}

#[test]
fn a_challenge_that_is_not_known_is_said() {
    let server = Server::start(|_, stream| reply(stream, 401, &[("WWW-Authenticate", "Negotiate")], b""));
    let error = plain(&server).manifest(Which::Tag("latest")).unwrap_err();
    assert!(error.to_string().contains("with the challenge \"Negotiate\""), "{error}");
    let silent = Server::start(|_, stream| reply(stream, 401, &[], b"go away"));
    let error = plain(&silent).manifest(Which::Tag("latest")).unwrap_err();
    assert!(matches!(error, RegistryError::Challenge { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("a fault of the registry") && text.contains("go away"), "{text}");
    assert!(error.hint().unwrap().contains("`curl -i http://127.0.0.1:"));
    assert_eq!(silent.count(), 1);
}

#[test]
fn a_token_that_is_refused_without_a_challenge_is_renewed() {
    let given = AtomicUsize::new(0);
    let tokens = Server::start(move |_, stream| {
        let token = format!("{{\"token\":\"{}\"}}", given.fetch_add(1, Ordering::SeqCst));
        reply(stream, 200, &[], token.as_bytes())
    });
    let address = realm(&tokens);
    let used = AtomicUsize::new(0);
    let server = Server::start(move |seen, stream| match seen.header("authorization") {
        Some("Bearer 0") if used.fetch_add(1, Ordering::SeqCst) == 0 => manifest(stream),
        Some("Bearer 1") => manifest(stream),
        Some(_) => reply(stream, 401, &[], b""),
        None => bearer(stream, &address),
    });
    let repository = plain(&server);
    assert!(repository.manifest(Which::Tag("latest")).is_ok());
    assert!(repository.manifest(Which::Tag("latest")).is_ok());
    assert_eq!((tokens.count(), server.count()), (2, 4));
}

#[test]
fn a_registry_does_not_lead_inside() {
    for target in
        ["http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/", "http://[::ffff:169.254.1.1]/"]
    {
        let redirects = Server::start(move |_, stream| reply(stream, 307, &[("Location", target)], b""));
        let error = plain(&redirects).manifest(Which::Tag("latest")).unwrap_err();
        assert!(matches!(error, RegistryError::Inward { .. }), "{target}: {error}");
        let tokens = registry(target.to_owned());
        let error = plain(&tokens).manifest(Which::Tag("latest")).unwrap_err();
        assert!(matches!(error, RegistryError::Inward { .. }), "{target}: {error}");
        assert!(error.hint().unwrap().contains("Do not trust"));
        assert_eq!((redirects.count(), tokens.count()), (1, 1));
    }
}

/// A registry elsewhere that leads to this host, by its address and by a name for it.
#[test]
fn a_registry_elsewhere_does_not_lead_to_this_host() {
    use super::super::inward::Inside;
    use super::super::retry::Timing;
    use super::super::transport::Transport;
    let server = Server::start(|seen, stream| blob(stream, seen, b"secret"));
    let home = reqwest::Url::parse("http://192.0.2.1/").unwrap();
    let transport = Transport::new("192.0.2.1", &home, Vec::new(), Timing::default());
    for host in ["127.0.0.1", "localhost", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        let target = reqwest::Url::parse(&format!("http://{host}:{}/token", server.port())).unwrap();
        let asked = super::block_on(transport.get(&target, &reqwest::header::HeaderMap::new(), None));
        let error = asked.unwrap_err();
        assert!(matches!(error, RegistryError::Inward { inside: Inside::Host, .. }), "{host}: {error}");
    }
    assert_eq!(server.count(), 0);
}

#[test]
fn authorization_does_not_travel_to_another_port() {
    let cdn = Server::start(|seen, stream| blob(stream, seen, b"layer"));
    let target = format!("http://{}/layer?signature=x", cdn.host());
    let server = Server::start(move |seen, stream| match seen.header("authorization") {
        Some(_) if seen.target.contains("/blobs/") => reply(stream, 307, &[("Location", "/v2/moved")], b""),
        Some(_) => reply(stream, 302, &[("Location", &target)], b""),
        None => reply(stream, 401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    });
    let repository = logged_in(&server, &login_for(&server));
    let (bytes, outcome) = fetch(&repository, &Digest::of(b"layer"), 5);
    outcome.unwrap();
    assert_eq!(bytes, b"layer");
    let [seen] = &cdn.seen()[..] else { panic!("one request") };
    assert_eq!((seen.header("authorization"), seen.target.as_str()), (None, "/layer?signature=x"));
    // On the same server it is kept: for the blob and for its redirect target.
    let with = |seen: &Seen| seen.header("authorization").is_some();
    assert_eq!(server.seen().iter().filter(|seen| with(seen)).count(), 2);
}

/// A server of files behind the registry's name has its own proof in the address, and refuses requests with two.
#[test]
fn authorization_does_not_leave_the_registrys_interface() {
    const PROOF: &str =
        "/data/x?X-Amz-Signature=a%2Fb+c~d|e&response-content-disposition=attachment%3B%20filename%3D%22x%22";
    let server = Server::start(|seen, stream| match seen.header("authorization") {
        None if seen.target == PROOF => blob(stream, seen, b"layer"),
        Some(_) if seen.target.contains("/blobs/") => {
            let location = format!("../../../../..{PROOF}");
            reply(stream, 307, &[("Location", &location)], b"")
        }
        Some(_) => reply(stream, 400, &[], b"two proofs"),
        None => reply(stream, 401, &[("WWW-Authenticate", "Basic realm=/")], b""),
    });
    let (bytes, outcome) = fetch(&logged_in(&server, &login_for(&server)), &Digest::of(b"layer"), 5);
    outcome.unwrap();
    assert_eq!(bytes, b"layer");
}

#[test]
fn authorization_does_not_come_back_from_another_port() {
    let cdn = Server::start(|seen, stream| {
        let back = seen.target.trim_start_matches("/?to=").to_owned();
        reply(stream, 302, &[("Location", &back)], b"")
    });
    let away = cdn.host();
    let server = Server::start(move |seen, stream| match seen.header("authorization") {
        _ if seen.target == "/open" => blob(stream, seen, b"layer"),
        Some(_) => {
            let host = seen.header("host").unwrap_or_default();
            reply(stream, 302, &[("Location", &format!("http://{away}/?to=http://{host}/open"))], b"")
        }
        None => reply(stream, 401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
    });
    let (bytes, outcome) = fetch(&logged_in(&server, &login_for(&server)), &Digest::of(b"layer"), 5);
    outcome.unwrap();
    assert_eq!(bytes, b"layer");
    let seen = server.seen();
    let last = seen.last().unwrap();
    assert_eq!((last.target.as_str(), last.header("authorization")), ("/open", None));
}

#[test]
fn a_challenge_from_elsewhere_is_a_refusal() {
    let cdn =
        Server::start(|_, stream| reply(stream, 401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b"no"));
    let target = format!("http://{}/layer", cdn.host());
    let server = Server::start(move |_, stream| reply(stream, 307, &[("Location", &target)], b""));
    // There is even a login for that server, but the registry may not request it.
    let json = format!(
        r#"{{"auths":{{"{}":{{"auth":"{BASIC}"}},"{}":{{"auth":"{BASIC}"}}}}}}"#,
        server.host(),
        cdn.host()
    );
    let (_, outcome) = fetch(&logged_in(&server, &json), &Digest::of(b"layer"), 5);
    assert!(matches!(outcome, Err(RegistryError::Status { status: 401, .. })), "{outcome:?}");
    assert!(cdn.seen().iter().chain(&server.seen()).all(|seen| seen.header("authorization").is_none()));
}
