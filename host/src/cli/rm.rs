//! `magikvm rm`.

use super::{Outcome, for_each, pod_id};
use crate::pod::interface::{Force, PodRuntimeInterface};
use magikvm_proto::id::PodId;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id, required = true)]
    pods: Vec<PodId>,
    /// Kill running pods first
    #[arg(short, long)]
    force: bool,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let force = if args.force { Force::Yes } else { Force::No };
    Ok(for_each(&args.pods, |pod| Ok(pods.delete_pod(pod, force)?)))
}
