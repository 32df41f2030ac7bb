//! `magikvm stop`.

use super::several::{self, Interrupted, Verb};
use super::{Outcome, duration, pod_id};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::lock::LockState;
use crate::store::record::Stage;
use magikvm_proto::id::PodId;
use magikvm_proto::limits::MAX_GRACE_PERIOD_SECS;
use std::time::Duration;

const STOP: Verb = Verb { done: "stopped", doing: "Stopping", interrupted: Interrupted::GoOn };

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pods: Vec<PodId>,
    /// Stop all running pods
    #[arg(short, long, conflicts_with = "pods")]
    all: bool,
    /// Time between TERM and KILL (30, 30s, 2m) [default: the pod's grace period]
    #[arg(long, value_name = "DURATION", value_parser = grace, allow_hyphen_values = true)]
    grace: Option<Duration>,
}

fn grace(text: &str) -> Result<Duration, String> {
    duration::duration(text, &(Duration::ZERO..=Duration::from_secs(MAX_GRACE_PERIOD_SECS)))
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let chosen = several::choose(pods, &args.pods, args.all, |found| {
        found.lock == LockState::Held && found.state.as_ref().is_none_or(|state| state.stage != Stage::Ended)
    })?;
    if chosen.is_empty() {
        return Ok(several::none(STOP, args.all));
    }
    let (pods, grace) = (pods.clone(), args.grace);
    Ok(several::for_all(STOP, &chosen, move |pod| Ok(pods.stop_pod(pod, grace)?)))
}
