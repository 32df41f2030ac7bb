//! Pods in namespaces beside crun, runc and podman, in one run: a pod to its end, execs, many pods at once, and the memory of idle pods.
//! `ci/bench.sh containers` calls it, for root. Never a test, because hosts are noisy. Arguments choose some of the figures.

mod compare;
mod idle;
mod peers;

use compare::{Peer, compare, done, timed};
use magikvm::store::layout::{Layout, Surroundings};
use magikvm::store::record::{Found, Stage};
use magikvm_tests::bench::{Bench, IMAGE, Result};
use magikvm_tests::figures::warn_if_busy;
use peers::{Bundle, Podman};
use serde_json::{Value, json};
use std::process::{Child, Command, Stdio};

/// The options of a run.
const RUN: [&str; 3] = ["run", "--class", "pod-containers"];
/// Pods that are started at the same time.
const CROWD: usize = 50;
const SLEEP: [&str; 2] = ["sleep", "1000000"];

struct Contest {
    bench: Bench,
    podman: Podman,
}

/// A pod that has no network and runs this program in one container.
fn without_network(pod: &mut Value, command: &[&str]) {
    pod["metadata"]["annotations"] = json!({ "magikvm.dev/network": "none" });
    pod["spec"]["containers"][0]["command"] = json!(command);
}

impl Contest {
    fn manifest(&self, name: &str, change: impl FnOnce(&mut Value)) -> Result<String> {
        Ok(self.bench.manifest(name, "", change)?.display().to_string())
    }

    fn magikvm(&self, options: &[&str], manifest: &str) -> Result<()> {
        self.bench.run(&[&RUN[..], options, &[manifest]].concat())
    }

    /// One container, from the command to its end.
    fn one(&self) -> Result<()> {
        let pod = self.manifest("one", |pod| without_network(pod, &["/bin/true"]))?;
        let bundle = Bundle::new(&self.bench.work)?;
        let crun = || timed(|| bundle.crun());
        let runc = || timed(|| bundle.runc());
        let podman =
            || timed(|| self.podman.run(&["run", "--rm", "--network=none", peers::IMAGE, "/bin/true"]));
        let mut peers = vec![
            Peer { name: "runc run", aim: None, time: &runc },
            Peer { name: "podman run", aim: Some(0.5), time: &podman },
        ];
        if bundle.has_crun() {
            peers.insert(0, Peer { name: "crun run", aim: Some(1.5), time: &crun });
        }
        compare("a pod of one container", &|| timed(|| self.magikvm(&["--rm"], &pod)), &peers)?;
        Ok(())
    }

    /// Two containers, from the command until nothing of the pod is left.
    fn two(&self) -> Result<()> {
        let two = |image: &str| {
            let container = |name: &str| json!({ "name": name, "image": image, "command": ["/bin/true"] });
            json!([container("a"), container("b")])
        };
        let ours = self.manifest("two", |pod| {
            without_network(pod, &[]);
            pod["spec"]["containers"] = two(IMAGE);
        })?;
        let theirs = self.manifest("two-of-podman", |pod| {
            pod["metadata"]["name"] = "two".into();
            pod["spec"]["containers"] = two(peers::IMAGE);
        })?;
        let play = || {
            self.podman.run(&["kube", "play", "--network=none", &theirs])?;
            self.podman.run(&["wait", "two-a", "two-b"])?;
            self.podman.run(&["kube", "down", &theirs])
        };
        let podman = || timed(play);
        let peer = Peer { name: "podman kube play, wait and down", aim: Some(0.5), time: &podman };
        compare("a pod of two containers", &|| timed(|| self.magikvm(&["--rm"], &ours)), &[peer])?;
        Ok(())
    }

    fn exec(&self) -> Result<()> {
        let pod = self.manifest("held", |pod| without_network(pod, &SLEEP))?;
        self.magikvm(&["-d"], &pod)?;
        self.detached("held")?;
        let podman = || timed(|| self.podman.run(&["exec", "held", "/bin/true"]));
        let peer = Peer { name: "podman exec", aim: Some(0.3), time: &podman };
        compare("exec", &|| timed(|| self.bench.run(&["exec", "held", "--", "/bin/true"])), &[peer])?;
        self.bench.run(&["rm", "-f", "held"])?;
        self.podman.run(&["rm", "--force", "--time", "0", "held"])
    }

    /// podman's container that sleeps.
    fn detached(&self, name: &str) -> Result<()> {
        done(&mut self.podmans_run(name))
    }

    fn podmans_run(&self, name: &str) -> Command {
        let run = ["run", "--detach", "--network=none", "--name", name, peers::IMAGE];
        self.podman.command(&[&run[..], &SLEEP].concat())
    }

    /// Many pods at once, until all of them run; and one alone.
    fn crowd(&self) -> Result<()> {
        let names: Vec<String> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
        let pods: Vec<String> = names
            .iter()
            .map(|name| self.manifest(name, |pod| without_network(pod, &SLEEP)))
            .collect::<Result<_>>()?;
        let chosen: Vec<&str> = names.iter().map(String::as_str).collect();
        let start = |manifest: &String| self.bench.command(&[&RUN[..], &["-d", manifest.as_str()]].concat());
        let ours = || {
            let took = timed(|| all(pods.iter().map(start)))?;
            self.are_running(&chosen)?;
            self.bench.run(&[&["rm", "-f"][..], &chosen[..]].concat())?;
            Ok(took)
        };
        let theirs = || {
            let took = timed(|| all(chosen.iter().map(|name| self.podmans_run(name))))?;
            let running = self.podman.output(&["ps", "--quiet"])?.lines().count();
            self.podman.run(&["rm", "--force", "--time", "0", "--all"])?;
            if running == CROWD { Ok(took) } else { Err(format!("{running} of {CROWD} run").into()) }
        };
        let alone = || {
            let took = timed(|| all(pods.iter().take(1).map(start)))?;
            self.are_running(&chosen[..1])?;
            self.bench.run(&["rm", "-f", chosen[0]])?;
            Ok(took)
        };
        let peers = [
            Peer { name: &format!("{CROWD} podman run -d at once"), aim: None, time: &theirs },
            Peer { name: "one alone", aim: None, time: &alone },
        ];
        compare(&format!("{CROWD} pods at once until all run"), &ours, &peers)?;
        Ok(())
    }

    fn found(&self, name: &str) -> Result<Found> {
        let layout = Layout::new(&Surroundings::of_process(Some(self.bench.root.clone())))?;
        Ok(Found::read(layout.pod(&name.parse()?))?.ok_or("the pod is gone")?)
    }

    fn are_running(&self, names: &[&str]) -> Result<()> {
        for name in names {
            let stage = self.found(name)?.state.map(|state| state.stage);
            if stage != Some(Stage::Running) {
                return Err(format!("pod {name} is {stage:?}").into());
            }
        }
        Ok(())
    }

    /// Until a pod is ready by an exec probe, and the same without the probe.
    fn ready(&self) -> Result<()> {
        let plain = self.manifest("plain", |pod| without_network(pod, &SLEEP))?;
        let probed = self.manifest("probed", |pod| {
            without_network(pod, &SLEEP);
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({ "exec": { "command": ["true"] }, "periodSeconds": 1, "initialDelaySeconds": 0 });
        })?;
        let until_ready = |name: &str, manifest: &str| {
            let took = timed(|| self.magikvm(&["-d", "--wait-ready"], manifest))?;
            self.bench.run(&["rm", "-f", name])?;
            Ok(took)
        };
        let without = || until_ready("plain", &plain);
        let peer = Peer { name: "the same without a probe", aim: None, time: &without };
        compare("until ready by an exec probe", &|| until_ready("probed", &probed), &[peer])?;
        Ok(())
    }
}

/// Starts all commands at once and waits for them.
fn all(commands: impl Iterator<Item = Command>) -> Result<()> {
    let spawn = |mut command: Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
    };
    let children: Vec<Child> = commands.map(spawn).collect::<std::io::Result<_>>()?;
    for child in children {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    warn_if_busy()?;
    let work = tempfile::tempdir()?;
    let contest = Contest { bench: Bench::without_vm(work.path())?, podman: Podman::new(work.path())? };
    let figures: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("one", &|| contest.one()),
        ("two", &|| contest.two()),
        ("exec", &|| contest.exec()),
        ("ready", &|| contest.ready()),
        ("idle", &|| idle::memory(&contest)),
        ("crowd", &|| contest.crowd()),
    ];
    // cargo adds `--bench`.
    let chosen: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, measure) in figures {
        if chosen.is_empty() || chosen.iter().any(|other| other == name) {
            measure()?;
        }
    }
    Ok(())
}
