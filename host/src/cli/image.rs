//! `magikvm image`.

use super::error::{CliError, Kind};
use super::{Format, Outcome, print_as, ui};
use crate::image::{ImageError, ImageStore, Reference, Removed, Source};
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
        /// oci:DIR[:TAG] or docker-archive:FILE
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

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        let kind = match error {
            ImageError::File(_)
            | ImageError::Damaged { .. }
            | ImageError::Index { .. }
            | ImageError::Newer { .. } => Kind::Environment,
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
        failed.hint("a name looks like registry.example/team/app:1.0")
    })
}

#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an image's name")]
struct BadReference {
    text: String,
    source: crate::image::ReferenceError,
}

pub(super) fn main(args: Args, pods: &PodRuntimeInterface) -> Outcome {
    let store = ImageStore::open(&pods.layout().images())?;
    match args.verb {
        Verb::Import { source, name } => import(&store, &source, &name),
        Verb::Ls { output } => list(&store, output),
        Verb::Rm { names } => {
            let mut worst = ExitCode::SUCCESS;
            for name in &names {
                if let Err(error) = remove(&store, name) {
                    worst = error.report();
                }
            }
            Ok(worst)
        }
    }
}

fn import(store: &ImageStore, source: &str, name: &str) -> Outcome {
    let source: Source = source.parse().map_err(|error| CliError::of(Kind::User, &BadSource(error)))?;
    let name = reference(name)?;
    let progress = std::sync::Mutex::new(ui::Progress::new());
    let record = store.import(&source, &name, &crate::image::BringOptions::default(), &|now| progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner).show(&now.to_string()));
    progress.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).end();
    let record = record?;
    ui::line(&format!("{} {}", name.familiar(), record.id));
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BadSource(crate::image::SourceError);

fn list(store: &ImageStore, output: Option<Format>) -> Outcome {
    let records = store.list()?;
    if let Some(format) = output {
        let value = serde_json::to_value(&records).map_err(|error| CliError::of(Kind::Internal, &error))?;
        print_as(&value, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![["NAME", "IMAGE ID", "ROOTFS SIZE"].map(str::to_owned).to_vec()];
    for record in &records {
        let mut names: Vec<String> = record.names.iter().map(Reference::familiar).collect();
        if names.is_empty() {
            names.push("<none>".to_owned());
        }
        for name in names {
            rows.push(vec![name, short(&record.id.to_string()), ui::size(record.size_bytes)]);
        }
    }
    ui::table(&rows);
    Ok(ExitCode::SUCCESS)
}

/// The first twelve digits, which tell images of one machine apart.
fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}

fn remove(store: &ImageStore, name: &str) -> Result<(), CliError> {
    match store.remove(name)? {
        Removed::Name => ui::line(&format!("untagged {name}")),
        Removed::Image { id, freed_bytes } => {
            ui::line(&format!("removed {name} ({id}, {} freed)", ui::size(freed_bytes)));
        }
    }
    Ok(())
}
