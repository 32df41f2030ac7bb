//! `magikvm stop`.

use super::error::{CliError, Kind};
use super::select::Several;
use super::several::{self, Interrupted, Verb};
use super::{Outcome, duration};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::lock::LockState;
use crate::store::record::Stage;
use magikvm_proto::limits::GRACE_PERIOD_BOUND_SECS;
use magikvm_proto::raised;
use std::time::Duration;

const STOP: Verb = Verb { done: "stopped", doing: "Stopping", interrupted: Interrupted::GoOn };

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    chosen: Several,
    /// Time between TERM and KILL (30, 30s, 2m) [default: the pod's grace period]
    #[arg(long, value_name = "DURATION", value_parser = grace, allow_hyphen_values = true)]
    grace: Option<Duration>,
}

pub(super) fn grace(text: &str) -> Result<Duration, String> {
    duration::duration(text, &(Duration::ZERO..=Duration::from_secs(GRACE_PERIOD_BOUND_SECS)))
}

/// Checks against the limit in force, which is that of manifests. It is not known yet when the arguments are parsed.
pub(super) fn check(option: &str, grace: Duration) -> Result<(), CliError> {
    let max = Duration::from_secs(raised::in_force().grace_secs);
    if grace <= max {
        return Ok(());
    }
    let (asked, max) = (duration::short(grace), duration::short(max));
    let message = format!("{option}: {asked} is longer than {max}, the longest grace period");
    Err(CliError::new(Kind::Code(2), message)
        .hint(format!("Choose a shorter one; {}.", raised::remedy("grace-secs"))))
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    args.grace.map_or(Ok(()), |grace| check("--grace", grace))?;
    let chosen = args.chosen.choose(pods, |found| {
        found.lock == LockState::Held && found.state.as_ref().is_none_or(|state| state.stage != Stage::Ended)
    })?;
    if chosen.is_empty() {
        return Ok(several::none(STOP, args.chosen.is_search()));
    }
    let (pods, grace) = (pods.clone(), args.grace);
    Ok(several::for_all(STOP, &chosen, move |pod| Ok(pods.stop_pod(pod, grace)?)))
}
