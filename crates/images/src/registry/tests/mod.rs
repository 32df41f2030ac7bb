//! The client against servers on loopback that do what servers should not do.

mod blobs;
mod documents;
mod login;
mod mirrors;
pub(super) mod server;

use super::retry::Timing;
use super::{Credentials, DownloadEvent, RegistryConfig, RegistryError, Repository};
use crate::cancel::Cancel;
use crate::digest::Digest;
use server::Server;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Waits for one future on a runtime of its own.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// As many attempts as in earnest, without the waiting.
fn quick() -> Timing {
    Timing {
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(10),
        connect: Duration::from_secs(20),
        stall: Duration::from_secs(20),
        ..Timing::default()
    }
}

/// Short enough to be waited for, long enough for a busy machine.
fn short_timing() -> Timing {
    Timing { stall: Duration::from_millis(250), ..quick() }
}

fn open(
    server: &Server,
    config: RegistryConfig,
    credentials: &Credentials,
    cancel: &Cancel,
    timing: Timing,
) -> Repository {
    let reference = format!("{}/team/app:latest", server.host()).parse().unwrap();
    Repository::open_with(&config.with_plain_http(), credentials, &reference, cancel, timing).unwrap()
}

fn plain(server: &Server) -> Repository {
    open(server, RegistryConfig::default(), &Credentials::none(), &Cancel::new(), quick())
}

fn logged_in(server: &Server, json: &str) -> Repository {
    let file = super::LoginFile::parse(json.as_bytes(), Path::new("auth.json")).unwrap();
    open(server, RegistryConfig::default(), &Credentials::in_data(file), &Cancel::new(), quick())
}

/// Downloads into memory; the bytes are those that came, whatever the outcome.
fn fetch(repository: &Repository, digest: &Digest, size: u64) -> (Vec<u8>, Result<(), RegistryError>) {
    let mut bytes = Vec::new();
    let mut sink = |chunk: &[u8]| {
        bytes.extend_from_slice(chunk);
        Ok(())
    };
    let outcome = repository.download(digest, size, &mut sink, &|_: DownloadEvent<'_>| {});
    (bytes, outcome)
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 31 + at / 256) % 251).unwrap()).collect()
}
