//! `magikvm wait`.

use super::error::CliError;
use super::{Outcome, pod_id, ui};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::status;
use crate::store::record::Stage;
use magikvm_proto::id::PodId;
use std::process::ExitCode;
use std::time::Duration;

/// How often a pod is looked at. Its monitor may be killed, which nothing announces.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pods: Vec<PodId>,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    if args.pods.is_empty() {
        ui::note("No pod was named, so there is none to wait for.");
    }
    // All pods run meanwhile, so that waiting for one after the other takes no longer.
    let mut worst = ExitCode::SUCCESS;
    for pod in &args.pods {
        match wait(pods, pod) {
            Ok(code) => ui::line(&code.to_string()),
            Err(error) => worst = error.report(),
        }
    }
    Ok(worst)
}

/// Waits for the end of a pod and returns its exit code.
fn wait(pods: &PodRuntimeInterface, id: &PodId) -> Result<i32, CliError> {
    loop {
        let found = pods.find(id)?;
        if found.is_lost() {
            return Err(PodError::Lost(id.clone()).into());
        }
        if let Some(state) = found.state.filter(|state| state.stage == Stage::Ended) {
            return Ok(status::exit_code(&state));
        }
        std::thread::sleep(LOOK);
    }
}
