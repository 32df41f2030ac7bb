//! The start of one pod.

use super::signals::{Watch, cancelled};
use super::view::Viewer;
use crate::cli::error::{CliError, Kind};
use crate::cli::{duration, ui};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::launch::{Launched, StartNews};
use crate::pod::run::RunRequest;
use crate::pod::status;
use crate::store::lock::LockState;
use crate::store::record::Found;
use crate::store::text::ignore;
use magikvm_proto::id::PodId;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// A pod that runs. Without this value its monitor goes on alone.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) id: PodId,
    pub(super) launched: Launched,
}

/// Starts the pod of a request, which has this number in the input, and waits until it runs.
pub(super) fn start(
    pods: &PodRuntimeInterface,
    request: &RunRequest,
    number: usize,
    watch: &Watch,
    viewer: Option<&Viewer>,
) -> Result<Started, CliError> {
    let id = request.plan.id.clone();
    let finds_ports = request.plan.published.iter().any(|port| port.host_port == 0);
    let mut launched = pods.run_pod(request).map_err(CliError::of_failure)?;
    match launched.canceller() {
        Ok(canceller) => watch.begin(number, canceller),
        // Dropping `launched` would leave the pod to itself.
        Err(error) => {
            launched.cancel();
            ignore(launched.await_ready(&mut |_| {}), "it was cancelled");
            return Err(CliError::of(Kind::Environment, &error));
        }
    }
    let mut progress = ui::PullProgress::new();
    let came = launched.await_ready(&mut |news| match news {
        StartNews::Pulling { image, progress: now } => progress.show(&image.familiar(), now),
        StartNews::Warning(message) => ui::warn(message),
        StartNews::Begun => viewer.into_iter().for_each(Viewer::begin),
        StartNews::Unwritten { container, entries } => {
            viewer.into_iter().for_each(|viewer| viewer.unwritten(container, entries));
        }
        StartNews::Initializing { container, number, of } if std::io::stderr().is_terminal() => {
            ui::note(&format!("Running init container {container} ({number}/{of})"));
        }
        StartNews::Initializing { .. } => {}
    });
    progress.end();
    came.map_err(|failure| match failure {
        Some(failure) => CliError::of_failure(failure),
        None => ended_early(pods, &id),
    })?;
    if watch.runs(number) {
        // Its monitor waits for this end of the connection.
        drop(launched);
        crate::cli::down::remove(pods, &id)?;
        return Err(cancelled("the start was cancelled"));
    }
    viewer.into_iter().for_each(Viewer::ready);
    if finds_ports {
        show_ports(pods, &id);
    }
    Ok(Started { id, launched })
}

/// Waits until a pod that runs is ready.
pub(super) fn await_ready(
    pods: &PodRuntimeInterface,
    id: &PodId,
    timeout: Duration,
    watch: &Watch,
) -> Result<(), CliError> {
    watch.waits();
    let (began, deadline) = (Instant::now(), Instant::now() + timeout);
    let mut progress = ui::WaitProgress::new();
    let waited = crate::cli::wait::ready(pods, id, &mut |found| {
        if watch.is_cancelled() {
            let message = format!("the wait for pod {id} was cancelled; the pod goes on running");
            return Err(cancelled(&message));
        }
        if Instant::now() > deadline {
            let message =
                format!("pod {id} is not ready after {}; it goes on running", duration::short(timeout));
            return Err(CliError::new(Kind::User, message).hint(format!(
                "See what it lacks with `magikvm describe pod {id}`, or allow more time with `--wait-timeout`."
            )));
        }
        let (ready, of) = status::readiness(found);
        let secs = began.elapsed().as_secs();
        progress.show(&format!("Waiting until pod {id} is ready ({secs} s): {ready}/{of} containers"));
        Ok(())
    });
    progress.end();
    waited
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
    let stage = pods.find(id).map_or(RunStage::Reserve, |found| stage(&found));
    CliError::of_failure(
        Failure::message(stage, Blame::Internal, "the pod's monitor ended before the pod ran")
            .hint("See what is left with `magikvm ps`, and remove it with `magikvm rm -f NAME`."),
    )
}

/// How far the start of a pod had come, as its files tell.
fn stage(found: &Found) -> RunStage {
    match (&found.record, &found.state) {
        (None, _) => RunStage::Reserve,
        (Some(_), None) => RunStage::Prepare,
        (Some(_), Some(state)) if !state.conditions.sandbox_ready.holds => RunStage::Boot,
        (Some(_), Some(_)) => RunStage::Container,
    }
}

/// Which ports were free.
fn show_ports(pods: &PodRuntimeInterface, id: &PodId) {
    let state = pods.find(id).ok().and_then(|found| found.state);
    for port in state.map(|state| state.ports).unwrap_or_default() {
        ui::note(&format!("Published {port}"));
    }
}
