//! Kubernetes manifests: as written (`k8s`) and as meant (`plan`). Pure: no file system, no process, no clock.
//!
//! Owns: reading YAML and JSON, the table of every Pod field and what happens to it ([`fields`]), validation, defaults,
//! the size of the VM, and what a container finally runs ([`resolve_process`]).
//! Must not know: images on disk, runtimes, hypervisors, the state directory.
//!
//! The stages of an input: the bytes of its files -> `documents` (trees with positions: `node`) -> `input` (what each document is: `kinds`) ->
//! for each Pod `k8s` (checked against the field table) -> `build` -> [`plan::PodPlan`]. ConfigMaps and Secrets of any file (`objects`)
//! become part of what a Pod uses of them. Every stage reports all the problems it finds.

mod build;
mod checks;
mod class;
mod documents;
pub mod downward;
mod environment;
pub mod expand;
mod facts;
pub mod fields;
mod generated;
mod ignored;
mod injected;
pub mod input;
mod json;
mod k8s;
mod kinds;
mod lifecycle;
mod lists;
pub mod logs;
mod merge;
mod names;
pub mod network;
mod node;
mod objects;
pub mod plan;
pub mod ports;
mod probes;
mod problem;
mod process;
mod profiles;
mod pull_secrets;
mod qos;
pub mod quantity;
mod resources;
mod scalar;
mod security;
mod service_directory;
pub mod size;
mod sysctls;
mod volume_files;
mod volumes;
mod walk;
mod yaml;

pub use facts::{Capacity, PodFacts};
pub use ignored::Ignored;
pub use input::{AllProblems, Input, Manifests, Parsed};
pub use objects::{AccessMode, Claim, Content, NotBase64, ObjectKind, VolumeMode};
pub use plan::{ContainerSpec, PodPlan, Protocol, PullPolicy, PullSecret, RuntimeClass};
pub use problem::{Mark, Problem, Problems};
pub use process::{DEFAULT_PATH, MAX_PROCESS_BYTES, ResolveError, ResolvedProcess, resolve_process};
pub use qos::{QosClass, qos_of};
pub(crate) use resources::huge_pages;

use input::{Accepts, Source};

/// The name for a Pod with a `generateName`, from random bytes.
pub fn generated_name(prefix: &str, random: impl Iterator<Item = u8>) -> Option<String> {
    generated::name(prefix, random)
}

/// Parses a manifest with exactly one v1 Pod and any number of ConfigMaps and Secrets, as YAML or JSON.
///
/// `origin` is the file's name as the user wrote it (`-` for standard input); every line of an error begins with it.
pub fn parse(bytes: &[u8], origin: &str) -> Result<PodPlan, AllProblems> {
    parse_all(bytes, origin).map(|parsed| parsed.plan)
}

/// As [`parse`], with what was ignored.
pub fn parse_all(bytes: &[u8], origin: &str) -> Result<Parsed, AllProblems> {
    let source = Source { origin: origin.to_owned(), bytes: bytes.to_vec(), accepts: Accepts::Everything };
    let mut read = input::read(&[source], &mut |_, _| None);
    if let [_, second, ..] = &read.pods[..] {
        let message = "a second Pod begins here".to_owned();
        let hint = "put it into a separate file".to_owned();
        let problem = Problem { path: String::new(), at: Some(second.at), message, hint };
        read.files[0].problems.list.push(problem);
    }
    let Manifests { mut pods, ignored, .. } = read.into_manifests()?;
    let mut parsed = pods.remove(0);
    parsed.ignored.extend(ignored);
    Ok(parsed)
}

#[cfg(test)]
mod tests;
