//! What Kubernetes' semantics cost: the check of a large manifest, probes on an idle pod, an init container, and the first restart.
//! `ci/bench.sh semantics` calls it. Never a test, because hosts are noisy.

use magikvm::store::layout::{Layout, Surroundings};
use magikvm::store::record::Found;
use magikvm_tests::bench::{Bench, IMAGE, Result, var};
use magikvm_tests::figures::{median, row, show, time_until, warn_if_busy, warn_if_spread};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Pairs of pods, after one that is not counted.
const PAIRS: usize = 9;
/// Pods whose first restart is measured.
const CRASHES: usize = 9;
/// Containers of the probed pod. Each has two exec probes a second, so that there are ten a second.
const PROBED: usize = 5;
/// How long the work of the host's processes is counted.
const COUNTED: Duration = Duration::from_secs(20);
const MARK: &str = "first-byte";

/// Bytes of the manifest: the most that a file may have.
const SIZE: usize = 1 << 20;
const RUNS: usize = 21;
/// The aim, in milliseconds.
const AIM_MS: u32 = 100;

/// Pods as programs write them, and a ConfigMap that fills the file.
fn manifest() -> String {
    let mut text = String::new();
    for number in 0..240 {
        text.push_str(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-{number}\n  labels:\n    app.kubernetes.io/name: web\nspec:\n  containers:\n"
        ));
        for container in 0..4 {
            text.push_str(&format!(
                "  - name: c{container}\n    image: registry.example/team/web:1.{container}\n    args: [\"--listen\", \"0.0.0.0\"]\n    \
                 ports:\n    - containerPort: {}\n    resources:\n      limits:\n        cpu: 250m\n        memory: 64Mi\n    env:\n",
                8000 + container
            ));
            for variable in 0..12 {
                text.push_str(&format!(
                    "    - name: VARIABLE_{variable}\n      value: \"value {variable}\"\n"
                ));
            }
        }
        text.push_str("---\n");
    }
    text.push_str("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: filler\ndata:\n  text: |\n");
    let line = "    A line of a file, as ConfigMaps have them.\n";
    while text.len() + line.len() <= SIZE {
        text.push_str(line);
    }
    text
}

fn validate() -> Result<()> {
    let magikvm = var("MAGIKVM_BIN")?;
    let work = tempfile::tempdir()?;
    let file = work.path().join("large.yaml");
    let text = manifest();
    fs::write(&file, &text)?;
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        let status = Command::new(&magikvm)
            .arg("--root")
            .arg(work.path())
            .arg("validate")
            .arg(&file)
            .stdout(Stdio::null())
            .status()?;
        times.push(begun.elapsed());
        if !status.success() {
            return Err(format!("validate: {status}").into());
        }
    }
    warn_if_spread("validate", &times);
    let median = show(&format!("validate of {} bytes", text.len()), &mut times);
    row("validate of a 1 MiB manifest", format!("{median:.1} ms"), format!("below {AIM_MS} ms"));
    Ok(())
}

/// The time until a pod has printed the mark.
fn until_mark(bench: &Bench, manifest: &Path) -> Result<Duration> {
    let begun = Instant::now();
    let mut child = bench
        .command(&["run", "--rm", "--no-prefix"])
        .arg(manifest)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut out = child.stdout.take().ok_or("no pipe")?;
    let took = time_until(MARK, &mut out, begun, &mut Vec::new())?;
    std::io::copy(&mut out, &mut std::io::sink())?;
    child.wait()?;
    took.ok_or_else(|| format!("{} ended without {MARK}", manifest.display()).into())
}

/// The same work in one container, and in an init container before it.
fn init_container(bench: &Bench) -> Result<()> {
    let work = "i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done";
    let within = bench.manifest("within", &format!("{work}; echo {MARK}"), |_| {})?;
    let before = bench.manifest("before", &format!("echo {MARK}"), |pod| {
        pod["spec"]["initContainers"] =
            json!([{ "name": "init", "image": IMAGE, "command": ["/bin/sh", "-c", work] }]);
    })?;
    let (mut one, mut two, mut differences) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=PAIRS {
        let (first, second) = (until_mark(bench, &within)?, until_mark(bench, &before)?);
        // The first pair warms the page cache and is not counted.
        if pair > 0 {
            differences.push((second.as_secs_f64() - first.as_secs_f64()) * 1e3);
            one.push(first);
            two.push(second);
        }
    }
    show("work in the container, to the first output byte", &mut one);
    show("work in an init container, to the first output byte", &mut two);
    let figure = format!("median of pairs {:.0} ms", median(&mut differences));
    row("overhead of an init container", figure, "below 60 ms under tcg");
    Ok(())
}

/// From the last command of a run that fails to the first one of its restart, by the guest's clock, which counts hundredths of a second.
fn first_restart(bench: &Bench) -> Result<()> {
    let now = "$(cut -d' ' -f1 /proc/uptime)";
    let script = format!(
        "if [ -e /state/ended ]; then echo {now} $(cat /state/ended); exit 0; fi; echo {now} > /state/ended; exit 1"
    );
    let manifest = bench.manifest("crash", &script, |pod| {
        pod["spec"]["restartPolicy"] = "OnFailure".into();
        pod["spec"]["volumes"] = json!([{ "name": "state", "emptyDir": {} }]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "state", "mountPath": "/state" }]);
    })?;
    let path = manifest.display().to_string();
    let mut waits = Vec::new();
    for _ in 0..CRASHES {
        let said = bench.output(&["run", "--rm", "--no-prefix", &path])?;
        let times = said
            .split_ascii_whitespace()
            .map(str::parse::<f64>)
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let [began, ended] = times[..] else { return Err(format!("the pod said {said:?}").into()) };
        waits.push(Duration::from_secs_f64((began - ended).max(0.0)));
    }
    let figure = show("from the exit of a process to its restart", &mut waits);
    row("first restart", format!("{figure:.0} ms"), "below 50 ms");
    Ok(())
}

/// The processor time that a pod's processes on the host have taken, in clock ticks, without that of its virtual processors.
fn ticks(processes: &[i32]) -> Result<u64> {
    let mut sum = 0;
    for &pid in processes {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let dir = task?.path();
            let Ok(stat) = fs::read_to_string(dir.join("stat")) else { continue };
            let program = fs::read_link(format!("/proc/{pid}/exe"))?;
            let is_qemu = program.to_string_lossy().contains("qemu-system");
            // In QEMU the main thread serves the devices, and the others are virtual processors or idle.
            if is_qemu && !dir.ends_with(pid.to_string()) {
                continue;
            }
            let fields = stat.rsplit_once(')').ok_or("a line of stat without a name")?.1;
            let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
            // utime and stime, the 14th and 15th of the line.
            let numbers = fields.get(11..13).ok_or("a short line of stat")?;
            sum += numbers.iter().map(|number| number.parse::<u64>()).sum::<std::result::Result<u64, _>>()?;
        }
    }
    Ok(sum)
}

/// Per cent of one processor that the host's side of a pod takes while it is left alone.
#[allow(clippy::cast_precision_loss, reason = "ticks of some seconds are few")]
fn load(bench: &Bench, name: &str, manifest: &Path) -> Result<f64> {
    /// Clock ticks of a second, as Linux tells them to programs.
    const HERTZ: f64 = 100.0;
    bench.run(&["run", "-d", "--wait-ready", &manifest.display().to_string()])?;
    let measured = || -> Result<f64> {
        let layout = Layout::new(&Surroundings::of_process(Some(bench.root.clone())))?;
        let found = Found::read(layout.pod(&name.parse()?))?.ok_or("the pod is gone")?;
        let state = found.state.ok_or("the pod has no state")?;
        let processes: Vec<i32> = state.processes.iter().map(|process| process.pid).collect();
        let (before, begun) = (ticks(&processes)?, Instant::now());
        std::thread::sleep(COUNTED);
        let taken = (ticks(&processes)? - before) as f64 / HERTZ;
        Ok(100.0 * taken / begun.elapsed().as_secs_f64())
    };
    let measured = measured();
    bench.run(&["rm", "-f", name])?;
    measured
}

/// A pod whose containers sleep, with two exec probes a second in each or without.
fn probes(bench: &Bench) -> Result<()> {
    let pod = |name: &str, probed: bool| {
        bench.manifest(name, "", |pod| {
            let container = |number: usize| {
                let mut container = json!({ "name": format!("c{number}"), "image": IMAGE, "command": ["sleep", "1000000"],
                    "resources": { "limits": { "memory": "16Mi" } } });
                if probed {
                    let probe = json!({ "exec": { "command": ["true"] }, "periodSeconds": 1, "timeoutSeconds": 10 });
                    container["livenessProbe"] = probe.clone();
                    container["readinessProbe"] = probe;
                }
                container
            };
            pod["spec"]["containers"] = (0..PROBED).map(container).collect::<Vec<Value>>().into();
        })
    };
    let idle = load(bench, "idle", &pod("idle", false)?)?;
    let probed = load(bench, "probed", &pod("probed", true)?)?;
    println!(
        "the host's side of an idle pod: {idle:.2} % of a processor, with ten exec probes a second {probed:.2} %"
    );
    row("ten exec probes a second", format!("{:.2} % of a processor", probed - idle), "below 1 %");
    Ok(())
}

fn main() -> Result<()> {
    warn_if_busy()?;
    validate()?;
    let work = tempfile::tempdir()?;
    let bench = Bench::new(work.path())?;
    init_container(&bench)?;
    first_restart(&bench)?;
    probes(&bench)
}
