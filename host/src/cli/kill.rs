//! `magikvm kill`.

use super::{Outcome, pod_id};
use crate::pod::interface::PodRuntimeInterface;
use magikvm_proto::id::PodId;
use magikvm_proto::wire::{Done, Request};
use nix::sys::signal::Signal;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pod, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pod: PodId,
    /// Signal, as a name or number; the restart policy applies to containers that it ends
    #[arg(short, long, default_value = "KILL", value_parser = signal)]
    signal: i32,
    /// Send the signal to this container only [default: all containers]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
}

/// `KILL`, `SIGKILL`, `kill` or `9`.
fn signal(text: &str) -> Result<i32, String> {
    let unknown = || format!("unknown signal {text:?}: use a name such as TERM or a number from 1 to 64");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    name.parse::<Signal>().map(|signal| signal as i32).map_err(|_| unknown())
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let found = pods.find(&args.pod)?;
    let container = match &args.container {
        Some(name) => Some(pods.container(&found, &args.pod, Some(name))?),
        None => None,
    };
    let mut agent = pods.agent(&found, &args.pod)?;
    let Done {} = agent
        .request(&Request::Signal { container, signal: args.signal })
        .map_err(|error| pods.explain(&args.pod, error))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for text in ["9", "KILL", "SIGKILL", "kill"] {
            assert_eq!(signal(text), Ok(9), "{text}");
        }
        for text in ["0", "65", "-1", "NOPE", ""] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
