//! `image ls` and `image inspect`.

use super::super::error::{CliError, Kind};
use super::super::output::{self, Shape};
use super::super::ps::How;
use super::super::{Format, Outcome, print_as, ui};
use crate::image::{Image, ImageRecord, ImageStore, Reference};
use serde_json::json;
use std::process::ExitCode;

/// Arguments of `ls`.
#[derive(Debug, clap::Args)]
pub(super) struct LsArgs {
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
    /// Print only the ids
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
pub(super) struct InspectArgs {
    /// Names or ids of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Output format
    #[arg(short, long, default_value = "json")]
    output: Format,
}

/// Stands for the name of an image that lost its last one while a pod used it.
const NO_NAME: &str = "<none>";

pub(super) fn list(store: &ImageStore, args: &LsArgs) -> Outcome {
    let records = store.list()?;
    if let Some(format) = args.output {
        let value = serde_json::to_value(&records).map_err(|error| CliError::of(Kind::Internal, &error))?;
        print_as(&value, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        let ids: Vec<String> = records.iter().map(|record| format!("{}\n", record.id)).collect();
        ui::bytes(ids.concat().as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    table(&records, true);
    Ok(ExitCode::SUCCESS)
}

/// `magikvm get images`: the named images, or all.
pub(super) fn get(store: &ImageStore, names: &[&str], how: &How) -> Outcome {
    let (mut records, mut worst) = (Vec::new(), ExitCode::SUCCESS);
    for name in names {
        match store.resolve_text(name) {
            Ok(image) => records.push(image.record),
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    if names.is_empty() {
        records = store.list()?;
    }
    records = how.sorted(records, object)?;
    if let Some(output) = &how.output {
        let items: Vec<serde_json::Value> = records.iter().map(object).collect::<Result<_, _>>()?;
        let shape = if names.len() == 1 { Shape::One } else { Shape::List("List") };
        if output::print(items, shape, output, !how.no_headers)? {
            return Ok(worst);
        }
    }
    match (records.is_empty(), names.is_empty()) {
        (true, true) => ui::note("No resources found."),
        (true, false) => {}
        (false, _) => table(&records, !how.no_headers),
    }
    Ok(worst)
}

/// An image as an object with a kind and a name, as the formats of `get` want it. Kubernetes has no such kind.
fn object(record: &ImageRecord) -> Result<serde_json::Value, CliError> {
    let mut object = serde_json::to_value(record).map_err(|error| CliError::of(Kind::Internal, &error))?;
    let name = record.names.first().map_or_else(|| record.id.to_string(), Reference::familiar);
    object["kind"] = json!("Image");
    object["metadata"] = json!({ "name": name });
    Ok(object)
}

fn table(records: &[ImageRecord], has_heads: bool) {
    let mut rows = Vec::new();
    let now = crate::store::record::now_ms();
    for record in records {
        let mut names: Vec<String> = record.names.iter().map(Reference::familiar).collect();
        if names.is_empty() {
            names.push(NO_NAME.to_owned());
        }
        let pulled = ui::age(now.saturating_sub(record.imported_unix_secs.saturating_mul(1000)));
        for name in names {
            rows.push(vec![
                name,
                short(&record.id.hex()),
                ui::harmless(&record.platform().to_string()),
                format!("{pulled} ago"),
                ui::size(record.size_bytes),
            ]);
        }
    }
    // Images without a name are last.
    rows.sort_by(|a: &Vec<String>, b: &Vec<String>| (a[0] == NO_NAME, &a[0]).cmp(&(b[0] == NO_NAME, &b[0])));
    if has_heads {
        let heads = ["NAME", "IMAGE ID", "PLATFORM", "PULLED", "ROOTFS SIZE"].map(str::to_owned).to_vec();
        rows.insert(0, heads);
    }
    ui::table(&rows);
}

/// The first twelve digits, which distinguish the images of one host.
pub(super) fn short(hex: &str) -> String {
    hex.chars().take(12).collect()
}

pub(super) fn inspect(store: &ImageStore, args: &InspectArgs) -> Outcome {
    let mut values = Vec::new();
    let mut worst = ExitCode::SUCCESS;
    for image in &args.images {
        match store.resolve_text(image).and_then(|image| Ok((store.parts_of(&image)?, image))) {
            Ok((parts, image)) => values.push(value(&image, &parts)?),
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    print_as(&values.into(), args.output)?;
    Ok(worst)
}

fn value(image: &Image, parts: &crate::image::ImageParts) -> Result<serde_json::Value, CliError> {
    let mut value =
        serde_json::to_value(&image.record).map_err(|error| CliError::of(Kind::Internal, &error))?;
    value["rootfs"] = json!({
        "path": image.rootfs.path,
        "sizeBytes": image.rootfs.size_bytes,
        "key": image.rootfs.key,
        "sha256": image.record.rootfs_sha256,
        "compression": parts.compression,
    });
    value["manifest"] = json!(parts.manifest);
    value["layers"] = json!(parts.layers);
    value["signedBy"] = json!(parts.signed_by);
    value["config"] = json!(image.config);
    Ok(value)
}
