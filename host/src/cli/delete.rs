//! `magikvm delete`: stops pods with their grace periods and removes them, as `kubectl delete pod` does.

use super::error::{CliError, Kind};
use super::input::Files;
use super::select::{self, Filter};
use super::several::{self, Interrupted, Verb};
use super::{Outcome, down, stop, ui};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use magikvm_proto::id::PodId;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const DELETE: Verb = Verb { done: "deleted", doing: "Deleting", interrupted: Interrupted::Finish };

#[derive(Debug, clap::Args)]
#[command(
    after_help = "As in kubectl, --all and --selector choose among the pods of the namespace `default` unless -n or -A says otherwise; `rm` chooses among all namespaces. Volumes (PersistentVolumeClaims) stay; `magikvm volume rm` removes them."
)]
pub(super) struct Args {
    /// Pods, as NAME, NAMESPACE/NAME or pod/NAME; the word `pod` may stand before them
    #[arg(value_name = "POD", required_unless_present_any = ["all", "selector", "field_selector", "filename"])]
    pods: Vec<String>,
    /// Delete the pods of this manifest or directory; - reads standard input; can be repeated
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["pods", "all", "selector", "field_selector"])]
    filename: Vec<PathBuf>,
    /// Read directories within directories too
    #[arg(short = 'R', long, requires = "filename")]
    recursive: bool,
    /// Delete all pods of the namespace
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Time between TERM and KILL (30, 30s, 2m) [default: the pod's grace period]
    #[arg(long, value_name = "DURATION", value_parser = stop::grace, allow_hyphen_values = true)]
    grace_period: Option<Duration>,
    /// Kill the pods at once; the same as --grace-period=0
    #[arg(long)]
    force: bool,
    /// Give the pods one second; the same as --grace-period=1
    #[arg(long, conflicts_with_all = ["force", "grace_period"])]
    now: bool,
    /// A pod that is not there is no error
    #[arg(long)]
    ignore_not_found: bool,
}

impl Args {
    fn grace(&self) -> Result<Option<Duration>, CliError> {
        let grace = match (self.force, self.now) {
            (true, _) => Some(self.grace_period.unwrap_or(Duration::ZERO)),
            (_, true) => Some(Duration::from_secs(1)),
            _ => self.grace_period,
        };
        grace.map_or(Ok(()), |grace| stop::check("--grace-period", grace))?;
        Ok(grace)
    }

    /// The pods that are named, without kubectl's word for their kind.
    fn named(&self, pods: &PodRuntimeInterface) -> Result<Vec<PodId>, CliError> {
        let filter = self.filter.of_one_namespace();
        let words = select::names_of(&self.pods, pods)?;
        if words.is_empty() && !self.pods.is_empty() && !self.all && filter.choice().is_none() {
            let message = "`delete pod` names no pod";
            return Err(CliError::new(Kind::Code(2), message)
                .hint("Name pods, as in `magikvm delete pod web`, or use `--all` or `-l SELECTOR`."));
        }
        if !words.is_empty() && self.all {
            return Err(CliError::new(Kind::Code(2), "names and `--all` cannot be used together")
                .hint("Name the pods, or use `--all`."));
        }
        let named = select::pod_args(words)?;
        // A word that is no pod may be meant for something else, as in `delete gateway web`.
        if let [first, _, ..] = named.as_slice()
            && words.len() == self.pods.len()
            && !self.ignore_not_found
        {
            let id = first.id(self.filter.namespace.as_ref(), pods)?;
            if let Err(error @ PodError::NotFound { .. }) = pods.find(&id) {
                return Err(
                    CliError::from(error).hint("Nothing was deleted. Name pods only, or as in `pod/web`.")
                );
            }
        }
        // A name without a namespace is in `default` anyway, and a search is not.
        let filter = if named.is_empty() { &filter } else { &self.filter };
        select::choose(pods, &named, self.all, filter, |_| true)
    }
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let grace = args.grace()?;
    let (chosen, worst) = if args.filename.is_empty() {
        (args.named(pods)?, ExitCode::SUCCESS)
    } else {
        let files = Files::of(args.filename.clone(), args.recursive);
        down::names(&files, "magikvm delete")?
    };
    if chosen.is_empty() {
        if args.filename.is_empty() {
            ui::note("No resources found.");
        }
        return Ok(worst);
    }
    let (pods, ignore) = (pods.clone(), args.ignore_not_found);
    let code = several::for_all(DELETE, &chosen, move |id| {
        match pods.find(id) {
            Err(PodError::NotFound { .. }) if ignore => return Ok(()),
            found => found?,
        };
        down::remove_within(&pods, id, grace)?;
        ui::line(&format!("pod \"{}\" deleted", short(id)));
        Ok(())
    });
    Ok(if code == ExitCode::SUCCESS { worst } else { code })
}

/// The name as kubectl has it, with the namespace where it is not `default`.
pub(super) fn short(id: &PodId) -> String {
    if id.namespace.as_str() == "default" { id.name.to_string() } else { id.to_string() }
}
