//! `magikvm describe`: a pod for people, as `kubectl describe pod` shows it.

mod containers;
mod volumes;

use super::error::CliError;
use super::happened::{self, Happened};
use super::select::{self, Filter};
use super::{Outcome, ps, ui};
use crate::manifest::fields::{ANNOTATION_JAIL, ANNOTATION_NAMESPACES};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::status;
use crate::store::record::Found;
use crate::store::text::harmless;
use magikvm_proto::id::PodId;
use serde_json::Value;
use std::fmt::Write;
use std::process::ExitCode;

/// Most events that are shown.
const MAX_EVENTS: usize = 100;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "As in kubectl, --selector chooses among the pods of the namespace `default` unless -n or -A says otherwise; without a name and a selector, all of them are described."
)]
pub(super) struct Args {
    /// Pods, as NAME, NAMESPACE/NAME or pod/NAME; the word `pod` may stand before them
    #[arg(value_name = "POD")]
    pods: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Do not show the events
    #[arg(long)]
    no_events: bool,
}

/// Pods of kubectl's arguments: `pod web`, `pod/web`, `web`. None of them means all of the namespace.
pub(super) fn chosen(
    words: &[String],
    filter: &Filter,
    pods: &PodRuntimeInterface,
    wanted: impl Fn(&Found) -> bool,
) -> Result<Vec<PodId>, CliError> {
    let named = select::pod_args(select::names_of(words, pods)?)?;
    let one = filter.of_one_namespace();
    let filter = if named.is_empty() { &one } else { filter };
    let chosen = select::choose(pods, &named, true, filter, wanted)?;
    if chosen.is_empty() {
        super::get::nothing(filter);
    }
    Ok(chosen)
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let mut worst = ExitCode::SUCCESS;
    let mut is_first = true;
    for id in chosen(&args.pods, &args.filter, pods, |_| true)? {
        match one(args, pods, &id) {
            Ok(text) => {
                let gap = if std::mem::take(&mut is_first) { "" } else { "\n\n" };
                ui::bytes(format!("{gap}{text}").as_bytes());
            }
            Err(error) => worst = error.report(),
        }
    }
    Ok(worst)
}

fn one(args: &Args, pods: &PodRuntimeInterface, id: &PodId) -> Result<String, CliError> {
    let found = pods.find(id)?;
    let pod = status::kubernetes(&found);
    let qos = pod.pointer("/status/qosClass").and_then(Value::as_str);
    let mut page = Page::default();
    head(&mut page, &found, &pod);
    containers::all(&mut page, &pod);
    conditions(&mut page, &pod);
    volumes::all(&mut page, &pod);
    page.line(0, "QoS Class", qos.unwrap_or(UNKNOWN));
    if let Some(record) = &found.record {
        page.line(0, "Runtime Class", &record.runtime_class);
        page.line(0, "Sandbox", &record.sandbox.to_string());
    }
    if !args.no_events {
        page.rows("Events", &EVENT_HEADS, &events(&happened::of(&found)?));
    }
    Ok(page.text)
}

const UNKNOWN: &str = "<unknown>";
const NONE: &str = "<none>";
const EVENT_HEADS: [&str; 5] = ["Type", "Reason", "Age", "From", "Message"];

fn events(all: &[Happened]) -> Vec<Vec<String>> {
    let newest = all.get(all.len().saturating_sub(MAX_EVENTS)..).unwrap_or_default();
    let row = |event: &Happened| {
        let from = "magikvm".to_owned();
        vec![event.kind().to_owned(), event.reason.clone(), event.age(), from, event.message.clone()]
    };
    newest.iter().map(row).collect()
}

fn head(page: &mut Page, found: &Found, pod: &Value) {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str);
    page.line(0, "Name", text("/metadata/name").unwrap_or(UNKNOWN));
    page.line(0, "Namespace", text("/metadata/namespace").unwrap_or(UNKNOWN));
    page.line(0, "Start Time", text("/status/startTime").unwrap_or(NONE));
    page.map(0, "Labels", pod.pointer("/metadata/labels"), "=");
    let mut annotations = pod.pointer("/metadata/annotations").cloned();
    // `inspect` has them, and nobody wants to read them here.
    if let Some(Value::Object(annotations)) = &mut annotations {
        annotations.remove(ANNOTATION_JAIL);
        annotations.remove(ANNOTATION_NAMESPACES);
    }
    page.map(0, "Annotations", annotations.as_ref(), ": ");
    page.line(0, "Status", &ps::shown_status(found));
    let reason = text("/status/reason").map(str::to_owned).or_else(|| status::reason(found));
    if let Some(reason) = reason {
        page.line(0, "Reason", &reason);
    }
    if let Some(message) = text("/status/message") {
        page.line(0, "Message", message);
    }
    page.line(0, "IP", text("/status/podIP").unwrap_or(""));
    let ips = pod.pointer("/status/podIPs").and_then(Value::as_array);
    if let Some(ips) = ips.filter(|ips| !ips.is_empty()) {
        page.head(0, "IPs");
        for ip in ips {
            page.line(1, "IP", ip["ip"].as_str().unwrap_or(UNKNOWN));
        }
    }
}

fn conditions(page: &mut Page, pod: &Value) {
    let all = pod.pointer("/status/conditions").and_then(Value::as_array);
    let cell = |one: &Value, field: &str| one[field].as_str().unwrap_or("").to_owned();
    let rows: Vec<Vec<String>> = all
        .into_iter()
        .flatten()
        .map(|one| ["type", "status", "reason", "message"].map(|field| cell(one, field)).to_vec())
        .collect();
    page.rows("Conditions", &["Type", "Status", "Reason", "Message"], &rows);
}

/// Text in the form of `kubectl describe`.
#[derive(Debug, Default)]
struct Page {
    text: String,
}

impl Page {
    /// Width of keys at each depth.
    const WIDTHS: [usize; 4] = [18, 18, 16, 14];

    fn head(&mut self, depth: usize, key: &str) {
        self.push(depth, &format!("{}:", harmless(key, &[])));
    }

    fn line(&mut self, depth: usize, key: &str, value: &str) {
        let width = Self::WIDTHS.get(depth).copied().unwrap_or(0);
        let key = format!("{}:", harmless(key, &[]));
        let mut lines = value.lines();
        let first = harmless(lines.next().unwrap_or_default(), &[]);
        self.push(depth, format!("{key:width$} {first}").trim_end());
        for more in lines {
            self.push(depth, format!("{:width$} {}", "", harmless(more, &[])).trim_end());
        }
    }

    /// Each word in a line of its own.
    fn list<'a>(&mut self, depth: usize, key: &str, items: impl Iterator<Item = &'a str>) {
        self.head(depth, key);
        for item in items {
            for line in item.lines() {
                self.push(depth + 1, &harmless(line, &['\t']));
            }
        }
    }

    /// The texts of an object.
    fn map(&mut self, depth: usize, key: &str, value: Option<&Value>, between: &str) {
        let entries = value.and_then(Value::as_object).filter(|entries| !entries.is_empty());
        let Some(entries) = entries else { return self.line(depth, key, NONE) };
        let shown = |(name, value): (&String, &Value)| {
            format!("{name}{between}{}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        let lines: Vec<String> = entries.iter().map(shown).collect();
        self.line(depth, key, &lines.join("\n"));
    }

    /// A table beneath a key.
    fn rows(&mut self, key: &str, heads: &[&str], rows: &[Vec<String>]) {
        if rows.is_empty() {
            return self.line(0, key, NONE);
        }
        self.head(0, key);
        let filled =
            |column: usize| rows.iter().any(|row| row.get(column).is_some_and(|cell| !cell.is_empty()));
        let columns: Vec<usize> = (0..heads.len()).filter(|&column| filled(column)).collect();
        let mut table: Vec<Vec<String>> = vec![
            columns.iter().map(|&column| heads[column].to_owned()).collect(),
            columns.iter().map(|&column| "-".repeat(heads[column].len())).collect(),
        ];
        table.extend(rows.iter().map(|row| columns.iter().map(|&column| row[column].clone()).collect()));
        if key == "Conditions" {
            table.remove(1);
        }
        for line in ui::columns(&table, &mut Vec::new()).lines() {
            self.push(1, line);
        }
    }

    fn push(&mut self, depth: usize, text: &str) {
        let indent = depth * 2;
        if writeln!(self.text, "{:indent$}{text}", "").is_err() {
            // Texts in memory take everything.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_is_laid_out_and_controls_no_terminal() {
        let mut page = Page::default();
        page.line(0, "Name", "web\x1b[2J");
        page.map(0, "Labels", Some(&json!({ "a": "1", "b": "2" })), "=");
        page.map(0, "None", None, "=");
        page.list(1, "Args", ["sh", "a\nb"].into_iter());
        page.rows("Events", &["Type", "Gone"], &[vec!["x".to_owned(), String::new()]]);
        page.rows("Empty", &["Type"], &[]);
        let expected = "\
Name:              web\u{fffd}[2J
Labels:            a=1
                   b=2
None:              <none>
  Args:
    sh
    a
    b
Events:
  Type
  ----
  x
Empty:             <none>
";
        assert_eq!(page.text, expected);
    }
}
