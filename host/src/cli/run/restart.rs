//! `magikvm restart`: stops pods and runs them again as they were run.

use super::{Signals, coded, start};
use crate::cli::error::{CliError, Kind};
use crate::cli::select::Several;
use crate::cli::{Outcome, stop, ui};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::run::{Replaces, RunRequest};
use crate::store::text::chain;
use magikvm_proto::id::PodId;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A pod is run again with the manifest, ConfigMaps, Secrets, ports and options of its last run, in the background, whether it runs or has ended. It is checked first whether this host can run it and has its images. If the new pod cannot start all the same, the old one stays with its status and logs."
)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    chosen: Several,
    /// Time between TERM and KILL (30, 30s, 2m) [default: the pod's grace period]
    #[arg(long, value_name = "DURATION", value_parser = stop::grace, allow_hyphen_values = true)]
    grace: Option<Duration>,
}

pub(in crate::cli) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    args.grace.map_or(Ok(()), |grace| stop::check("--grace", grace))?;
    let chosen = args.chosen.choose(pods, |found| found.record.is_some())?;
    if chosen.is_empty() {
        let why = if args.chosen.is_search() { "There is no such pod" } else { "No pod was named" };
        ui::note(&format!("{why}, so none was restarted."));
        return Ok(ExitCode::SUCCESS);
    }
    coded(|caught| {
        let mut requests = Vec::new();
        for id in &chosen {
            let request = request(pods, id)?;
            pods.check_limits(&request).map_err(CliError::of_failure)?;
            super::check_replacement(pods, &request)?;
            requests.push(request);
        }
        let watch = Signals::block(Arc::clone(caught)).watch(pods.clone(), chosen.clone())?;
        let mut worst = ExitCode::SUCCESS;
        for (index, request) in requests.iter().enumerate() {
            watch.check()?;
            match again(pods, request, args.grace, index, &watch) {
                Ok(()) => ui::line(&request.plan.id.to_string()),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => worst = error.report(),
            }
        }
        Ok(worst)
    })
}

/// What a pod was run with.
fn request(pods: &PodRuntimeInterface, id: &PodId) -> Result<RunRequest, CliError> {
    let found = pods.find(id)?;
    if found.is_starting() {
        return Err(PodError::Starting(id.clone()).into());
    }
    let request = pods.run_request(&found).map_err(|error| {
        let message = format!("it is not known how pod {id} was run: {}", chain(&error));
        CliError::new(Kind::User, message)
            .hint("Run it from its manifest with `magikvm run -d --replace FILE`.")
    })?;
    Ok(RunRequest { replaces: Replaces::OldPod, ..request })
}

fn again(
    pods: &PodRuntimeInterface,
    request: &RunRequest,
    grace: Option<Duration>,
    index: usize,
    watch: &super::Watch,
) -> Result<(), CliError> {
    let id = &request.plan.id;
    pods.stop_pod(id, grace)?;
    let aside = pods.put_aside(id)?;
    let started = start::start(pods, request, index, watch, None);
    match (started, aside) {
        (Ok(_), aside) => {
            watch.waits();
            aside.map_or(Ok(()), |aside| Ok(aside.discard()?))
        }
        (Err(error), Some(aside)) => {
            match aside.restore() {
                Ok(()) => ui::note(&format!(
                    "Pod {id} has been stopped and cannot start again; its status and logs are kept."
                )),
                Err(error) => ui::warn(&format!("pod {id} could not be put back: {}", chain(&error))),
            }
            Err(error)
        }
        (Err(error), None) => Err(error),
    }
}
