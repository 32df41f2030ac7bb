//! `magikvm get`: what kubectl users type to list pods, events, volumes and images.

use super::error::{CliError, Kind};
use super::happened::{self, Happened};
use super::image;
use super::output::{self, Output, Shape};
use super::ps::{self, How};
use super::select::{self, Filter, POD_WORDS};
use super::{Outcome, ui, volume};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::record::Found;
use magikvm_proto::id::{Namespace, PodId};
use serde_json::Value;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "As in kubectl, `get` looks at the namespace `default` unless -n or -A says otherwise; `ps` looks at all namespaces."
)]
pub(super) struct Args {
    /// pods (po), events (ev), volumes (pvc) or images
    #[arg(value_name = "TYPE[/NAME]")]
    what: String,
    /// Only these, as NAME or NAMESPACE/NAME; of events, those of these pods
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    how: How,
}

/// Something that can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Pods,
    Events,
    Volumes,
    Images,
}

impl Type {
    fn parse(word: &str) -> Result<Self, CliError> {
        Ok(match word {
            word if POD_WORDS.contains(&word) => Self::Pods,
            "events" | "event" | "ev" => Self::Events,
            "volumes" | "volume" | "pvc" | "persistentvolumeclaim" | "persistentvolumeclaims" => {
                Self::Volumes
            }
            "images" | "image" => Self::Images,
            other => {
                let message = format!("there are no {other:?} here");
                return Err(CliError::new(Kind::Code(2), message).hint(
                    "List pods, events, volumes or images; `magikvm get pods` is the same as `magikvm ps`.",
                ));
            }
        })
    }
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let (word, first) = args.what.split_once('/').map_or((args.what.as_str(), None), |(a, b)| (a, Some(b)));
    let what = Type::parse(word)?;
    let mut names: Vec<&str> = first.into_iter().collect();
    for name in &args.names {
        // `get pods/a pods/b`, but not `get pods a b/c`, where `b` is a namespace.
        let of_type = name.split_once('/').filter(|(word, _)| first.is_some() && Type::parse(word).is_ok());
        names.push(of_type.map_or(name.as_str(), |(_, name)| name));
    }
    if !names.is_empty() {
        args.filter.without_names()?;
    }
    if what == Type::Images {
        unlabelled(args)?;
        return image::get(&names, &args.how, pods);
    }
    if what == Type::Volumes && args.filter.field_selector.is_some() {
        let message = "volumes have no fields to choose them by";
        return Err(CliError::new(Kind::Code(2), message).hint("Choose them by labels with `-l`."));
    }
    let filter = args.filter.of_one_namespace();
    let ids = ids(&names, args.filter.namespace.as_ref(), pods)?;
    match what {
        Type::Pods => self::pods(&ids, &filter, &args.how, pods),
        Type::Events => {
            not_watched(&args.how, "`magikvm events -f POD`")?;
            events(&ids, &filter, &args.how, pods)
        }
        Type::Volumes | Type::Images => {
            not_watched(&args.how, "`magikvm get volumes` again")?;
            volume::get(&ids, &filter, &args.how, pods)
        }
    }
}

fn ids(
    names: &[&str],
    given: Option<&Namespace>,
    pods: &PodRuntimeInterface,
) -> Result<Vec<PodId>, CliError> {
    let named = select::pod_args(names)?;
    select::ids(pods, &named, given)
}

fn not_watched(how: &How, instead: &str) -> Result<(), CliError> {
    if !how.watch {
        return Ok(());
    }
    Err(CliError::new(Kind::Code(2), "only pods can be watched").hint(format!("Use {instead}.")))
}

/// Images have neither labels nor namespaces.
fn unlabelled(args: &Args) -> Result<(), CliError> {
    not_watched(&args.how, "`magikvm get images` again")?;
    match args.filter.choice() {
        None => Ok(()),
        Some(option) => {
            let message = "images have neither labels nor fields to choose them by";
            Err(CliError::new(Kind::Code(2), message).hint(format!("Omit `{option}`.")))
        }
    }
}

/// Says that there is nothing, as kubectl does.
pub(super) fn nothing(filter: &Filter) {
    match &filter.namespace {
        Some(namespace) => ui::note(&format!("No resources found in {namespace} namespace.")),
        None => ui::note("No resources found."),
    }
}

fn pods(ids: &[PodId], filter: &Filter, how: &How, pods: &PodRuntimeInterface) -> Outcome {
    let mut worst = ExitCode::SUCCESS;
    if ids.is_empty() {
        let look = || -> Result<Vec<Found>, CliError> {
            let mut found = pods.list()?;
            found.retain(|found| filter.fits(found));
            Ok(found)
        };
        if !how.watch && matches!(how.output, None | Some(Output::Wide | Output::Name)) && look()?.is_empty()
        {
            nothing(filter);
            return Ok(ExitCode::SUCCESS);
        }
        return ps::show(how, Shape::List("PodList"), &look);
    }
    let mut there = Vec::new();
    for id in ids {
        match pods.find(id) {
            Ok(_) => there.push(id),
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    let shape = if ids.len() == 1 { Shape::One } else { Shape::List("PodList") };
    if !there.is_empty() {
        ps::show(how, shape, &|| Ok(there.iter().filter_map(|id| pods.find(id).ok()).collect()))?;
    }
    Ok(worst)
}

fn events(ids: &[PodId], filter: &Filter, how: &How, pods: &PodRuntimeInterface) -> Outcome {
    let mut worst = ExitCode::SUCCESS;
    let mut chosen = Vec::new();
    if ids.is_empty() {
        chosen = pods.list()?;
        chosen.retain(|found| filter.fits(found));
    }
    for id in ids {
        match pods.find(id) {
            Ok(found) => chosen.push(found),
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    let mut all = Vec::new();
    for found in &chosen {
        all.extend(happened::of(found)?.into_iter().map(|row| (row, found)));
    }
    all.sort_by(|(a, _), (b, _)| a.last.cmp(&b.last));
    let object = |(row, found): &(Happened, &Found)| {
        row.object(&found.name(), found.record.as_ref().map(|record| record.uid.as_str()))
    };
    let all = how.sorted(all, |event| Ok(object(event)))?;
    if let Some(output) = &how.output {
        let items: Vec<Value> = all.iter().map(object).collect();
        if output::print(items, Shape::List("EventList"), output, !how.no_headers)? {
            return Ok(worst);
        }
    }
    if all.is_empty() {
        nothing(filter);
        return Ok(worst);
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    if !how.no_headers {
        rows.push(["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(str::to_owned).to_vec());
    }
    rows.extend(all.iter().map(|(row, found)| {
        let object = format!("pod/{}", found.name());
        vec![row.age(), row.kind().to_owned(), row.reason.clone(), object, row.message.clone()]
    }));
    ui::table(&rows);
    Ok(worst)
}
