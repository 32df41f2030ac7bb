//! Many pods one after the other. Prints the times and the memory of the first and of the last ones, and compares what the system holds before and
//! after. `ci/soak.sh` calls it with the class and the number of pods. Never a test, because hosts are noisy.

use magikvm::store::layout::{Layout, Surroundings};
use magikvm_tests::bench::{Bench, Result};
use magikvm_tests::figures::{mib, row, show};
use magikvm_tests::leaks::{Holdings, assert_as_before};
use magikvm_tests::memory::{kib_line, pss};
use magikvm_tests::processes;
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Pods at each end whose medians are compared.
const ENDS: usize = 100;
/// Fewer pods have no two ends.
const MIN_PODS: usize = 2;

/// What one pod took.
struct Pod {
    start: Duration,
    removal: Duration,
    /// Proportional set size of all of its processes.
    memory: u64,
}

/// What the kernel holds for the whole host. Other programs change it, too.
struct Kernel {
    unreclaimable: u64,
    groups: usize,
    mounts: usize,
    ranges: usize,
}

impl Kernel {
    /// `ids` is the directory of the ranges of ids.
    fn now(ids: &Path) -> Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find(|line| line.starts_with("SUnreclaim:")).ok_or("no SUnreclaim")?;
        Ok(Self {
            unreclaimable: kib_line(line)?,
            groups: groups(Path::new("/sys/fs/cgroup")),
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().count(),
            ranges: fs::read_dir(ids).into_iter().flatten().count(),
        })
    }
}

/// The control groups below a directory.
fn groups(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| 1 + groups(&entry.path())).sum()
}

fn one(bench: &Bench, class: &str, manifest: &str) -> Result<Pod> {
    let begun = Instant::now();
    bench.run(&["run", "--class", class, "-d", manifest])?;
    let start = begun.elapsed();
    let memory =
        processes::of_directory(&bench.root).iter().map(|process| pss(process.pid)).sum::<Result<u64>>()?;
    let begun = Instant::now();
    bench.run(&["rm", "-f", "soak"])?;
    Ok(Pod { start, removal: begun.elapsed(), memory })
}

fn report(which: &str, pods: &[Pod]) {
    let median = |what: &str, time: fn(&Pod) -> Duration| {
        show(
            &format!("{what} of the {which} {}", pods.len()),
            &mut pods.iter().map(time).collect::<Vec<_>>(),
        );
    };
    median("start", |pod| pod.start);
    median("removal", |pod| pod.removal);
    let mut memory: Vec<u64> = pods.iter().map(|pod| pod.memory).collect();
    memory.sort_unstable();
    println!("memory of the {which} {}: median {:.2} MiB", pods.len(), mib(memory[memory.len() / 2]));
}

fn main() -> Result<()> {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let [class, count] = arguments.as_slice() else {
        return Err("usage: soak CLASS COUNT; run ci/soak.sh".into());
    };
    let count: usize = count.parse()?;
    if count < MIN_PODS {
        return Err(format!("at least {MIN_PODS} pods are needed").into());
    }
    let work = tempfile::tempdir()?;
    let bench = match class.as_str() {
        "pod-containers" => Bench::without_vm(work.path())?,
        _ => Bench::new(work.path())?,
    };
    let temporary = work.path().join("tmp");
    fs::create_dir(&temporary)?;
    let manifest = bench.manifest("soak", "", |pod| {
        pod["metadata"]["annotations"] = json!({ "magikvm.dev/network": "none" });
        pod["spec"]["containers"][0]["command"] = json!(["sleep", "1000000"]);
    })?;
    let manifest = manifest.display().to_string();
    let ids = Layout::new(&Surroundings::of_process(Some(bench.root.clone())))?.ids();
    // The first pod makes what stays, such as the directory of pods.
    one(&bench, class, &manifest)?;
    let held = Holdings::of(&bench.root, &temporary);
    let before = Kernel::now(&ids)?;
    let pods = (0..count).map(|_| one(&bench, class, &manifest)).collect::<Result<Vec<_>>>()?;
    let ends = ENDS.min(count / 2);
    report("first", &pods[..ends]);
    report("last", &pods[count - ends..]);
    assert_as_before(&bench.root, &temporary, &held);
    let after = Kernel::now(&ids)?;
    println!(
        "the host before and after: {} and {} control groups, {} and {} mounts, {} and {} ranges of ids, {:.1} and {:.1} MiB that the kernel cannot reclaim",
        before.groups,
        after.groups,
        before.mounts,
        after.mounts,
        before.ranges,
        after.ranges,
        mib(before.unreclaimable),
        mib(after.unreclaimable)
    );
    row(&format!("what {count} pods leave"), "nothing", "nothing");
    Ok(())
}
