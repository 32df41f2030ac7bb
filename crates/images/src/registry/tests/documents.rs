//! Manifests, small blobs and lists of referrers.

use super::server::{Seen, Server, head, nobody, piece, reply};
use super::{INDEX_TYPE, MANIFEST_TYPE, fetch, open, plain, short_timing};
use crate::cancel::{Cancel, Stopped};
use crate::digest::Digest;
use crate::document::MAX_MANIFEST;
use crate::registry::{ConnectProblem, Credentials, RegistryConfig, RegistryError, Repository, Which};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const JSON: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;

fn manifest(server: &Server) -> Result<super::super::FetchedManifest, RegistryError> {
    plain(server).manifest(Which::Tag("latest"))
}

#[test]
fn a_manifest_comes_with_its_type_and_digest() {
    let server = Server::start(|_, stream| {
        let digest = Digest::of(JSON).to_string();
        let headers = [("Content-Type", MANIFEST_TYPE), ("Docker-Content-Digest", digest.as_str())];
        reply(stream, 200, &headers, JSON)
    });
    let fetched = manifest(&server).unwrap();
    assert_eq!((fetched.bytes.as_slice(), fetched.media_type.as_str()), (JSON, MANIFEST_TYPE));
    assert_eq!((fetched.digest, fetched.endpoint), (Digest::of(JSON), format!("http://{}", server.host())));
    let [seen] = &server.seen()[..] else { panic!("one request") };
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/v2/team/app/manifests/latest"));
    assert_eq!(seen.header("user-agent"), Some(concat!("magikvm/", env!("CARGO_PKG_VERSION"))));
    assert_eq!((seen.header("accept-encoding"), seen.header("authorization")), (Some("identity"), None));
    for media_type in [MANIFEST_TYPE, INDEX_TYPE, "manifest.v2+json", "manifest.list.v2+json"] {
        assert!(seen.header("accept").unwrap().contains(media_type));
    }
}

#[test]
fn other_bytes_than_the_digest_says_are_refused() {
    let server = Server::start(|_, stream| reply(stream, 200, &[("Content-Type", MANIFEST_TYPE)], JSON));
    let wanted = Digest::of(b"other");
    let error = plain(&server).manifest(Which::Digest(wanted)).unwrap_err();
    assert!(
        matches!(&error, RegistryError::WrongDigest { found, .. } if *found == Digest::of(JSON)),
        "{error}"
    );
    assert!(error.hint().is_some());
    assert_eq!(
        (server.count(), server.seen()[0].target.clone()),
        (1, format!("/v2/team/app/manifests/{wanted}"))
    );
    assert!(plain(&server).manifest(Which::Digest(Digest::of(JSON))).is_ok());
}

#[test]
fn a_digest_header_that_differs_is_refused() {
    let server = Server::start(|_, stream| {
        let other = Digest::of(b"other").to_string();
        let headers = [("Content-Type", MANIFEST_TYPE), ("Docker-Content-Digest", other.as_str())];
        reply(stream, 200, &headers, JSON)
    });
    let error = manifest(&server).unwrap_err();
    assert!(matches!(error, RegistryError::DigestHeader { .. }), "{error}");
}

#[test]
fn a_web_page_is_no_manifest() {
    let html =
        Server::start(|_, stream| reply(stream, 200, &[("Content-Type", "text/html; x=y")], b"<html>"));
    let error = manifest(&html).unwrap_err();
    assert!(matches!(&error, RegistryError::NotManifest { content_type, .. } if content_type == "text/html"));
    let untyped = Server::start(|_, stream| reply(stream, 200, &[], b"<html>"));
    assert!(matches!(manifest(&untyped), Err(RegistryError::NotManifest { .. })));
}

#[test]
fn a_manifest_without_an_end_is_cut_at_the_limit() {
    let server = Server::start(|_, stream| {
        head(stream, 200, &[("Content-Type", MANIFEST_TYPE), ("Transfer-Encoding", "chunked")])?;
        loop {
            piece(stream, &[b' '; 8192])?;
        }
    });
    let error = manifest(&server).unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: MAX_MANIFEST, .. }), "{error}");
    let promised = Server::start(|_, stream| {
        head(stream, 200, &[("Content-Type", MANIFEST_TYPE), ("Content-Length", "99999999999")])
    });
    assert!(matches!(manifest(&promised), Err(RegistryError::TooLarge { .. })));
    assert_eq!((server.count(), promised.count()), (1, 1));
}

#[test]
fn the_bytes_are_taken_as_they_are_whatever_encoding_is_claimed() {
    let headers = [("Content-Type", MANIFEST_TYPE), ("Content-Encoding", "gzip")];
    let server = Server::start(move |_, stream| reply(stream, 200, &headers, JSON));
    assert_eq!(manifest(&server).unwrap().bytes, JSON);
    let changed = Server::start(move |_, stream| reply(stream, 200, &headers, b"\x1f\x8b\x08\0changed"));
    for which in [Which::Tag("latest"), Which::Digest(Digest::of(JSON))] {
        let answer = plain(&changed).manifest(which);
        assert!(
            matches!(&answer, Err(RegistryError::Encoded { encoding, .. }) if encoding == "gzip"),
            "{answer:?}"
        );
    }
    for claimed in ["gzip", "x-gzip", "aws-chunked", ""] {
        let blobs =
            Server::start(move |_, stream| reply(stream, 200, &[("Content-Encoding", claimed)], b"layer"));
        let (bytes, outcome) = fetch(&plain(&blobs), &Digest::of(b"layer"), 5);
        outcome.unwrap();
        assert_eq!(bytes, b"layer", "{claimed}");
    }
    let other =
        Server::start(|_, stream| reply(stream, 200, &[("Content-Encoding", "gzip")], b"longer than before"));
    let (_, outcome) = fetch(&plain(&other), &Digest::of(b"layer"), 5);
    assert!(matches!(outcome, Err(RegistryError::Encoded { .. })), "{outcome:?}");
}

#[test]
fn redirects_without_an_end_are_given_up() {
    let server = Server::start(|seen, stream| {
        reply(stream, 307, &[("Location", &format!("{}?again", seen.target))], b"")
    });
    let error = manifest(&server).unwrap_err();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
    assert_eq!(server.count(), 11);
    let nowhere = Server::start(|_, stream| reply(stream, 302, &[], b""));
    let error = manifest(&nowhere).unwrap_err();
    assert!(error.to_string().contains("no Location"), "{error}");
}

#[test]
fn what_a_failure_says_is_shown_short_and_harmless() {
    let server = Server::start(|_, stream| {
        head(stream, 400, &[("Transfer-Encoding", "chunked")])?;
        loop {
            piece(stream, b"go \x1b[31m away\r\n")?;
        }
    });
    let error = manifest(&server).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, RegistryError::PlainRefused { .. }) && text.contains("go  [31m away"), "{text}");
    assert!(text.chars().count() < 400 && !text.contains(|c: char| c.is_control()), "{text}");
    assert!(error.hint().unwrap().contains("`plain-http = true`"));
}

/// A refusal in a registry's format is not taken for a server of HTTPS.
#[test]
fn a_registry_that_refuses_a_question_over_plain_http_is_one() {
    let server = Server::start(|_, stream| reply(stream, 400, &[], b"{\"errors\":[]}"));
    let error = manifest(&server).unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 400, .. }), "{error}");
    assert_eq!(error.hint(), None);
}

#[test]
fn transient_failures_get_five_attempts_and_others_one() {
    for (status, attempts) in [(500, 5), (503, 5), (429, 5), (408, 5), (404, 1), (400, 1), (403, 1)] {
        let server = Server::start(move |_, stream| {
            let body = br#"{"errors":[{"code":"WHY","message":"because"}]}"#;
            reply(stream, status, &[("Retry-After", "0"), ("Content-Type", "application/json")], body)
        });
        let error = manifest(&server).unwrap_err();
        assert_eq!(server.count(), attempts, "{status}");
        assert!(error.to_string().contains("WHY: because"), "{error}");
        assert_eq!(
            (error.is_not_found(), error.hint().is_some()),
            (status == 404, [404, 403, 429].contains(&status))
        );
    }
    let third_time = Server::start({
        let count = std::sync::atomic::AtomicUsize::new(0);
        move |_, stream| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => reply(stream, 503, &[], b""),
            // Half of an answer, then the end.
            1 => head(stream, 200, &[("Content-Type", MANIFEST_TYPE), ("Content-Length", "31")]),
            _ => reply(stream, 200, &[("Content-Type", MANIFEST_TYPE)], JSON),
        }
    });
    assert_eq!(manifest(&third_time).unwrap().bytes, JSON);
    assert_eq!(third_time.count(), 3);
}

#[test]
fn nobody_there_is_said_with_a_hint() {
    let (_socket, nobody) = nobody();
    let reference = format!("{nobody}/a:b").parse().unwrap();
    let config = RegistryConfig::default().with_plain_http();
    let (none, cancel) = (Credentials::none(), Cancel::new());
    let repository = Repository::open_with(&config, &none, &reference, &cancel, super::quick()).unwrap();
    let error = repository.manifest(Which::Tag("b")).unwrap_err();
    assert!(matches!(error, RegistryError::Connect { problem: ConnectProblem::Refused, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("Nothing listens there"));
}

#[test]
fn https_to_a_server_without_it_is_said_with_a_hint() {
    let server = Server::start(|_, stream| reply(stream, 400, &[], b"what?"));
    let hung_up = Server::start(|_, _| Ok(()));
    for (server, wants) in [(&server, ConnectProblem::NotTls), (&hung_up, ConnectProblem::HungUp)] {
        let reference = format!("{}/a:b", server.host()).parse().unwrap();
        let (config, none, cancel) = (RegistryConfig::default(), Credentials::none(), Cancel::new());
        let repository = Repository::open_with(&config, &none, &reference, &cancel, super::quick()).unwrap();
        let error = repository.manifest(Which::Tag("b")).unwrap_err();
        assert!(matches!(&error, RegistryError::Connect { problem, .. } if *problem == wants), "{error:?}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("plain-http = true") && hint.contains("--plain-http"), "{hint}");
    }
}

#[test]
fn a_head_without_an_end_is_given_up() {
    let server = Server::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(format!("X-{}: y\r\n", "x".repeat(1000)).as_bytes())?;
        }
    });
    let error = manifest(&server).unwrap_err();
    assert!(matches!(error, RegistryError::Broken { .. }), "{error}");
}

#[test]
fn small_blobs_are_verified() {
    let server = Server::start(|_, stream| reply(stream, 200, &[], b"config"));
    let repository = plain(&server);
    assert_eq!(repository.blob(&Digest::of(b"config"), 6, 100).unwrap(), b"config");
    let error = repository.blob(&Digest::of(b"other"), 6, 100).unwrap_err();
    assert!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
    let error = repository.blob(&Digest::of(b"config"), 101, 100).unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 100, .. }), "{error}");
    assert_eq!(server.count(), 2);
}

#[test]
fn giving_up_does_not_wait_for_the_server() {
    let (stalled, here) = std::sync::mpsc::channel();
    let stalled = std::sync::Mutex::new(stalled);
    let server = Server::start(move |_, stream| {
        head(stream, 200, &[("Content-Type", MANIFEST_TYPE), ("Content-Length", "31")])?;
        stalled.lock().unwrap().send(()).unwrap();
        super::server::hang(stream)
    });
    let cancel = Cancel::new();
    let repository = open(
        &server,
        RegistryConfig::default(),
        &Credentials::none(),
        &cancel,
        super::super::Timing::default(),
    );
    let begun = Instant::now();
    let error = std::thread::scope(|scope| {
        let asking = scope.spawn(|| repository.manifest(Which::Tag("latest")).unwrap_err());
        here.recv().unwrap();
        cancel.cancel();
        asking.join().unwrap()
    });
    assert!(matches!(error, RegistryError::Stopped(Stopped::Cancelled)), "{error}");
    let timed = cancel_after(Duration::from_millis(50));
    let repository = open(
        &server,
        RegistryConfig::default(),
        &Credentials::none(),
        &timed,
        super::super::Timing::default(),
    );
    let error = repository.manifest(Which::Tag("latest")).unwrap_err();
    assert!(matches!(error, RegistryError::Stopped(Stopped::TimedOut { .. })), "{error}");
    drop(repository);
    // A stall is noticed after 30 s; this is far from it.
    assert!(begun.elapsed() < Duration::from_secs(10));
}

fn cancel_after(timeout: Duration) -> Cancel {
    Cancel::new().with_timeout(timeout)
}

#[test]
fn a_head_that_does_not_come_is_a_stall() {
    let server = Server::start(|_, stream| super::server::hang(stream));
    let repository =
        open(&server, RegistryConfig::default(), &Credentials::none(), &Cancel::new(), short_timing());
    let error = repository.manifest(Which::Tag("latest")).unwrap_err();
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
    assert_eq!(server.count(), 5);
}

fn entry(name: &str, artifact_type: &str) -> String {
    let digest = Digest::of(name.as_bytes());
    format!(
        r#"{{"mediaType":"{MANIFEST_TYPE}","digest":"{digest}","size":3,"artifactType":"{artifact_type}"}}"#
    )
}

fn index(entries: &[String]) -> String {
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX_TYPE}","manifests":[{}]}}"#, entries.join(","))
}

fn page(stream: &mut TcpStream, link: Option<&str>, entries: &[String]) -> std::io::Result<()> {
    let mut headers = vec![("Content-Type", INDEX_TYPE)];
    headers.extend(link.map(|link| ("Link", link)));
    reply(stream, 200, &headers, index(entries).as_bytes())
}

#[test]
fn referrers_come_by_pages_and_are_filtered_here() {
    let server = Server::start(|seen: &Seen, stream| match seen.target.contains("page=2") {
        false => page(
            stream,
            Some("</v2/team/app/referrers/x?page=2>; rel=\"next\""),
            &[entry("a", "sig"), entry("b", "sbom")],
        ),
        true => page(stream, None, &[entry("c", "sig")]),
    });
    let subject = Digest::of(b"subject");
    let found = plain(&server).referrers(&subject, Some("sig")).unwrap();
    let digests: Vec<_> = found.iter().map(|one| one.digest).collect();
    assert_eq!(digests, [Digest::of(b"a"), Digest::of(b"c")]);
    assert_eq!(server.seen()[0].target, format!("/v2/team/app/referrers/{subject}?artifactType=sig"));
    assert_eq!(plain(&server).referrers(&subject, None).unwrap().len(), 3);
}

#[test]
fn an_older_registry_has_referrers_in_a_tag() {
    for refusal in [404, 405] {
        let server = Server::start(move |seen, stream| {
            let tag = format!("/v2/team/app/manifests/sha256-{}", Digest::of(b"subject").hex());
            match seen.target == tag {
                true => page(stream, None, &[entry("a", "sig"), entry("b", "sbom")]),
                false => reply(stream, refusal, &[], b""),
            }
        });
        assert_eq!(plain(&server).referrers(&Digest::of(b"subject"), Some("sig")).unwrap().len(), 1);
    }
    let none = Server::start(|_, stream| reply(stream, 404, &[], b""));
    assert!(plain(&none).referrers(&Digest::of(b"subject"), None).unwrap().is_empty());
    let page_for_people = Server::start(|seen, stream| match seen.target.contains("referrers") {
        true => reply(stream, 200, &[("Content-Type", "text/html")], b"<html>"),
        false => reply(stream, 404, &[], b""),
    });
    assert!(plain(&page_for_people).referrers(&Digest::of(b"subject"), None).unwrap().is_empty());
}

#[test]
fn lists_of_referrers_end_somewhere_and_stay_here() {
    let subject = Digest::of(b"subject");
    let endless =
        Server::start(|seen, stream| page(stream, Some(&format!("<{}>; rel=next", seen.target)), &[]));
    let error = plain(&endless).referrers(&subject, None).unwrap_err();
    assert!(error.to_string().contains("more than 16 pages"), "{error}");
    assert_eq!(endless.count(), 16);
    let flood = Server::start(|_, stream| page(stream, None, &vec![entry("a", "sig"); 1025]));
    let error = plain(&flood).referrers(&subject, None).unwrap_err();
    assert!(error.to_string().contains("more than 1024"), "{error}");
    let elsewhere = Server::start(|_, stream| page(stream, Some("<http://127.0.0.2:1/x>; rel=next"), &[]));
    let error = plain(&elsewhere).referrers(&subject, None).unwrap_err();
    assert!(error.to_string().contains("at another server"), "{error}");
    let large = Server::start(|_, stream| {
        head(stream, 200, &[("Content-Type", INDEX_TYPE)])?;
        loop {
            stream.write_all(&[b' '; 65536])?;
        }
    });
    assert!(matches!(plain(&large).referrers(&subject, None), Err(RegistryError::TooLarge { .. })));
}
