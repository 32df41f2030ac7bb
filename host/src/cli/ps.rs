//! `magikvm ps`.

use super::{Format, Outcome, print_as, ui};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::status::{self, Phase};
use crate::store::record::{Found, now_ms};
use magikvm_proto::state::ContainerState;
use serde_json::json;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print a PodList in this format
    #[arg(short, long)]
    output: Option<Format>,
    /// Print only the names
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let found = pods.list()?;
    if let Some(format) = args.output {
        let items: Vec<_> = found.iter().map(status::kubernetes).collect();
        print_as(&json!({ "apiVersion": "v1", "kind": "PodList", "items": items }), format)?;
    } else if args.quiet {
        found.iter().for_each(|pod| ui::line(&pod.name()));
    } else {
        let head = ["NAME", "STATUS", "READY", "RESTARTS", "AGE", "VM"].map(str::to_owned).to_vec();
        let mut rows = vec![head];
        rows.extend(found.iter().map(row));
        ui::table(&rows);
    }
    Ok(ExitCode::SUCCESS)
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
        vm,
    ]
}
