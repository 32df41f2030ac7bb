//! `magikvm rm`.

use super::Outcome;
use super::select::Several;
use super::several::{self, Interrupted, Verb};
use crate::pod::interface::{Force, PodRuntimeInterface};

pub(super) const REMOVE: Verb = Verb { done: "removed", doing: "Removing", interrupted: Interrupted::Finish };

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    chosen: Several,
    /// Kill running pods first
    #[arg(short, long)]
    force: bool,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let chosen = args.chosen.choose(pods, |_| true)?;
    if chosen.is_empty() {
        return Ok(several::none(REMOVE, args.chosen.is_search()));
    }
    let (pods, force) = (pods.clone(), if args.force { Force::Yes } else { Force::No });
    Ok(several::for_all(REMOVE, &chosen, move |pod| Ok(pods.delete_pod(pod, force)?)))
}
