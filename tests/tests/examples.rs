//! The manifests of `examples/`: each is valid, and those that show a session keep what it promises.
//!
//! A session is in the comment at the beginning of an example: lines with `$ magikvm …`, each followed by what the command prints, and
//! `$ echo $?` followed by its exit code. Lines of several containers are compared for each container, because they come in any order.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::virtual_machine::{NETWORK, VmHost, busybox};
use magikvm_tests::{Host, Output};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const IMAGE: &str = "demo/busybox:1";
/// The fewest examples that there must be, and the fewest of them that are run.
const EXAMPLES: usize = 50;
const RUN: usize = 20;
/// Time for a command, which may have to boot several VMs on a busy host.
const LIMIT: Duration = Duration::from_secs(150);

#[derive(Debug)]
struct Example {
    name: String,
    text: String,
}

impl Example {
    fn all() -> Vec<Self> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(directory())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
            .collect();
        names.sort();
        let example = |path: &PathBuf| Self {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            text: std::fs::read_to_string(path).unwrap(),
        };
        names.iter().map(example).collect()
    }

    /// The lines of the comment at its beginning.
    fn comment(&self) -> Vec<&str> {
        let lines = self.text.lines().map_while(|line| line.strip_prefix('#'));
        lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect()
    }

    /// What it shows.
    fn title(&self) -> String {
        let lines: Vec<&str> = self.comment().into_iter().take_while(|line| !line.is_empty()).collect();
        lines.join(" ")
    }

    /// What is ignored.
    fn ignored(&self) -> Vec<&str> {
        self.comment().into_iter().filter(|line| line.starts_with("ignored ")).collect()
    }

    /// Commands, each with what it prints.
    fn session(&self) -> Vec<(String, Vec<String>)> {
        let mut session: Vec<(String, Vec<String>)> = Vec::new();
        for line in self.comment() {
            match (line.strip_prefix("$ "), session.last_mut()) {
                (Some(command), _) => session.push((command.to_owned(), Vec::new())),
                (None, Some((_, printed))) => printed.push(line.to_owned()),
                (None, None) => {}
            }
        }
        session
    }

    /// The manifest for a host whose network must not be used.
    fn isolated(&self) -> String {
        let documents = self.text.split("\n---\n").map(|document| {
            if !document.contains("kind: Pod\n") || document.contains(NETWORK) {
                return document.to_owned();
            }
            let (before, pod) = document.split_at(document.find("kind: Pod\n").unwrap());
            let (indent, line) = ("  ", format!("{NETWORK}: none"));
            let pod = if let Some((head, tail)) = pod.split_once("  annotations:\n") {
                format!("{head}  annotations:\n    {line}\n{tail}")
            } else if let Some((head, tail)) = pod.split_once("metadata: {") {
                format!("{head}metadata: {{annotations: {{{line}}}, {tail}")
            } else {
                pod.replacen("metadata:\n", &format!("metadata:\n{indent}annotations: {{{line}}}\n"), 1)
            };
            format!("{before}{pod}")
        });
        documents.collect::<Vec<String>>().join("\n---\n")
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// The lines of each container.
fn by_container<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in lines {
        let (container, text) = line.split_once(" | ").unwrap_or(("", line));
        found.entry(container.trim_end()).or_default().push(text.trim_end());
    }
    found
}

/// Runs the session of an example, and says what is not as promised.
fn look(host: &VmHost, example: &Example) -> Result<(), String> {
    let file = host.file(&example.name);
    std::fs::write(&file, example.isolated()).unwrap();
    let mut last: Option<Output> = None;
    let succeeded = |output: Option<&Output>| match output {
        Some(output) if output.code != 0 => {
            Err(format!("exit code {}\n{}{}", output.code, output.stdout, output.stderr))
        }
        _ => Ok(()),
    };
    for (command, printed) in example.session() {
        if command == "echo $?" {
            let code = last.take().map(|output| output.code.to_string());
            if code.as_deref() != printed.first().map(String::as_str) {
                return Err(format!("exit code {code:?}, not {printed:?}"));
            }
            continue;
        }
        succeeded(last.as_ref())?;
        let args = command.strip_prefix("magikvm ").expect("a command of magikvm").split(' ');
        let args = args.map(|arg| {
            if arg.strip_prefix("examples/") == Some(example.name.as_str()) {
                file.to_string_lossy().into_owned()
            } else {
                arg.to_owned()
            }
        });
        let output = host.cmd(args).limit(LIMIT).run();
        let (seen, promised) =
            (by_container(output.stdout.lines()), by_container(printed.iter().map(String::as_str)));
        if seen != promised {
            return Err(format!("{command}:\n{}{}\nnot {printed:#?}", output.stdout, output.stderr));
        }
        last = Some(output);
    }
    succeeded(last.as_ref())
}

/// Runs each second example that has a session.
fn run_each_second(first: usize) {
    let host = VmHost::new();
    host.import(IMAGE, busybox(), &json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] }));
    let mut failures = String::new();
    let examples = Example::all().into_iter().filter(|example| !example.session().is_empty());
    for example in examples.skip(first).step_by(2) {
        if let Err(said) = look(&host, &example) {
            writeln!(failures, "{}: {said}", example.name).unwrap();
        }
        for pod in host.cmd(["ps", "-q"]).ok().stdout.lines() {
            host.cmd(["rm", "-f", pod]).ok();
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn sessions_of_examples_are_as_they_say_even() {
    run_each_second(0);
}

#[test]
fn sessions_of_examples_are_as_they_say_odd() {
    run_each_second(1);
}

#[test]
fn every_example_is_valid_and_says_what_it_shows() {
    let host = Host::fake();
    let examples = Example::all();
    for example in &examples {
        assert!(example.title().ends_with('.'), "{} does not begin with what it shows", example.name);
        let path = directory().join(&example.name);
        let output = host.cmd(["validate", "-v"]).arg(&path).ok();
        let begin = format!("{}: ", path.display());
        let said: Vec<&str> =
            output.stdout.lines().map(|line| line.strip_prefix(&begin).unwrap_or(line)).collect();
        let ignored: Vec<&str> = said.into_iter().filter(|line| !line.starts_with("OK: ")).collect();
        assert_eq!((ignored, output.stderr.as_str()), (example.ignored(), ""), "{}", example.name);
    }
    // No two have an object of the same name.
    host.cmd(["validate"]).arg(directory()).ok();
    let run = examples.iter().filter(|example| !example.session().is_empty()).count();
    assert!(examples.len() >= EXAMPLES && run >= RUN, "{} examples, {run} are run", examples.len());
}

#[test]
fn the_index_of_examples_is_up_to_date() {
    let mut page = "\
# Examples

Generated from the comments at the beginning of the examples. Those with a session are run by `tests/tests/examples.rs`;
all are checked by it. `ci/demo.sh` builds the image `demo/busybox:1`, which many of them use.

| example | what it shows | session |
|---|---|---|
"
    .to_owned();
    for example in Example::all() {
        let session = if example.session().is_empty() { "" } else { "yes" };
        writeln!(page, "| [{0}]({0}) | {1} | {session} |", example.name, example.title()).unwrap();
    }
    let path = directory().join("README.md");
    if std::env::var_os("MAGIKVM_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(path).unwrap_or_default(),
        page,
        "MAGIKVM_BLESS=1 cargo test -p magikvm-tests --test examples index"
    );
}
