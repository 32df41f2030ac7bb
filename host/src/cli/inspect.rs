//! `magikvm inspect`.

use super::Outcome;
use super::error::{CliError, Kind};
use super::output::{self, Output, OutputParser, Shape};
use super::select::OnePod;
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::status;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: OnePod,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml", value_parser = OutputParser { lists: false })]
    output: Output,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let pod = args.target.id(pods)?;
    let found = pods.find(&pod)?;
    if found.is_lost() && found.record.is_none() && found.damage.is_empty() {
        let message = format!("the start of pod {} was interrupted; it has no record", pod);
        return Err(CliError::new(Kind::User, message)
            .hint(format!("Remove what is left of it with `magikvm rm {}`.", pod)));
    }
    output::print(vec![status::kubernetes(&found)], Shape::One, &args.output, true)?;
    Ok(ExitCode::SUCCESS)
}
