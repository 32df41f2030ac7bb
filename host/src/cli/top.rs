//! `magikvm top`: the use of processors and memory now, as `kubectl top pod` shows it.

use super::error::{CliError, Kind};
use super::select::Filter;
use super::{Outcome, describe, duration, ui};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::lock::LockState;
use crate::store::record::Stage;
use crate::store::thread;
use magikvm_proto::id::PodId;
use magikvm_proto::wire::Stats;
use std::process::ExitCode;
use std::time::Duration;

/// Most pods at a time.
const MAX_PODS: usize = 256;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "As in kubectl, `top` looks at the pods of the namespace `default` unless -n or -A says otherwise. `magikvm stats POD` shows the sums since the start of the containers."
)]
pub(super) struct Args {
    /// Pods, as NAME, NAMESPACE/NAME or pod/NAME; the word `pod` may stand before them [default: all]
    #[arg(value_name = "POD")]
    pods: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Show each container
    #[arg(long)]
    containers: bool,
    /// Print no heads of columns
    #[arg(long)]
    no_headers: bool,
    /// Time over which the use of processors is measured (500ms, 1s, 1m)
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval, allow_hyphen_values = true)]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    duration::duration(text, &(Duration::from_millis(100)..=Duration::from_secs(3600)))
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    if args.pods.first().is_some_and(|word| matches!(word.as_str(), "node" | "nodes" | "no")) {
        return Err(CliError::new(Kind::Code(2), "there are no nodes here")
            .hint("Use the tools of the host, such as `top`, or `magikvm top pod`."));
    }
    let chosen = describe::chosen(&args.pods, &args.filter, pods, |found| {
        found.lock == LockState::Held
            && found
                .state
                .as_ref()
                .is_some_and(|state| state.stage == Stage::Running && state.paused_ms.is_none())
    })?;
    if chosen.len() > MAX_PODS {
        let message = format!("{} pods are too many, at most {MAX_PODS} are measured at once", chosen.len());
        return Err(
            CliError::new(Kind::User, message).hint("Choose fewer with `-l SELECTOR` or `-n NAMESPACE`.")
        );
    }
    let mut measuring = Vec::new();
    for id in chosen {
        let (pods, interval) = (pods.clone(), args.interval);
        measuring.push(thread::start("stats", move || (measure(&pods, &id, interval), id))?);
    }
    let mut worst = ExitCode::SUCCESS;
    let mut rows: Vec<Vec<String>> = Vec::new();
    for one in measuring {
        match one.join() {
            Ok((Ok(uses), id)) => push(&mut rows, args, &id, &uses),
            Ok((Err(error), _)) => worst = error.report(),
            Err(_) => {
                worst = CliError::new(Kind::Internal, "a thread that measures a pod has failed").report()
            }
        }
    }
    if !rows.is_empty() {
        let heads: &[&str] = if args.containers {
            &["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"]
        } else {
            &["NAME", "CPU(cores)", "MEMORY(bytes)"]
        };
        if !args.no_headers {
            rows.insert(0, heads.iter().map(|&head| head.to_owned()).collect());
        }
        ui::table(&rows);
    }
    Ok(worst)
}

/// What a container uses now.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    name: String,
    millicores: u64,
    memory_bytes: u64,
}

fn measure(pods: &PodRuntimeInterface, id: &PodId, interval: Duration) -> Result<Vec<Use>, CliError> {
    let look = || -> Result<Stats, CliError> { Ok(pods.stats(&pods.find(id)?, id)?) };
    let before = look()?;
    std::thread::sleep(interval);
    Ok(uses(&before, &look()?))
}

/// The use between two looks, by the guest's own clock.
fn uses(before: &Stats, after: &Stats) -> Vec<Use> {
    let span_ms = after.guest.uptime_ms.saturating_sub(before.guest.uptime_ms).max(1);
    let use_of = |now: &magikvm_proto::wire::ContainerStats| {
        let then = before.containers.iter().find(|one| one.name == now.name).map_or(0, |one| one.cpu_usec);
        // A container that was restarted meanwhile counts from its start on.
        let usec = now.cpu_usec.checked_sub(then).unwrap_or(now.cpu_usec);
        Use { name: now.name.to_string(), millicores: usec.div_ceil(span_ms), memory_bytes: now.memory_bytes }
    };
    after.containers.iter().map(use_of).collect()
}

fn push(rows: &mut Vec<Vec<String>>, args: &Args, id: &PodId, uses: &[Use]) {
    let cells = |millicores: u64, memory: u64| [format!("{millicores}m"), format!("{}Mi", memory >> 20)];
    if args.containers {
        for one in uses {
            let [cpu, memory] = cells(one.millicores, one.memory_bytes);
            rows.push(vec![id.to_string(), one.name.clone(), cpu, memory]);
        }
        return;
    }
    let millicores = uses.iter().fold(0u64, |sum, one| sum.saturating_add(one.millicores));
    let memory = uses.iter().fold(0u64, |sum, one| sum.saturating_add(one.memory_bytes));
    let [cpu, memory] = cells(millicores, memory);
    rows.push(vec![id.to_string(), cpu, memory]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::wire::{ContainerStats, GuestStats};

    fn stats(uptime_ms: u64, cpu_usec: u64) -> Stats {
        let container = ContainerStats {
            name: "web".parse().unwrap(),
            cpu_usec,
            memory_bytes: 5 << 20,
            memory_peak_bytes: 0,
            memory_limit_bytes: None,
            pids: 1,
        };
        Stats { containers: vec![container], guest: GuestStats { uptime_ms, ..GuestStats::default() } }
    }

    #[test]
    fn the_use_of_processors_is_that_between_two_looks() {
        let millicores = |before: &Stats, after: &Stats| uses(before, after)[0].millicores;
        assert_eq!(millicores(&stats(1000, 500_000), &stats(2000, 750_000)), 250);
        assert_eq!(millicores(&stats(1000, 500_000), &stats(2000, 500_000)), 0);
        assert_eq!(millicores(&stats(1000, 500_000), &stats(2000, 100_000)), 100, "it was restarted");
        assert_eq!(millicores(&stats(1000, 1), &stats(1000, 5)), 4, "no time has passed");
    }
}
