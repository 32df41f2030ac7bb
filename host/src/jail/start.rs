//! Starts a process in a jail: the process layer creates the child, and the two sides build the jail before its program begins.

use super::{Handover, JailError, JailSpec};
use crate::process::{self, Process, ProcessError};
use crate::store::sandbox::Role;
use std::os::fd::OwnedFd;
use std::process::Command;

/// Why a process is not in its jail.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process itself could not be started.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The process could not be put into its jail.
    #[error("cannot start {process} in a jail")]
    Jail {
        process: String,
        #[source]
        source: JailError,
    },
}

/// Starts a process in a jail. `command` is a command of [`super::command`] with standard input, output and error set; `inherits` are
/// additional descriptors that the specification does not contain. When this returns, the process is in its jail and its program has
/// begun.
pub fn spawn_jailed(
    role: Role,
    name: &str,
    command: &mut Command,
    spec: &JailSpec,
    inherits: &[(&OwnedFd, i32)],
) -> Result<Process, StartError> {
    let failed = |source| StartError::Jail { process: name.to_owned(), source };
    #[cfg(feature = "testing")]
    let spec = &with_inmate(name, spec);
    let handover = Handover::new(spec).map_err(failed)?;
    handover.attach(command);
    let mut process = process::spawn_with(role, name, command, inherits)?;
    let jailed = handover.complete(process.reference.pid).map_err(failed)?;
    process.enter(jailed.pid, jailed.layers, jailed.watch);
    Ok(process)
}

/// In builds for tests: `MAGIKVM_INMATE=NAME|PROGRAM|ARGUMENT…` puts another program into the jail of the process with this name.
#[cfg(feature = "testing")]
fn with_inmate(name: &str, spec: &JailSpec) -> JailSpec {
    let wanted = std::env::var("MAGIKVM_INMATE").unwrap_or_default();
    let mut words = wanted.split('|').map(str::to_owned);
    let mut spec = spec.clone();
    if words.next().as_deref() == Some(name)
        && let Some(path) = words.next()
    {
        spec.inside = super::Inside::Program { path: path.into(), arguments: words.collect() };
    }
    spec
}
