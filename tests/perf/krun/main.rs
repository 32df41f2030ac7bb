//! Figures of pods under libkrun, each beside its aim. All but the count of instructions are measured in the lab (`magikvm-lab`), which has real
//! KVM; this program runs itself there. `ci/bench.sh krun` calls it. Never a test, because hosts are noisy.

mod inside;
mod instructions;

use magikvm::jail::JAIL_VERB;
use magikvm::vmm::krun;
use magikvm_lab::{Lab, LabCommand};
use magikvm_tests::figures::{median, mib, row, show, warn_if_busy, warn_if_spread};
use serde_json::Value;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Pairs of a pod and a floor, each in a fresh boot of the lab and the first VM there: emulated, a boot's second VM takes twice the time and more.
/// The order of the two alternates, so that a host that slows down favours neither.
const PAIRS: usize = 5;
/// Boots that may fail. Under this emulation a guest's timer sometimes stops, in one boot of twenty.
const MAY_BE_LOST: u32 = 5;
/// Idle pods in one boot of the lab, of which the first is not counted: it pays for what all share.
const PODS: u64 = 5;
/// Memory of the lab, which is enough for all of them.
const PODS_LAB_MIB: u32 = 4096;
const LIMIT: Duration = Duration::from_secs(900);
/// The limit for idle pods.
const ROOM_BYTES: u64 = 8 << 30;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // The driver starts this program again for a VM.
        [JAIL_VERB, ..] => {
            std::process::exit(magikvm::jail::enter().map_or_else(|code| code, |_| krun::main()))
        }
        [krun::VMM_VERB, ..] => std::process::exit(krun::main()),
        [inside::FIRST_BYTE, whose] => inside::first_byte(whose),
        [inside::IDLE, pods] => inside::idle(pods.parse()?),
        _ => all(),
    }
}

fn var(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set; run ci/bench.sh krun").into())
}

fn all() -> Result<()> {
    warn_if_busy()?;
    instructions::compare()?;
    let mut labs = Labs { lab: Lab::from_environment()?, lost: 0 };
    first_byte(&mut labs)?;
    idle(&mut labs)
}

struct Labs {
    lab: Lab,
    lost: u32,
}

impl Labs {
    /// Runs this program in a fresh lab, where it prints its results as one JSON value. A boot that fails is repeated with a message.
    fn run(&mut self, args: [&str; 2], memory_mib: u32) -> Result<Value> {
        loop {
            match self.run_once(args, memory_mib) {
                Err(error) if self.lost < MAY_BE_LOST => {
                    self.lost += 1;
                    println!("NOISY: a boot of the lab did not count: {error}");
                }
                found => return found,
            }
        }
    }

    fn run_once(&self, args: [&str; 2], memory_mib: u32) -> Result<Value> {
        let command = LabCommand::new(std::env::current_exe()?)
            .args(args)
            .env("MAGIKVM_DEMO_IMAGE", var("MAGIKVM_DEMO_IMAGE")?)
            .memory_mib(memory_mib)
            .limit(LIMIT);
        let output = self.lab.run(&command)?;
        if output.code != 0 {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{args:?} failed in the lab: {said}\n{}", output.console).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

fn number(found: &Value, name: &str) -> Result<u64> {
    found[name].as_u64().ok_or_else(|| format!("the lab did not say {name}: {found}").into())
}

fn first_byte(labs: &mut Labs) -> Result<()> {
    let (mut ours, mut floor, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let mut order = [(inside::OURS, &mut ours), (inside::FLOOR, &mut floor)];
        if pair % 2 == 1 {
            order.reverse();
        }
        for (whose, times) in order {
            let found = labs.run([inside::FIRST_BYTE, whose], magikvm_lab::MEMORY_MIB)?;
            times.push(Duration::from_micros(number(&found, "us")?));
        }
        ratios.push(ours[pair].as_secs_f64() / floor[pair].as_secs_f64());
    }
    println!("libkrun in the lab, {PAIRS} pairs, each VM in a fresh boot:");
    let list: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    show("magikvm run to first output byte", &mut ours);
    show("floor to first output byte", &mut floor);
    warn_if_spread("magikvm run", &ours);
    warn_if_spread("the floor", &floor);
    let middle = median(&mut ratios);
    row(
        "first output byte over the floor",
        format!("median of pairs {middle:.2}x (all: {})", list.join(" ")),
        "1.25x",
    );
    Ok(())
}

fn idle(labs: &mut Labs) -> Result<()> {
    let found = labs.run([inside::IDLE, &PODS.to_string()], PODS_LAB_MIB)?;
    let vm = number(&found, "vm_bytes")?;
    println!("idle pods in one lab, {PODS} of them, each a VM of {:.0} MiB:", mib(vm));
    let part = |name| number(&found, name).map(|bytes| format!("{:.1} MiB", mib(bytes)));
    row("PSS of the VMM without its guest's memory, one pod alone", part("vmm_alone_bytes")?, "8 MiB");
    println!("the same, mean of {PODS} pods that share the program: {}", part("vmm_bytes")?);
    println!("the same of the monitor: {}", part("monitor_bytes")?);
    println!("guest's memory that lies in the host's: {}", part("guest_bytes")?);
    for (what, name) in [
        ("MemAvailable goes down by", "marginal_available_bytes"),
        ("PSS of monitor and VMM with guest goes up by", "marginal_pss_bytes"),
    ] {
        let marginal = number(&found, name)?;
        if marginal == 0 {
            return Err(format!("{name} is nothing, which cannot be: {found}").into());
        }
        let fit = format!(
            "{} (extrapolated from {PODS} pods: {what} {:.1} MiB a pod)",
            ROOM_BYTES / marginal,
            mib(marginal)
        );
        row("idle pods in 8 GiB", fit, 250);
    }
    Ok(())
}
