//! The flow of a run: plan -> reserve -> resolve images -> prepare -> start -> await ready -> commit. It is the same for every runtime
//! class. No step holds clean-up code: each step journals the undoing of what it makes before it makes it.

use super::failure::{Blame, Failure, RunStage};
use super::logdir;
use super::ports::{self, Published};
use super::pull::{PullRequest, of_image};
use crate::image::{Image, ImageError, ImageStore, Policy, PullPolicy, Reference, Wanted};
use crate::manifest::logs::LogOptions;
use crate::manifest::{ContainerSpec, PodPlan};
use crate::runtime::{self, PodRuntime, PodToPrepare, RuntimeError, Sandbox, VmOptions};
use crate::store::atomic::{self, FileError};
use crate::store::layout::{Layout, PodDir};
use crate::store::lock::{self, Lock, LockState};
use crate::store::record::{self, ContainerRecord, Found, PodRecord, SCHEMA};
use crate::store::sandbox::SandboxFailure;
use crate::store::undo::{self, Scope, Step, Undo};
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
    /// `--root`, if given.
    pub root: Option<PathBuf>,
    /// Options of the pod's VM, for classes that have one.
    pub vm: VmOptions,
    /// Seconds that the pull of each image may take.
    pub pull_timeout_secs: u64,
    /// Limits of the logs, before those of the manifest.
    pub logs: LogOptions,
    /// Milliseconds that the start may be without progress after the agent's first answer.
    pub ready_wait_ms: u64,
    pub at_end: AtEnd,
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
    fn pull(&mut self, dir: &PodDir, request: &PullRequest) -> Result<(), Failure>;

    /// Warns the user about the pod in this directory.
    fn warn(&mut self, dir: &PodDir, message: &str);

    /// Returns when all containers run (or have completed), or the reason why they do not.
    fn await_ready(&mut self, pod: &mut Pod, sandbox: Box<dyn Sandbox>) -> Result<(), Failure>;
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
    pod.images = resolve_images(request, layout, &pod.dir, &runtime.platform(), observer)?;
    write_record(request, runtime, pod)?;
    fault("record")?;
    let uid = pod.uid.clone();
    let scratch = layout.scratch(&uid);
    let to_prepare = PodToPrepare {
        plan: &request.plan,
        uid: &uid,
        images: &pod.images,
        dir: &pod.dir,
        scratch: &scratch,
    };
    let prepared = runtime.prepare(&to_prepare, &mut pod.undo).map_err(of_runtime(RunStage::Prepare))?;
    for warning in prepared.warnings() {
        observer.warn(&pod.dir, warning);
    }
    fault("prepare")?;
    let sandbox = runtime.start(prepared, &mut pod.undo).map_err(of_runtime(RunStage::Boot))?;
    fault("start")?;
    observer.await_ready(pod, sandbox)?;
    fault("ready")
}

/// The pod's runtime class, if this host can run it.
fn plan(request: &RunRequest, layout: &Layout) -> Result<Box<dyn PodRuntime>, Failure> {
    let runtime = runtime::of(request.plan.runtime_class, &request.vm, layout)
        .map_err(|error| Failure::new(RunStage::Plan, Blame::User, &error).hint(error.hint()))?;
    runtime.probe().map_err(|unavailable| {
        let message = format!("the host cannot run the pod: {}", unavailable.reason);
        Failure::message(RunStage::Plan, Blame::Environment, message).hint(unavailable.remedy)
    })?;
    Ok(runtime)
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
            "list the pods with `magikvm ps`, and remove some with `magikvm rm NAME`; {}.",
            raised::remedy("pods")
        )));
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(dir.path())
        .map_err(FileError::at("create directory", dir.path()))
        .map_err(failed())?;
    let uid = uuid::Uuid::new_v4().to_string();
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
            Ok(Pod { dir, uid, undo, lock, ports: Published::default(), images: Vec::new() })
        }
        Ok((None, _)) => Err(exists(request, "is being started by somebody else")),
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
        let what = match (found.lock, found.is_lost()) {
            (LockState::Held, _) => "is running",
            (LockState::Free, _) if !found.damage.is_empty() => "is there (damaged)",
            (LockState::Free, true) => "is there (Lost)",
            (LockState::Free, false) => "is there (ended)",
        };
        return Err(exists(request, what));
    }
    Undo::recover(dir, &layout.removable()).delete().map_err(failed())
}

fn exists(request: &RunRequest, what: &str) -> Failure {
    let id = &request.plan.id;
    Failure::message(RunStage::Reserve, Blame::User, format!("a pod named {id} {what}"))
        .hint(format!("remove it first with `magikvm rm -f {id}`, or change metadata.name."))
}

/// Resolves the pod's images in the order of its containers, and pulls them where the manifest says so.
fn resolve_images(
    request: &RunRequest,
    layout: &Layout,
    dir: &PodDir,
    wanted_platform: &Wanted,
    observer: &mut dyn Observer,
) -> Result<Vec<Image>, Failure> {
    let store = ImageStore::open(&layout.images()).map_err(|error| of_image(&error))?;
    let policy = Policy::load(&layout.policy()).map_err(|error| of_image(&error.into()))?;
    let mut images: Vec<(Reference, PullPolicy)> = Vec::new();
    for container in &request.plan.containers {
        let context = |failure| of_container(container, failure);
        let name = &container.image;
        let here =
            store.present(name, &policy, wanted_platform).map_err(|error| context(of_image(&error)))?;
        let when = match (container.pull_policy, &here) {
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
    if !images.is_empty() {
        let (root, platform) = (request.root.clone(), wanted_platform.clone());
        let timeout_secs = request.pull_timeout_secs;
        observer.pull(dir, &PullRequest { root, images, platform, timeout_secs })?;
    }
    let resolve = |container: &ContainerSpec| {
        let name = &container.image;
        let failed = |error: ImageError| of_container(container, of_image(&error));
        let image = store.resolve(name).map_err(failed)?;
        image.mark_used().map_err(failed)?;
        let platform = image.record.platform();
        if wanted_platform.takes(&platform) {
            return Ok(image);
        }
        let message =
            format!("the image {name} is for {platform}, the pod's VM is {}", wanted_platform.described());
        let failure = Failure::message(RunStage::Image, Blame::User, message);
        let command = format!("magikvm image pull --platform {wanted_platform} {}", name.familiar());
        Err(of_container(container, failure).hint(format!("pull the right image with `{command}`.")))
    };
    request.plan.containers.iter().map(resolve).collect()
}

fn of_container(container: &ContainerSpec, failure: Failure) -> Failure {
    Failure { message: format!("container {}: {}", container.name, failure.message), ..failure }
}

fn write_record(request: &RunRequest, runtime: &dyn PodRuntime, pod: &Pod) -> Result<(), Failure> {
    let plan = &request.plan;
    let containers = plan.containers.iter().zip(&pod.images).map(|(container, image)| ContainerRecord {
        name: container.name.clone(),
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
        created_ms: record::now_ms(),
        manifest: plan.manifest.clone(),
        containers: containers.collect(),
        sandbox: runtime.record(plan),
        grace_secs: plan.grace_seconds,
    };
    record::write_json(&pod.dir.pod_json(), &record).map_err(failed())
}

fn of_runtime(stage: RunStage) -> impl Fn(RuntimeError) -> Failure {
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
            Some(format!("try again with `magikvm rm -f NAME`; the pod's directory is {directory}."));
    }
    drop(lock);
    failure
}

/// Points at which tests make a run fail (`MAGIKVM_FAULT=NAME`), die (`NAME=kill`), panic (`NAME=panic`) or wait until the file
/// `MAGIKVM_HOLD` is gone (`NAME=hold`; it makes a file of that name with the extension `reached`).
pub const FAULT_POINTS: [&str; 5] = ["reserve", "record", "prepare", "start", "ready"];

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
