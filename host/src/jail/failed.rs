//! A failed step on the way into a jail: its name, its path and the error number.

use nix::errno::Errno;
use nix::libc;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct Failed {
    pub(super) step: String,
    pub(super) path: Option<PathBuf>,
    pub(super) errno: i32,
}

impl Failed {
    pub(super) fn new(step: &str, path: Option<&Path>, errno: Errno) -> Self {
        Self { step: step.to_owned(), path: path.map(Path::to_owned), errno: errno as i32 }
    }
}

/// An error with a number.
pub(super) trait Number {
    fn number(&self) -> i32;
}

impl Number for Errno {
    fn number(&self) -> i32 {
        *self as i32
    }
}

impl Number for std::io::Error {
    fn number(&self) -> i32 {
        self.raw_os_error().unwrap_or(libc::EIO)
    }
}

impl Number for rustix::io::Errno {
    fn number(&self) -> i32 {
        self.raw_os_error()
    }
}

/// Adds the step and the path to a result.
pub(super) fn at<T, E: Number>(step: &str, path: &Path, result: Result<T, E>) -> Result<T, Failed> {
    result.map_err(|error| Failed {
        step: step.to_owned(),
        path: Some(path.to_owned()),
        errno: error.number(),
    })
}

/// Adds the step to a result.
pub(super) fn step<T, E: Number>(step: &str, result: Result<T, E>) -> Result<T, Failed> {
    result.map_err(|error| Failed { step: step.to_owned(), path: None, errno: error.number() })
}
