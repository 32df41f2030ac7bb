//! Downloads over connections that break, and from servers that lie.

use super::server::{Server, blob, hang, head, piece, reply};
use super::{content, fetch, open, plain, short_timing};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::registry::{Credentials, DownloadEvent, RegistryConfig, RegistryError};
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

const SIZE: usize = 100_000;

#[test]
fn a_cut_connection_is_resumed_with_and_without_ranges() {
    for cut in [0, 1, 4095, 65536, SIZE - 1] {
        for ranges in [true, false] {
            let count = AtomicUsize::new(0);
            let server = Server::start(move |seen, stream| {
                let content = content(SIZE);
                match (count.fetch_add(1, Ordering::SeqCst), ranges) {
                    (0, _) => {
                        head(stream, 200, &[("Content-Length", &SIZE.to_string())])?;
                        stream.write_all(&content[..cut])
                    }
                    (_, true) => blob(stream, seen, &content),
                    (_, false) => reply(stream, 200, &[], &content),
                }
            });
            let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), SIZE as u64);
            outcome.unwrap();
            assert!(bytes == content(SIZE), "cut at {cut}");
            let seen = server.seen();
            assert_eq!((seen.len(), seen[0].range()), (2, None));
            assert_eq!(seen[1].range(), Some(cut).filter(|cut| *cut > 0));
        }
    }
}

#[test]
fn every_new_byte_gives_new_attempts() {
    // 20 breaks in a row, each further into the blob: more than the attempts of one endpoint.
    let server = Server::start(move |seen, stream| {
        let (content, start) = (content(SIZE), seen.range().unwrap_or(0));
        let end = (start + SIZE / 20).min(SIZE);
        let range = format!("bytes {start}-{}/{SIZE}", SIZE - 1);
        let length = (SIZE - start).to_string();
        let status = if start > 0 { 206 } else { 200 };
        head(stream, status, &[("Content-Range", &range), ("Content-Length", &length)])?;
        stream.write_all(&content[start..end])
    });
    let events = Mutex::new(Vec::new());
    let mut bytes = Vec::new();
    let mut sink = |chunk: &[u8]| {
        bytes.extend_from_slice(chunk);
        Ok(())
    };
    let note = |event: DownloadEvent<'_>| match event {
        DownloadEvent::Retrying { problem, have, .. } => {
            events.lock().unwrap().push((problem.to_string(), have))
        }
        DownloadEvent::NextEndpoint { .. } => unreachable!("there is one place"),
    };
    plain(&server).download(&Digest::of(b""), SIZE as u64, &mut sink, &note).unwrap();
    assert!(bytes == content(SIZE));
    assert_eq!(server.count(), 20);
    let events = events.into_inner().unwrap();
    assert_eq!(events.len(), 19);
    assert!(events.iter().all(|(problem, have)| problem.contains("broke") && *have > 0), "{events:?}");
}

#[test]
fn a_server_that_always_breaks_at_the_same_byte_is_given_up() {
    let server = Server::start(|_, stream| {
        head(stream, 200, &[("Content-Length", &SIZE.to_string())])?;
        stream.write_all(&content(SIZE)[..1000])
    });
    let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), SIZE as u64);
    assert!(matches!(outcome, Err(RegistryError::Broken { .. })), "{outcome:?}");
    // The first brought new bytes; the fifth in a row that did not was the last.
    assert!(bytes == content(SIZE)[..1000]);
    assert_eq!(server.count(), 5);
}

#[test]
fn a_stall_in_the_middle_is_a_broken_connection() {
    let count = AtomicUsize::new(0);
    let server = Server::start(move |seen, stream| {
        let content = content(SIZE);
        if count.fetch_add(1, Ordering::SeqCst) > 0 {
            return blob(stream, seen, &content);
        }
        head(stream, 200, &[("Content-Length", &SIZE.to_string())])?;
        stream.write_all(&content[..5000])?;
        hang(stream)
    });
    let repository =
        open(&server, RegistryConfig::default(), &Credentials::none(), &Cancel::new(), short_timing());
    let (bytes, outcome) = fetch(&repository, &Digest::of(b""), SIZE as u64);
    outcome.unwrap();
    assert!(bytes == content(SIZE));
    assert_eq!(server.seen()[1].range(), Some(5000));
}

#[test]
fn a_length_that_is_not_the_manifests_is_refused_before_any_byte() {
    for (length, size) in [(10, 11), (11, 10)] {
        let server = Server::start(move |_, stream| reply(stream, 200, &[], &content(length)));
        let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), size);
        assert!(matches!(outcome, Err(RegistryError::WrongLength { .. })), "{outcome:?}");
        assert_eq!((bytes.len(), server.count()), (0, 1));
    }
}

#[test]
fn more_bytes_than_the_manifest_says_never_arrive() {
    let server = Server::start(|_, stream| {
        head(stream, 200, &[("Transfer-Encoding", "chunked")])?;
        loop {
            piece(stream, &[7; 100])?;
        }
    });
    let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), 1000);
    assert!(matches!(outcome, Err(RegistryError::TooLong { size: 1000, .. })), "{outcome:?}");
    assert!(bytes.len() <= 1000);
    assert_eq!(server.count(), 1);
}

#[test]
fn an_answer_that_ends_too_early_without_saying_so_is_short() {
    let server = Server::start(|_, stream| {
        head(stream, 200, &[("Transfer-Encoding", "chunked")])?;
        piece(stream, &[7; 100])?;
        stream.write_all(b"0\r\n\r\n")
    });
    let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), 1000);
    assert!(matches!(outcome, Err(RegistryError::Short { got: 100, size: 1000, .. })), "{outcome:?}");
    assert_eq!(bytes.len(), 100);
    let unwilling = Server::start(|seen, stream| match seen.range() {
        None => {
            head(stream, 200, &[])?;
            stream.write_all(&[7; 100])
        }
        Some(_) => reply(stream, 416, &[], b""),
    });
    let (_, outcome) = fetch(&plain(&unwilling), &Digest::of(b""), 1000);
    assert!(matches!(outcome, Err(RegistryError::WrongLength { promised: 100, .. })), "{outcome:?}");
}

#[test]
fn another_part_than_asked_for_is_refused() {
    let server = Server::start(|seen, stream| match seen.range() {
        None => {
            head(stream, 200, &[("Content-Length", "1000")])?;
            stream.write_all(&[7; 100])
        }
        Some(_) => reply(stream, 206, &[("Content-Range", "bytes 99-999/1000")], &[7; 901]),
    });
    let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), 1000);
    assert!(matches!(outcome, Err(RegistryError::Range { start: 100, .. })), "{outcome:?}");
    assert_eq!(bytes.len(), 100);
}

#[test]
fn a_server_may_give_a_range_in_smaller_parts() {
    let server = Server::start(|seen, stream| {
        let (content, start) = (content(1000), seen.range().unwrap_or(0));
        if start == 0 {
            head(stream, 200, &[("Content-Length", "1000")])?;
            return stream.write_all(&content[..1]);
        }
        let end = (start + 300).min(1000);
        let range = format!("bytes {start}-{}/1000", end - 1);
        reply(stream, 206, &[("Content-Range", &range)], &content[start..end])
    });
    let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), 1000);
    outcome.unwrap();
    assert!(bytes == content(1000));
}

#[test]
fn a_receiver_that_fails_ends_the_download() {
    let server = Server::start(|seen, stream| blob(stream, seen, &content(SIZE)));
    let mut sink = |_: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let outcome = plain(&server).download(&Digest::of(b""), SIZE as u64, &mut sink, &|_| {});
    assert!(
        matches!(&outcome, Err(RegistryError::Sink { source, .. }) if source.kind() == io::ErrorKind::StorageFull)
    );
    assert_eq!(server.count(), 1);
}

#[test]
fn an_empty_blob_needs_no_request() {
    let server = Server::start(|_, stream| reply(stream, 500, &[], b""));
    let (bytes, outcome) = fetch(&plain(&server), &Digest::of(b""), 0);
    outcome.unwrap();
    assert_eq!((bytes.len(), server.count()), (0, 0));
}

#[test]
fn a_receiver_that_waits_holds_up_no_other_download() {
    let server = Server::start(|seen, stream| blob(stream, seen, &content(SIZE)));
    let repository = plain(&server);
    let (done, others) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let (waits, repository) = (&repository, &repository);
        scope.spawn(move || {
            let mut first = true;
            let mut sink = move |_: &[u8]| {
                // Continues when the other two are done.
                if std::mem::take(&mut first) {
                    others.iter().take(2).for_each(drop);
                }
                Ok(())
            };
            waits.download(&Digest::of(b""), SIZE as u64, &mut sink, &|_| {}).unwrap();
        });
        for _ in 0..2 {
            let done = done.clone();
            scope.spawn(move || {
                let (bytes, outcome) = fetch(repository, &Digest::of(b""), SIZE as u64);
                outcome.unwrap();
                assert!(bytes == content(SIZE));
                done.send(()).unwrap();
            });
        }
    });
}
