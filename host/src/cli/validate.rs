//! `magikvm validate`.

use super::error::{CliError, Kind};
use super::input::{Files, Objects};
use super::{Format, Outcome, print_as, ui};
use crate::manifest::Ignored;
use crate::manifest::input::{self, Input, InputFile, InputPod};
use crate::manifest::{Problem, Problems};
use crate::pod::interface::PodRuntimeInterface;
use crate::runtime;
use crate::store::layout::Layout;
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    objects: Objects,
    /// List what is ignored
    #[arg(short, long)]
    verbose: bool,
    /// Print the result as JSON or YAML
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let sources = args.files.read_with(&args.objects)?;
    // Any name will do.
    let read =
        input::read(&sources, &mut |_, prefix| crate::manifest::generated_name(prefix, std::iter::repeat(0)));
    // By file.
    let lacking: Vec<Vec<String>> =
        (0..read.files.len()).map(|file| lacking(&read, file, pods.layout())).collect();
    match args.output {
        Some(format) => print_as(&object(&read, &lacking), format)?,
        None => ui::bytes(text(&read, &lacking, args.verbose).as_bytes()),
    }
    let problems = read.problems();
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let count: usize = problems.iter().map(|problems| problems.list.len() + problems.dropped).sum();
    let found = ui::count(count, "problem");
    Err(CliError::new(Kind::User, format!("{found} in {}", ui::count(sources.len(), "file"))))
}

/// The Pods of a file.
fn pods_of(read: &Input, file: usize) -> impl Iterator<Item = &InputPod> {
    read.pods.iter().filter(move |pod| pod.file == file)
}

/// What this host lacks of what the Pods of a file name. Their manifest is valid nevertheless.
fn lacking(read: &Input, file: usize, layout: &Layout) -> Vec<String> {
    let plans = pods_of(read, file).filter_map(|pod| pod.plan.as_ref());
    let all = plans.flat_map(|plan| {
        let lacking = runtime::lacking(plan, layout);
        lacking.into_iter().map(|what| format!("Pod {}: {what}", plan.id))
    });
    all.collect()
}

fn text(read: &Input, warnings: &[Vec<String>], verbose: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    // What a single file lacks is said of the file, which is then not OK.
    let lacking = read.problems().pop().filter(|_| read.whole.is_some());
    let may_be_ok = lacking.is_none() || read.files.len() > 1;
    for (index, file) in read.files.iter().enumerate() {
        let InputFile { problems, objects, ignored } = file;
        let origin = &problems.origin;
        if problems.list.is_empty() {
            let plans = pods_of(read, index).filter_map(|pod| pod.plan.as_ref());
            let pods = plans.map(|plan| format!("Pod {}", plan.id));
            let what: Vec<String> = pods.chain(objects.iter().cloned()).collect();
            let what = if what.is_empty() { "nothing to run".to_owned() } else { what.join(", ") };
            if may_be_ok {
                lines.push(format!("{origin}: OK: {what}"));
            }
        } else {
            lines.extend(problems.to_string().lines().map(str::to_owned));
        }
        for warning in warnings.get(index).into_iter().flatten() {
            lines.push(format!("{origin}: Warning: this host would not run it now: {warning}"));
        }
        // What a whole document asks for is always said.
        let fields = pods_of(read, index).flat_map(|pod| &pod.ignored).filter(|_| verbose);
        lines.extend(ignored.iter().chain(fields).map(|ignored| format!("{origin}: {ignored}")));
    }
    lines.extend(lacking.map(|last| last.to_string()));
    lines.iter().map(|line| format!("{}\n", ui::harmless(line))).collect()
}

fn object(read: &Input, warnings: &[Vec<String>]) -> Value {
    let files: Vec<Value> = read
        .files
        .iter()
        .enumerate()
        .map(|(index, file)| {
            let Problems { origin, list, dropped } = &file.problems;
            let pods: Vec<String> =
                pods_of(read, index).filter_map(|pod| Some(pod.plan.as_ref()?.id.to_string())).collect();
            let fields = pods_of(read, index).flat_map(|pod| &pod.ignored);
            let ignored: Vec<Value> = file.ignored.iter().chain(fields).map(ignored).collect();
            let mut value = json!({
                "file": origin,
                "ok": list.is_empty(),
                "pods": pods,
                "objects": file.objects,
                "ignored": ignored,
                "problems": list.iter().map(problem).collect::<Vec<_>>(),
                "moreProblems": dropped,
            });
            if let Some(warnings) = warnings.get(index).filter(|warnings| !warnings.is_empty()) {
                value["warnings"] = json!(warnings);
            }
            value
        })
        .collect();
    let whole: Vec<Value> = read.whole.iter().map(problem).collect();
    json!({ "ok": read.problems().is_empty(), "files": files, "problems": whole })
}

fn ignored(ignored: &Ignored) -> Value {
    json!({ "paths": ignored.paths, "reason": ignored.why })
}

fn problem(problem: &Problem) -> Value {
    let Problem { path, at, message, hint } = problem;
    let mut value = json!({ "path": path, "message": message });
    if let Some(at) = at {
        value["line"] = at.line.into();
        value["column"] = at.column.into();
    }
    if !hint.is_empty() {
        value["hint"] = hint.as_str().into();
    }
    value
}
