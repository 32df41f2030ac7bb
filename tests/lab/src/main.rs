//! Runs a command in a fresh lab and passes on its output and exit code. Exit code 125 means that there is no result.

use clap::Parser;
use magikvm_lab::{Lab, LabCommand, LabError, LabOutput, MEMORY_MIB};
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Run a command in a disposable VM that has the host's files, real KVM and unified cgroup v2.
#[derive(Debug, Parser)]
#[command(name = "magikvm-lab")]
struct Args {
    /// Memory of the VM in MiB
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    memory: u32,
    /// Kill the command after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// Copy what the command leaves in $MAGIKVM_LAB_OUT to this directory
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Make this path below /tmp visible; paths in the command and in the tests' variables are visible anyway
    #[arg(long, value_name = "PATH")]
    needs: Vec<PathBuf>,
    /// Print how long the run took
    #[arg(long)]
    timings: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprint!("Error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::from(125)
        }
    }
}

fn run(args: &Args) -> Result<u8, Box<dyn Error>> {
    let Some((program, rest)) = args.command.split_first() else { return Err("no command".into()) };
    let command = LabCommand::new(program)
        .args(rest.iter().cloned())
        .memory_mib(args.memory)
        .limit(Duration::from_secs(args.limit));
    let command = args.needs.iter().fold(command, LabCommand::needs);
    let output = execute(&command)?;
    io::stdout().write_all(&output.stdout)?;
    io::stdout().flush()?;
    io::stderr().write_all(&output.stderr)?;
    if let Some(to) = &args.keep {
        copy_tree(&output.out_dir(), to)?;
    }
    if args.timings {
        eprintln!(
            "lab: booted in {:.2} s, all in {:.2} s",
            output.boot.as_secs_f64(),
            output.took.as_secs_f64()
        );
    }
    Ok(u8::try_from(output.code).unwrap_or(u8::MAX))
}

fn execute(command: &LabCommand) -> Result<LabOutput, LabError> {
    Lab::from_environment()?.run(command)
}

/// Copies regular files and directories.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}
