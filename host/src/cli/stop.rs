//! `magikvm stop`.

use super::{Outcome, for_each, pod_id};
use crate::pod::interface::PodRuntimeInterface;
use magikvm_proto::id::PodId;
use magikvm_proto::limits::MAX_GRACE_PERIOD_SECS;
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id, required = true)]
    pods: Vec<PodId>,
    /// Seconds between TERM and KILL [default: the pod's grace period]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=MAX_GRACE_PERIOD_SECS))]
    grace: Option<u64>,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let grace = args.grace.map(Duration::from_secs);
    Ok(for_each(&args.pods, |pod| Ok(pods.stop_pod(pod, grace)?)))
}
