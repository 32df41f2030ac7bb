//! The memory of our processes for an idle pod.

use crate::{Contest, SLEEP, without_network};
use magikvm_tests::bench::Result;
use magikvm_tests::figures::{mib, row};
use magikvm_tests::memory::{private, pss};
use magikvm_tests::processes;
use std::collections::BTreeMap;
use std::fs;

/// Pods that run at the same time. Each has one container, which sleeps.
const PODS: u64 = 10;
/// The aim, in MiB for each pod.
const AIM_MIB: u32 = 4;

/// What the processes of one name take in all pods.
#[derive(Default)]
struct Taken {
    processes: u64,
    pss: u64,
    private: u64,
}

pub(super) fn memory(contest: &Contest) -> Result<()> {
    of_network(contest, "none")?;
    of_network(contest, "nat")
}

fn of_network(contest: &Contest, network: &str) -> Result<()> {
    let names: Vec<String> = (0..PODS).map(|number| format!("idle-{number}")).collect();
    for name in &names {
        let manifest = contest.manifest(name, |pod| {
            without_network(pod, &SLEEP);
            pod["metadata"]["annotations"]["magikvm.dev/network"] = network.into();
        })?;
        contest.magikvm(&["-d"], &manifest)?;
    }
    let measured = measure(contest, network);
    let remove: Vec<&str> = ["rm", "-f"].into_iter().chain(names.iter().map(String::as_str)).collect();
    contest.bench.run(&remove)?;
    measured
}

fn measure(contest: &Contest, network: &str) -> Result<()> {
    let mut taken: BTreeMap<String, Taken> = BTreeMap::new();
    for process in processes::of_directory(&contest.bench.root) {
        let program = fs::read_link(format!("/proc/{}/exe", process.pid))?;
        // What a container runs is not ours.
        let is_ours = program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("magikvm"));
        if is_ours {
            let name = fs::read_to_string(format!("/proc/{}/comm", process.pid))?.trim().to_owned();
            let sum = taken.entry(name).or_default();
            sum.processes += 1;
            sum.pss += pss(process.pid)?;
            sum.private += private(process.pid)?;
        }
    }
    println!("network {network}: our processes of {PODS} idle pods, for each pod:");
    let each = |bytes: u64| mib(bytes / PODS);
    let line = |name: &str, Taken { processes, pss, private }: &Taken| {
        println!(
            "  {name}: {processes} processes, PSS {:.2} MiB: {:.2} MiB private, {:.2} MiB of shared pages",
            each(*pss),
            each(*private),
            each(pss.saturating_sub(*private))
        );
    };
    let mut all = Taken::default();
    for (name, sum) in &taken {
        line(name, sum);
        all.processes += sum.processes;
        all.pss += sum.pss;
        all.private += sum.private;
    }
    line("all", &all);
    row(
        &format!("memory of an idle pod, network {network}"),
        format!("{:.2} MiB", each(all.pss)),
        format!("{AIM_MIB} MiB"),
    );
    Ok(())
}
