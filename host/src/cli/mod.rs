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
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use error::{CliError, Kind};
use magikvm_proto::id::PodId;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs Kubernetes Pods on this machine, each in a hardware microVM of its own, with no daemon.
#[derive(Debug, Parser)]
#[command(
    name = "magikvm",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 1 user error, 2 usage, 3 this machine cannot do it, 70 internal error;\nrun without -d: the pod's own code, 125 when magikvm failed."
)]
struct Args {
    /// Keep pods in DIR/run and images in DIR/data instead of the usual directories
    #[arg(long, global = true, value_name = "DIR", env = "MAGIKVM_ROOT")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the pod of a manifest
    Run(run::Args),
    /// List pods
    Ps(ps::Args),
    /// Show a pod as Kubernetes would, with its status
    Inspect(inspect::Args),
    /// Show what containers have printed
    Logs(logs::Args),
    /// Run a further program in a running container
    Exec(exec::ExecArgs),
    /// Connect to a running container's output and input
    Attach(exec::AttachArgs),
    /// Let ports of this machine lead to a running pod
    PortForward(port_forward::Args),
    /// Stop pods: TERM, grace period, KILL
    Stop(stop::Args),
    /// Halt the VMs of running pods, as they are, until they are resumed
    Pause(pause::Args),
    /// Let the VMs of paused pods go on
    Resume(pause::Args),
    /// Send a signal to a pod's containers
    Kill(kill::Args),
    /// Remove pods with their logs
    Rm(rm::Args),
    /// Wait until pods have ended and print their exit codes
    Wait(wait::Args),
    /// Show what containers use
    Stats(stats::Args),
    /// Show what has happened to a pod
    Events(events::Args),
    /// Manage images
    Image(image::Args),
    /// Look whether this machine can run pods, and say what to do if not
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Form of machine-readable output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

/// What a verb comes to: an exit code or an error.
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
    let layout = Layout::new(&Surroundings::of_process(root.clone()))
        .map_err(|error| CliError::of(Kind::Environment, &error).hint("name a directory with --root DIR"))?;
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

/// For clap: a pod's name as typed.
fn pod_id(text: &str) -> Result<PodId, String> {
    text.parse().map_err(|error| format!("a pod's name {error}"))
}

/// Prints a value as asked.
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

/// Carries a verb out for each pod, reports every failure, and fails if any failed.
fn for_each(pods: &[PodId], mut verb: impl FnMut(&PodId) -> Result<(), CliError>) -> ExitCode {
    let mut worst = ExitCode::SUCCESS;
    for pod in pods {
        if let Err(error) = verb(pod) {
            worst = error.report();
        }
    }
    worst
}
