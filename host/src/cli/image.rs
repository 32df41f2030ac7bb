//! `magikvm image`.

use super::error::{CliError, Kind};
use super::{Format, Outcome, print_as, ui};
use crate::image::reference::Reference;
use crate::image::source::Source;
use crate::image::store::ImageStore;
use crate::pod::interface::PodRuntimeInterface;
use std::process::ExitCode;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Bring an image in from a directory or archive
    Import {
        /// oci:DIR[:tag] or docker-archive:FILE
        source: String,
        /// Name under which pods refer to it
        #[arg(long, value_name = "REF")]
        name: String,
    },
    /// List images
    Ls {
        /// Print in this form
        #[arg(short, long)]
        output: Option<Format>,
    },
    /// Remove names of images, and each image with its last name
    Rm {
        /// Names
        #[arg(required = true, value_name = "REF")]
        names: Vec<String>,
    },
}

pub(super) fn main(_args: Args, _pods: &PodRuntimeInterface) -> Outcome { let _=(Kind::User, Format::Json, print_as, ui::line); let _: Option<(CliError, Reference, Source, ImageStore)> = None; Ok(ExitCode::SUCCESS) }
