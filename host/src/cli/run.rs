//! `magikvm run`.

use super::error::{CliError, Kind};
use super::logs::{Follow, Show};
use super::{Outcome, ui};
use crate::jail::Requirement;
use crate::manifest::ports::PublishedPort;
use crate::manifest::{self, Parsed};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::launch::{Canceller, FromMonitor, Launched};
use crate::pod::run::{AtEnd, RunRequest};
use crate::runtime::VmOptions;
use crate::store::text::ignore;
use crate::vmm::{Accel, KernelChoice, VmmKind};
use magikvm_proto::id::PodId;
use magikvm_proto::limits::{IMAGE_PULL_TIMEOUT_SECS, MAX_MANIFEST_SIZE};
use nix::sys::signal::SigSet;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Exit code of our own failures in a foreground run, distinct from the pod's codes.
const OURS: Kind = Kind::Code(125);

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
    /// Fail if pulling an image takes longer than this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = IMAGE_PULL_TIMEOUT_SECS, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pull_timeout: u64,
    /// Fail if the VM has booted and the start of its containers makes no progress for this long (90s, 5m, 2h)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = ready_timeout)]
    ready_timeout: Duration,
    /// Fail if an isolation layer of the VM's jail is missing (see `magikvm doctor`)
    #[arg(long)]
    require_jail: bool,
    /// Do not prefix each line with the name of its container
    #[arg(long)]
    no_prefix: bool,
}

pub(super) fn main(args: Args, root: Option<PathBuf>, pods: &PodRuntimeInterface) -> Outcome {
    let ours = if args.detach { Kind::Internal } else { OURS };
    let vmm = VmmKind::choose(args.vmm, args.accel).map_err(|error| {
        CliError::of(Kind::Code(2), &error).hint("Omit either `--vmm krun` or `--accel tcg`.")
    })?;
    let (bytes, origin) = read_manifest(&args.manifest)?;
    let Parsed { mut plan, ignored } = manifest::parse_all(&bytes, &origin)
        .map_err(|problems| CliError::new(Kind::User, problems.to_string().trim_end().to_owned()))?;
    for ignored in &ignored {
        warn(&ignored.to_string());
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
        warn("software emulation (tcg) is slow and is not a security boundary");
    }
    let signals = Signals::block();
    let mut launched = pods.run_pod(&request).map_err(|failure| CliError::of_failure(failure, ours))?;
    let ready = Arc::new(AtomicBool::new(false));
    let canceller = launched.canceller().map_err(|error| CliError::of(Kind::Environment, &error))?;
    signals.watch(canceller, Arc::clone(&ready), pods.clone(), id.clone());
    let mut progress = ui::PullProgress::new();
    let came =
        launched.await_ready(&mut |image, now| progress.show(&image.familiar(), now), &mut |message| {
            warn(message);
        });
    progress.end();
    came.map_err(|failure| CliError::of_failure(failure, ours))?;
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

fn warn(message: &str) {
    if std::env::var_os("MAGIKVM_QUIET").is_none() {
        ui::note(&format!("Warning: {message}."));
    }
}

/// Longest `--ready-timeout`.
const MAX_READY_TIMEOUT: Duration = Duration::from_secs(86_400);

fn ready_timeout(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is not a duration (90s, 5m, 2h)"))?;
    let duration = Duration::try_from(span).unwrap_or_default();
    if (Duration::from_secs(1)..=MAX_READY_TIMEOUT).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("{text:?} is not between 1s and 24h"))
    }
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
    let (last, launched) =
        waiter.join().map_err(|_| CliError::new(OURS, "lost the connection to the pod's monitor"))?;
    match last {
        Some(FromMonitor::Ended { code }) => {
            let broken = pods.find(id).ok().and_then(|found| found.state).and_then(|state| state.broken);
            launched.finish().map_err(|failure| CliError::of_failure(failure, OURS))?;
            if let Some(why) = broken {
                let message = format!("pod {id} did not end properly: {}", why.message);
                return Err(CliError::new(OURS, message).because(why.reason));
            }
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
        }
        Some(FromMonitor::Failed(failure)) => Err(CliError::of_failure(*failure, OURS)),
        Some(FromMonitor::Ready | FromMonitor::Pulling { .. } | FromMonitor::Warning { .. }) | None => {
            Err(CliError::new(OURS, format!("the monitor of pod {id} was killed; the pod is lost"))
                .hint(format!("Remove what is left of it with `magikvm rm {id}`.")))
        }
    }
}

/// Signals that would end this program, blocked in all its threads.
struct Signals(SigSet);

impl Signals {
    fn block() -> Self {
        let set = crate::signals::ending();
        ignore(
            set.thread_block(),
            "they then end the program as usual; the pod's monitor does not depend on it",
        );
        Self(set)
    }

    /// First signal: gives the start up, or stops the pod with its grace period. Second: kills it. Third: leaves it.
    fn watch(self, canceller: Canceller, ready: Arc<AtomicBool>, pods: PodRuntimeInterface, id: PodId) {
        std::thread::spawn(move || {
            for count in 1.. {
                if self.0.wait().is_err() {
                    return;
                }
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
                    _ => std::process::exit(130),
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

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::budget::HOST_READY_WAIT_MS;

    #[test]
    fn a_ready_timeout_is_a_duration_of_sensible_length() {
        assert_eq!(ready_timeout("60s"), Ok(Duration::from_millis(HOST_READY_WAIT_MS)));
        assert_eq!(ready_timeout("1h 30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(ready_timeout("24h"), Ok(MAX_READY_TIMEOUT));
        for text in ["", "60", "soon", "-5s x"] {
            assert!(ready_timeout(text).unwrap_err().contains("is not a duration"), "{text}");
        }
        for text in ["0s", "-5s", "999ms", "25h", "9999999h"] {
            assert!(ready_timeout(text).unwrap_err().contains("is not between"), "{text}");
        }
    }
}
