//! `magikvm stats`.

use super::error::{CliError, Kind};
use super::select::OnePod;
use super::{Format, Outcome, print_as, ui};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::sandbox::SandboxRecord;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: OnePod,
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let pod = args.target.id(pods)?;
    let found = pods.find(&pod)?;
    let stats = pods.stats(&found, &pod)?;
    if let Some(format) = args.output {
        let value = serde_json::to_value(&stats).map_err(|error| CliError::of(Kind::Internal, &error))?;
        print_as(&value, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows =
        vec![["CONTAINER", "CPU TIME", "MEMORY", "PEAK", "LIMIT", "PIDS"].map(str::to_owned).to_vec()];
    rows.extend(stats.containers.iter().map(|container| {
        vec![
            container.name.to_string(),
            format!("{}.{:03}s", container.cpu_usec / 1_000_000, container.cpu_usec / 1000 % 1000),
            ui::size(container.memory_bytes),
            ui::size(container.memory_peak_bytes),
            container.memory_limit_bytes.map_or("-".to_owned(), ui::size),
            container.pids.to_string(),
        ]
    }));
    ui::table(&rows);
    let guest = stats.guest;
    let has_vm = found.record.as_ref().is_none_or(|record| matches!(record.sandbox, SandboxRecord::Vm(_)));
    // A pod without a VM has the memory of the host.
    let [whose, first] = if has_vm { ["VM", "init"] } else { ["Host", "supervisor"] };
    ui::line(&format!(
        "{whose}: {} of {} available, {first} {}, up {}",
        ui::size(guest.memory_available_bytes),
        ui::size(guest.memory_total_bytes),
        ui::size(guest.init_pss_bytes),
        ui::age(guest.uptime_ms),
    ));
    Ok(ExitCode::SUCCESS)
}
