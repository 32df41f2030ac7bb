//! `magikvm pause` and `magikvm resume`.

use super::Outcome;
use super::select::Several;
use super::several::{self, Interrupted, Verb};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::lock::LockState;
use crate::store::record::Stage;
use magikvm_proto::id::PodId;

const PAUSE: Verb = Verb { done: "paused", doing: "Pausing", interrupted: Interrupted::GoOn };
const RESUME: Verb = Verb { done: "resumed", doing: "Resuming", interrupted: Interrupted::GoOn };

/// Arguments of both.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    chosen: Several,
}

/// The pods of the command line, or with `--all` those that run.
fn choose(args: &Args, pods: &PodRuntimeInterface) -> Result<Vec<PodId>, super::error::CliError> {
    args.chosen.choose(pods, |found| {
        found.lock == LockState::Held
            && found.state.as_ref().is_some_and(|state| state.stage == Stage::Running)
    })
}

pub(super) fn pause(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let chosen = choose(args, pods)?;
    if chosen.is_empty() {
        return Ok(several::none(PAUSE, args.chosen.is_search()));
    }
    let pods = pods.clone();
    Ok(several::for_all(PAUSE, &chosen, move |pod| Ok(pods.pause_pod(pod)?)))
}

pub(super) fn resume(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let chosen = choose(args, pods)?;
    if chosen.is_empty() {
        return Ok(several::none(RESUME, args.chosen.is_search()));
    }
    let pods = pods.clone();
    Ok(several::for_all(RESUME, &chosen, move |pod| Ok(pods.resume_pod(pod)?)))
}
