//! Manual pages, made from the definitions of the command line. `ci/install.sh` installs them.

use super::error::{CliError, Kind};
use super::{Args as Magikvm, Outcome};
use crate::store::atomic::FileError;
use clap::CommandFactory;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// An existing directory
    dir: PathBuf,
}

pub(super) fn main(args: &Args) -> Outcome {
    // Values that the environment has now do not belong into a page.
    let command = super::parse::without_environment_values(Magikvm::command());
    clap_mangen::generate_to(command, &args.dir).map_err(|error| {
        CliError::of(Kind::Environment, &FileError::at("write pages to", &args.dir)(error))
    })?;
    Ok(ExitCode::SUCCESS)
}
