//! `magikvm image`: one file per group of verbs.

mod bring;
mod show;
mod upkeep;

use super::Outcome;
use super::error::{CliError, Kind};
use super::ps::How;
use crate::image::{ImageError, ImageStore, Reference};
use crate::pod::interface::PodRuntimeInterface;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Pull images from their registries
    Pull(bring::PullArgs),
    /// List images
    Ls(show::LsArgs),
    /// Show the details of images
    Inspect(show::InspectArgs),
    /// Add a name to an image
    Tag {
        /// Name or id of the image
        image: String,
        /// Name to add
        #[arg(value_name = "REF")]
        name: String,
    },
    /// Remove names of images; an image is removed with its last name
    Rm {
        /// Names or ids of images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Remove images that no pod uses
    Prune(upkeep::PruneArgs),
    /// Import an image from a directory or an archive
    Import(bring::ImportArgs),
    /// Export an image to a directory or an archive
    Export {
        /// Name or id of the image
        image: String,
        /// Target: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE, erofs:FILE or dir:DIR
        target: String,
    },
    /// Verify images against their recorded digests
    Verify(upkeep::VerifyArgs),
    /// Show the disk usage of images
    Df(upkeep::DfArgs),
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        let kind = match &error {
            error if error.is_cancelled() => Kind::Code(130),
            error if error.is_of_machine() => Kind::Environment,
            _ => Kind::User,
        };
        let plain = Self::of(kind, &error);
        match error.hint() {
            Some(hint) => plain.hint(hint),
            None => plain,
        }
    }
}

fn reference(text: &str) -> Result<Reference, CliError> {
    text.parse().map_err(|error| {
        let failed = CliError::of(Kind::User, &BadReference { text: text.to_owned(), source: error });
        failed.hint("Use a name like `registry.example/team/app:1.0`.")
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not the name of an image")]
struct BadReference {
    text: String,
    source: crate::image::ReferenceError,
}

/// `magikvm get images`.
pub(super) fn get(names: &[&str], how: &How, pods: &PodRuntimeInterface) -> Outcome {
    show::get(&ImageStore::open(&pods.layout().images())?, names, how)
}

pub(super) fn main(args: Args, pods: &PodRuntimeInterface) -> Outcome {
    let store = ImageStore::open(&pods.layout().images())?;
    match args.verb {
        Verb::Pull(args) => bring::pull(&store, &args, pods.layout()),
        Verb::Import(args) => bring::import(&store, &args, pods.layout()),
        Verb::Export { image, target } => bring::export(&store, &image, &target),
        Verb::Tag { image, name } => bring::tag(&store, &image, &name, pods.layout()),
        Verb::Ls(args) => show::list(&store, &args),
        Verb::Inspect(args) => show::inspect(&store, &args),
        Verb::Rm { images } => upkeep::remove(&store, &images),
        Verb::Prune(args) => upkeep::prune(&store, &args),
        Verb::Verify(args) => upkeep::verify(&store, &args),
        Verb::Df(args) => upkeep::usage(&store, &args),
    }
}
