//! `magikvm kill`.

use super::{Outcome, pod_id};
use crate::pod::interface::PodRuntimeInterface;
use magikvm_proto::id::PodId;
use magikvm_proto::signal::Signal;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pod, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pod: PodId,
    /// Signal, as a name or number; the restart policy applies to containers that it ends
    #[arg(short, long, default_value = "KILL", value_parser = signal, allow_hyphen_values = true)]
    signal: Signal,
    /// Send the signal to this container only [default: all containers]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
}

fn signal(text: &str) -> Result<Signal, String> {
    text.parse().map_err(|error| format!("{text:?} {error}"))
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let found = pods.find(&args.pod)?;
    let container = match &args.container {
        Some(name) => Some(pods.container(&found, &args.pod, Some(name))?),
        None => None,
    };
    pods.signal(&found, &args.pod, container, args.signal.number())?;
    Ok(ExitCode::SUCCESS)
}
