//! `magikvm run`: reads manifests and runs their Pods one after the other.

pub(super) mod apply;
mod end;
mod follow;
pub(super) mod restart;
mod signals;
mod start;
mod view;

use super::error::{CliError, Kind, OURS};
use super::input::{Files, Objects};
use super::several::code_of;
use super::{Outcome, cni, duration, origin, ui};
use crate::jail::Requirement;
use crate::manifest::input::{self, Manifests, Parsed};
use crate::manifest::logs::{LogOptions, log_files, log_size};
use crate::manifest::plan::{PodPlan, RuntimeClass};
use crate::manifest::ports::PublishedPort;
use crate::manifest::{AllProblems, generated_name};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::run::{AtEnd, HostNetworkUse, Replaces, RunRequest};
use crate::runtime::VmOptions;
use crate::vmm::{Accel, KernelChoice, VmmKind};
use clap::ArgMatches;
use clap::parser::ValueSource;
use follow::Waiter;
use magikvm_proto::id::PodId;
use nix::sys::signal::Signal;
use signals::{Signals, Watch};
use start::Started;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use view::Viewer;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    objects: Objects,
    /// Return as soon as the pods run
    #[arg(short, long)]
    detach: bool,
    /// Return when the pods are ready: when their readiness probes have succeeded
    #[arg(long, requires = "detach")]
    wait_ready: bool,
    /// Fail if a pod is not ready after this time (90s, 5m, 2h); it goes on running
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::deadline, allow_hyphen_values = true)]
    wait_timeout: Duration,
    /// Stop and remove an existing pod of the same name first, once it is certain that all images are there
    #[arg(long)]
    replace: bool,
    /// Remove the pods when they have ended
    #[arg(long)]
    rm: bool,
    /// Do not prefix each line with the name of its container
    #[arg(long)]
    no_prefix: bool,
    #[command(flatten)]
    how: How,
}

/// How pods are run.
#[derive(Debug, clap::Args)]
struct How {
    /// List the ignored fields of the manifests
    #[arg(short, long)]
    verbose: bool,
    /// Publish a port of the pod on the host (for a single pod); an empty or zero HOST selects any free port
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]")]
    publish: Vec<PublishedPort>,
    /// Run the pods in this runtime class, whatever their manifests say: pod-microvm-containers or pod-containers
    #[arg(long, value_name = "CLASS")]
    class: Option<RuntimeClass>,
    /// Allow pods with `hostNetwork: true`, which share the network of the host without any filter
    #[arg(long)]
    allow_host_network: bool,
    #[command(flatten)]
    cni: cni::Options,
    /// Directory of the guest image for VMs (built with `magikvm-image build`)
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
    /// Fail if the pod's agent has answered and the start of its containers makes no progress for this long (90s, 5m, 2h)
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
    /// Fail if an isolation layer of the jail of the pod's processes is missing (see `magikvm doctor`)
    #[arg(long)]
    require_jail: bool,
    /// Those of [`OF_VMS`] that are on the command line, not in the environment.
    #[arg(skip)]
    of_vms: Vec<&'static str>,
}

/// Options that only concern VMs. Set by variables, they are defaults for the pods that have one.
const OF_VMS: [&str; 4] = ["guest", "vmm", "kernel", "accel"];

impl How {
    fn note_origins(&mut self, matches: &ArgMatches) {
        let is_given = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
        self.of_vms = OF_VMS.into_iter().filter(is_given).collect();
    }

    /// Refuses options for a VM where no pod has one.
    fn check_options(&self, pods: &[Parsed]) -> Result<(), CliError> {
        // That a class is not in this version is more important.
        let without = pods.iter().find(|pod| pod.plan.runtime_class == RuntimeClass::PodContainers);
        let (Some(without), Some(option), false) = (without, self.of_vms.first(), has_vms(pods)) else {
            return Ok(());
        };
        let PodPlan { id, runtime_class: class, .. } = &without.plan;
        let message = format!("--{option} is for VMs, and pod {id} of the class {class} has none");
        let hint = format!("Omit `--{option}`, or run the pod with `--class {}`.", RuntimeClass::default());
        Err(CliError::new(Kind::Code(2), message).hint(hint))
    }
}

fn has_vms(pods: &[Parsed]) -> bool {
    pods.iter().any(|pod| pod.plan.runtime_class.has_vm())
}

impl Args {
    /// Looks which options are on the command line.
    pub(super) fn note_origins(&mut self, matches: &ArgMatches) {
        self.how.note_origins(matches);
    }

    /// Whether the exit code is to be the pod's.
    pub(super) fn is_foreground(&self) -> bool {
        !self.detach
    }
}

pub(super) fn main(args: &Args, root: Option<&Path>, pods: &PodRuntimeInterface) -> Outcome {
    if args.is_foreground() {
        ui::fail_with(OURS);
    }
    let at_end = if args.rm { AtEnd::Remove } else { AtEnd::Keep };
    coded(|caught| {
        let mut requests = read(&args.files, &args.objects, &args.how, at_end, root, pods)?;
        if args.replace {
            for request in &mut requests {
                request.replaces = Replaces::OldPod;
                check_replacement(pods, request)?;
            }
        }
        run(args, &requests, pods, caught)
    })
}

/// Does something that signals cancel. A cancelled run exits with the code of its signal.
fn coded(work: impl FnOnce(&Arc<AtomicI32>) -> Outcome) -> Outcome {
    let caught = Arc::new(AtomicI32::new(0));
    let result = work(&caught);
    result.map_err(|error| match Signal::try_from(caught.load(Ordering::Acquire)) {
        Ok(signal) if error.is_cancelled() => error.code(code_of(signal)),
        _ => error,
    })
}

/// Reads manifests and checks whether this host can run all of their pods.
fn read(
    files: &Files,
    objects: &Objects,
    how: &How,
    at_end: AtEnd,
    root: Option<&Path>,
    pods: &PodRuntimeInterface,
) -> Result<Vec<RunRequest>, CliError> {
    let sources = files.read_with(objects)?;
    let mut taken = BTreeSet::new();
    let mut new_name = |namespace: &str, prefix: &str| free_name(pods, namespace, prefix, &mut taken);
    let mut read = input::read_as(how.class, &sources, &mut new_name)
        .into_manifests()
        .map_err(|problems| refused(&problems))?;
    let places: Vec<Option<String>> = sources.iter().map(origin::place).collect();
    drop(sources);
    how.check_options(&read.pods)?;
    // What the environment says of VMs means nothing for other pods.
    let (asked, accel) = if has_vms(&read.pods) { (how.vmm, how.accel) } else { (None, Accel::default()) };
    let vmm = VmmKind::choose(asked, accel).map_err(|error| {
        CliError::of(Kind::Code(2), &error).hint("Omit either `--vmm krun` or `--accel tcg`.")
    })?;
    // Nothing is said of pods that cannot run.
    publish(&mut read.pods, how.publish.clone())?;
    say_ignored(&read, how.verbose);
    let requests: Vec<RunRequest> = read
        .pods
        .into_iter()
        .map(|parsed| {
            let source = places.get(parsed.file).cloned().flatten();
            RunRequest { source, ..request(parsed.plan, how, at_end, vmm, root, pods) }
        })
        .collect();
    if accel == Accel::Tcg {
        ui::warn("software emulation (tcg) is slow and is not a security boundary");
    }
    for request in &requests {
        pods.check_limits(request).map_err(CliError::of_failure)?;
    }
    Ok(requests)
}

fn run(args: &Args, requests: &[RunRequest], pods: &PodRuntimeInterface, caught: &Arc<AtomicI32>) -> Outcome {
    let watch = watch(requests, pods, caught)?;
    let mut followers: Vec<(Waiter, Viewer)> = Vec::new();
    if args.is_foreground() {
        for (request, show) in requests.iter().zip(view::shows(requests, args.no_prefix)) {
            let waiter = Waiter::start()?;
            let viewer = Viewer::start(pods, &request.plan.id, show, waiter.end())?;
            followers.push((waiter, viewer));
        }
    }
    let mut followers = followers.into_iter();
    let mut followed: Vec<(Started, Waiter, Viewer)> = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let follower = followers.next();
        let started = watch.check().and_then(|()| {
            if args.replace {
                remove_old(pods, &request.plan.id)?;
            }
            start::start(pods, request, index, &watch, follower.as_ref().map(|(_, viewer)| viewer))
        });
        match (started, follower) {
            (Ok(started), Some((waiter, viewer))) => followed.push((started, waiter, viewer)),
            (Ok(_), None) => {}
            (Err(error), follower) => {
                if let Some((_, viewer)) = follower {
                    viewer.give_up();
                }
                say_outcomes(requests, index);
                return Err(error);
            }
        }
        if args.detach {
            if args.wait_ready {
                start::await_ready(pods, &request.plan.id, args.wait_timeout, &watch)?;
            }
            ui::line(&request.plan.id.to_string());
        }
    }
    if args.detach {
        say_of_logout(requests);
        return Ok(ExitCode::SUCCESS);
    }
    follow::all(followed, pods).map(ExitCode::from)
}

/// Says what ends pods of an ordinary user for whom systemd makes control groups.
fn say_of_logout(requests: &[RunRequest]) {
    #[cfg(target_os = "linux")]
    if requests.iter().any(|request| !request.plan.runtime_class.has_vm())
        && crate::jail::scope::is_to_come()
        && !crate::jail::scope::survives_logout()
    {
        ui::warn("the pod ends when you have logged out everywhere, unless you run `loginctl enable-linger`");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = requests;
}

/// From now on signals cancel the start of these pods. Whatever can fail here fails before there is a pod.
fn watch(
    requests: &[RunRequest],
    pods: &PodRuntimeInterface,
    caught: &Arc<AtomicI32>,
) -> Result<Watch, CliError> {
    let ids = requests.iter().map(|request| request.plan.id.clone()).collect();
    Ok(Signals::block(Arc::clone(caught)).watch(pods.clone(), ids)?)
}

fn refused(problems: &AllProblems) -> CliError {
    CliError::new(Kind::User, problems.to_string().trim_end().to_owned())
}

/// Says what has no effect: documents always, fields by their number or one by one.
fn say_ignored(read: &Manifests, verbose: bool) {
    for ignored in &read.ignored {
        ui::warn(&ignored.to_string());
    }
    for Parsed { plan, ignored, generated, .. } in &read.pods {
        let id = &plan.id;
        let of = if read.pods.len() > 1 { format!(" of pod {id}") } else { String::new() };
        if *generated {
            ui::note(&format!("The name of the pod is {id}."));
        }
        let count: usize = ignored.iter().map(|ignored| ignored.paths.len()).sum();
        if verbose {
            ignored.iter().for_each(|ignored| ui::warn(&format!("{ignored}{of}")));
        } else if count > 0 {
            ui::warn(&format!(
                "{}{of} ignored; -v lists {}",
                ui::count_is(count, "field"),
                if count == 1 { "it" } else { "them" }
            ));
        }
    }
}

/// Adds the ports of the command line to the only pod.
fn publish(pods: &mut [Parsed], ports: Vec<PublishedPort>) -> Result<(), CliError> {
    match pods {
        [pod] => pod.plan.publish(ports).map_err(|error| {
            let hint = error.hint();
            CliError::of(Kind::User, &error).hint(hint)
        }),
        _ if ports.is_empty() => Ok(()),
        _ => {
            let message = format!("--publish is for a single pod, and the input has {} pods", pods.len());
            Err(CliError::new(Kind::Code(2), message)
                .hint("Write `hostPort` into the manifests, or run the pods one by one."))
        }
    }
}

fn request(
    plan: PodPlan,
    how: &How,
    at_end: AtEnd,
    vmm: VmmKind,
    root: Option<&Path>,
    pods: &PodRuntimeInterface,
) -> RunRequest {
    let guest = how.guest.clone().unwrap_or_else(|| pods.layout().guest_image());
    RunRequest {
        plan,
        source: None,
        root: root.map(|root| absolute(root.to_owned())),
        vm: VmOptions {
            vmm,
            kernel: how.kernel,
            accel: how.accel,
            guest: absolute(guest),
            jail: if how.require_jail { Requirement::Require } else { Requirement::Warn },
        },
        host_network: match how.allow_host_network {
            true => HostNetworkUse::Allowed,
            false => HostNetworkUse::Refused,
        },
        cni: how.cni.places(),
        pull_timeout_secs: how.pull_timeout,
        logs: LogOptions {
            max_size_bytes: how.log_max_size,
            max_files: how.log_max_files,
            max_pod_bytes: how.log_max_pod_size,
        },
        ready_wait_ms: u64::try_from(how.ready_timeout.as_millis()).unwrap_or(u64::MAX),
        at_end,
        replaces: Replaces::Nothing,
    }
}

/// How often a name is made that no pod has.
const NAME_ATTEMPTS: usize = 16;

/// A name of this beginning that no pod has, nor one of the same input.
fn free_name(
    pods: &PodRuntimeInterface,
    namespace: &str,
    prefix: &str,
    taken: &mut BTreeSet<String>,
) -> Option<String> {
    for _ in 0..NAME_ATTEMPTS {
        // Two bytes of a UUID are not quite random.
        let random = std::iter::repeat_with(uuid::Uuid::new_v4)
            .take(NAME_ATTEMPTS)
            .flat_map(|uuid| uuid.into_bytes().into_iter().take(6));
        let name = generated_name(prefix, random)?;
        let id = format!("{namespace}/{name}");
        // What is not a valid name is reported with its line.
        let is_free = id.parse::<PodId>().map_or(true, |id| pods.find(&id).is_err());
        if is_free && taken.insert(id) {
            return Some(name);
        }
    }
    None
}

fn exists(pods: &PodRuntimeInterface, id: &PodId) -> bool {
    !matches!(pods.find(id), Err(PodError::NotFound { .. }))
}

/// Checks a run as far as possible while the pod that it replaces still runs.
fn check_replacement(pods: &PodRuntimeInterface, request: &RunRequest) -> Result<(), CliError> {
    let old = match pods.find(&request.plan.id) {
        Err(PodError::NotFound { .. }) => return Ok(()),
        found => found?,
    };
    let mut progress = ui::PullProgress::new();
    let checked = pods.check_run(request, &old, &mut |image, now| progress.show(&image.familiar(), now));
    progress.end();
    checked.map_err(CliError::of_failure)
}

/// Stops the pod of this name with its grace period and removes it.
fn remove_old(pods: &PodRuntimeInterface, id: &PodId) -> Result<(), CliError> {
    if !exists(pods, id) {
        return Ok(());
    }
    ui::note(&format!("Replacing pod {id}."));
    super::down::remove(pods, id)
}

/// Says what became of each pod, when one of several has failed.
fn say_outcomes(requests: &[RunRequest], failed: usize) {
    if requests.len() < 2 {
        return;
    }
    let names = |requests: &[RunRequest]| {
        requests.iter().map(|request| request.plan.id.to_string()).collect::<Vec<_>>().join(", ")
    };
    let parts =
        [("Started", 0..failed), ("Failed", failed..failed + 1), ("Not started", failed + 1..requests.len())];
    for (what, range) in parts {
        if let Some(some) = requests.get(range).filter(|some| !some.is_empty()) {
            ui::note(&format!("{what}: {}.", names(some)));
        }
    }
}

pub(super) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
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
        assert_eq!(args.how.ready_timeout, Duration::from_millis(HOST_READY_WAIT_MS));
        assert_eq!(args.how.pull_timeout, IMAGE_PULL_TIMEOUT_SECS);
    }
}
