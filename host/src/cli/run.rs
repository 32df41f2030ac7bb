//! `magikvm run`.

use super::error::{CliError, Kind, OURS};
use super::logs::{Follow, Show};
use super::several::code_of;
use super::{Outcome, duration, ui};
use crate::jail::Requirement;
use crate::manifest::ports::PublishedPort;
use crate::manifest::{self, Parsed};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::launch::{Canceller, FromMonitor, Launched};
use crate::pod::run::{AtEnd, RunRequest};
use crate::pod::status;
use crate::runtime::VmOptions;
use crate::store::record::Found;
use crate::store::text::ignore;
use crate::vmm::{Accel, KernelChoice, VmmKind};
use magikvm_proto::id::PodId;
use magikvm_proto::limits::MAX_MANIFEST_SIZE;
use magikvm_proto::state::ContainerStatus;
use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Manifest of a Pod in YAML or JSON; `-` reads standard input
    #[arg(value_name = "FILE")]
    manifest: PathBuf,
    /// Return as soon as the pod runs
    #[arg(short, long)]
    detach: bool,
    /// Remove the pod when it has ended
    #[arg(long)]
    rm: bool,
    /// Publish a port of the pod on the host; an empty or zero HOST selects any free port
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]")]
    publish: Vec<PublishedPort>,
    /// Directory of the guest image (built with `magikvm-image build`)
    #[arg(long, value_name = "DIR", env = "MAGIKVM_GUEST")]
    guest: Option<PathBuf>,
    /// Driver that runs the VM [default: krun; with --accel tcg: qemu]
    #[arg(long, value_enum, env = "MAGIKVM_VMM")]
    vmm: Option<VmmKind>,
    /// Kernel that the VM boots: from the guest image or from the installed libkrunfw
    #[arg(long, value_enum, default_value_t)]
    kernel: KernelChoice,
    /// Accelerator of the VM; tcg is software emulation: slow, and not a security boundary
    #[arg(long, value_enum, default_value_t, env = "MAGIKVM_ACCEL")]
    accel: Accel,
    /// Fail if pulling an image takes longer than this (90s, 5m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration::deadline_secs, allow_hyphen_values = true)]
    pull_timeout: u64,
    /// Fail if the VM has booted and the start of its containers makes no progress for this long (90s, 5m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::deadline, allow_hyphen_values = true)]
    ready_timeout: Duration,
    /// Fail if an isolation layer of the VM's jail is missing (see `magikvm doctor`)
    #[arg(long)]
    require_jail: bool,
    /// Do not prefix each line with the name of its container
    #[arg(long)]
    no_prefix: bool,
}

impl Args {
    /// Whether the exit code is to be the pod's.
    pub(super) fn is_foreground(&self) -> bool {
        !self.detach
    }
}

pub(super) fn main(args: Args, root: Option<PathBuf>, pods: &PodRuntimeInterface) -> Outcome {
    if args.is_foreground() {
        ui::fail_with(OURS);
    }
    let caught = Arc::new(AtomicI32::new(0));
    let result = run(args, root, pods, &caught);
    result.map_err(|error| match Signal::try_from(caught.load(Ordering::Acquire)) {
        Ok(signal) if error.is_cancelled() => error.code(code_of(signal)),
        _ => error,
    })
}

fn run(args: Args, root: Option<PathBuf>, pods: &PodRuntimeInterface, caught: &Arc<AtomicI32>) -> Outcome {
    let vmm = VmmKind::choose(args.vmm, args.accel).map_err(|error| {
        CliError::of(Kind::Code(2), &error).hint("Omit either `--vmm krun` or `--accel tcg`.")
    })?;
    let (bytes, origin) = read_manifest(&args.manifest)?;
    let Parsed { mut plan, ignored } = manifest::parse_all(&bytes, &origin)
        .map_err(|problems| CliError::new(Kind::User, problems.to_string().trim_end().to_owned()))?;
    for ignored in &ignored {
        ui::warn(&ignored.to_string());
    }
    plan.publish(args.publish).map_err(|error| {
        CliError::of(Kind::User, &error)
            .hint("Omit one of the two ports, or choose another port of the host.")
    })?;
    let finds_ports = plan.published.iter().any(|port| port.host_port == 0);
    let id = plan.id.clone();
    let guest = args.guest.unwrap_or_else(|| pods.layout().guest_image());
    let request = RunRequest {
        plan,
        root: root.map(absolute),
        vm: VmOptions {
            vmm,
            kernel: args.kernel,
            accel: args.accel,
            guest: absolute(guest),
            jail: if args.require_jail { Requirement::Require } else { Requirement::Warn },
        },
        pull_timeout_secs: args.pull_timeout,
        ready_wait_ms: u64::try_from(args.ready_timeout.as_millis()).unwrap_or(u64::MAX),
        at_end: if args.rm { AtEnd::Remove } else { AtEnd::Keep },
    };
    if args.accel == Accel::Tcg {
        ui::warn("software emulation (tcg) is slow and is not a security boundary");
    }
    let signals = Signals::block(Arc::clone(caught));
    let mut launched = pods.run_pod(&request).map_err(CliError::of_failure)?;
    let ready = Arc::new(AtomicBool::new(false));
    let canceller = launched.canceller().map_err(|error| CliError::of(Kind::Environment, &error))?;
    signals.watch(canceller, Arc::clone(&ready), pods.clone(), id.clone());
    let mut progress = ui::PullProgress::new();
    let came =
        launched.await_ready(&mut |image, now| progress.show(&image.familiar(), now), &mut |message| {
            ui::warn(message);
        });
    progress.end();
    came.map_err(CliError::of_failure)?;
    ready.store(true, Ordering::Release);
    if finds_ports {
        show_ports(pods, &id);
    }
    if args.detach {
        ui::line(&id.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    foreground(launched, pods, &id, args.no_prefix)
}

/// Which ports were free.
fn show_ports(pods: &PodRuntimeInterface, id: &PodId) {
    let state = pods.find(id).ok().and_then(|found| found.state);
    for port in state.map(|state| state.ports).unwrap_or_default() {
        ui::note(&format!("Published {port}"));
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The manifest's bytes and its name for messages. One byte over the limit is read, no more, so that the parser can say so.
fn read_manifest(path: &PathBuf) -> Result<(Vec<u8>, String), CliError> {
    let limit = u64::try_from(MAX_MANIFEST_SIZE).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    let (result, origin) = if path.as_os_str() == "-" {
        (std::io::stdin().take(limit).read_to_end(&mut bytes), "standard input".to_owned())
    } else {
        let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
        (read, path.display().to_string())
    };
    match result {
        Ok(_) => Ok((bytes, origin)),
        Err(error) => {
            let failed = CliError::of(Kind::User, &Unreadable { origin, source: error });
            Err(failed.hint("Pass the path of a Pod manifest, or `-` for standard input."))
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the manifest {origin}")]
struct Unreadable {
    origin: String,
    source: std::io::Error,
}

/// Shows the logs until the pod has ended.
fn foreground(mut launched: Launched, pods: &PodRuntimeInterface, id: &PodId, no_prefix: bool) -> Outcome {
    let found = pods.find(id)?;
    let containers = pods.containers(&found, None, id)?;
    let over = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&over);
    let waiter = std::thread::spawn(move || {
        let last = launched.next_message();
        ended.store(true, Ordering::Release);
        // `launched` goes back to the caller: the monitor waits for its end before it removes the pod (--rm).
        (last, launched)
    });
    let show = Show { prefix: !no_prefix, timestamps: false };
    let mut readers = pods.logs(&found, containers);
    super::logs::show(&mut readers, &found.dir, show, None, Follow::Until(&|| over.load(Ordering::Acquire)))?;
    let (last, launched) = waiter
        .join()
        .map_err(|_| CliError::new(Kind::Internal, "lost the connection to the pod's monitor"))?;
    match last {
        Some(FromMonitor::Ended { code }) => {
            let found = pods.find(id).ok();
            launched.finish().map_err(CliError::of_failure)?;
            for note in found.iter().flat_map(out_of_memory) {
                ui::note(&note);
            }
            if let Some(why) = found.and_then(|found| found.state).and_then(|state| state.broken) {
                let message = format!("pod {id} did not end properly: {}", why.message);
                return Err(CliError::new(Kind::Internal, message).because(why.reason));
            }
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        Some(FromMonitor::Failed(failure)) => Err(CliError::of_failure(*failure)),
        Some(FromMonitor::Ready | FromMonitor::Pulling { .. } | FromMonitor::Warning { .. }) | None => {
            Err(CliError::new(Kind::Internal, format!("the monitor of pod {id} was killed; the pod is lost"))
                .hint(format!("Remove what is left of it with `magikvm rm {id}`.")))
        }
    }
}

/// Signals that would end this program, blocked in all its threads.
struct Signals {
    set: SigSet,
    /// The number of the last signal, for the exit code.
    caught: Arc<AtomicI32>,
}

impl Signals {
    fn block(caught: Arc<AtomicI32>) -> Self {
        let set = crate::signals::ending();
        ignore(
            set.thread_block(),
            "they then end the program as usual; the pod's monitor does not depend on it",
        );
        Self { set, caught }
    }

    /// First signal: gives the start up, or stops the pod with its grace period. Second: kills it. Third: leaves it.
    fn watch(self, canceller: Canceller, ready: Arc<AtomicBool>, pods: PodRuntimeInterface, id: PodId) {
        std::thread::spawn(move || {
            for count in 1.. {
                let Ok(signal) = self.set.wait() else { return };
                self.caught.store(signal as i32, Ordering::Release);
                let grace = match count {
                    1 if !ready.load(Ordering::Acquire) => {
                        canceller.cancel();
                        continue;
                    }
                    1 => {
                        ui::note(&format!("\nStopping pod {id}; interrupt again to kill it."));
                        None
                    }
                    2 => Some(Duration::ZERO),
                    _ => std::process::exit(code_of(signal).into()),
                };
                let (pods, id) = (pods.clone(), id.clone());
                std::thread::spawn(move || {
                    if let Err(error) = pods.stop_pod(&id, grace) {
                        CliError::from(error).report();
                    }
                });
            }
        });
    }
}

/// A word about each container that was killed because memory ran out, which its exit code alone does not tell.
fn out_of_memory(found: &Found) -> Vec<String> {
    let statuses = found.state.as_ref().map(|state| state.containers.as_slice()).unwrap_or_default();
    let killed = |status: &&ContainerStatus| {
        let mut runs = status.state.terminated().into_iter().chain(&status.last);
        runs.any(|run| run.exit.oom_killed)
    };
    statuses
        .iter()
        .filter(killed)
        .map(|status| {
            let name = &status.name;
            match status::memory_limit(found, name) {
                Some(limit) => format!(
                    "Container {name} was killed: out of memory (its limit is {limit}).\nHint: Raise `resources.limits.memory` of this container in the manifest."
                ),
                None => format!(
                    "Container {name} was killed: out of memory.\nHint: Set `resources.limits.memory` of this container in the manifest; without it, the VM has only its default memory."
                ),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use magikvm_proto::budget::HOST_READY_WAIT_MS;
    use magikvm_proto::limits::IMAGE_PULL_TIMEOUT_SECS;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_defaults_are_those_of_the_limits() {
        let args = Line::parse_from(["run", "pod.yaml"]).args;
        assert_eq!(args.ready_timeout, Duration::from_millis(HOST_READY_WAIT_MS));
        assert_eq!(args.pull_timeout, IMAGE_PULL_TIMEOUT_SECS);
    }
}
