//! The client against misbehaving servers on loopback.

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

/// Runs one future on a separate runtime.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// The real number of attempts without the pauses.
fn quick() -> Timing {
    Timing {
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(10),
        connect: Duration::from_secs(20),
        stall: Duration::from_secs(20),
        ..Timing::default()
    }
}

/// Short enough to wait for, long enough for a busy host.
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

/// Downloads into memory; returns the received bytes whatever the outcome.
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
