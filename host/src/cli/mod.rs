//! The command line: one file per verb. Prints through `ui` only, fails through `error` only.

mod doctor;
mod error;
mod events;
mod exec;
mod hidden;
mod image;
mod inspect;
mod interrupt;
mod kill;
mod logs;
mod pause;
mod port_forward;
mod ps;
mod rm;
mod run;
mod stats;
mod stop;
mod terminal;
mod ui;
mod wait;

use crate::pod::interface::PodRuntimeInterface;
use crate::store::layout::{Layout, Surroundings};
use crate::store::trust;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use error::{CliError, Kind};
use magikvm_proto::id::PodId;
use std::path::PathBuf;
use std::process::ExitCode;

/// Run Kubernetes Pods, each in its own hardware microVM, without a daemon.
#[derive(Debug, Parser)]
#[command(
    name = "magikvm",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 1 user error, 2 usage, 3 this host cannot do it, 70 internal error.\n`run` without -d exits with the pod's code, or with 125 if magikvm failed."
)]
struct Args {
    /// Keep pods in DIR/run and images in DIR/data instead of the default directories
    #[arg(long, global = true, value_name = "DIR", env = "MAGIKVM_ROOT", help_heading = "Global options")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a pod from a manifest
    Run(run::Args),
    /// List pods
    Ps(ps::Args),
    /// Show a pod as a Kubernetes object with its status
    Inspect(inspect::Args),
    /// Print the logs of the containers of a pod
    Logs(logs::Args),
    /// Run a command in a running container
    Exec(exec::ExecArgs),
    /// Attach to the output and input of a running container
    Attach(exec::AttachArgs),
    /// Forward local ports to a pod
    PortForward(port_forward::Args),
    /// Stop pods: send TERM, wait for the grace period, send KILL
    Stop(stop::Args),
    /// Pause running pods
    Pause(pause::Args),
    /// Resume paused pods
    Resume(pause::Args),
    /// Send a signal to the containers of a pod
    Kill(kill::Args),
    /// Remove pods and their logs
    Rm(rm::Args),
    /// Wait until pods have ended, and print their exit codes
    Wait(wait::Args),
    /// Show the resource usage of containers
    Stats(stats::Args),
    /// Show the events of a pod
    Events(events::Args),
    /// Manage container images
    Image(image::Args),
    /// Check whether this host can run pods and suggest fixes
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completions {
        /// Shell for which to print the script
        shell: clap_complete::Shell,
    },
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

/// The whole program.
pub fn main() -> ExitCode {
    if let Some(code) = hidden::dispatch(std::env::args_os().nth(1)) {
        return code;
    }
    let args = Args::parse();
    dispatch(args).unwrap_or_else(|error| error.report())
}

fn dispatch(args: Args) -> Outcome {
    let root = args.root;
    if let Verb::Completions { shell } = args.verb {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "magikvm", &mut script);
        ui::bytes(&script);
        return Ok(ExitCode::SUCCESS);
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
    let pods = PodRuntimeInterface::new(layout);
    match args.verb {
        Verb::Run(args) => run::main(args, root, &pods),
        Verb::Ps(args) => ps::main(&args, &pods),
        Verb::Inspect(args) => inspect::main(&args, &pods),
        Verb::Logs(args) => logs::main(&args, &pods),
        Verb::Exec(args) => exec::exec(args, &pods),
        Verb::Attach(args) => exec::attach(&args, &pods),
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
        Verb::Doctor(args) => doctor::main(&args, &pods),
        Verb::Completions { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// Parses the name of a pod for clap.
fn pod_id(text: &str) -> Result<PodId, String> {
    text.parse().map_err(|error| format!("a pod's name {error}"))
}

/// Prints a value in the requested format.
fn print_as(value: &serde_json::Value, format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => {
            let text =
                serde_json::to_string_pretty(value).map_err(|error| CliError::of(Kind::Internal, &error))?;
            ui::line(&text);
        }
        Format::Yaml => {
            let text =
                serde_saphyr::to_string(value).map_err(|error| CliError::of(Kind::Internal, &error))?;
            ui::bytes(text.as_bytes());
        }
    }
    Ok(())
}

/// Applies a verb to each pod, reports every failure, and fails if any of them failed.
fn for_each(pods: &[PodId], mut verb: impl FnMut(&PodId) -> Result<(), CliError>) -> ExitCode {
    let mut worst = ExitCode::SUCCESS;
    for pod in pods {
        if let Err(error) = verb(pod) {
            worst = error.report();
        }
    }
    worst
}
