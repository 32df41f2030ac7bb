//! `magikvm wait`.

use super::error::{CliError, Kind};
use super::jsonpath::{self, Path, PathError};
use super::select::{self, Filter, PodArg, pod_arg};
use super::{Outcome, duration, ui};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::status;
use crate::store::record::{Found, Stage};
use magikvm_proto::id::PodId;
use serde_json::Value;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often a pod is looked at. Its monitor may be killed, which nothing announces.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_name = "POD", value_parser = pod_arg)]
    pods: Vec<PodArg>,
    /// Wait for all pods that are there now
    #[arg(short, long, conflicts_with = "pods")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Wait for this instead of the pod's end: condition=TYPE[=STATUS], delete, or jsonpath={PATH}[=VALUE]
    #[arg(long = "for", value_name = "WHAT", value_parser = parse)]
    what: Option<Awaited>,
    /// Fail if it takes longer than this (90s, 5m, 2h)
    #[arg(long, value_name = "DURATION", value_parser = duration::deadline, allow_hyphen_values = true)]
    timeout: Option<Duration>,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq)]
enum Awaited {
    Condition {
        kind: &'static str,
        status: String,
    },
    Delete,
    Path {
        path: Path,
        /// Any value that is there, if none is named.
        value: Option<String>,
    },
}

/// The conditions that a pod has (core/v1 `PodConditionType`).
const CONDITIONS: [&str; 5] =
    ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];
/// What the status of a condition can be.
const STATUSES: [&str; 3] = ["True", "False", "Unknown"];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum ForError {
    #[error("must be condition=TYPE[=STATUS], delete, or jsonpath={{PATH}}[=VALUE]")]
    Unknown,
    #[error("a pod has no condition {name:?}; it has {known}", known = CONDITIONS.join(", "))]
    Condition { name: String },
    #[error("the status of a condition is True, False or Unknown, not {0:?}")]
    Status(String),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("unexpected {0:?} behind the path; a value is written behind `=`")]
    Rest(String),
}

fn parse(text: &str) -> Result<Awaited, ForError> {
    if text == "delete" {
        return Ok(Awaited::Delete);
    }
    if let Some(condition) = text.strip_prefix("condition=") {
        let (kind, status) = condition.split_once('=').unwrap_or((condition, "True"));
        let same = |known: &&&str| known.eq_ignore_ascii_case(kind);
        let kind =
            CONDITIONS.iter().find(same).ok_or_else(|| ForError::Condition { name: kind.to_owned() })?;
        if !STATUSES.iter().any(|known| known.eq_ignore_ascii_case(status)) {
            return Err(ForError::Status(status.to_owned()));
        }
        return Ok(Awaited::Condition { kind, status: status.to_owned() });
    }
    let path = text.strip_prefix("jsonpath=").ok_or(ForError::Unknown)?;
    let (path, rest) = Path::parse_prefix(path)?;
    let value = match rest {
        "" => None,
        rest => Some(rest.strip_prefix('=').ok_or_else(|| ForError::Rest(rest.to_owned()))?.to_owned()),
    };
    Ok(Awaited::Path { path, value })
}

impl Awaited {
    fn holds(&self, pod: &Value) -> Result<bool, CliError> {
        Ok(match self {
            Self::Condition { kind, status } => {
                let all = pod.pointer("/status/conditions").and_then(Value::as_array);
                all.into_iter().flatten().any(|one| {
                    one["type"] == **kind
                        && one["status"].as_str().is_some_and(|is| is.eq_ignore_ascii_case(status))
                })
            }
            Self::Delete => false,
            Self::Path { path, value } => {
                let found = path.find(pod)?;
                let mut there = found.into_iter().filter(|value| !value.is_null());
                match value {
                    None => there.next().is_some(),
                    Some(wanted) => there.any(|value| jsonpath::text(value) == *wanted),
                }
            }
        })
    }
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let chosen = select::choose(pods, &args.pods, args.all, &args.filter, |_| true)?;
    if chosen.is_empty() {
        let is_search = args.all || args.filter.choice().is_some();
        let why = if is_search { "There is no such pod" } else { "No pod was named" };
        ui::note(&format!("{why}, so there is none to wait for."));
    }
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    // All pods run meanwhile, so that waiting for one after the other takes no longer.
    let mut worst = ExitCode::SUCCESS;
    for pod in &chosen {
        let waited = match &args.what {
            None => wait(pods, pod, deadline).map(|code| code.to_string()),
            Some(what) => wait_for(pods, pod, what, &mut |_| pause(pod, deadline))
                .map(|()| format!("pod/{pod} condition met")),
        };
        match waited {
            Ok(line) => ui::line(&line),
            Err(error) => worst = error.report(),
        }
    }
    Ok(worst)
}

/// Waits until a pod is ready. `meanwhile` is called whenever it was looked at and is not, and may end the wait.
pub(super) fn ready(
    pods: &PodRuntimeInterface,
    id: &PodId,
    meanwhile: &mut dyn FnMut(&Found) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let what = Awaited::Condition { kind: "Ready", status: "True".to_owned() };
    wait_for(pods, id, &what, &mut |found| {
        meanwhile(found)?;
        std::thread::sleep(LOOK);
        Ok(())
    })
}

fn pause(id: &PodId, deadline: Option<Instant>) -> Result<(), CliError> {
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(CliError::new(Kind::User, format!("timed out waiting for pod {id}")).hint(format!(
            "See what it does with `magikvm inspect {id}`, or allow more time with `--timeout`."
        )));
    }
    std::thread::sleep(LOOK);
    Ok(())
}

/// Waits for the end of a pod and returns its exit code.
fn wait(pods: &PodRuntimeInterface, id: &PodId, deadline: Option<Instant>) -> Result<i32, CliError> {
    loop {
        let found = pods.find(id)?;
        if found.is_lost() {
            return Err(PodError::Lost(id.clone()).into());
        }
        if let Some(state) = found.state.filter(|state| state.stage == Stage::Ended) {
            return Ok(status::exit_code(&state));
        }
        pause(id, deadline)?;
    }
}

/// Waits until something holds of a pod, as long as it can become true.
fn wait_for(
    pods: &PodRuntimeInterface,
    id: &PodId,
    what: &Awaited,
    meanwhile: &mut dyn FnMut(&Found) -> Result<(), CliError>,
) -> Result<(), CliError> {
    loop {
        let found = match pods.find(id) {
            Err(PodError::NotFound { .. }) if *what == Awaited::Delete => return Ok(()),
            found => found?,
        };
        if what.holds(&status::kubernetes(&found))? {
            return Ok(());
        }
        let has_ended = |found: &Found| {
            found.state.as_ref().is_some_and(|state| state.stage == Stage::Ended) || found.is_lost()
        };
        if *what != Awaited::Delete && has_ended(&found) {
            let message = format!("pod {id} has ended, and what was waited for did not come");
            return Err(CliError::new(Kind::User, message)
                .hint(format!("See how it ended with `magikvm inspect {id}` and `magikvm logs {id}`.")));
        }
        meanwhile(&found)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_waited_for_is_read_and_found() {
        let pod = json!({
            "metadata": { "name": "web" },
            "status": {
                "phase": "Running",
                "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Initialized", "status": "False" }],
                "containerStatuses": [{ "restartCount": 2, "ready": true }],
            },
        });
        for (text, holds) in [
            ("condition=Ready", true),
            ("condition=ready=true", true),
            ("condition=Ready=False", false),
            ("condition=Initialized", false),
            ("condition=Initialized=false", true),
            ("delete", false),
            ("jsonpath={.status.phase}=Running", true),
            ("jsonpath={.status.phase}=Pending", false),
            ("jsonpath={.status.podIP}", false),
            ("jsonpath={.status.phase}", true),
            ("jsonpath=.status.containerStatuses[0].restartCount=2", true),
            ("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True", true),
            ("jsonpath={.status.containerStatuses[*].ready}=true", true),
            ("jsonpath={..restartCount}=2", true),
            ("jsonpath={.status.containerStatuses[0].ready}=true", true),
            ("jsonpath={.status.containerStatuses[1].ready}=true", false),
        ] {
            assert_eq!(parse(text).unwrap().holds(&pod).unwrap(), holds, "{text}");
        }
        for text in ["", "Ready", "path={.a}"] {
            assert_eq!(parse(text), Err(ForError::Unknown), "{text}");
        }
        for kind in ["", "Raedy", "Other", "ready "] {
            assert_eq!(
                parse(&format!("condition={kind}")),
                Err(ForError::Condition { name: kind.to_owned() })
            );
        }
        for status in ["", "Yes", "true,false"] {
            let wanted = Err(ForError::Status(status.to_owned()));
            assert_eq!(parse(&format!("condition=Ready={status}")), wanted);
        }
        for text in ["jsonpath=", "jsonpath={.status", "jsonpath={.a[x]}"] {
            assert!(matches!(parse(text), Err(ForError::Path(_))), "{text}");
        }
        assert_eq!(parse("jsonpath={.a}b"), Err(ForError::Rest("b".to_owned())));
    }
}
