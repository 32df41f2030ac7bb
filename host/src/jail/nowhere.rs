//! Systems without the isolation layers of Linux: processes start unconfined, and no layer is reported.

use super::spec::{Cgroup, Identity, JailSpec};
use super::{JailError, Jailed};
use crate::process::{Layer, Layers};
use std::path::{Path, PathBuf};
use std::process::Command;

const WHY: &str = "only Linux has it";

/// A process that is about to be started.
#[derive(Debug)]
pub struct Handover(JailSpec);

impl Handover {
    pub fn new(spec: &JailSpec) -> Result<Self, JailError> {
        Ok(Self(spec.clone()))
    }

    pub fn attach(&self, command: &mut Command) {
        match &self.0.inside {
            super::Inside::Program { .. } => {}
            super::Inside::Verb(verb) => drop(command.arg(verb)),
        }
        command.current_dir(&self.0.working_dir);
    }

    pub fn complete(self, pid: i32) -> Result<Jailed, JailError> {
        let mut layers = Layers::default();
        for layer in Layer::ALL {
            layers.miss(layer, WHY);
        }
        if self.0.requirement == super::Requirement::Require
            && let Some(missing) = layers.missing.first()
        {
            return Err(JailError::Missing(missing.clone()));
        }
        Ok(Jailed { pid, layers, watch: None })
    }
}

/// No such verb exists here.
pub fn enter() -> Result<String, i32> {
    Err(70)
}

pub fn identity(_machine: &str, _reads: &[PathBuf]) -> Identity {
    Identity::Caller(Some(WHY.to_owned()))
}

/// Everything already belongs to the user.
pub fn give(_dir: &Path, _identity: &Identity) -> std::io::Result<()> {
    Ok(())
}

pub fn place_cgroup(_name: &str) -> Result<Cgroup, String> {
    Err(WHY.to_owned())
}

/// There are none.
pub fn all_cgroups(_name: &str) -> Vec<PathBuf> {
    Vec::new()
}

pub fn make_cgroup(_cgroup: &Cgroup, _memory_bytes: u64, _pids: u64) -> Result<(), String> {
    Err(WHY.to_owned())
}
