//! `magikvm rm`.

use super::several::{self, Interrupted, Verb};
use super::{Outcome, pod_id};
use crate::pod::interface::{Force, PodRuntimeInterface};
use magikvm_proto::id::PodId;

const REMOVE: Verb = Verb { done: "removed", doing: "Removing", interrupted: Interrupted::Finish };

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pods: Vec<PodId>,
    /// Remove all pods
    #[arg(short, long, conflicts_with = "pods")]
    all: bool,
    /// Kill running pods first
    #[arg(short, long)]
    force: bool,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let chosen = several::choose(pods, &args.pods, args.all, |_| true)?;
    if chosen.is_empty() {
        return Ok(several::none(REMOVE, args.all));
    }
    let (pods, force) = (pods.clone(), if args.force { Force::Yes } else { Force::No });
    Ok(several::for_all(REMOVE, &chosen, move |pod| Ok(pods.delete_pod(pod, force)?)))
}
