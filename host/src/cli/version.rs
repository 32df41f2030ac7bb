//! `magikvm version`.

use super::{Format, Outcome, print_as, ui};
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
}

pub(super) fn main(args: &Args) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    match args.output {
        None => ui::line(&format!("magikvm {version}")),
        Some(format) => print_as(
            &json!({
                "version": version,
                "guestGeneration": magikvm_proto::GENERATION,
                "os": std::env::consts::OS,
                "architecture": std::env::consts::ARCH,
            }),
            format,
        )?,
    }
    Ok(ExitCode::SUCCESS)
}
