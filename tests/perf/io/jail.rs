//! The cost of a jail: a process that does nothing, started in a jail like those of VMs, beside the same process started without one.
//! `ci/bench.sh io` calls it. Never a test, because hosts are noisy.

use magikvm::jail::{self, JAIL_VERB};
use magikvm::vmm::jails::{TRIAL_VERB, trial};
use magikvm_tests::bench::Result;
use magikvm_tests::figures::{row, show, warn_if_busy};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const PAIRS: usize = 60;

fn main() -> ExitCode {
    // The process in the jail is this program, as it is magikvm for a VM.
    let mut first = std::env::args_os().nth(1);
    if first.as_deref() == Some(JAIL_VERB.as_ref()) {
        match jail::enter() {
            Ok(verb) => first = Some(verb.into()),
            Err(_) => return ExitCode::FAILURE,
        }
    }
    if first.as_deref() == Some(TRIAL_VERB.as_ref()) {
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<()> {
    warn_if_busy()?;
    let (mut within, mut without) = (Vec::new(), Vec::new());
    let mut layers = None;
    // The first pair warms the page cache and is not counted.
    for pair in 0..=PAIRS {
        let begun = Instant::now();
        layers = Some(trial()?);
        let in_a_jail = begun.elapsed();
        let begun = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(TRIAL_VERB).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        let bare = begun.elapsed();
        if pair > 0 {
            within.push(in_a_jail);
            without.push(bare);
        }
    }
    let layers = layers.ok_or("nothing was tried")?;
    println!("layers that this host has: {} ({} missing)", layers.had.len(), layers.missing.len());
    let within = show("a process in a jail, with its control group, from start to end", &mut within);
    let without = show("the same process without", &mut without);
    row("what a jail costs", format!("{:.1} ms", within - without), "10 ms");
    Ok(())
}
