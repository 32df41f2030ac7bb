//! `magikvm down`.

use super::error::{CliError, Kind};
use super::input::Files;
use super::{Outcome, origin, ui};
use crate::manifest::input::{self, Named, Source};
use crate::pod::interface::{Force, PodError, PodRuntimeInterface};
use crate::store::text::ignore;
use magikvm_proto::id::PodId;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let sources = args.files.read()?;
    let (ids, mut worst) = names_in(&sources, "magikvm rm -f")?;
    for id in &ids {
        let found = match pods.find(id) {
            Err(PodError::NotFound { .. }) => {
                ui::note(&format!("There is no pod {id}."));
                continue;
            }
            found => found,
        };
        let checked = found.map_err(CliError::from).and_then(|found| origin::check(&found, &sources));
        match checked.and_then(|()| remove(pods, id)) {
            Ok(()) => ui::line(&id.to_string()),
            Err(error) => worst = error.report(),
        }
    }
    Ok(worst)
}

/// The pods of manifests in the order in which they are removed, and the exit code so far: a name that was made when a pod was run is
/// reported with the command that removes the pod.
pub(super) fn names(files: &Files, command: &str) -> Result<(Vec<PodId>, ExitCode), CliError> {
    names_in(&files.read()?, command)
}

fn names_in(sources: &[Source], command: &str) -> Result<(Vec<PodId>, ExitCode), CliError> {
    let names = input::names(sources)
        .map_err(|problems| CliError::new(Kind::User, problems.to_string().trim_end().to_owned()))?;
    let mut worst = ExitCode::SUCCESS;
    let mut ids: Vec<PodId> = Vec::new();
    // What was started last may need what was started first.
    for name in names.into_iter().rev() {
        match name {
            Named::Pod(id) if ids.contains(&id) => {}
            Named::Pod(id) => ids.push(id),
            Named::Generated(prefix) => {
                let message = format!(
                    "a Pod got a name that begins with {prefix:?} when it was run, and its manifest does not tell which"
                );
                worst = CliError::new(Kind::User, message)
                    .hint(format!("Find it with `magikvm ps`, and remove it with `{command} NAME`."))
                    .report();
            }
        }
    }
    Ok((ids, worst))
}

/// Stops a pod with its grace period and removes it. One that cannot be stopped is killed.
pub(super) fn remove(pods: &PodRuntimeInterface, id: &PodId) -> Result<(), CliError> {
    remove_within(pods, id, None)
}

/// The same with another grace period.
pub(super) fn remove_within(
    pods: &PodRuntimeInterface,
    id: &PodId,
    grace: Option<Duration>,
) -> Result<(), CliError> {
    ignore(pods.stop_pod(id, grace), "what cannot be stopped is killed");
    match pods.delete_pod(id, Force::Yes) {
        // Somebody else was faster, or it was to be removed at its end.
        Ok(()) | Err(PodError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
