//! `magikvm inspect`.

use super::error::{CliError, Kind};
use super::{Format, Outcome, pod_id, print_as};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::status;
use magikvm_proto::id::PodId;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pod, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pod: PodId,
    /// Output format
    #[arg(short, long, default_value = "yaml")]
    output: Format,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let found = pods.find(&args.pod)?;
    if found.is_lost() && found.record.is_none() && found.damage.is_empty() {
        let message = format!("the start of pod {} was interrupted; it has no record", args.pod);
        return Err(CliError::new(Kind::User, message)
            .hint(format!("Remove what is left of it with `magikvm rm {}`.", args.pod)));
    }
    print_as(&status::kubernetes(&found), args.output)?;
    Ok(ExitCode::SUCCESS)
}
