//! `magikvm apply`: runs the pods of manifests that are not there yet.

use super::start;
use super::{How, coded, exists, read, remove_old, watch};
use crate::cli::delete::short;
use crate::cli::error::{CliError, Kind};
use crate::cli::input::{Files, Objects};
use crate::cli::{Outcome, duration, ui};
use crate::manifest::plan::PodPlan;
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::run::{AtEnd, Replaces, RunRequest};
use crate::pod::status::{self, Phase};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A pod that is not there is run in the background. A pod of the same manifest is left alone, even if it has ended: `magikvm restart` runs it again. A pod of another manifest is refused before any pod is run, because a Pod cannot be changed: with --replace it is stopped and removed, and the new one is run."
)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    objects: Objects,
    /// Stop and remove pods that run with another manifest or have ended, and run the new ones
    #[arg(long)]
    replace: bool,
    /// Return when the pods are ready: when their readiness probes have succeeded
    #[arg(long)]
    wait_ready: bool,
    /// Fail if a pod is not ready after this time (90s, 5m, 2h); it goes on running
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::deadline, allow_hyphen_values = true)]
    wait_timeout: Duration,
    #[command(flatten)]
    how: How,
}

impl Args {
    /// Looks which options are on the command line.
    pub(in crate::cli) fn note_origins(&mut self, matches: &clap::ArgMatches) {
        self.how.note_origins(matches);
    }
}

/// What is to be done for a pod of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Missing,
    /// It is there with the same manifest, in this phase.
    Same(Phase),
    Other,
}

pub(in crate::cli) fn main(args: &Args, root: Option<&Path>, pods: &PodRuntimeInterface) -> Outcome {
    coded(|caught| {
        let requests = read(&args.files, &args.objects, &args.how, AtEnd::Keep, root, pods)?;
        let mut todo = Vec::new();
        let mut replaced = Vec::new();
        let mut unchanged = Vec::new();
        for mut request in requests {
            let id = &request.plan.id;
            match standing(pods, &request, args.how.publish.is_empty()) {
                Standing::Missing => {
                    replaced.push(false);
                    todo.push(request);
                }
                Standing::Same(phase) if !args.replace || is_alive(phase) => {
                    unchanged.push((id.clone(), phase))
                }
                Standing::Other if !args.replace => return Err(changed(pods, &request)),
                Standing::Same(_) | Standing::Other => {
                    super::check_replacement(pods, &request)?;
                    request.replaces = Replaces::OldPod;
                    replaced.push(true);
                    todo.push(request);
                }
            }
        }
        for (id, phase) in &unchanged {
            ui::line(&format!("pod/{} unchanged", short(id)));
            if !is_alive(*phase) {
                let phase = phase.as_str();
                ui::note(&format!("Pod {id} has ended ({phase}). Run it again with `magikvm restart {id}`."));
            }
        }
        if todo.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let watch = watch(&todo, pods, caught)?;
        for (index, (request, is_replaced)) in todo.iter().zip(replaced).enumerate() {
            let started = watch.check().and_then(|()| {
                if is_replaced {
                    remove_old(pods, &request.plan.id)?;
                }
                start::start(pods, request, index, &watch, None)
            });
            if let Err(error) = started {
                super::say_outcomes(&todo, index);
                return Err(error);
            }
            if args.wait_ready {
                start::await_ready(pods, &request.plan.id, args.wait_timeout, &watch)?;
            }
            let done = if is_replaced { "replaced" } else { "created" };
            ui::line(&format!("pod/{} {done}", short(&request.plan.id)));
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn is_alive(phase: Phase) -> bool {
    matches!(phase, Phase::Pending | Phase::Running | Phase::Paused)
}

fn changed(pods: &PodRuntimeInterface, request: &RunRequest) -> CliError {
    let id = &request.plan.id;
    let phase = pods.find(id).map(|found| status::phase(&found));
    if let Ok(phase @ (Phase::Lost | Phase::Damaged)) = phase {
        return CliError::new(
            Kind::User,
            format!("pod {id} is there and no longer runs ({})", phase.as_str()),
        )
        .hint(format!(
            "Run it anew with `magikvm apply --replace`, or remove what is left of it with `magikvm rm {id}`."
        ));
    }
    let message = format!("pod {id} is there with another manifest, and a Pod cannot be changed");
    CliError::new(Kind::User, message)
        .hint("Stop it and run the new one with `magikvm apply --replace`, or change metadata.name.")
}

fn standing(pods: &PodRuntimeInterface, request: &RunRequest, without_ports: bool) -> Standing {
    let id = &request.plan.id;
    if !exists(pods, id) {
        return Standing::Missing;
    }
    let Ok(found) = pods.find(id) else { return Standing::Other };
    let same = match pods.run_request(&found) {
        Ok(old) => is_same(&old.plan, &request.plan, without_ports),
        // The record of an older version has no more than the manifest.
        Err(_) => found.record.as_ref().is_some_and(|record| record.manifest == request.plan.manifest),
    };
    // A pod whose start has only begun has no files yet.
    let begins = found.record.is_none() && found.is_starting();
    let phase = status::phase(&found);
    if (same || begins) && !matches!(phase, Phase::Lost | Phase::Damaged) {
        Standing::Same(phase)
    } else {
        Standing::Other
    }
}

/// Whether two plans run the same pod. Ports that were published on the command line of the old one count only beside others.
fn is_same(old: &PodPlan, new: &PodPlan, without_ports: bool) -> bool {
    let plain = |plan: &PodPlan| {
        let mut plan = plan.clone();
        // They are not kept.
        plan.pull_secrets.clear();
        if without_ports {
            plan.published.clear();
        }
        serde_json::to_value(&plan).ok()
    };
    let (old, new) = (plain(old), plain(new));
    old.is_some() && old == new
}
