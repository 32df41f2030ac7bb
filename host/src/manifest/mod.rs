//! Kubernetes manifests: as written (`k8s`) and as meant (`plan`). Pure: no file system, no process, no clock.
//!
//! Owns: reading YAML and JSON, the table of every Pod field and what happens to it ([`fields`]), validation, defaults,
//! the size of the VM, and what a container finally runs ([`resolve_process`]).
//! Must not know: images on disk, runtimes, hypervisors, the state directory.
//!
//! The stages of a manifest: bytes -> `node` (a tree with positions) -> `k8s` (checked against the field table) -> `build` ->
//! [`plan::PodPlan`]. ConfigMaps and Secrets in the same file (`objects`) become part of what the Pod uses of them. Every stage reports
//! all the problems it finds.

mod build;
mod checks;
mod environment;
pub mod expand;
mod facts;
pub mod fields;
mod ignored;
mod injected;
mod json;
mod k8s;
mod lists;
pub mod logs;
mod merge;
mod names;
pub mod network;
mod node;
mod objects;
pub mod plan;
pub mod ports;
mod problem;
mod process;
pub mod quantity;
mod resources;
mod scalar;
pub mod size;
mod sysctls;
mod volumes;
mod walk;
mod yaml;

pub use facts::PodFacts;
pub use ignored::Ignored;
pub use objects::{Content, NotBase64};
pub use plan::{ContainerSpec, PodPlan, PullPolicy, RuntimeClass};
pub use problem::{Mark, Problem, Problems};
pub use process::{DEFAULT_PATH, MAX_PROCESS_BYTES, ResolveError, ResolvedProcess, resolve_process};

use magikvm_proto::limits::MAX_MANIFEST_SIZE;
use node::Node;
use problem::{ProblemCollector, SyntaxError};

/// Parses a manifest with exactly one v1 Pod and any number of ConfigMaps and Secrets, as YAML or JSON.
///
/// `origin` is the file's name as the user wrote it (`-` for standard input); every line of an error begins with it.
pub fn parse(bytes: &[u8], origin: &str) -> Result<PodPlan, Problems> {
    parse_all(bytes, origin).map(|parsed| parsed.plan)
}

/// A manifest that can run.
#[derive(Debug)]
pub struct Parsed {
    pub plan: PodPlan,
    /// What it has beside, which changes nothing here.
    pub ignored: Vec<Ignored>,
}

/// As [`parse`], with what was ignored.
pub fn parse_all(bytes: &[u8], origin: &str) -> Result<Parsed, Problems> {
    let mut report = ProblemCollector::default();
    let plan = read(bytes, &mut report);
    match plan {
        Some(plan) if report.is_empty() => Ok(Parsed { plan, ignored: report.into_ignored() }),
        _ => Err(report.into_problems(origin)),
    }
}

fn read(bytes: &[u8], report: &mut ProblemCollector) -> Option<PodPlan> {
    if bytes.len() > MAX_MANIFEST_SIZE {
        report.whole(
            format!("is {} bytes long, at most {MAX_MANIFEST_SIZE} are allowed", bytes.len()),
            "keep large data out of the manifest",
        );
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            report.whole(
                format!("is not UTF-8 text (byte {} is not)", error.valid_up_to()),
                "save the manifest in UTF-8",
            );
            return None;
        }
    };
    let documents = match documents(text) {
        Ok(documents) => documents,
        Err(error) => {
            report.syntax(error);
            return None;
        }
    };
    let documents = lists::opened(documents, report);
    let (objects, root) = objects::sort(&documents, report);
    let pod = k8s::read(root?, &objects, report)?;
    build::build(&pod, &objects, report)
}

/// Reads all documents that are not empty. What is valid JSON is read as JSON, one value after the other, everything else as YAML.
fn documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // YAML is not quite a superset of JSON: tabs and surrogate pairs differ.
    let looks_like_json = text.trim_start().starts_with('{');
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    if looks_like_json && values.all(|value| value.is_ok()) { json::parse(text) } else { yaml::parse(text) }
}

#[cfg(test)]
mod tests;
