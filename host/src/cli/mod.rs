//! The command line: one file per verb. Prints through `ui` only, fails through `error` only.

mod cni;
mod complete;
mod cp;
mod delete;
mod describe;
mod doctor;
mod down;
mod duration;
mod error;
mod events;
mod exec;
mod explain;
mod fields;
mod get;
mod happened;
mod hidden;
mod image;
mod input;
mod inspect;
mod interrupt;
mod jsonpath;
mod kill;
mod labels;
mod logs;
mod man;
mod origin;
mod output;
mod parse;
mod pause;
mod port_forward;
mod ps;
mod rm;
mod run;
mod select;
mod several;
mod stats;
mod stop;
mod terminal;
mod top;
mod ui;
mod validate;
mod version;
mod volume;
mod wait;

use crate::pod::interface::PodRuntimeInterface;
use crate::store::layout::{Layout, Surroundings};
use crate::store::{limits, trust};
use clap::{Parser, Subcommand, ValueEnum};
use error::{CliError, Kind};
use magikvm_platform::text::{acts, harmless_json};
use magikvm_proto::id::PodId;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run Kubernetes Pods, each in its own hardware microVM, without a daemon.
#[derive(Debug, Parser)]
#[command(
    name = "magikvm",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Exit codes: 1 user error, 2 usage, 3 this host cannot do it, 70 internal error.\n`run` without -d exits with the pod's code, with 125 if magikvm failed, 126 if a program may not be executed, 127 if it is not there, or 130 if it was cancelled."
)]
struct Args {
    /// Keep pods in DIR/run and images in DIR/data instead of the default directories
    #[arg(long, global = true, value_name = "DIR", env = "MAGIKVM_ROOT", help_heading = "Global options")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

impl Args {
    /// Tells verbs which of their options are on the command line.
    fn note_origins(&mut self, matches: &clap::ArgMatches) {
        match (&mut self.verb, matches.subcommand()) {
            (Verb::Run(args), Some((_, matches))) => args.note_origins(matches),
            (Verb::Apply(args), Some((_, matches))) => args.note_origins(matches),
            _ => {}
        }
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the pods of manifests
    Run(run::Args),
    /// Stop and remove the pods of manifests
    Down(down::Args),
    /// Check manifests without running them
    Validate(validate::Args),
    /// Show the fields of a manifest and what happens to them
    Explain(explain::Args),
    /// Run the pods of manifests that are not there yet
    Apply(run::apply::Args),
    /// List pods
    Ps(ps::Args),
    /// List pods, events, volumes or images
    Get(get::Args),
    /// Describe pods for people
    Describe(describe::Args),
    /// Show a pod as a Kubernetes object with its status
    Inspect(inspect::Args),
    /// Print the logs of the containers of pods
    Logs(logs::Args),
    /// Run a command in a running container
    Exec(exec::ExecArgs),
    /// Attach to the output and input of a running container
    Attach(exec::AttachArgs),
    /// Copy files between this host and a container
    Cp(cp::Args),
    /// Forward local ports to a pod
    PortForward(port_forward::Args),
    /// Stop pods: send TERM, wait for the grace period, send KILL
    Stop(stop::Args),
    /// Stop pods and run them again as they were run
    Restart(run::restart::Args),
    /// Pause running pods
    Pause(pause::Args),
    /// Resume paused pods
    Resume(pause::Args),
    /// Send a signal to the containers of a pod
    Kill(kill::Args),
    /// Remove pods and their logs
    Rm(rm::Args),
    /// Stop and remove pods
    Delete(delete::Args),
    /// Wait until pods have ended, and print their exit codes
    Wait(wait::Args),
    /// Show the resource usage of containers
    Stats(stats::Args),
    /// Show the use of processors and memory now
    Top(top::Args),
    /// Show the events of a pod
    Events(events::Args),
    /// Manage container images
    Image(image::Args),
    /// Manage volumes that survive their pods
    Volume(volume::Args),
    /// Check whether this host can run pods and suggest fixes
    Doctor(doctor::Args),
    /// Show the version
    Version(version::Args),
    /// Print a completion script for a shell
    Completions {
        /// Shell for which to print the script
        shell: clap_complete::Shell,
    },
    /// Print the words that a shell may complete the last of these words to
    #[command(name = "__complete", hide = true)]
    Complete(complete::Args),
    /// Write manual pages to a directory
    #[command(name = "__man", hide = true)]
    Man(man::Args),
}

/// Format of machine-readable output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// Result of a verb: an exit code or an error.
type Outcome = Result<ExitCode, CliError>;

/// Becomes the process that the first argument of this program names, if it names one.
pub(crate) fn become_hidden_process() -> Option<ExitCode> {
    #[cfg(target_os = "linux")]
    magikvm_platform::helper::register(crate::runtime::containers::errand::remove_with_ids);
    hidden::dispatch(std::env::args_os().nth(1))
}

/// The whole program.
pub fn main() -> ExitCode {
    if let Some(code) = become_hidden_process() {
        return code;
    }
    let words: Vec<OsString> = std::env::args_os().collect();
    match parse::arguments(&words) {
        Ok(args) => {
            let foreground = matches!(&args.verb, Verb::Run(args) if args.is_foreground());
            let room = crate::pod::limits::check_program()
                .map_err(|(what, hint)| CliError::new(Kind::Environment, what).hint(hint));
            let result = room.and_then(|()| dispatch(args));
            result.unwrap_or_else(|error| if foreground { error.in_foreground() } else { error }.report())
        }
        Err(code) => code,
    }
}

fn dispatch(args: Args) -> Outcome {
    let root = args.root;
    match &args.verb {
        Verb::Completions { shell } => {
            ui::bytes(complete::script(*shell).as_bytes());
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Complete(args) => return Ok(complete::main(args, root)),
        Verb::Man(args) => return man::main(args),
        Verb::Version(args) => return version::main(args),
        Verb::Explain(args) => return explain::main(args),
        _ => {}
    }
    let layout = Layout::new(&Surroundings::of_process(root.clone())).map_err(|error| {
        CliError::of(Kind::Environment, &error).hint("Choose a directory with `--root DIR`.")
    })?;
    if root.is_some() {
        for dir in layout.trusted() {
            trust::check(&dir).map_err(|error| {
                CliError::of(Kind::User, &error)
                    .hint("Choose a directory for `--root` that only you and root may write to, with all directories above it.")
            })?;
        }
    }
    // Verbs that only look or remove do without, so that a mistake in the file hinders nobody to clean up.
    let limits = limits::put_in_force(&layout.limits());
    if let (
        Err(error),
        Verb::Run(_) | Verb::Apply(_) | Verb::Restart(_) | Verb::Validate(_) | Verb::Image(_),
    ) = (limits, &args.verb)
    {
        return Err(CliError::of(Kind::Environment, &error).hint(error.hint()));
    }
    let pods = PodRuntimeInterface::new(layout);
    match args.verb {
        Verb::Run(args) => run::main(&args, root.as_deref(), &pods),
        Verb::Down(args) => down::main(&args, &pods),
        Verb::Validate(args) => validate::main(&args, &pods),
        Verb::Apply(args) => run::apply::main(&args, root.as_deref(), &pods),
        Verb::Ps(args) => ps::main(&args, &pods),
        Verb::Get(args) => get::main(&args, &pods),
        Verb::Describe(args) => describe::main(&args, &pods),
        Verb::Delete(args) => delete::main(&args, &pods),
        Verb::Restart(args) => run::restart::main(&args, &pods),
        Verb::Top(args) => top::main(&args, &pods),
        Verb::Inspect(args) => inspect::main(&args, &pods),
        Verb::Logs(args) => logs::main(&args, &pods),
        Verb::Exec(args) => exec::exec(args, &pods),
        Verb::Attach(args) => exec::attach(&args, &pods),
        Verb::Cp(args) => cp::main(&args, &pods),
        Verb::PortForward(args) => port_forward::main(&args, &pods),
        Verb::Stop(args) => stop::main(&args, &pods),
        Verb::Pause(args) => pause::pause(&args, &pods),
        Verb::Resume(args) => pause::resume(&args, &pods),
        Verb::Kill(args) => kill::main(&args, &pods),
        Verb::Rm(args) => rm::main(&args, &pods),
        Verb::Wait(args) => wait::main(&args, &pods),
        Verb::Stats(args) => stats::main(&args, &pods),
        Verb::Events(args) => events::main(&args, &pods),
        Verb::Image(args) => image::main(args, &pods),
        Verb::Volume(args) => volume::main(args, &pods),
        Verb::Doctor(args) => doctor::main(&args, &pods),
        Verb::Completions { .. } | Verb::Complete(_) | Verb::Man(_) | Verb::Version(_) | Verb::Explain(_) => {
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Parses the name of a pod for clap.
fn pod_id(text: &str) -> Result<PodId, String> {
    text.parse().map_err(|error| format!("a pod's name {error}"))
}

/// Prints a value in the requested format.
fn print_as(value: &serde_json::Value, format: Format) -> Result<(), CliError> {
    let json = || -> Result<String, CliError> {
        let text =
            serde_json::to_string_pretty(value).map_err(|error| CliError::of(Kind::Internal, &error))?;
        Ok(harmless_json(&text))
    };
    match format {
        Format::Json => ui::line(&json()?),
        Format::Yaml => {
            let text =
                serde_saphyr::to_string(value).map_err(|error| CliError::of(Kind::Internal, &error))?;
            // Untrusted text with characters that act on a terminal: JSON is YAML too, and has escapes for all of them.
            if text.contains(|c: char| acts(c) && c != '\n') {
                ui::line(&json()?);
            } else {
                ui::bytes(text.as_bytes());
            }
        }
    }
    Ok(())
}
