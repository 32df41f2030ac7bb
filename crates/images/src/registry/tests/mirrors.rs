//! Mirrors: the order in which they are asked, and their logins.

use super::server::{Server, blob, head, nobody, reply};
use super::{MANIFEST_TYPE, content, fetch, open, quick};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::registry::{Credentials, LoginFile, RegistryConfig, RegistryError, Repository, Which};
use std::io::Write;
use std::path::Path;

const JSON: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;

fn with_mirrors(registry: &Server, mirrors: &[String], credentials: &Credentials) -> Repository {
    let text = format!("[registry.\"{}\"]\nmirrors = {mirrors:?}\n", registry.host());
    let config = RegistryConfig::parse(&text, Path::new("registries.toml")).unwrap();
    open(registry, config, credentials, &Cancel::new(), quick())
}

fn good() -> Server {
    Server::start(|_, stream| reply(stream, 200, &[("Content-Type", MANIFEST_TYPE)], JSON))
}

fn missing() -> Server {
    Server::start(|_, stream| reply(stream, 404, &[], b""))
}

fn url(server: &Server, prefix: &str) -> String {
    format!("http://{}{prefix}", server.host())
}

#[test]
fn a_mirror_that_has_it_is_enough() {
    let (registry, mirror) = (good(), good());
    let repository = with_mirrors(&registry, &[url(&mirror, "/hub/")], &Credentials::none());
    assert_eq!(repository.manifest(Which::Tag("latest")).unwrap().endpoint, url(&mirror, ""));
    assert_eq!(mirror.seen()[0].target, "/v2/hub/team/app/manifests/latest");
    assert_eq!(registry.count(), 0);
}

#[test]
fn places_are_asked_in_order() {
    let (registry, first, second) = (good(), missing(), missing());
    let repository = with_mirrors(&registry, &[url(&first, ""), url(&second, "")], &Credentials::none());
    for _ in 0..2 {
        assert_eq!(repository.manifest(Which::Tag("latest")).unwrap().endpoint, url(&registry, ""));
    }
    // One missing image says nothing about the next.
    assert_eq!((first.count(), second.count(), registry.count()), (2, 2, 2));
}

#[test]
fn a_mirror_that_is_down_is_asked_no_more() {
    let registry = good();
    let down = Server::start(|_, stream| reply(stream, 503, &[], b""));
    let (_socket, nobody) = nobody();
    let mirrors = [format!("http://{nobody}"), url(&down, "")];
    let repository = with_mirrors(&registry, &mirrors, &Credentials::none());
    for _ in 0..3 {
        assert!(repository.manifest(Which::Tag("latest")).is_ok());
    }
    assert_eq!((down.count(), registry.count()), (2, 3));
}

#[test]
fn when_all_fail_the_registrys_answer_counts() {
    let (registry, mirror) = (missing(), missing());
    let repository = with_mirrors(&registry, &[url(&mirror, "")], &Credentials::none());
    let error = repository.manifest(Which::Tag("latest")).unwrap_err();
    assert!(error.is_not_found() && error.hint().unwrap().contains("Check the name"));
    assert!(matches!(&error, RegistryError::Everywhere { .. }), "{error}");
    assert!(error.to_string().contains(&mirror.host()), "{error}");
    assert!(repository.referrers(&Digest::of(b"x"), None).unwrap().is_empty());
}

#[test]
fn the_rest_of_a_blob_comes_from_the_next_place() {
    let registry = Server::start(|seen, stream| blob(stream, seen, &content(10_000)));
    let mirror = Server::start(|_, stream| {
        head(stream, 200, &[("Content-Length", "10000")])?;
        stream.write_all(&content(10_000)[..4000])
    });
    let repository = with_mirrors(&registry, &[url(&mirror, "")], &Credentials::none());
    let (bytes, outcome) = fetch(&repository, &Digest::of(b""), 10_000);
    outcome.unwrap();
    assert!(bytes == content(10_000));
    assert_eq!(registry.seen()[0].range(), Some(4000));
}

#[test]
fn a_small_blob_with_wrong_bytes_comes_from_the_next_place() {
    let registry = Server::start(|_, stream| reply(stream, 200, &[], b"right"));
    let mirror = Server::start(|_, stream| reply(stream, 200, &[], b"wrong"));
    let repository = with_mirrors(&registry, &[url(&mirror, "")], &Credentials::none());
    assert_eq!(repository.blob(&Digest::of(b"right"), 5, 5).unwrap(), b"right");
}

#[test]
fn a_mirror_with_wrong_bytes_is_passed_over() {
    let right = content(10_000);
    let (wanted, found) = (Digest::of(&right), Digest::of(b"wrong"));
    let registry = Server::start(move |seen, stream| blob(stream, seen, &content(10_000)));
    let liar = || Server::start(|_, stream| reply(stream, 200, &[], &[0; 10_000]));
    // It breaks off, so that the next one sends the rest.
    let breaks_off = Server::start(|_, stream| {
        head(stream, 200, &[("Content-Length", "10000")])?;
        stream.write_all(&[1; 4000])
    });
    let (first, second) = (liar(), liar());
    let mirrors = [url(&breaks_off, ""), url(&first, ""), url(&second, "")];
    let repository = with_mirrors(&registry, &mirrors, &Credentials::none());
    assert!(repository.has_mirrors() && !repository.take_passed_over());
    for senders in [vec![&breaks_off, &first], vec![&second]] {
        fetch(&repository, &wanted, 10_000).1.unwrap();
        let error = repository.disown(&wanted, &found).unwrap().to_string();
        assert!(
            error.contains(&senders.last().unwrap().host()) && error.contains(&found.to_string()),
            "{error}"
        );
        assert!(repository.take_passed_over() && !repository.take_passed_over());
    }
    let (bytes, outcome) = fetch(&repository, &wanted, 10_000);
    outcome.unwrap();
    assert!(bytes == right && registry.count() == 1);
    // When the registry's bytes are wrong too, everybody is named, and nobody is left to ask.
    let error = repository.disown(&wanted, &found).unwrap();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    for server in [&breaks_off, &first, &second, &registry] {
        assert!(text.contains(&server.host()), "{text}");
    }
    assert!(!repository.take_passed_over() && error.hint().unwrap().contains("Do not trust"));
}

#[test]
fn a_mirror_gets_its_own_login_and_not_the_registrys() {
    let wants_login =
        || Server::start(|_, stream| reply(stream, 401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""));
    let (registry, mirror) = (wants_login(), wants_login());
    for (host, at_mirror, at_registry) in [
        (mirror.host(), vec![None, Some("Basic bWU6eA==")], vec![None]),
        (registry.host(), vec![None], vec![None, Some("Basic bWU6eA==")]),
    ] {
        let before = (mirror.count(), registry.count());
        let json = format!(r#"{{"auths":{{"{host}":{{"auth":"bWU6eA=="}}}}}}"#);
        let file = LoginFile::parse(json.as_bytes(), Path::new("auth.json")).unwrap();
        let repository = with_mirrors(&registry, &[url(&mirror, "")], &Credentials::in_data(file));
        let error = repository.manifest(Which::Tag("latest")).unwrap_err();
        assert!(matches!(error, RegistryError::Everywhere { .. }), "{error}");
        let (seen_mirror, seen_registry) = (mirror.seen(), registry.seen());
        let sent = |seen: &[super::server::Seen]| -> Vec<Option<String>> {
            seen.iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect()
        };
        let want = |list: &[Option<&str>]| -> Vec<Option<String>> {
            list.iter().map(|text| text.map(str::to_owned)).collect()
        };
        assert_eq!(sent(&seen_mirror[before.0..]), want(&at_mirror));
        assert_eq!(sent(&seen_registry[before.1..]), want(&at_registry));
    }
}
