//! `magikvm pause` and `magikvm resume`.

use super::{Outcome, for_each, pod_id};
use crate::pod::interface::PodRuntimeInterface;
use magikvm_proto::id::PodId;

/// Arguments of both.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id, required = true)]
    pods: Vec<PodId>,
}

pub(super) fn pause(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    Ok(for_each(&args.pods, |pod| Ok(pods.pause_pod(pod)?)))
}

pub(super) fn resume(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    Ok(for_each(&args.pods, |pod| Ok(pods.resume_pod(pod)?)))
}
