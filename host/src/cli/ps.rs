//! `magikvm ps`.

use super::{Format, Outcome, print_as, ui};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::status::{self, Phase};
use crate::store::record::{Found, now_ms};
use magikvm_proto::id::PodId;
use magikvm_proto::state::ContainerState;
use serde_json::json;
use std::process::ExitCode;

/// Format of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// A table with images and addresses
    Wide,
    /// A PodList in JSON
    Json,
    /// A PodList in YAML
    Yaml,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Output format
    #[arg(short, long)]
    output: Option<Output>,
    /// Print only the names
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
}

/// A cell without content, so that the columns can be counted.
const NOTHING: &str = "-";

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let found = pods.list()?;
    if args.quiet {
        found.iter().for_each(|pod| ui::line(&pod.name()));
        return Ok(ExitCode::SUCCESS);
    }
    let (format, wide) = match args.output {
        Some(Output::Json) => (Some(Format::Json), false),
        Some(Output::Yaml) => (Some(Format::Yaml), false),
        output => (None, output == Some(Output::Wide)),
    };
    if let Some(format) = format {
        let items: Vec<_> = found.iter().map(status::kubernetes).collect();
        print_as(&json!({ "apiVersion": "v1", "kind": "PodList", "items": items }), format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["NAME", "STATUS", "READY", "RESTARTS", "AGE", "REASON", "PORTS", "VM"];
    let more: &[&str] = if wide { &["IP", "IMAGES"] } else { &[] };
    let mut rows: Vec<Vec<String>> = vec![head.iter().chain(more).map(|&text| text.to_owned()).collect()];
    rows.extend(found.iter().map(|pod| {
        let mut cells = row(pod);
        if wide {
            cells.extend(wide_cells(pod));
        }
        cells
    }));
    ui::table(&rows);
    Ok(ExitCode::SUCCESS)
}

/// The additional cells of `-o wide`.
fn wide_cells(pod: &Found) -> [String; 2] {
    let addresses = pod.state.as_ref().map(|state| state.pod_ips.as_slice()).unwrap_or_default();
    let containers = pod.record.as_ref().map(|record| record.containers.as_slice()).unwrap_or_default();
    [list(addresses.iter()), list(containers.iter().map(|container| &container.image))]
}

/// `a,b`, or a dash for none.
fn list<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { NOTHING.to_owned() } else { items.join(",") }
}

/// The name that a verb takes. `None` for a directory that no name leads to.
pub(super) fn id(pod: &Found) -> Option<PodId> {
    match &pod.record {
        Some(record) => Some(record.id.clone()),
        None => pod.name().parse().ok(),
    }
}

fn row(pod: &Found) -> Vec<String> {
    let phase = status::phase(pod);
    let views = pod.state.as_ref().map(|state| state.containers.as_slice()).unwrap_or_default();
    let live = !matches!(phase, Phase::Lost | Phase::Damaged | Phase::Paused);
    let running =
        views.iter().filter(|view| live && matches!(view.state, ContainerState::Running { .. })).count();
    let restarts: u64 = views.iter().map(|view| u64::from(view.restart_count)).sum();
    let (age, vm) = match &pod.record {
        Some(record) => (ui::age(now_ms().saturating_sub(record.created_ms)), record.sandbox.to_string()),
        None => ("?".to_owned(), "?".to_owned()),
    };
    let containers = pod.record.as_ref().map_or(views.len(), |record| record.containers.len());
    vec![
        pod.name(),
        phase.as_str().to_owned(),
        format!("{running}/{containers}"),
        restarts.to_string(),
        age,
        status::reason(pod).unwrap_or_else(|| NOTHING.to_owned()),
        list(pod.state.iter().flat_map(|state| &state.ports)),
        vm,
    ]
}
