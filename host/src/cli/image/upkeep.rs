//! `image rm`, `prune`, `verify` and `df`.

use super::super::error::CliError;
use super::super::interrupt::Interrupt;
use super::super::{Format, Outcome, print_as, ui};
use crate::image::{
    Cancel, Digest, ImageError, ImageStore, PruneOptions, PruneScope, Really, Reference, Removed, UsageRow,
};
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `prune`.
#[derive(Debug, clap::Args)]
pub(super) struct PruneArgs {
    /// Remove all images that no pod uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Remove only images that were unused for this long: 90s, 30m, 12h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    until: Option<Duration>,
    /// Remove the longest unused images until all images take at most this much: 500M, 20G (implies --all)
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    keep_storage: Option<u64>,
    /// Print what would be removed, but remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
}

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(super) struct VerifyArgs {
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required_unless_present = "all")]
    images: Vec<String>,
    /// Verify all images
    #[arg(short, long, conflicts_with = "images")]
    all: bool,
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
}

/// Arguments of `df`.
#[derive(Debug, clap::Args)]
pub(super) struct DfArgs {
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
}

/// `90s`, `30m`, `12h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a duration is a whole number and a unit: 90s, 30m, 12h, 7d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// `4096`, `500M`, `20Gi`: powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "a size is a whole number of bytes, or one with K, M, G or T (of 1024)".to_owned();
    let number_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let shift = match unit.trim_end_matches('B').trim_end_matches('i') {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(wrong)
}

pub(super) fn remove(store: &ImageStore, images: &[String]) -> Outcome {
    let mut worst = ExitCode::SUCCESS;
    for image in images {
        match store.remove(image) {
            Ok(Removed::Name) => ui::line(&format!("untagged {image}")),
            Ok(Removed::Image { id, freed_bytes }) => {
                ui::line(&format!("removed {image} ({id}, {} freed)", ui::size(freed_bytes)));
            }
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    Ok(worst)
}

pub(super) fn prune(store: &ImageStore, args: &PruneArgs) -> Outcome {
    let options = PruneOptions {
        scope: match args.all || args.keep_storage.is_some() {
            true => PruneScope::All,
            false => PruneScope::Nameless,
        },
        unused_for: args.until,
        keep_storage_bytes: args.keep_storage,
        really: if args.dry_run { Really::Say } else { Really::Do },
    };
    let pruned = store.prune(&options)?;
    if let Some(format) = args.output {
        print_as(&json!(pruned), format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (removed, freed) = if args.dry_run { ("would remove", "would free") } else { ("removed", "freed") };
    for image in &pruned.images {
        let names: Vec<String> = image.names.iter().map(Reference::familiar).collect();
        let names = if names.is_empty() { "<none>".to_owned() } else { names.join(" ") };
        ui::line(&format!("{removed} {names} ({})", image.id));
    }
    ui::line(&format!("{freed} {}", ui::size(pruned.freed_bytes)));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn verify(store: &ImageStore, args: &VerifyArgs) -> Outcome {
    let (mut worst, mut failed) = (ExitCode::SUCCESS, None);
    let mut images: Vec<(String, Digest)> = Vec::new();
    if args.all {
        images.extend(store.list()?.into_iter().map(|record| {
            let name = record.names.first().map_or_else(|| record.id.to_string(), Reference::familiar);
            (name, record.id)
        }));
    } else {
        for image in &args.images {
            match store.id_of(image) {
                Ok(id) => images.push((image.clone(), id)),
                Err(error) => failed = Some(CliError::from(error).report()),
            }
        }
    }
    let cancel = Cancel::new();
    let _interrupt = Interrupt::cancels(&cancel)?;
    let mut values = Vec::new();
    for (name, id) in images {
        let mut progress = ui::WorkProgress::new();
        let damages = store.verify(&id, &cancel, &mut |path| {
            progress.show(&format!("Checking {name}"), &path.display().to_string());
        });
        progress.end();
        let damages = match damages {
            Ok(damages) => damages,
            // Removed since it was listed.
            Err(ImageError::UnknownId { .. }) if args.all => continue,
            Err(error) if error.is_cancelled() => return Err(error.into()),
            Err(error) => {
                failed = Some(CliError::from(error).report());
                continue;
            }
        };
        if !damages.is_empty() {
            worst = ExitCode::from(1);
        }
        if args.output.is_some() {
            values.push(json!({ "name": name, "id": id, "damages": damages }));
        } else if damages.is_empty() {
            ui::line(&format!("{name}: unmodified ({id})"));
        } else {
            for damage in &damages {
                ui::line(&format!("{name}: {}: {}", damage.path.display(), damage.problem));
            }
        }
    }
    if let Some(format) = args.output {
        print_as(&values.into(), format)?;
    } else if worst != ExitCode::SUCCESS {
        ui::note("Hint: Remove a damaged image with `magikvm image rm IMAGE`, then pull or import it again.");
    }
    // What could not be looked at is worse than what is known to be damaged.
    Ok(failed.unwrap_or(worst))
}

pub(super) fn usage(store: &ImageStore, args: &DfArgs) -> Outcome {
    let usage = store.usage()?;
    if let Some(format) = args.output {
        print_as(&json!(usage), format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |what: &str, row: &UsageRow| {
        vec![
            what.to_owned(),
            row.count.to_string(),
            row.in_use.to_string(),
            ui::size(row.size_bytes),
            ui::size(row.reclaimable_bytes),
        ]
    };
    ui::table(&[
        ["KIND", "COUNT", "IN USE", "SIZE", "RECLAIMABLE"].map(str::to_owned).to_vec(),
        row("root file systems", &usage.rootfs),
        row("layers and manifests", &usage.blobs),
        row("unpacked root file systems", &usage.directories),
    ]);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!((bytes("4096"), bytes("20G"), bytes("1MiB")), (Ok(4096), Ok(20 << 30), Ok(1 << 20)));
        for text in ["", "d", "7", "7w", "-7d", "7ü", "99999999999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", "G", "1X", "-1", "99999999T", "1.5G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
