//! `magikvm run`.

use super::error::{CliError, Kind, OURS};
use super::logs::{Follow, Show};
use super::several::code_of;
use super::{Outcome, duration, ui};
use crate::jail::Requirement;
use crate::manifest::logs::{LogOptions, log_files, log_size};
use crate::manifest::ports::PublishedPort;
use crate::manifest::{self, Parsed};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::launch::{Canceller, FromMonitor, Launched};
use crate::pod::run::{AtEnd, RunRequest};
use crate::pod::status;
use crate::runtime::VmOptions;
use crate::store::lock::LockState;
use crate::store::record::Found;
use crate::store::text::ignore;
use crate::store::thread::{self, ThreadError};
use crate::vmm::{Accel, KernelChoice, VmmKind};
use magikvm_proto::id::PodId;
use magikvm_proto::limits::MAX_MANIFEST_SIZE;
use magikvm_proto::state::ContainerStatus;
use nix::sys::signal::{SigSet, Signal};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    /// Size at which a container's log file is rotated; overrides the annotation [default: 10Mi]
    #[arg(long, value_name = "SIZE", env = "MAGIKVM_LOG_MAX_SIZE", value_parser = log_size)]
    log_max_size: Option<u64>,
    /// Number of log files that are kept of a container; overrides the annotation [default: 5]
    #[arg(long, value_name = "N", env = "MAGIKVM_LOG_MAX_FILES", value_parser = log_files)]
    log_max_files: Option<u32>,
    /// Size of all log files of the pod; overrides the annotation [default: 500Mi]
    #[arg(long, value_name = "SIZE", env = "MAGIKVM_LOG_MAX_POD_SIZE", value_parser = log_size)]
    log_max_pod_size: Option<u64>,
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
        logs: LogOptions {
            max_size_bytes: args.log_max_size,
            max_files: args.log_max_files,
            max_pod_bytes: args.log_max_pod_size,
        },
        ready_wait_ms: u64::try_from(args.ready_timeout.as_millis()).unwrap_or(u64::MAX),
        at_end: if args.rm { AtEnd::Remove } else { AtEnd::Keep },
    };
    if args.accel == Accel::Tcg {
        ui::warn("software emulation (tcg) is slow and is not a security boundary");
    }
    pods.check_limits(&request).map_err(CliError::of_failure)?;
    let signals = Signals::block(Arc::clone(caught));
    let ready = Arc::new(AtomicBool::new(false));
    // Whatever can fail here fails before there is a pod.
    let canceller = signals.watch(Arc::clone(&ready), pods.clone(), id.clone())?;
    let waiter = if args.detach { None } else { Some(Waiter::start()?) };
    let mut launched = pods.run_pod(&request).map_err(CliError::of_failure)?;
    match launched.canceller() {
        Ok(cancels) => ignore(canceller.set(cancels), "it is set here only"),
        // Dropping `launched` would leave the pod to itself.
        Err(error) => {
            launched.cancel();
            ignore(launched.await_ready(&mut |_, _| {}, &mut |_| {}), "it was cancelled");
            return Err(CliError::of(Kind::Environment, &error));
        }
    }
    let mut progress = ui::PullProgress::new();
    let came =
        launched.await_ready(&mut |image, now| progress.show(&image.familiar(), now), &mut |message| {
            ui::warn(message);
        });
    progress.end();
    came.map_err(|failure| match failure {
        Some(failure) => CliError::of_failure(failure),
        None => ended_early(pods, &id),
    })?;
    ready.store(true, Ordering::Release);
    if finds_ports {
        show_ports(pods, &id);
    }
    if args.detach {
        ui::line(&id.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    foreground(launched, waiter, pods, &id, args.no_prefix)
}

/// How long the end of a removal is waited for that has ended the monitor.
const REMOVAL_WAIT: Duration = Duration::from_millis(500);

/// Why a monitor has ended without a word: somebody removed the pod, or it was killed.
fn ended_early(pods: &PodRuntimeInterface, id: &PodId) -> CliError {
    let deadline = Instant::now() + REMOVAL_WAIT;
    loop {
        match pods.find(id) {
            Err(PodError::NotFound { .. }) => {
                let message = format!("pod {id} was removed while it was being started");
                return CliError::new(Kind::User, message);
            }
            // `rm` has the lock.
            Ok(found) if found.lock == LockState::Held || Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => break,
        }
    }
    CliError::of_failure(
        Failure::message(RunStage::Reserve, Blame::Internal, "the pod's monitor ended before the pod ran")
            .hint("See what is left with `magikvm ps`, and remove it with `magikvm rm -f NAME`."),
    )
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
        let opened = if is_named_fifo(path) {
            let message = "it is a FIFO, and nothing may ever be written to it";
            Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message))
        } else {
            File::open(path)
        };
        let read = opened.and_then(|file| file.take(limit).read_to_end(&mut bytes));
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

/// Longest chain of links that is followed.
const MAX_LINKS: usize = 40;

/// Whether a path leads to a FIFO that has yet to be opened. A descriptor of this process (`/dev/stdin`, `<(command)` of a shell) is open
/// already.
fn is_named_fifo(path: &Path) -> bool {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        let is_descriptor = place == Path::new("/dev/stdin")
            || place.parent().is_some_and(|dir| {
                dir == Path::new("/dev/fd") || (dir.starts_with("/proc") && dir.ends_with("fd"))
            });
        if is_descriptor {
            return false;
        }
        let Ok(target) = std::fs::read_link(&place) else { break };
        place = place.parent().map_or_else(|| target.clone(), |parent| parent.join(&target));
    }
    std::fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo())
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read the manifest {origin}")]
struct Unreadable {
    origin: String,
    source: std::io::Error,
}

/// Shows the logs until the pod has ended.
fn foreground(
    launched: Launched,
    waiter: Option<Waiter>,
    pods: &PodRuntimeInterface,
    id: &PodId,
    no_prefix: bool,
) -> Outcome {
    let gone = |error| match error {
        PodError::NotFound { .. } => removed(id),
        error => error.into(),
    };
    let lost = || CliError::new(Kind::Internal, "lost the connection to the pod's monitor");
    let Waiter { give, over, thread } = waiter.ok_or_else(lost)?;
    ignore(give.send(launched), "its end is seen below");
    let found = pods.find(id).map_err(gone)?;
    let containers = pods.containers(&found, None, id).map_err(gone)?;
    let show = Show { prefix: !no_prefix, timestamps: false };
    let mut readers = pods.logs(&found, containers);
    super::logs::show(&mut readers, &found.dir, show, None, Follow::Until(&|| over.load(Ordering::Acquire)))?;
    let (last, launched) = thread.join().ok().flatten().ok_or_else(lost)?;
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
            if matches!(pods.find(id), Err(PodError::NotFound { .. })) {
                return Err(removed(id));
            }
            Err(CliError::new(Kind::Internal, format!("the monitor of pod {id} was killed; the pod is lost"))
                .hint(format!("Remove what is left of it with `magikvm rm {id}`.")))
        }
    }
}

fn removed(id: &PodId) -> CliError {
    CliError::new(Kind::User, format!("pod {id} was removed"))
}

/// A thread that waits for the pod's end while its logs are shown.
struct Waiter {
    give: Sender<Launched>,
    over: Arc<AtomicBool>,
    /// It gives `launched` back: the monitor waits for its end before it removes the pod (--rm).
    thread: JoinHandle<Option<(Option<FromMonitor>, Launched)>>,
}

impl Waiter {
    fn start() -> Result<Self, ThreadError> {
        let (give, given) = channel::<Launched>();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = thread::start("end", move || {
            let mut launched = given.recv().ok()?;
            let last = launched.next_message();
            ended.store(true, Ordering::Release);
            Some((last, launched))
        })?;
        Ok(Self { give, over, thread })
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
    /// Returns the place for what cancels the start.
    fn watch(
        self,
        ready: Arc<AtomicBool>,
        pods: PodRuntimeInterface,
        id: PodId,
    ) -> Result<Arc<OnceLock<Canceller>>, ThreadError> {
        let canceller = Arc::new(OnceLock::<Canceller>::new());
        let cancels = Arc::clone(&canceller);
        thread::start("signals", move || {
            for count in 1.. {
                let Ok(signal) = self.set.wait() else { return };
                self.caught.store(signal as i32, Ordering::Release);
                let grace = match count {
                    1 if !ready.load(Ordering::Acquire) => {
                        cancels.wait().cancel();
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
                // In a thread, so that the next signal is heard meanwhile.
                let stopping = thread::start("stop", move || {
                    if let Err(error) = pods.stop_pod(&id, grace) {
                        CliError::from(error).report();
                    }
                });
                if let Err(error) = stopping {
                    CliError::from(error).report();
                }
            }
        })?;
        Ok(canceller)
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
