//! `magikvm kill`.

use super::Outcome;
use super::select::OnePod;
use crate::pod::interface::PodRuntimeInterface;
use magikvm_proto::signal::Signal;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: OnePod,
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
    let pod = args.target.id(pods)?;
    let found = pods.find(&pod)?;
    let container = match &args.container {
        Some(name) => Some(pods.container(&found, &pod, Some(name))?),
        None => None,
    };
    pods.signal(&found, &pod, container, args.signal.number())?;
    Ok(ExitCode::SUCCESS)
}
