//! `magikvm ps`, and what `magikvm get pods` shows.

use super::error::CliError;
use super::output::{self, Output, OutputParser, Shape, SortBy};
use super::select::Filter;
use super::{Outcome, ui};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::status;
use crate::store::record::{Found, now_ms};
use magikvm_proto::id::PodId;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// How often pods are looked at that are watched.
const LOOK: Duration = Duration::from_millis(200);
/// The column that changes by itself.
const AGE: usize = 4;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// Print only the names
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
    #[command(flatten)]
    how: How,
}

/// How pods are listed.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct How {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_parser = OutputParser { lists: true })]
    pub(super) output: Option<Output>,
    /// Print no heads of columns
    #[arg(long)]
    pub(super) no_headers: bool,
    /// After listing the pods, print each pod that changes
    #[arg(short, long)]
    pub(super) watch: bool,
    /// Sort by what stands at a JSONPath, as .metadata.creationTimestamp
    #[arg(long, value_name = "PATH", conflicts_with = "watch")]
    pub(super) sort_by: Option<SortBy>,
}

impl How {
    /// Things in the order that is asked for.
    pub(super) fn sorted<T>(
        &self,
        things: Vec<T>,
        object: impl Fn(&T) -> Result<Value, CliError>,
    ) -> Result<Vec<T>, CliError> {
        match &self.sort_by {
            Some(by) => by.sort(things, object),
            None => Ok(things),
        }
    }
}

/// A cell without content, so that the columns can be counted.
const NOTHING: &str = "-";

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let look = || -> Result<Vec<Found>, CliError> {
        let mut found = pods.list()?;
        found.retain(|found| args.filter.fits(found));
        Ok(found)
    };
    if !args.quiet {
        return show(&args.how, Shape::List("PodList"), &look);
    }
    if args.how.watch {
        let how = How { output: Some(Output::Name), ..args.how.clone() };
        return show(&how, Shape::List("PodList"), &look);
    }
    let found = args.how.sorted(look()?, |pod| Ok(status::kubernetes(pod)))?;
    found.iter().for_each(|pod| ui::line(&pod.name()));
    Ok(ExitCode::SUCCESS)
}

/// Lists the pods that `look` finds.
pub(super) fn show(how: &How, shape: Shape, look: &dyn Fn() -> Result<Vec<Found>, CliError>) -> Outcome {
    let mut shown = Shown { how, shape, before: BTreeMap::new(), widths: Vec::new(), is_first: true };
    shown.show(&how.sorted(look()?, |pod| Ok(status::kubernetes(pod)))?)?;
    if !how.watch {
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        std::thread::sleep(LOOK);
        shown.show(&look()?)?;
    }
}

/// What was printed already.
struct Shown<'a> {
    how: &'a How,
    shape: Shape,
    /// The pods by name, as they were.
    before: BTreeMap<String, String>,
    widths: Vec<usize>,
    is_first: bool,
}

impl Shown<'_> {
    /// Prints the pods that differ from what was printed last, at first all of them.
    fn show(&mut self, found: &[Found]) -> Result<(), CliError> {
        let is_first = std::mem::take(&mut self.is_first);
        let looks = |pod: &Found| match &self.how.output {
            None | Some(Output::Wide | Output::Name) => {
                let mut cells = row(pod);
                cells.remove(AGE);
                cells.join("\t")
            }
            Some(_) => status::kubernetes(pod).to_string(),
        };
        let now: BTreeMap<String, String> = found.iter().map(|pod| (pod.name(), looks(pod))).collect();
        let changed: Vec<&Found> =
            found.iter().filter(|pod| self.before.get(&pod.name()) != now.get(&pod.name())).collect();
        let gone: Vec<String> = self.before.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
        self.before = now;
        if !is_first && changed.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let heads = is_first && !self.how.no_headers;
        if let Some(output) = &self.how.output
            && *output != Output::Wide
        {
            let items = changed.iter().map(|pod| status::kubernetes(pod)).collect();
            if is_first {
                output::print(items, self.shape, output, heads)?;
            } else {
                for item in items {
                    output::print(vec![item], Shape::One, output, heads)?;
                }
            }
            return Ok(());
        }
        self.table(&changed, gone, heads);
        Ok(())
    }

    fn table(&mut self, changed: &[&Found], gone: Vec<String>, heads: bool) {
        let wide = self.how.output == Some(Output::Wide);
        let mut rows: Vec<Vec<String>> = Vec::new();
        let head = ["NAME", "STATUS", "READY", "RESTARTS", "AGE", "REASON", "PORTS", "SANDBOX"];
        let more: &[&str] = if wide { &["IP", "IMAGES"] } else { &[] };
        if heads {
            rows.push(head.iter().chain(more).map(|&text| text.to_owned()).collect());
        }
        rows.extend(changed.iter().map(|pod| {
            let mut cells = row(pod);
            if wide {
                cells.extend(wide_cells(pod));
            }
            cells
        }));
        let rest = head.len() + more.len() - 2;
        rows.extend(gone.into_iter().map(|name| {
            [name, "Removed".to_owned()].into_iter().chain((0..rest).map(|_| NOTHING.to_owned())).collect()
        }));
        ui::growing_table(&rows, &mut self.widths);
    }
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
    let views = pod.state.as_ref().map(|state| state.containers.as_slice()).unwrap_or_default();
    let restarts: u64 = views.iter().map(|view| u64::from(view.restart_count)).sum();
    let (age, vm) = match &pod.record {
        Some(record) => (ui::age(now_ms().saturating_sub(record.created_ms)), record.sandbox.to_string()),
        None => ("?".to_owned(), "?".to_owned()),
    };
    let (ready, containers) = status::readiness(pod);
    vec![
        pod.name(),
        shown_status(pod),
        format!("{ready}/{containers}"),
        restarts.to_string(),
        age,
        status::reason(pod).unwrap_or_else(|| NOTHING.to_owned()),
        list(pod.state.iter().flat_map(|state| &state.ports)),
        vm,
    ]
}

/// The phase, or how far the start of a pod with init containers is.
pub(super) fn shown_status(pod: &Found) -> String {
    status::word(pod)
}
