//! `magikvm explain`: the table of the fields of a Pod.

use super::error::{CliError, Kind};
use super::{Format, Outcome, print_as, ui};
use crate::manifest::fields::{Field, Status, Topic, topic};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Field with all fields below it, like spec.containers.image or pod.spec.volumes [default: all fields]
    #[arg(value_name = "FIELD")]
    field: Option<String>,
    /// Print the fields as JSON or YAML
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

pub(super) fn main(args: &Args) -> Outcome {
    let asked = args.field.as_deref().unwrap_or_default();
    let topic = topic(asked).map_err(|unknown| {
        CliError::of(Kind::User, &unknown).hint(match unknown.hint.as_str() {
            "" => "List all fields with `magikvm explain`.".to_owned(),
            hint => hint.to_owned(),
        })
    })?;
    if let Some(format) = args.output {
        let fields: Vec<Value> = topic.fields.iter().map(|field| object(field)).collect();
        let annotations: Vec<Value> =
            topic.annotations.iter().map(|(name, about)| json!({ "name": name, "about": about })).collect();
        print_as(&json!({ "fields": fields, "annotations": annotations }), format)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&topic);
    Ok(ExitCode::SUCCESS)
}

fn print(topic: &Topic) {
    let Topic { above, fields, annotations } = topic;
    if let Some(rest) = above {
        ui::note(&format!("This holds for everything below the field, and so for {rest}."));
    }
    let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["FIELD", "VALUE", "STATUS", "MEANING"])];
    for field in fields {
        let (status, values, meaning) = said(field);
        let status =
            if values.is_empty() { status.to_owned() } else { format!("{status} {}", values.join(", ")) };
        rows.push(row([field.path, field.shape.describe(), &status, meaning]));
    }
    for (name, about) in annotations {
        rows.push(row([&format!("metadata.annotations.{name}"), "string", "supported", about]));
    }
    ui::table(&rows);
}

/// The status, the only accepted values, and what the field means or why it does not count.
fn said(field: &Field) -> (&'static str, &'static [&'static str], &'static str) {
    match field.status {
        Status::Supported => ("supported", &[], field.about),
        Status::Only { values, why } => ("only", values, why),
        Status::Refused { why, .. } => ("refused", &[], why),
        Status::Ignored { why, .. } => ("ignored", &[], why),
    }
}

fn object(field: &Field) -> Value {
    let (status, values, meaning) = said(field);
    let mut object = json!({
        "path": field.path,
        "value": field.shape.describe(),
        "status": status,
        "meaning": meaning,
    });
    if !values.is_empty() {
        object["values"] = json!(values);
    }
    object
}
