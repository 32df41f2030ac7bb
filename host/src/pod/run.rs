//! The flow of a run: plan -> reserve -> resolve images -> prepare -> start -> await ready -> commit. It is the same for every runtime
//! class. If the sandbox stays silent, the journal undoes it, and the flow goes on once more at `prepare`. No step holds clean-up code: each
//! step journals the undoing of what it makes before it makes it.

use super::events::HostEvent;
use super::failure::{Blame, Failure, RunStage};
use super::logdir;
use super::ports::{self, Published};
use super::pull::{Pull, PullRequest, of_image};
use super::restart;
use crate::image::{Image, ImageError, ImageStore, Policy, PullPolicy, Reference, Wanted};
use crate::jail::Requirement;
use crate::manifest::logs::LogOptions;
use crate::manifest::plan::VolumeSource;
use crate::manifest::{PodPlan, RuntimeClass};
use crate::net::Provider;
use crate::net::cni::Places;
use crate::runtime::{self, PodRuntime, PodToPrepare, RuntimeError, Sandbox, VmOptions};
use crate::store::atomic::{self, FileError};
use crate::store::layout::{Layout, PodDir};
use crate::store::lock::{self, Lock, LockState};
use crate::store::record::{self, ContainerRecord, Found, PodRecord, SCHEMA};
use crate::store::sandbox::SandboxFailure;
use crate::store::undo::{self, Scope, Step, Undo};
use crate::vmm::{Accel, KernelChoice, VmmKind};
use magikvm_proto::budget::HOST_READY_WAIT_MS;
use magikvm_proto::limits::IMAGE_PULL_TIMEOUT_SECS;
use magikvm_proto::raised;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::error::Error;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRequest {
    pub plan: PodPlan,
    /// The file that the manifest is in, if it is one.
    pub source: Option<String>,
    /// `--root`, if given.
    pub root: Option<PathBuf>,
    /// Options of the pod's VM, for classes that have one.
    pub vm: VmOptions,
    #[serde(default)]
    pub host_network: HostNetworkUse,
    /// Where networks of CNI and their plugins are.
    #[serde(default)]
    pub cni: Places,
    /// Seconds that the pull of each image may take.
    pub pull_timeout_secs: u64,
    /// Limits of the logs, before those of the manifest.
    pub logs: LogOptions,
    /// Milliseconds that the start may be without progress after the agent's first answer.
    pub ready_wait_ms: u64,
    pub at_end: AtEnd,
    #[serde(default)]
    pub replaces: Replaces,
}

/// Whether the caller removes or puts aside a pod of this name before the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Replaces {
    #[default]
    Nothing,
    OldPod,
}

impl RunRequest {
    /// A request with the defaults of `magikvm run`, for a pod that is kept after its end. `guest` is the guest image of a pod in a VM.
    pub fn new(plan: PodPlan, guest: PathBuf) -> Self {
        let vm = VmOptions {
            vmm: VmmKind::choose(None, Accel::default()).unwrap_or(VmmKind::Qemu),
            kernel: KernelChoice::default(),
            accel: Accel::default(),
            guest,
            jail: Requirement::default(),
        };
        Self {
            plan,
            source: None,
            root: None,
            vm,
            host_network: HostNetworkUse::default(),
            cni: Places::default(),
            pull_timeout_secs: IMAGE_PULL_TIMEOUT_SECS,
            logs: LogOptions::default(),
            ready_wait_ms: HOST_READY_WAIT_MS,
            at_end: AtEnd::Keep,
            replaces: Replaces::Nothing,
        }
    }
}

/// Whether the pod may have the network of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostNetworkUse {
    #[default]
    Refused,
    Allowed,
}

/// What happens to a pod that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AtEnd {
    /// The record and the logs stay until `rm`.
    Keep,
    Remove,
}

/// An existing pod: its directory is made and its lock is held.
#[derive(Debug)]
pub struct Pod {
    pub dir: PodDir,
    /// UUID, as in `metadata.uid`.
    pub uid: String,
    /// Milliseconds since 1970 when the run began.
    pub accepted_ms: u64,
    /// The journal that removes the pod.
    pub undo: Undo,
    /// Held as long as the pod lives, and freed last.
    pub lock: Lock,
    /// The pod's host ports. No connection is accepted before the pod runs; then the observer takes the TCP ports over.
    pub ports: Published,
    /// Locks on the pod's images, which cannot be removed meanwhile.
    pub images: Vec<Image>,
}

/// The steps of the flow that take long and have to react to the user meanwhile. The monitor's event loop implements them.
pub trait Observer {
    /// Begins to watch the pod in this directory, and to take requests of users.
    fn reserved(&mut self, dir: &PodDir) -> Result<(), Failure>;

    /// Pulls the images of the pod in this directory into the store.
    fn pull(&mut self, dir: &PodDir, request: &PullRequest) -> Result<Vec<Pull>, Failure>;

    /// Writes an event of the pod in this directory.
    fn note(&mut self, dir: &PodDir, event: HostEvent);

    /// Warns the user about the pod in this directory.
    fn warn(&mut self, dir: &PodDir, message: &str);

    /// Returns when all containers run (or have completed), or the reason why they do not. Asks for at most one more boot.
    fn await_ready(&mut self, pod: &mut Pod, sandbox: Box<dyn Sandbox>) -> Result<Awaited, Failure>;
}

/// What came of a sandbox that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    Ready,
    /// Its agent was silent, and it was ended. Another one shall be started.
    Silent,
}

/// Runs the flow. On failure nothing of the pod is left.
pub fn run_pod(request: &RunRequest, layout: &Layout, observer: &mut dyn Observer) -> Result<Pod, Failure> {
    let runtime = plan(request, layout)?;
    let mut pod = reserve(request, layout)?;
    let brought =
        catch_unwind(AssertUnwindSafe(|| bring_up(request, layout, runtime.as_ref(), &mut pod, observer)));
    match brought {
        Ok(Ok(())) => Ok(pod),
        Ok(Err(failure)) => Err(roll_back(pod, failure)),
        Err(panic) => {
            let message = format!("the pod's monitor failed: {}", panic_message(&*panic));
            let failure = Failure::message(RunStage::Prepare, Blame::Internal, message);
            Err(roll_back(pod, failure.because(SandboxFailure::MonitorFailed)))
        }
    }
}

/// What a panic says.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without words"))
}

fn bring_up(
    request: &RunRequest,
    layout: &Layout,
    runtime: &dyn PodRuntime,
    pod: &mut Pod,
    observer: &mut dyn Observer,
) -> Result<(), Failure> {
    observer.reserved(&pod.dir)?;
    fault("reserve")?;
    pod.ports = ports::bind(&request.plan, layout)?;
    let dir = pod.dir.clone();
    let mut pull = |request: &PullRequest| observer.pull(&dir, request);
    let (images, pulls) = resolve_images(request, layout, &runtime.platform(), &mut pull)?;
    pod.images = images;
    write_record(request, runtime, pod)?;
    for (needed, image) in needed(&request.plan).zip(&pod.images) {
        let took_ms = pulls.iter().find(|pull| pull.image == *needed.name).map(|pull| pull.took_ms);
        let (name, size_bytes) = (needed.name.clone(), image.record.size_bytes);
        observer.note(&dir, HostEvent::Pulled { what: needed.what, image: name, took_ms, size_bytes });
    }
    fault("record")?;
    while boot(request, layout, runtime, pod, observer)? == Awaited::Silent {
        // The second boot begins with new files: nobody knows what the first one has written to them.
        pod.undo.end_run().map_err(Failure::at(RunStage::Boot, Blame::Environment))?;
        fault("reboot")?;
    }
    fault("ready")
}

/// Prepares and starts a sandbox, and waits until its containers run.
fn boot(
    request: &RunRequest,
    layout: &Layout,
    runtime: &dyn PodRuntime,
    pod: &mut Pod,
    observer: &mut dyn Observer,
) -> Result<Awaited, Failure> {
    let uid = pod.uid.clone();
    let scratch = layout.scratch(&uid);
    let to_prepare = PodToPrepare {
        plan: &request.plan,
        uid: &uid,
        images: &pod.images,
        dir: &pod.dir,
        scratch: &scratch,
        claims: &layout.volumes(),
    };
    let prepared = runtime.prepare(&to_prepare, &mut pod.undo).map_err(of_runtime(RunStage::Prepare))?;
    for warning in prepared.warnings() {
        observer.warn(&pod.dir, warning);
    }
    fault("prepare")?;
    let sandbox = runtime.start(prepared, &mut pod.undo).map_err(of_runtime(RunStage::Boot))?;
    fault("start")?;
    observer.await_ready(pod, sandbox)
}

/// Checks that the user has allowed what the manifest asks of the host.
pub(super) fn check_allowed(request: &RunRequest) -> Result<(), Failure> {
    match (&request.plan.network.provider, request.host_network) {
        (Provider::Host, HostNetworkUse::Refused) => {
            let message =
                "spec.hostNetwork: the pod would share the network of the host, which was not allowed";
            Err(Failure::message(RunStage::Plan, Blame::User, message.to_owned()).hint(
                "Allow it with `--allow-host-network`, or leave the field out of the manifest.".to_owned(),
            ))
        }
        _ => Ok(()),
    }
}

/// The pod's runtime class, if this host can run it.
pub(super) fn plan(request: &RunRequest, layout: &Layout) -> Result<Box<dyn PodRuntime>, Failure> {
    check_allowed(request)?;
    let runtime = runtime::of(request.plan.runtime_class, &request.vm, &request.cni, layout)
        .map_err(|error| Failure::new(RunStage::Plan, Blame::User, &error).hint(error.hint()))?;
    runtime.probe().map_err(|unavailable| {
        let message = format!("the host cannot run the pod: {}", unavailable.reason);
        let instead = without_vm(request, layout).unwrap_or_default();
        let hint = format!("{}{instead}", unavailable.remedy);
        Failure::message(RunStage::Plan, Blame::Environment, message).hint(hint)
    })?;
    Ok(runtime)
}

/// What to say of the class without a VM to somebody whose pod cannot have one here. Nothing, if it cannot run here either.
fn without_vm(request: &RunRequest, layout: &Layout) -> Option<String> {
    let class = RuntimeClass::PodContainers;
    if !request.plan.runtime_class.has_vm() {
        return None;
    }
    runtime::of(class, &request.vm, &request.cni, layout).ok()?.probe().ok()?;
    Some(format!(
        " Without a VM the pod can run here with `--class {class}`, which isolates it less: it shares the kernel of this host."
    ))
}

/// Turns an error of the name, the directory or the lock into a failed run.
fn failed<E: Error + 'static>() -> impl Fn(E) -> Failure {
    Failure::at(RunStage::Reserve, Blame::Environment)
}

/// Makes the pod's directory and takes its lock, or reports the pod that has the name.
fn reserve(request: &RunRequest, layout: &Layout) -> Result<Pod, Failure> {
    let pods = layout.pods();
    atomic::create_dir_all(&pods, 0o700).map_err(failed())?;
    // One reservation at a time, so that only a crash can leave a directory without a record.
    let _turn = lock::wait(&layout.reservations()).map_err(failed())?;
    undo::sweep_trash(&pods);
    let dir = layout.pod(&request.plan.id);
    clear_leftover(request, layout, &dir)?;
    let count = record::list(layout).map_err(failed())?.len();
    let max = raised::in_force().pods;
    if count >= max {
        let message = format!("there are {count} pods already, at most {max} are possible");
        return Err(Failure::message(RunStage::Reserve, Blame::User, message).hint(format!(
            "List the pods with `magikvm ps`, and remove some with `magikvm rm NAME`; {}.",
            raised::remedy("pods")
        )));
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir.path())
        .map_err(FileError::at("create directory", dir.path()))
        .map_err(failed())?;
    let uid = uuid::Uuid::new_v4().to_string();
    let accepted_ms = record::now_ms();
    logdir::sweep(&layout.all_logs());
    let reserved = (|| {
        let lock = lock::acquire(&dir.lock())?;
        let mut undo = Undo::open(&dir)?;
        undo.plan(Scope::Record, Step::RemoveDir { path: dir.path().to_owned() })?;
        let logs = layout.logs(&uid);
        undo.plan(Scope::Record, Step::RemoveDir { path: logs.clone() })?;
        logdir::make(&logs, &dir)?;
        Ok::<_, undo::UndoError>((lock, undo))
    })();
    match reserved {
        Ok((Some(lock), undo)) => {
            Ok(Pod { dir, uid, accepted_ms, undo, lock, ports: Published::default(), images: Vec::new() })
        }
        Ok((None, _)) => Err(exists(request, "is being started by somebody else", LockState::Held)),
        Err(error) => {
            // The journal could not be written (a full disk). The directory is new and belongs to this run.
            let mut failure = failed()(error);
            let left = [layout.logs(&uid), dir.path().to_owned()];
            let removed = left.into_iter().try_for_each(|path| (Step::RemoveDir { path }).carry_out());
            if let Err(error) = removed {
                failure.causes.push(format!("and it could not be removed again: {error}"));
            }
            Err(failure)
        }
    }
}

/// Removes what a crash between the steps of `reserve` and `write_record` has left under this name. Refuses if a pod has the name.
fn clear_leftover(request: &RunRequest, layout: &Layout, dir: &PodDir) -> Result<(), Failure> {
    let Some(found) = Found::read(dir.clone()).map_err(failed())? else { return Ok(()) };
    if !found.is_empty() {
        // Its monitor has only to see the end of its sandbox.
        let lock = if found.all_have_ended() { LockState::Free } else { found.lock };
        let what = match (lock, found.is_lost()) {
            (LockState::Held, _) => "is running",
            (LockState::Free, _) if !found.damage.is_empty() => "is there (damaged)",
            (LockState::Free, true) => "is there (Lost)",
            (LockState::Free, false) => "is there (ended)",
        };
        return Err(exists(request, what, lock));
    }
    Undo::recover(dir, &layout.removable()).delete().map_err(failed())
}

fn exists(request: &RunRequest, what: &str, lock: LockState) -> Failure {
    let id = &request.plan.id;
    if request.replaces == Replaces::OldPod {
        let message = format!(
            "a pod named {id} {what}: another run has taken the name while this one was replacing the pod"
        );
        return Failure::message(RunStage::Reserve, Blame::User, message).hint(format!(
            "See what runs now with `magikvm inspect {id}`. Repeat this run if it is to replace that pod, too."
        ));
    }
    let force = if lock == LockState::Held { "-f " } else { "" };
    Failure::message(RunStage::Reserve, Blame::User, format!("a pod named {id} {what}")).hint(format!(
        "Replace it with `--replace`, remove it first with `magikvm rm {force}{id}`, or change metadata.name."
    ))
}

/// An image that a pod needs, and what for.
struct Needed<'a> {
    what: String,
    name: &'a Reference,
    pull_policy: PullPolicy,
}

impl Needed<'_> {
    fn failed(&self, failure: Failure) -> Failure {
        Failure { message: format!("{}: {}", self.what, failure.message), ..failure }
    }
}

/// The images of a pod's containers in their order, and then those of its volumes.
fn needed(plan: &PodPlan) -> impl Iterator<Item = Needed<'_>> {
    let of_containers = plan.containers.iter().map(|container| Needed {
        what: format!("container {}", container.name),
        name: &container.image,
        pull_policy: container.pull_policy,
    });
    let of_volumes = plan.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::Image { image, pull_policy, .. } => {
            Some(Needed { what: format!("volume {}", volume.name), name: image, pull_policy: *pull_policy })
        }
        _ => None,
    });
    of_containers.chain(of_volumes)
}

/// Resolves the pod's images in the order of [`needed`], and pulls them where the manifest says so.
pub(super) fn resolve_images(
    request: &RunRequest,
    layout: &Layout,
    wanted_platform: &Wanted,
    pull: &mut dyn FnMut(&PullRequest) -> Result<Vec<Pull>, Failure>,
) -> Result<(Vec<Image>, Vec<Pull>), Failure> {
    let store = ImageStore::open(&layout.images()).map_err(|error| of_image(&error))?;
    let policy = Policy::load(&layout.policy()).map_err(|error| of_image(&error.into()))?;
    let mut images: Vec<(Reference, PullPolicy)> = Vec::new();
    for needed in needed(&request.plan) {
        let context = |failure| needed.failed(failure);
        let name = needed.name;
        let here =
            store.present(name, &policy, wanted_platform).map_err(|error| context(of_image(&error)))?;
        let when = match (needed.pull_policy, &here) {
            (PullPolicy::Never, None) => {
                let why = store.absent(name, &policy, wanted_platform).unwrap_or_else(|error| error);
                return Err(context(of_image(&why)));
            }
            (PullPolicy::Always, None) => Some(PullPolicy::Always),
            // A pinned image cannot have changed.
            (PullPolicy::Always, Some(_)) => name.digest().is_none().then_some(PullPolicy::Always),
            (PullPolicy::IfNotPresent, None) => Some(PullPolicy::IfNotPresent),
            (PullPolicy::IfNotPresent | PullPolicy::Never, Some(_)) => None,
        };
        if let Some(when) = when
            && !images.iter().any(|(other, _)| other == name)
        {
            images.push((name.clone(), when));
        }
    }
    let mut pulls = Vec::new();
    if !images.is_empty() {
        let (root, platform) = (request.root.clone(), wanted_platform.clone());
        let timeout_secs = request.pull_timeout_secs;
        let logins = request.plan.pull_secrets.clone();
        pulls = pull(&PullRequest { root, images, platform, timeout_secs, logins })?;
    }
    let resolve = |needed: Needed<'_>| {
        let name = needed.name;
        let failed = |error: ImageError| needed.failed(of_image(&error));
        let image = store.resolve(name).map_err(failed)?;
        image.mark_used().map_err(failed)?;
        let platform = image.record.platform();
        if wanted_platform.takes(&platform) {
            return Ok(image);
        }
        let message =
            format!("the image {name} is for {platform}, the pod runs on {}", wanted_platform.described());
        let failure = Failure::message(RunStage::Image, Blame::User, message);
        let command = format!("magikvm image pull --platform {wanted_platform} {}", name.familiar());
        Err(needed.failed(failure).hint(format!("Pull the right image with `{command}`.")))
    };
    Ok((needed(&request.plan).map(resolve).collect::<Result<_, _>>()?, pulls))
}

fn write_record(request: &RunRequest, runtime: &dyn PodRuntime, pod: &Pod) -> Result<(), Failure> {
    let plan = &request.plan;
    let containers = plan.containers.iter().zip(&pod.images).map(|(container, image)| ContainerRecord {
        name: container.name.clone(),
        role: container.role,
        image: container.image_text.clone(),
        image_id: image.id.to_string(),
        terminal: container.stdio == magikvm_proto::plan::Stdio::Terminal,
        stdin: container.stdin != magikvm_proto::plan::Stdin::Closed,
    });
    let record = PodRecord {
        schema: SCHEMA,
        id: plan.id.clone(),
        uid: pod.uid.clone(),
        runtime_class: plan.runtime_class.as_str().to_owned(),
        created_ms: pod.accepted_ms,
        manifest: plan.manifest.clone(),
        containers: containers.collect(),
        sandbox: runtime.record(plan),
        grace_secs: plan.grace_seconds,
        source: request.source.clone(),
    };
    restart::keep(request, &pod.dir).map_err(failed())?;
    record::write_json(&pod.dir.pod_json(), &record).map_err(failed())
}

pub(super) fn of_runtime(stage: RunStage) -> impl Fn(RuntimeError) -> Failure {
    move |error| {
        let failure = Failure::new(stage, error.blame(), &error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

fn roll_back(pod: Pod, mut failure: Failure) -> Failure {
    let Pod { undo, lock, dir, .. } = pod;
    if let Err(error) = undo.delete() {
        failure.causes.push(format!("and not all of it could be removed: {error}"));
        let directory = dir.path().display();
        failure.hint =
            Some(format!("Try again with `magikvm rm -f NAME`; the pod's directory is {directory}."));
    }
    drop(lock);
    failure
}

/// Points at which tests make a run fail (`MAGIKVM_FAULT=NAME`), die (`NAME=kill`), panic (`NAME=panic`) or wait until the file
/// `MAGIKVM_HOLD` is gone (`NAME=hold`; it makes a file of that name with the extension `reached`).
pub const FAULT_POINTS: [&str; 6] = ["reserve", "record", "prepare", "start", "reboot", "ready"];

#[cfg(feature = "testing")]
fn fault(point: &str) -> Result<(), Failure> {
    debug_assert!(FAULT_POINTS.contains(&point));
    match std::env::var("MAGIKVM_FAULT") {
        Ok(wanted) if wanted == point => {
            Err(Failure::message(RunStage::Prepare, Blame::Internal, format!("fault injected at {point}")))
        }
        Ok(wanted) if wanted.strip_suffix("=kill") == Some(point) => {
            // A crash: no destructor runs, and no message is sent.
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).ok();
            Ok(())
        }
        Ok(wanted) if wanted.strip_suffix("=hold") == Some(point) => {
            let held = std::env::var_os("MAGIKVM_HOLD").map(PathBuf::from).unwrap_or_default();
            fs::write(held.with_extension("reached"), "").ok();
            while held.exists() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            Ok(())
        }
        #[allow(clippy::panic, reason = "the fault that is tested")]
        Ok(wanted) if wanted.strip_suffix("=panic") == Some(point) => panic!("fault injected at {point}"),
        _ => Ok(()),
    }
}

#[cfg(not(feature = "testing"))]
#[allow(clippy::unnecessary_wraps, reason = "the form that the testing build needs")]
fn fault(_point: &str) -> Result<(), Failure> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::input::{Accepts, Source, read};

    fn request(replaces: Replaces) -> RunRequest {
        let text =
            "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: b}]}\n";
        let source =
            Source { origin: "x".to_owned(), bytes: text.as_bytes().to_vec(), accepts: Accepts::Everything };
        let plan = read(&[source], &mut |_, _| None).into_manifests().unwrap().pods.remove(0).plan;
        RunRequest { replaces, ..RunRequest::new(plan, PathBuf::new()) }
    }

    #[test]
    fn a_run_that_replaces_is_not_told_to_replace() {
        let says = |replaces| {
            let failure = exists(&request(replaces), "is running", LockState::Held);
            format!("{}. {}", failure.message, failure.hint.unwrap_or_default())
        };
        assert_eq!(
            says(Replaces::Nothing),
            "a pod named default/web is running. Replace it with `--replace`, remove it first with `magikvm rm -f default/web`, or change metadata.name."
        );
        assert_eq!(
            says(Replaces::OldPod),
            "a pod named default/web is running: another run has taken the name while this one was replacing the pod. \
             See what runs now with `magikvm inspect default/web`. Repeat this run if it is to replace that pod, too."
        );
    }
}
