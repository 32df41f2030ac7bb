//! Starts threads. The standard library's `spawn` panics where the limit of processes is reached; here that is an error.

use std::io;
use std::thread::{Builder, JoinHandle};

/// A thread that could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the thread {name:?}")]
pub struct ThreadError {
    /// For people, and for `top -H`.
    pub name: String,
    #[source]
    pub source: io::Error,
}

impl From<ThreadError> for io::Error {
    fn from(error: ThreadError) -> Self {
        Self::new(error.source.kind(), error)
    }
}

/// Starts a thread. Its name has at most 15 bytes.
pub fn start<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ThreadError> {
    start_with(Builder::new(), name, body)
}

/// Starts a thread with a stack of this many bytes.
pub fn start_small<T: Send + 'static>(
    name: &str,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ThreadError> {
    start_with(Builder::new().stack_size(stack), name, body)
}

fn start_with<T: Send + 'static>(
    builder: Builder,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, ThreadError> {
    builder.name(name.to_owned()).spawn(body).map_err(|source| ThreadError { name: name.to_owned(), source })
}
