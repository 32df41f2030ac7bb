//! Figures of a pod's outbound network: our NAT beside passt, both behind the filter. `ci/bench.sh egress` calls it. Never a test, because hosts are
//! noisy.
//!
//! Each pair starts one pod after the other, so that the first answers are those of new processes. The servers are in another network namespace,
//! behind a link with an MTU of 1500. A program in the pod measures all times but those of processors.

use magikvm::store::layout::{Layout, Surroundings};
use magikvm::store::record::Found;
use magikvm_tests::bench::{Bench, Result};
use magikvm_tests::figures::{median, mib, row, warn_if_busy};
use magikvm_tests::layout::{Tar, write_layout};
use magikvm_tests::memory::private;
use magikvm_tests::net::{BULK_PORT, Wire};
use magikvm_tests::processes::processor_ticks;
use magikvm_tests::programs::CLIENT;
use magikvm_tests::virtual_machine::NETWORK;
use std::fs;
use std::path::Path;

const PAIRS: usize = 5;
/// The networks that are compared, and the names of their processes.
const NETWORKS: [&str; 2] = ["nat", "passt"];
/// Bytes of a transfer.
const LARGE: u32 = 64 << 20;
/// Connections one after the other.
const CONNECTIONS: u32 = 50;
/// Attempts at a transfer before its failure counts.
const TRIES: u32 = 3;
/// DNS queries after the first one.
const QUERIES: usize = 15;
const CLIENT_IMAGE: &str = "bench/client:1";
const CONTAINER: &str = "client";
const SERVER: &str = "203.0.113.5";
/// A server that answers with a few bytes.
const SMALL_PORT: u16 = 8080;
const NAME: &str = "four.example";
const NAME_SERVER: &str = "192.0.2.1";
/// The forwarder that pods ask for names.
const FORWARDER: &str = "10.0.2.3";
/// The targets: there are none yet.
const NO_AIM: &str = "none";

/// What was measured of one pod.
struct Figures {
    first_name_ms: f64,
    first_connection_ms: f64,
    name_ms: f64,
    connections_per_second: f64,
    download_mb_per_second: f64,
    upload_mb_per_second: f64,
    processor_ms: f64,
    idle_mib: f64,
    used_mib: f64,
    broken: u32,
}

/// What the client in the pod has measured.
struct Said {
    ms: f64,
    /// Connections that broke.
    broken: u32,
}

fn main() -> Result<()> {
    warn_if_busy()?;
    let work = tempfile::tempdir()?;
    let wire = Wire::new();
    let _names = wire.there.serve_names(NAME_SERVER, &[(NAME, SERVER)]);
    wire.here.set_resolv(&format!("nameserver {NAME_SERVER}\n"));
    let mut bench = Bench::new(work.path())?;
    bench.enter(&wire.here);
    import_client(&bench, work.path())?;
    // The first pod warms the page cache and is not counted.
    measure(&bench, NETWORKS[0])?;
    let mut found = [Vec::new(), Vec::new()];
    for pair in 0..PAIRS {
        let mut order = [0, 1];
        if pair % 2 == 1 {
            order.reverse();
        }
        for which in order {
            found[which].push(measure(&bench, NETWORKS[which])?);
        }
    }
    println!("{PAIRS} pairs, the pod's network nat beside passt:");
    let [ours, theirs] = found;
    let broken = [&ours, &theirs].map(|all| all.iter().map(|figures| figures.broken).sum::<u32>());
    let compare = |what: &str, unit: &str, aim: &str, of: fn(&Figures) -> f64| {
        let all = |figures: &[Figures]| -> Vec<f64> { figures.iter().map(of).collect() };
        let (mut mine, mut its) = (all(&ours), all(&theirs));
        let mut ratios: Vec<f64> = mine.iter().zip(&its).map(|(mine, its)| mine / its).collect();
        let (mine, its) = (median(&mut mine), median(&mut its));
        let ratio = median(&mut ratios);
        let figures = format!("{mine:.1} {unit}, passt {its:.1} {unit}, median of pairs {ratio:.2}x");
        row(what, figures, aim);
    };
    compare("first DNS answer", "ms", NO_AIM, |of| of.first_name_ms);
    compare("first connection, to its end", "ms", NO_AIM, |of| of.first_connection_ms);
    compare("later DNS answer", "ms", NO_AIM, |of| of.name_ms);
    compare("connections one after the other", "per second", NO_AIM, |of| of.connections_per_second);
    compare("download", "MB/s", NO_AIM, |of| of.download_mb_per_second);
    compare("upload", "MB/s", NO_AIM, |of| of.upload_mb_per_second);
    compare("processor time of the process for both", "ms", NO_AIM, |of| of.processor_ms);
    compare("private memory of the process, unused", "MiB", NO_AIM, |of| of.idle_mib);
    compare("private memory of the process, after all this", "MiB", NO_AIM, |of| of.used_mib);
    row("connections that broke", format!("{}, passt {}", broken[0], broken[1]), 0);
    Ok(())
}

fn import_client(bench: &Bench, work: &Path) -> Result<()> {
    let layout = work.join("client");
    write_layout(&layout, Tar::default().file("client", 0o755, CLIENT), &serde_json::json!({}));
    bench.run(&["image", "import", &format!("oci:{}:1", layout.display()), "--name", CLIENT_IMAGE])
}

/// Starts a pod with this network, measures and removes it.
fn measure(bench: &Bench, network: &str) -> Result<Figures> {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": network, "annotations": { NETWORK: network } },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [
            { "name": CONTAINER, "image": CLIENT_IMAGE, "command": ["/client", "wait"] },
        ] },
    });
    let manifest = bench.work.join(format!("{network}.json"));
    fs::write(&manifest, pod.to_string())?;
    bench.run(&["run", "-d", &manifest.to_string_lossy()])?;
    let figures = figures(bench, network);
    bench.run(&["rm", "-f", network])?;
    figures
}

fn figures(bench: &Bench, network: &str) -> Result<Figures> {
    let pid = process(bench, network)?;
    let client = |args: &[&str]| client(bench, network, args);
    let (small, bulk, bytes) = (SMALL_PORT.to_string(), BULK_PORT.to_string(), LARGE.to_string());
    let idle = private(pid)?;
    let first_name = client(&["name", FORWARDER, NAME])?;
    let first_connection = client(&["connections", SERVER, &small, "1"])?;
    let mut names = Vec::with_capacity(QUERIES);
    for _ in 0..QUERIES {
        names.push(client(&["name", FORWARDER, NAME])?.ms);
    }
    let connections = client(&["connections", SERVER, &small, &CONNECTIONS.to_string()])?;
    let before = processor_ticks(pid);
    let download = repeated(|| client(&["download", SERVER, &bulk, &bytes]))?;
    let upload = repeated(|| client(&["upload", SERVER, &bulk, &bytes]))?;
    let ticks = u32::try_from(processor_ticks(pid) - before)?;
    let rate = |said: &Said| f64::from(LARGE) / 1e3 / said.ms;
    Ok(Figures {
        first_name_ms: first_name.ms,
        first_connection_ms: first_connection.ms,
        name_ms: median(&mut names),
        connections_per_second: f64::from(CONNECTIONS) * 1e3 / connections.ms,
        download_mb_per_second: rate(&download),
        upload_mb_per_second: rate(&upload),
        processor_ms: f64::from(ticks) * 10.0,
        idle_mib: mib(idle),
        used_mib: mib(private(pid)?),
        broken: first_connection.broken + connections.broken + download.broken + upload.broken,
    })
}

/// A transfer that is repeated if its connection breaks, as passt's sometimes do.
fn repeated(transfer: impl Fn() -> Result<Said>) -> Result<Said> {
    for broken in 0..TRIES {
        match transfer() {
            Ok(said) => return Ok(Said { broken, ..said }),
            Err(error) => println!("repeated: {error}"),
        }
    }
    Ok(Said { broken: TRIES, ..transfer()? })
}

/// The process of the pod that carries its network.
fn process(bench: &Bench, network: &str) -> Result<i32> {
    let layout = Layout::new(&Surroundings::of_process(Some(bench.root.clone())))?;
    let found = Found::read(layout.pod(&network.parse()?))?.ok_or("the pod is gone")?;
    let state = found.state.ok_or("the pod has no state")?;
    let process = state.processes.iter().find(|process| process.name == network);
    Ok(process.ok_or_else(|| format!("the pod has no process {network}"))?.pid)
}

fn client(bench: &Bench, pod: &str, args: &[&str]) -> Result<Said> {
    let said = bench.output(&[&["exec", pod, "--", "/client"], args].concat())?;
    let numbers = said.trim().split_once(' ').and_then(|(nanoseconds, broken)| {
        Some(Said { ms: nanoseconds.parse::<f64>().ok()? / 1e6, broken: broken.parse().ok()? })
    });
    numbers.ok_or_else(|| format!("the client printed {said:?}").into())
}
