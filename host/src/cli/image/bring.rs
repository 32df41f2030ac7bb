//! `image pull`, `import`, `export` and `tag`: images into the store and out of it.

use super::super::error::{CliError, Kind};
use super::super::interrupt::Interrupt;
use super::super::{Outcome, ui};
use super::reference;
use crate::image::{
    BringOptions, Cancel, ImageError, ImageStore, Platform, Policy, PullPolicy, PullSources, Reference,
    RootfsCompression, Source, Target, Wanted,
};
use crate::store::layout::Layout;
use clap::ValueEnum;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `pull`.
#[derive(Debug, clap::Args)]
pub(super) struct PullArgs {
    /// Images, as [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
    #[arg(required = true, value_name = "REF")]
    images: Vec<String>,
    /// When to pull from the registry
    #[arg(long, value_enum, default_value_t)]
    policy: When,
    /// Connect to the registry without TLS
    #[arg(long)]
    plain_http: bool,
    /// Fail if an image takes longer than this (90s, 5m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = super::super::duration::deadline_secs, allow_hyphen_values = true)]
    timeout: u64,
    #[command(flatten)]
    bring: BringArgs,
}

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// Source: oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:REF]
    source: String,
    /// Name of the image in the store [default: the names that the source has]
    #[arg(long, value_name = "REF")]
    name: Option<String>,
    #[command(flatten)]
    bring: BringArgs,
}

#[derive(Debug, clap::Args)]
struct BringArgs {
    /// Platform of the image, as OS/ARCHITECTURE[/VARIANT] [default: the host's]
    #[arg(long, value_parser = |text: &str| text.parse::<Platform>())]
    platform: Option<Platform>,
    /// Compression of the root file system; lz4 is smaller on disk and slower to build
    #[arg(long, value_name = "none|lz4", value_parser = |text: &str| text.parse::<RootfsCompression>())]
    compress: Option<RootfsCompression>,
    /// Do not print progress
    #[arg(short, long)]
    quiet: bool,
}

/// [`PullPolicy`] as a flag.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum When {
    /// Always ask the registry; download only what is not stored yet
    #[default]
    Always,
    /// Pull only if the image is not stored
    Missing,
    /// Never pull; fail if the image is not stored
    Never,
}

impl From<When> for PullPolicy {
    fn from(when: When) -> Self {
        match when {
            When::Always => Self::Always,
            When::Missing => Self::IfNotPresent,
            When::Never => Self::Never,
        }
    }
}

impl BringArgs {
    fn options(&self, cancel: Cancel) -> BringOptions {
        let platform = self.platform.clone().map_or_else(Wanted::host, Wanted::from);
        BringOptions { platform, cancel, compression: self.compress }
    }

    fn progress(&self) -> ui::LayerProgress {
        if self.quiet { ui::LayerProgress::silent() } else { ui::LayerProgress::new() }
    }
}

pub(super) fn pull(store: &ImageStore, args: &PullArgs, layout: &Layout) -> Outcome {
    let cancel = Cancel::new();
    let _interrupt = Interrupt::cancels(&cancel)?;
    let mut sources = PullSources::load(&layout.registries(), &layout.policy())?;
    if args.plain_http {
        sources.registries = sources.registries.with_plain_http();
    }
    let mut worst = ExitCode::SUCCESS;
    for image in &args.images {
        let pulled = reference(image).and_then(|name| {
            let options = args.bring.options(cancel.with_timeout(Duration::from_secs(args.timeout)));
            let progress = args.bring.progress();
            let record =
                store.pull(&name, &sources, args.policy.into(), &options, &|now| progress.show(&now));
            progress.end();
            Ok((name, record?))
        });
        match pulled {
            Ok((name, record)) => ui::line(&format!("{} {}", name.familiar(), record.id)),
            Err(error) => worst = error.report(),
        }
        if cancel.check().is_err() {
            break;
        }
    }
    Ok(worst)
}

pub(super) fn import(store: &ImageStore, args: &ImportArgs, layout: &Layout) -> Outcome {
    let source: Source = args.source.parse().map_err(|error| CliError::of(Kind::User, &BadSource(error)))?;
    let policy = Policy::load(&layout.policy()).map_err(ImageError::from)?;
    let given = args.name.as_deref().map(reference).transpose()?;
    let cancel = Cancel::new();
    let _interrupt = Interrupt::cancels(&cancel)?;
    let options = args.bring.options(cancel);
    let found = store.find_source(&source, &options)?;
    let names = match given {
        Some(name) => vec![name],
        None => found.names()?.to_vec(),
    };
    for name in &names {
        unsigned(&policy, name)?;
    }
    let Some((first, others)) = names.split_first() else { return Ok(ExitCode::SUCCESS) };
    let progress = args.bring.progress();
    let record = store.import_found(found, first, &options, &|now| progress.show(&now));
    progress.end();
    let id = record?.id;
    for name in others {
        store.tag(&id.to_string(), name)?;
    }
    for name in &names {
        ui::line(&format!("{} {id}", name.familiar()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Only `pull` may give an image a name for which the policy requires a signature.
fn unsigned(policy: &Policy, name: &Reference) -> Result<(), CliError> {
    match policy.requirement(name).keys(name).map_err(ImageError::from)? {
        None => Ok(()),
        Some(_) => {
            let message = format!(
                "the policy requires a signature for {}, which only a pulled image can have",
                name.familiar()
            );
            Err(CliError::new(Kind::User, message).hint(format!(
                "Pull it with `magikvm image pull {}`, or choose another name.",
                name.familiar()
            )))
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BadSource(crate::image::SourceError);

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct BadTarget(crate::image::TargetError);

pub(super) fn export(store: &ImageStore, image: &str, target: &str) -> Outcome {
    let target: Target = target.parse().map_err(|error| CliError::of(Kind::User, &BadTarget(error)))?;
    let found = store.resolve_text(image)?;
    let name = image.parse::<Reference>().ok().filter(|name| found.record.names.contains(name));
    let cancel = Cancel::new();
    let _interrupt = Interrupt::cancels(&cancel)?;
    store.export(&found, name.as_ref(), &target, &cancel)?;
    ui::line(&format!("{} {target}", found.id));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn tag(store: &ImageStore, image: &str, name: &str, layout: &Layout) -> Outcome {
    let name = reference(name)?;
    unsigned(&Policy::load(&layout.policy()).map_err(ImageError::from)?, &name)?;
    let record = store.tag(image, &name)?;
    ui::line(&format!("{} {}", name.familiar(), record.id));
    Ok(ExitCode::SUCCESS)
}
